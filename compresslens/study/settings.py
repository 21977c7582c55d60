"""What of a run's config decides about its images, and what about its training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

EVER_DIFFERENT = ("seed", "num_workers", "eval_batch_size", "download")  # of data: neither images nor training
# Of data, in training only. What is held out for validation does not touch the test images either.
TRAINING = ("batch_size", "train_transforms")
HELD_OUT = ("validation_fraction", "validation_samples")
TRAINING_OF_CLASS = {"MNISTScenes": ("scenes_per_digit", "shortcut")}
TRAINER = (
    *("precision", "max_epochs", "min_epochs", "max_steps", "min_steps", "max_time", "fast_dev_run"),
    *("limit_train_batches", "limit_val_batches", "overfit_batches", "val_check_interval", "check_val_every_n_epoch"),
    *("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm", "sync_batchnorm"),
)
PUBLISHED = ("timm", "package")  # weights that are no path
ABSENT = "not set"


def images(config: Mapping[str, Any], split: str) -> Any:
    """The data set and those of its options that change the images of a split, but for the seed.

    Args:
        config: of a run, resolved.
        split: "test" or "val".
    """
    data = config.get("data")
    if not isinstance(data, dict):
        return data
    kind = str(data.get("class_path", "")).rpartition(".")[2]
    others = EVER_DIFFERENT + TRAINING + TRAINING_OF_CLASS.get(kind, ()) + (HELD_OUT if split == "test" else ())
    return _without(data, others)


def images_seed(config: Mapping[str, Any]) -> int | None:
    """The data set's own seed; None if the config has none."""
    data = config.get("data")
    if not isinstance(data, dict):
        return None
    options = data.get("init_args") or data
    return options.get("seed") if isinstance(options, dict) else None


def training(config: Mapping[str, Any]) -> dict[str, Any]:
    """Model, data and trainer as far as they change what is trained.

    Left out are seeds, files and run folders of weights (those of another seed are other ones), callbacks, loggers and
    devices.
    """
    data, trainer = config.get("data"), config.get("trainer")
    return {
        "model": _without_seeds_and_weights(config.get("model")),
        "data": _without(data, EVER_DIFFERENT) if isinstance(data, dict) else data,
        "trainer": {key: value for key, value in (trainer or {}).items() if key in TRAINER},
    }


def first_difference(ours: Any, theirs: Any, key: str = "") -> str | None:
    """Where two configs differ first, such as "trainer.max_epochs: 1, and 2"; None if they are equal."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name in [*ours, *(name for name in theirs if name not in ours)]:
            found = first_difference(
                ours.get(name, ABSENT), theirs.get(name, ABSENT), f"{key}.{name}" if key else str(name)
            )
            if found is not None:
                return found
        return None
    return None if ours == theirs else f"{key}: {_text(ours)}, and {_text(theirs)}"


def _without(data: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """A copy without some options, which stand in `data` itself or below `init_args`."""
    plain: dict[str, Any] = json.loads(json.dumps(data))
    for options in (plain, plain.get("init_args") or {}):
        for name in names:
            options.pop(name, None)
    return plain


def _without_seeds_and_weights(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_seeds_and_weights(item) for item in value]
    if not isinstance(value, dict):
        return value
    found = {key: _without_seeds_and_weights(item) for key, item in value.items() if key != "seed"}
    if isinstance(found.get("weights"), str) and found["weights"] not in PUBLISHED:
        found["weights"] = "from a file"
    return found


def _text(value: Any) -> str:
    text = value if value == ABSENT else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
