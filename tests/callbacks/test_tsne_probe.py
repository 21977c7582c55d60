"""The t-SNE probe as Lightning runs it: features of the loop's own passes, which figures, and what it leaves behind."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from callbacks import TSNE, Accuracy, Results
from callbacks.tsne import thumbnails
from compresslens.embeddings import cka_interval, knn_correct, linear_cka, silhouettes, trustworthiness, tsne
from compresslens.embeddings.features import FEATURES, tapped_features
from compresslens.errors import UserError
from compresslens.quantization import calibrate, fake_quantize
from datamodules.selection import balanced_indices
from lightning_modules import ImageClassifier
from tests.lightning_modules.recipes import in_pixels
from tests.lightning_modules.test_classifier import everything
from tests.lightning_modules.tiny import (
    CLASSES,
    Noise,
    NoiseData,
    TinyNetwork,
    in_process,
    on_two_ranks,
    trainer,
    unequal,
)

QUICK: dict[str, Any] = {"perplexity": 4, "neighbours": 3}
OTHER_SCHEDULE = (
    "the maps are optimized differently (the reference's by 500 iterations, the model's by 95 from there): compare "
    "what is measured on features, not what is measured on maps"
)
EMBEDDING = {"cka", "knn_accuracy", "silhouette", "trustworthiness"}


@pytest.fixture(autouse=True)
def small_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than all else that these tests do."""
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **options: save(figure, path, **options, dpi=20))


def pair(model: nn.Module | None = None) -> ImageClassifier:
    module = ImageClassifier(TinyNetwork() if model is None else model, channels_last=False)
    module.set_reference(TinyNetwork(6, seed=1))
    return module


def run(
    folder: Path, module: ImageClassifier, what: str = "test", callbacks: Any = None, data: Any = None, **options: Any
) -> Any:
    callbacks = [TSNE(**QUICK)] if callbacks is None else callbacks
    loop = trainer(folder, [*callbacks, Results()], **options)
    getattr(loop, what)(module, datamodule=data or NoiseData(), verbose=False)
    return json.loads((folder / "results.json").read_text())


def separate_pass(network: nn.Module, images: Tensor) -> Any:
    """Features in batches as the loop has them, without taps."""
    found = []
    with torch.no_grad():
        for batch in images.split(10):
            found.append(network.layer2(network.layer1(batch)).mean((2, 3)))  # type: ignore[operator]
    return torch.cat(found).numpy()


def hooks(network: nn.Module | None) -> int:
    assert network is not None
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())


def embedding(written: Any) -> dict[str, Any]:
    start = "embedding/"
    return {name.removeprefix(start): m for name, m in written["metrics"].items() if name.startswith(start)}


# The figures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("what", "part"), [("test", "test"), ("validate", "val")])
def test_against_a_pass_of_its_own(tmp_path: Path, what: str, part: str) -> None:
    module = pair()
    written = run(tmp_path, module, what)
    metrics, details = embedding(written), written["details"]["tsne"]
    samples = pd.read_parquet(tmp_path / "samples.parquet")

    images, labels = everything(NoiseData(), part)
    classes = labels.numpy()
    ours, theirs = (separate_pass(network, images) for network in (module.model.eval(), module.reference))  # type: ignore[arg-type]
    reference = tsne(theirs, perplexity=4)
    model = tsne(ours, perplexity=4, initial=reference.positions)
    assert samples["index"].tolist() == list(range(len(images)))
    for prefix, values, of_network in (("", ours, model), ("reference_", theirs, reference)):
        positions = np.stack([samples[f"{prefix}tsne_x"], samples[f"{prefix}tsne_y"]], 1)
        assert positions == pytest.approx(of_network.positions, abs=1e-9)
        assert samples[f"{prefix}embedding_knn"].tolist() == knn_correct(values, classes, 3).tolist()
        key = "reference" if prefix else "value"
        assert metrics["knn_accuracy"][key] == pytest.approx(knn_correct(values, classes, 3).mean())
        assert metrics["silhouette"][key] == pytest.approx(silhouettes(values, classes).mean())
        expected = trustworthiness(values, of_network.positions, 3).mean()
        assert metrics["trustworthiness"][key] == pytest.approx(expected)
    assert set(metrics) == EMBEDDING
    assert metrics["cka"]["value"] == pytest.approx(linear_cka(ours, theirs))
    assert metrics["cka"]["ci95"] == pytest.approx(cka_interval(ours, theirs))
    assert metrics["cka"]["n"] == len(images)
    assert details["images"] == {"wanted": len(images), "covered": len(images), "classes": CLASSES}
    assert details["settings"] == QUICK
    assert details["notes"] == [OTHER_SCHEDULE]
    assert set(details["changes"]) == {"embedding_knn", "embedding_silhouette"}
    assert [details["maps"][name]["iterations"] for name in ("reference", "model")] == [500, 95]
    assert set(details["maps"]) == {"model", "reference"}
    assert written["split"] == part
    assert written["wall_seconds"]["tsne"] > 0
    assert (tmp_path / "figures" / "tsne.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "figures" / "tsne.html").read_text()
    content = json.loads(page.split('type="application/json">')[1].split("</script>")[0])
    assert content["labels"] == labels.tolist()
    with torch.no_grad():
        for of_map, network in zip(content["maps"], (module.reference, module.model), strict=True):
            assert of_map["predicted"] == network(images).argmax(1).tolist()  # type: ignore[misc]


def test_without_a_reference(tmp_path: Path) -> None:
    written = run(tmp_path, ImageClassifier(TinyNetwork()), callbacks=[TSNE(**QUICK, page=False)])
    metrics = embedding(written)
    assert set(metrics) == EMBEDDING - {"cka"}
    assert all(metric["reference"] is None for metric in metrics.values())
    assert set(written["details"]["tsne"]["maps"]) == {"model"}
    columns = pd.read_parquet(tmp_path / "samples.parquet").columns
    assert not [name for name in columns if name.startswith("reference") or name == "tsne_displacement"]
    names = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert names == ["thumbnails.npz", "tsne.png"], "and no page, as was asked"


def test_a_balanced_choice(tmp_path: Path) -> None:
    data, samples = NoiseData(), 21
    written = run(tmp_path, pair(), callbacks=[Accuracy(), TSNE(samples, **QUICK)], data=data)
    assert written["details"]["tsne"]["images"] == {"wanted": samples, "covered": samples, "classes": CLASSES}
    frame = pd.read_parquet(tmp_path / "samples.parquet")
    chosen = frame.loc[frame["tsne_x"].notna(), "index"].to_numpy()
    assert len(frame) == 43
    assert np.bincount(data.labels("test")[chosen]).tolist() == [samples // CLASSES] * CLASSES


@pytest.mark.slow
def test_a_network_with_fake_quantizers(tmp_path: Path) -> None:
    network: Any = in_pixels(TinyNetwork())
    fake_quantize(network)
    images, labels = everything(NoiseData(), "test")
    calibrate(network, [images])
    graph = next(m for m in network.modules() if isinstance(m, torch.fx.GraphModule))
    before = set(vars(graph))
    written = run(tmp_path, pair(network))
    with torch.no_grad(), tapped_features(network.eval()) as taps:
        network(images)
    correct = knn_correct(taps[FEATURES].numpy(), labels.numpy(), 3)
    assert embedding(written)["knn_accuracy"]["value"] == correct.mean()
    assert set(vars(graph)) == before
    assert hooks(network) == 0


# Passes ---------------------------------------------------------------------------------------------------------------


class Counter:
    """Counts the forward passes of a network, but for the trial with a single image before all."""

    def __init__(self, network: nn.Module | None) -> None:
        assert network is not None
        self.calls = 0
        self.handle = network.register_forward_hook(self._count)

    def _count(self, _network: nn.Module, inputs: tuple[Tensor], _logits: Tensor) -> None:
        self.calls += len(inputs[0]) > 1


@pytest.mark.parametrize(
    ("others", "of_reference"),
    [
        (lambda probe: [probe], 5),
        (lambda probe: [Accuracy(), probe], 5),
        (lambda probe: [probe, Accuracy()], 10),  # the one in front does not know of the one behind
    ],
    ids=["alone", "behind accuracy", "in front of accuracy"],
)
def test_no_pass_more_than_needed(tmp_path: Path, others: Any, of_reference: int) -> None:
    module = pair()
    counters = Counter(module.model), Counter(module.reference)
    run(tmp_path, module, callbacks=others(TSNE(**QUICK)))
    assert [counter.calls for counter in counters] == [5, of_reference]
    for counter in counters:
        counter.handle.remove()
    theirs = separate_pass(module.reference, everything(NoiseData(), "test")[0])  # type: ignore[arg-type]
    columns = pd.read_parquet(tmp_path / "samples.parquet")
    expected = silhouettes(theirs, NoiseData().labels("test"))
    assert columns["reference_embedding_silhouette"].to_numpy() == pytest.approx(expected, abs=1e-6), "of its own batch"


def test_the_reference_is_not_asked_about_batches_without_chosen_images(tmp_path: Path) -> None:
    module = pair()
    counter = Counter(module.reference)
    run(tmp_path, module, callbacks=[TSNE(1, **QUICK)])
    assert counter.calls == 1


def test_other_probes_see_networks_without_taps(tmp_path: Path) -> None:
    class Look(pl.Callback):
        seen: tuple[int, ...] = ()

        def on_test_batch_end(self, loop: Any, module: Any, *args: Any) -> None:
            self.seen += (hooks(module.model) + hooks(module.reference),)

    look = Look()
    run(tmp_path, pair(), callbacks=[TSNE(**QUICK), look])
    assert all(count > 0 for count in look.seen[:-1])
    assert look.seen[-1] == 0


@pytest.mark.parametrize("what", ["test", "validate", "fit"])
def test_taps_are_gone_after_an_error(tmp_path: Path, what: str) -> None:
    class Interrupt(pl.Callback):
        armed = True

        def strike(self, *args: Any) -> None:
            if self.armed and args[4] == 1:
                assert hooks(module.model) > 0
                raise RuntimeError("interrupted")

        on_test_batch_end = on_validation_batch_end = strike  # type: ignore[assignment]

    module = pair()
    module.optimizer = partial(torch.optim.SGD, lr=0.01)  # type: ignore[assignment]
    interrupt, probe = Interrupt(), TSNE(**QUICK, every_n_epochs=1)
    loop = trainer(tmp_path, [probe, interrupt, Results()])
    with pytest.raises(RuntimeError, match="interrupted"):
        getattr(loop, what)(module, datamodule=NoiseData())
    assert hooks(module.model) == hooks(module.reference) == 0
    interrupt.armed = False
    loop.test(module, datamodule=NoiseData(), verbose=False)
    assert len(pd.read_parquet(tmp_path / "samples.parquet")) == 43, "of what was interrupted nothing is left"
    assert hooks(module.model) == hooks(module.reference) == 0


# Within a fit ---------------------------------------------------------------------------------------------------------


def test_within_a_fit(tmp_path: Path) -> None:
    """It can be watched epoch by epoch, and the training is bitwise the same."""
    states = []
    for callbacks in ([], [TSNE(**QUICK, every_n_epochs=2), Results()]):
        pl.seed_everything(0, verbose=False)
        module = pair()
        module.optimizer = partial(torch.optim.SGD, lr=0.1)  # type: ignore[assignment]
        counter = Counter(module.reference)
        loop = trainer(tmp_path, callbacks, max_epochs=3, num_sanity_val_steps=1)
        loop.fit(module, datamodule=NoiseData())
        states.append({**module.model.state_dict(), "random": torch.get_rng_state()})
    assert unequal(states[0], states[1]) == []
    assert counter.calls == 3, "three batches, in the second epoch's validation"
    logged = {name for name in loop.callback_metrics if "embedding" in name}
    assert logged == {f"val/embedding/{name}" for name in EMBEDDING}
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["tsne_epoch1.html", "tsne_epoch1.png"]
    assert not (tmp_path / "results.json").exists()
    loop.test(module, datamodule=NoiseData(), verbose=False)
    assert embedding(json.loads((tmp_path / "results.json").read_text())).keys() == EMBEDDING
    assert (tmp_path / "figures" / "tsne.html").is_file()


def test_not_within_a_fit_unless_asked(tmp_path: Path) -> None:
    module = pair()
    module.optimizer = partial(torch.optim.SGD, lr=0.1)  # type: ignore[assignment]
    counter = Counter(module.reference)
    trainer(tmp_path, [TSNE(**QUICK), Results()], max_epochs=1).fit(module, datamodule=NoiseData())
    assert counter.calls == 0
    assert not (tmp_path / "figures").exists()


# What the images do not admit -----------------------------------------------------------------------------------------


def test_too_few_images_for_the_perplexity(tmp_path: Path) -> None:
    written = run(tmp_path, pair(), callbacks=[TSNE(neighbours=3)])
    assert set(embedding(written)) == EMBEDDING - {"trustworthiness"}
    details = written["details"]["tsne"]
    reason = "a perplexity of 30 needs 91 samples, there are 43: take more, or lower the perplexity to 14 or less"
    assert details["notes"] == [f"no t-SNE map of the {name}: {reason}" for name in ("reference", "model")]
    assert details["maps"] == {}
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["thumbnails.npz"]
    assert "embedding_knn" in pd.read_parquet(tmp_path / "samples.parquet")


@pytest.mark.parametrize("samples", [1, 3])
def test_hardly_any_image(tmp_path: Path, samples: int) -> None:
    written = run(tmp_path, pair(), callbacks=[TSNE(samples, **QUICK)])
    assert set(embedding(written)) == {"silhouette"}
    notes = written["details"]["tsne"]["notes"]
    assert f"no t-SNE map of the model: a t-SNE map needs at least 4 samples, there are {samples}" in notes
    assert any(note.startswith("no kNN accuracy of the model: k is 3; with ") for note in notes)


def test_too_many_neighbours(tmp_path: Path) -> None:
    written = run(tmp_path, pair(), callbacks=[TSNE(perplexity=4, neighbours=30)])
    assert set(embedding(written)) == EMBEDDING - {"trustworthiness"}
    (of_reference, of_model, about_maps) = written["details"]["tsne"]["notes"]
    assert about_maps == OTHER_SCHEDULE
    assert of_model.startswith("no trustworthiness, continuity of the model: k is 30; with 43 samples")
    assert of_reference == of_model.replace("model", "reference")
    assert (tmp_path / "figures" / "tsne.png").is_file(), "the map can be drawn"
    assert (tmp_path / "figures" / "tsne.html").is_file()


class OneClass(NoiseData):
    """All images are of class 2."""

    def build_dataset(self, split: Any) -> Noise:
        dataset = super().build_dataset(split)
        dataset.targets[:] = 2
        return dataset


def test_one_class_only(tmp_path: Path) -> None:
    written = run(tmp_path, pair(), data=OneClass())
    metrics = embedding(written)
    assert metrics["knn_accuracy"]["value"] == 1
    assert metrics["silhouette"] == {"value": None, "ci95": None, "n": 43, "reference": None}
    assert 0.5 < metrics["trustworthiness"]["value"] <= 1
    assert written["details"]["tsne"]["images"]["classes"] == 1
    assert (tmp_path / "figures" / "tsne.png").is_file()


def spoilt(value: float) -> TinyNetwork:
    """All its features are `value`."""
    network = TinyNetwork()
    normalization: Any = network.layer2[1]
    normalization.weight.data.fill_(0)
    normalization.bias.data.fill_(value)
    return network


def test_constant_features(tmp_path: Path) -> None:
    written = run(tmp_path, pair(spoilt(0.5)))
    metrics = embedding(written)
    assert metrics["cka"] == {"value": None, "ci95": None, "n": 43, "reference": None}
    assert metrics["silhouette"]["value"] == 0
    assert metrics["silhouette"]["reference"] != 0
    assert set(pd.read_parquet(tmp_path / "samples.parquet")["tsne_x"]) == {0.0}
    assert (tmp_path / "figures" / "tsne.html").is_file()


def test_a_constant_reference_is_nothing_to_start_from(tmp_path: Path) -> None:
    module = pair()
    module.set_reference(spoilt(0.5))
    written = run(tmp_path, module)
    assert written["details"]["tsne"]["notes"] == []
    alone = run(tmp_path / "alone", ImageClassifier(TinyNetwork(), channels_last=False))
    name = "trustworthiness"
    assert embedding(written)[name]["value"] == embedding(alone)[name]["value"]


def test_a_model_whose_features_are_no_numbers(tmp_path: Path) -> None:
    written = run(tmp_path, pair(spoilt(float("nan"))))
    metrics = embedding(written)
    assert set(metrics) == EMBEDDING - {"cka"}
    for name, metric in metrics.items():
        assert (metric["value"], metric["ci95"]) == (None, None), name
        assert metric["reference"] is not None, name
    (note,) = written["details"]["tsne"]["notes"]
    assert note.startswith(
        "no t-SNE map, kNN accuracy, silhouette of the model: features contain NaN or infinity in 43"
    )
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["thumbnails.npz"]


def test_a_reference_whose_features_are_no_numbers(tmp_path: Path) -> None:
    module = pair()
    module.set_reference(spoilt(float("nan")))
    written = run(tmp_path, module)
    metrics = embedding(written)
    assert set(metrics) == EMBEDDING - {"cka"}
    assert all(metric["value"] is not None and metric["reference"] is None for metric in metrics.values())
    assert len(written["details"]["tsne"]["notes"]) == 1
    assert (tmp_path / "figures" / "tsne.png").is_file()


class TwoHeads(TinyNetwork):
    """Which of them is the classifier?"""

    num_classes = CLASSES

    def get_classifier(self) -> nn.Module:
        return nn.ModuleList([self.classifier, self.classifier_too])

    def __init__(self) -> None:
        super().__init__()
        self.classifier_too = nn.Linear(8, CLASSES)


@pytest.mark.parametrize("which", ["model", "reference"])
def test_a_network_without_a_single_classifier(tmp_path: Path, which: str) -> None:
    module = pair(TwoHeads() if which == "model" else None)
    if which == "reference":
        module.set_reference(TwoHeads())
    written = run(tmp_path, module)
    (note,) = written["details"]["tsne"]["notes"]
    assert note.startswith(f"no features of the {which}: TwoHeads has no single linear or convolutional layer")
    assert set(embedding(written)) == (set() if which == "model" else EMBEDDING - {"cka"})
    assert hooks(module.model) == hooks(module.reference) == 0


def test_some_batches_only(tmp_path: Path) -> None:
    written = run(tmp_path, pair(), limit_test_batches=2)
    details = written["details"]["tsne"]
    assert details["images"] == {"wanted": 43, "covered": 20, "classes": CLASSES}
    said = "20 of 43 chosen images were among the batches; the figures are of those"
    assert details["notes"] == [said, OTHER_SCHEDULE]
    assert pd.read_parquet(tmp_path / "samples.parquet")["index"].tolist() == list(range(20))


def test_no_chosen_image_among_the_batches(tmp_path: Path) -> None:
    labels = NoiseData().labels("test")
    seed = next(seed for seed in range(9) if balanced_indices(labels, 1, seed)[0] >= 10)
    data = NoiseData(seed=seed)
    written = run(tmp_path, pair(), callbacks=[TSNE(1, **QUICK)], data=data, limit_test_batches=1)
    assert embedding(written) == {}
    details = written["details"]["tsne"]
    assert details["notes"] == ["none of the chosen images was among the batches"]
    assert details["images"] == {"wanted": 1, "covered": 0}


def test_the_time_is_up(tmp_path: Path) -> None:
    written = run(tmp_path, pair(), callbacks=[TSNE(**QUICK, time_budget=1e-9)])
    details = written["details"]["tsne"]
    assert [details["maps"][name]["finished"] for name in ("reference", "model")] == [False, False]
    assert details["maps"]["model"]["iterations"] < 50
    said = "the time was up before the map of the {} was finished: do not compare it"
    assert details["notes"] == [said.format("reference"), said.format("model"), OTHER_SCHEDULE]
    assert set(embedding(written)) == EMBEDDING
    assert (tmp_path / "figures" / "tsne.png").is_file()


# Precision ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The metrics in float32."""
    return embedding(run(tmp_path_factory.mktemp("plain"), pair()))


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_precision(tmp_path: Path, plain: dict[str, Any], precision: Any) -> None:
    callbacks = [Accuracy(), TSNE(**QUICK)]
    other = embedding(run(tmp_path / "other", pair(), callbacks=callbacks, precision=precision))
    for name in ("silhouette", "cka"):
        assert other[name]["value"] == pytest.approx(plain[name]["value"], abs=0.02)
    frame = pd.read_parquet(tmp_path / "other" / "samples.parquet")
    page = (tmp_path / "other" / "figures" / "tsne.html").read_text()
    reference, model = json.loads(page.split('type="application/json">')[1].split("</script>")[0])["maps"]
    assert model["predicted"] == frame["prediction"].tolist(), "as accuracy has it"
    assert reference["predicted"] == frame["reference_prediction"].tolist()


# Thumbnails -----------------------------------------------------------------------------------------------------------


def test_small_images_are_shown_as_they_are() -> None:
    images = torch.rand(3, 3, 20, 32)
    small = thumbnails(images)
    assert (small.shape, small.dtype) == ((3, 20, 32, 3), np.uint8)
    assert np.abs(small / 255 - images.permute(0, 2, 3, 1).numpy()).max() <= 0.5 / 255 + 1e-6


def test_large_images_are_averaged() -> None:
    small = thumbnails(torch.rand(2, 3, 224, 112, generator=torch.Generator().manual_seed(0)).bfloat16())
    assert small.shape == (2, 32, 16, 3)
    assert float(small.std()) < 30, "noise of standard deviation 74"
    half = torch.zeros(1, 3, 64, 64)
    half[..., 32:] = 1
    row = thumbnails(half)[0, 5, :, 0]
    assert row[:14].tolist() == [0] * 14
    assert row[18:].tolist() == [255] * 14


def test_grey_images_and_values_out_of_range() -> None:
    assert thumbnails(torch.full((1, 1, 40, 40), 0.5)).shape == (1, 32, 32, 3)
    assert set(thumbnails(torch.tensor([-1.0, 2.0]).expand(1, 3, 2, 2)).flatten()) == {0, 255}


# Several processes ----------------------------------------------------------------------------------------------------


def embed_on(folder: Path, devices: int) -> None:
    torch.set_num_threads(1)
    pl.seed_everything(0, verbose=False)
    strategy = "ddp" if devices > 1 else "auto"
    loop = trainer(folder, [Accuracy(), TSNE(40, **QUICK), Results()], devices=devices, strategy=strategy)
    loop.test(pair(), datamodule=NoiseData(), verbose=False)


@pytest.mark.slow
def test_the_number_of_processes_does_not_matter(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert in_process(embed_on, one, 1) == 0
    assert on_two_ranks(embed_on, two, 2) == [0, 0]
    first, second = (json.loads((folder / "results.json").read_text()) for folder in (one, two))
    assert first["metrics"] == second["metrics"]
    assert embedding(first)["cka"]["n"] == 40, "padding is not counted"
    assert first["details"] == second["details"]
    frames = [pd.read_parquet(folder / "samples.parquet") for folder in (one, two)]
    pd.testing.assert_frame_equal(frames[0], frames[1], check_exact=True)
    for name in ("tsne.png", "tsne.html"):
        assert (one / "figures" / name).read_bytes() == (two / "figures" / name).read_bytes()


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "TSNE: samples is 0; it must be at least 1, or null"),
        ({"perplexity": 0.5}, "TSNE: perplexity is 0.5"),
        ({"perplexity": float("nan")}, "TSNE: perplexity is nan"),
        ({"perplexity": float("inf")}, "TSNE: perplexity is inf"),
        ({"neighbours": 0}, "TSNE: neighbours is 0; it must be at least 1"),
        ({"every_n_epochs": 0}, "TSNE: every_n_epochs is 0"),
        ({"time_budget": 0.0}, "TSNE: time_budget is 0.0; it must be positive"),
    ],
)
def test_settings_that_make_no_sense(options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        TSNE(**options)
