from __future__ import annotations

import copy
import logging
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from callbacks import BestCheckpoint, LastCheckpoint
from compresslens.distillation import HintLoss, LogitKDLoss
from compresslens.errors import UserError
from compresslens.footprint import count_macs, count_parameters
from compresslens.networks.changes import changes_of
from compresslens.pruning.layers import weight_layers
from compresslens.pruning.masks import unpack
from lightning_modules import ImageClassifier
from lightning_modules.pruning import PruneAndFinetune
from tests.lightning_modules.recipes import augmentation
from tests.lightning_modules.test_classifier import Losses
from tests.lightning_modules.tiny import BATCHES, SIZE, NoiseData, TinyNetwork, trainer

OPTIMIZER = partial(SGD, lr=0.1, momentum=0.9, weight_decay=1e-3)


def pruning(*arguments: Any, network: nn.Module | None = None, **options: Any) -> PruneAndFinetune:
    return PruneAndFinetune(network or TinyNetwork(8), *arguments, **{"optimizer": OPTIMIZER, **options})


class Zeros(pl.Callback):
    """What is zero, and the widths, after every optimizer step and before every batch."""

    def __init__(self) -> None:
        self.before: list[dict[str, Tensor]] = []
        self.after: list[dict[str, Tensor]] = []
        self.shapes: list[list[int]] = []
        self.finished: list[bool] = []

    def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
        self.after.append(zeros(module.model))
        self.shapes.append([len(layer.weight) for layer in weight_layers(module.model).values()])
        self.finished.append(module.compression_finished)

    def shares(self) -> list[float]:
        return [share_of_zeros(found) for found in self.after]


def zeros(network: nn.Module) -> dict[str, Tensor]:
    return {name: layer.weight.detach() == 0 for name, layer in weight_layers(network).items()}


def share_of_zeros(found: dict[str, Tensor], layer: str = "layer2.0") -> float:
    return float(found[layer].double().mean())


def fit(folder: Path, module: pl.LightningModule, *callbacks: pl.Callback, **options: Any) -> list[float]:
    """The losses of the steps."""
    losses = Losses()
    loop = trainer(folder, [losses, *callbacks], **{"max_epochs": 2, **options})
    loop.fit(module, datamodule=NoiseData(train_transforms=augmentation()))
    return losses.values


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return list(states[0]) == list(states[1]) and all(
        torch.equal(states[0][name], states[1][name]) for name in states[0]
    )


# What it comes down to at the ends of its settings --------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"sparsity": 0.0},
        {"sparsity": 0.0, "scope": "layer", "criterion": "taylor", "schedule": "cubic"},
        {"structure": "channels", "sparsity": 0.0},
        {"structure": "channels", "parameters": 100_000, "sparsity": None},
        {"structure": "channels", "sparsity": 0.0, "schedule": "iterative", "schedule_steps": 2},
        {"sparsity": 0.0, "losses": [LogitKDLoss(weight=0.0)]},
    ],
    ids=["unstructured", "gradual", "channels", "more than there are", "gradual channels", "no distillation"],
)
def test_without_pruning_it_is_the_classifier(tmp_path: Path, options: dict[str, Any]) -> None:
    if options.get("parameters"):
        options = {**options, "parameters": count_parameters(TinyNetwork(8))[0]}
    ours, plain = pruning(**options), ImageClassifier(TinyNetwork(8), OPTIMIZER)
    assert fit(tmp_path, ours, max_epochs=3) == fit(tmp_path, plain, max_epochs=3)
    assert same_weights(ours.model, plain.model)
    assert changes_of(ours.model) == []


# Single weights -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", ["l1", "l2", "taylor", "lamp", "random"])
@pytest.mark.parametrize("optimizer", [OPTIMIZER, partial(AdamW, lr=0.01)], ids=["sgd", "adamw"])
def test_zeros_are_exact_after_every_step(tmp_path: Path, criterion: str, optimizer: Any) -> None:
    module, seen = pruning(sparsity=0.7, criterion=criterion, optimizer=optimizer), Zeros()
    fit(tmp_path, module, seen)
    assert len(seen.after) == 2 * BATCHES
    assert seen.shares() == [pytest.approx(0.7, abs=1e-3)] * len(seen.after)
    assert all(torch.equal(found["layer2.0"], seen.after[0]["layer2.0"]) for found in seen.after)
    weight = module.model.layer2[0].weight.detach()
    assert not weight[weight == 0].signbit().any()
    assert not seen.after[-1]["layer1.0"].any(), "kept"
    assert module.compression_finished


def test_zeros_are_exact_with_mixed_precision_and_accumulated_gradients(tmp_path: Path) -> None:
    module, seen = pruning("n:m", pattern="1:4"), Zeros()
    fit(tmp_path, module, seen, precision="bf16-mixed", accumulate_grad_batches=2, gradient_clip_val=0.1)
    assert seen.shares() == [0.75] * (2 * BATCHES)


def test_the_rest_is_trained_and_the_reference_is_not(tmp_path: Path) -> None:
    module = pruning(sparsity=0.5, losses=[LogitKDLoss()])
    before = copy.deepcopy(module.model.state_dict())
    fit(tmp_path, module)
    assert module.reference is not None
    assert all(torch.equal(before[name], value) for name, value in module.reference.state_dict().items())
    weight = module.model.layer2[0].weight
    assert (weight[weight != 0] != before["layer2.0.weight"][weight != 0]).all()


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [("iterative", [0.2, 0.4, 0.6, 0.8]), ("cubic", [0.8 * (1 - (1 - step / 4) ** 3) for step in (1, 2, 3, 4)])],
)
def test_schedules(tmp_path: Path, schedule: Any, shares: list[float]) -> None:
    timing = {"schedule": schedule, "schedule_steps": 4, "schedule_begin": 0.25, "schedule_end": 0.75}
    module, seen = pruning(sparsity=0.8, **timing), Zeros()
    fit(tmp_path, module, seen)
    # 18 steps: before numbers 5 (4.5), 8 (7.5), 11 (10.5) and 14 (13.5)
    expected = [0.0] * 5 + [shares[0]] * 3 + [shares[1]] * 3 + [shares[2]] * 3 + [shares[3]] * 4
    assert seen.shares() == pytest.approx(expected, abs=1e-3)
    assert seen.finished == [False] * 14 + [True] * 4
    for one, next_ in zip(seen.after, seen.after[1:], strict=False):
        assert not (one["layer2.0"] & ~next_["layer2.0"]).any(), "what is zero stays zero"


def test_a_pattern_on_a_schedule(tmp_path: Path) -> None:
    module, seen = pruning("n:m", schedule="iterative", schedule_steps=2, schedule_end=0.5), Zeros()
    fit(tmp_path, module, seen)
    assert seen.shares() == [0.25] * 9 + [0.5] * 9


def test_updates_do_not_depend_on_how_batches_make_up_steps(tmp_path: Path) -> None:
    module, seen = pruning(sparsity=0.8, schedule="iterative", schedule_steps=2, schedule_end=0.5), Zeros()
    fit(tmp_path, module, seen, accumulate_grad_batches=3)
    assert seen.shares() == pytest.approx([0.4] * 9 + [0.8] * 9, abs=1e-3)


def test_a_chain_of_two_prunings_is_monotone(tmp_path: Path) -> None:
    first = pruning(sparsity=0.5, keep_first_and_last=False)
    fit(tmp_path, first)
    before = zeros(first.model)
    second, seen = pruning(sparsity=0.8, schedule="cubic", network=first.model), Zeros()
    fit(tmp_path, second, seen)
    for found in seen.after:
        assert all(found[name][before[name]].all() for name in before), "in the layers that are kept now, too"
    assert seen.shares()[-1] == pytest.approx(0.8, abs=1e-3)
    assert before["layer1.0"].any()


def test_checkpoints_hold_the_masks_a_bit_each(tmp_path: Path) -> None:
    module = pruning(sparsity=0.7)
    fit(tmp_path, module, BestCheckpoint(), LastCheckpoint())
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    packed = state["pruning"]["masks"]
    assert list(packed) == ["layer2.0"]
    assert packed["layer2.0"]["bits"].dtype == torch.uint8
    assert packed["layer2.0"]["bits"].numel() == 16 * 8 * 9 / 8
    assert torch.equal(unpack(packed["layer2.0"]), state["state_dict"]["model.layer2.0.weight"] != 0)


def test_masks_are_not_derived_from_zeros(tmp_path: Path) -> None:
    """A weight that happens to be zero when the checkpoint is written goes on to be trained."""
    module = pruning(sparsity=0.5)
    fit(tmp_path, module, LastCheckpoint(), BestCheckpoint())
    path = tmp_path / "checkpoints" / "last.ckpt"
    state = torch.load(path, weights_only=True)
    weight, mask = state["state_dict"]["model.layer2.0.weight"], unpack(state["pruning"]["masks"]["layer2.0"])
    weight[5] = 0
    torch.save(state, path)
    continued = pruning(sparsity=0.5)
    loop = trainer(tmp_path, [], max_epochs=3)
    loop.fit(continued, datamodule=NoiseData(train_transforms=augmentation()), ckpt_path=path, weights_only=True)
    assert torch.equal(continued.model.layer2[0].weight != 0, mask)


# Channels -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [{"macs": 0.6}, {"parameters": 0.5}, {"sparsity": 0.45}, {"parameters": 3000}])
def test_channels_before_training(tmp_path: Path, target: dict[str, float]) -> None:
    network = TinyNetwork(16)
    total = {"macs": count_macs(network, SIZE), "parameters": count_parameters(network)[0]}
    module, seen = pruning("channels", network=network, keep_first_and_last=False, **target), Zeros()
    fit(tmp_path, module, seen)
    assert len(set(map(tuple, seen.shapes))) == 1
    ((kind, value),) = target.items()
    if kind == "macs":
        reached = count_macs(module.model, SIZE) / total["macs"]
    else:
        reached = count_parameters(module.model)[0] / (total["parameters"] if value < 1 else 1)
    wanted = 1 - value if kind == "sparsity" else value
    assert reached == pytest.approx(wanted, rel=0.01)
    assert [change["kind"] for change in changes_of(module.model)] == ["remove_channels"]
    assert count_parameters(module.reference)[0] == total["parameters"]  # type: ignore[arg-type]


def test_channels_between_epochs(tmp_path: Path) -> None:
    timing = {"schedule": "iterative", "schedule_steps": 3, "schedule_end": 0.5}
    module = pruning("channels", network=TinyNetwork(16), parameters=0.4, **timing, keep_first_and_last=False)
    seen, best = Zeros(), BestCheckpoint()
    losses = fit(tmp_path, module, seen, best, LastCheckpoint(), max_epochs=5)
    assert len(losses) == 5 * BATCHES
    per_epoch = [seen.shapes[BATCHES * epoch : BATCHES * (epoch + 1)] for epoch in range(5)]
    assert all(len(set(map(tuple, shapes))) == 1 for shapes in per_epoch), "never within an epoch"
    # thresholds 0, 0.25 and 0.5 of five epochs: the beginnings of the epochs 0, 2 and 3
    widths = [sum(shapes[0]) for shapes in per_epoch]
    assert 55 > widths[0] == widths[1] > widths[2] > widths[3] == widths[4]
    assert seen.finished == [False] * 3 * BATCHES + [True] * 2 * BATCHES
    assert count_parameters(module.model)[0] == pytest.approx(0.4 * 5399, rel=0.01)
    saved = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    assert saved["epoch"] >= 3, "no checkpoint before the end of the schedule is the best"
    assert len(saved["changes"]) == 3


def test_the_optimizer_goes_on_with_the_cut_parameters(tmp_path: Path) -> None:
    timing = {"schedule": "iterative", "schedule_steps": 2, "schedule_begin": 0.4, "schedule_end": 0.5}
    module = pruning("channels", network=TinyNetwork(16), sparsity=0.6, **timing, decay_norm_and_bias=False)
    kept: list[Any] = []

    class Watch(pl.Callback):
        def on_train_epoch_start(self, loop: Any, module: Any) -> None:
            state = loop.optimizers[0].state
            kept.append(dict(state))

    loop = trainer(tmp_path, [Watch()], max_epochs=4)
    loop.fit(module, datamodule=NoiseData())
    optimizer = loop.optimizers[0]
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert {id(parameter) for parameter in trained} == {id(parameter) for parameter in module.parameters()}
    assert all(optimizer.state[parameter]["momentum_buffer"].shape == parameter.shape for parameter in trained)
    assert len(optimizer.state) == len(trained), "nothing of the parameters that are gone"
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-3, 0.0]
    assert all(parameter.ndim <= 1 for parameter in optimizer.param_groups[1]["params"])
    first = module.model.layer1[0].weight
    assert first in kept[-1], "its momentum was not lost, because it was not cut"


def test_zeros_of_before_stay_where_channels_go(tmp_path: Path) -> None:
    first = pruning(sparsity=0.5, network=TinyNetwork(16), keep_first_and_last=False)
    fit(tmp_path, first)
    second, seen = pruning("channels", network=first.model, sparsity=0.4), Zeros()
    fit(tmp_path, second, seen)
    assert share_of_zeros(seen.after[0]) > 0.3
    assert all(torch.equal(found["layer2.0"], seen.after[0]["layer2.0"]) for found in seen.after)


def test_a_checkpoint_is_rebuilt_for_a_test(tmp_path: Path) -> None:
    options = {"network": TinyNetwork(16), "macs": 0.5, "criterion": "geometric_median", "keep_first_and_last": False}
    module = pruning("channels", **options)
    fit(tmp_path, module, BestCheckpoint())
    best = tmp_path / "checkpoints" / "best.ckpt"
    loop = trainer(tmp_path, [])
    after = loop.test(module, datamodule=NoiseData(), ckpt_path=best, weights_only=True, verbose=False)
    fresh = pruning("channels", **{**options, "network": TinyNetwork(16)})
    anew = trainer(tmp_path, []).test(fresh, datamodule=NoiseData(), ckpt_path=best, weights_only=True, verbose=False)
    assert after == anew
    assert same_weights(module.model, fresh.model)
    assert fresh.compression_finished


# Settings that make no sense ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one target, but there is none"),
        ({"sparsity": 0.5, "macs": 0.5}, "there is sparsity=0.5 and macs=0.5"),
        ({"sparsity": 1.0}, r"sparsity is 1; it must be in \[0, 1\)"),
        ({"structure": "n:m", "sparsity": 0.5}, "sparsity is 0.5, which does not go with structure: n:m"),
        ({"structure": "n:m", "scope": "layer"}, "scope is layer, which does not go with structure: n:m"),
        ({"structure": "n:m", "pattern": "4:2"}, "'4:2' is not of the form n:m"),
        ({"structure": "filters", "sparsity": 0.5}, "structure is 'filters'; it must be"),
        ({"sparsity": 0.5, "pattern": "2:4"}, "pattern is 2:4, which does not go with structure: unstructured"),
        ({"sparsity": 0.5, "round_to": 8}, "round_to is 8, which does not go with structure: unstructured"),
        ({"sparsity": 0.5, "max_channel_sparsity": 0.5}, "max_channel_sparsity is 0.5, which does not go"),
        ({"sparsity": 0.5, "criterion": "bn_scale"}, "no criterion 'bn_scale' for single weights; there are l1, l2"),
        ({"sparsity": 0.5, "criterion": "taylr"}, "nearest: taylor"),
        ({"structure": "channels", "sparsity": 0.5, "criterion": "l0"}, "no criterion 'l0' for channels"),
        ({"structure": "channels", "macs": 0.5, "round_to": 0}, "round_to is 0"),
        ({"structure": "channels", "macs": 0.5, "max_channel_sparsity": 0.0}, "max_channel_sparsity is 0"),
        ({"sparsity": 0.5, "schedule_steps": 5}, "schedule_steps is 5, which does not go with schedule: one_shot"),
        ({"sparsity": 0.5, "schedule": "cubic", "schedule_steps": 1}, "schedule_steps is 1; it must be at least 2"),
        ({"sparsity": 0.5, "schedule": "cubic", "schedule_end": 1.0}, "0 <= schedule_begin < schedule_end < 1"),
        ({"sparsity": 0.5, "schedule": "cubic", "schedule_begin": 0.7}, "goes from 0.7 to 0.6 of the training"),
        (
            {"structure": "channels", "macs": 0.5, "schedule": "iterative", "losses": [HintLoss(["layer2"])]},
            "losses on the layers layer2 need their widths to stay",
        ),
    ],
)
def test_settings_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        pruning(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 0.5, "keep_layers": ["layer3"]}, "no layer 'layer3' in TinyNetwork. Nearest: layer"),
        ({"structure": "channels", "macs": 0.5, "keep_layers": ["layer3"]}, "no layer 'layer3'"),
        (
            {"structure": "channels", "macs": 0.5, "keep_layers": ["layer2"]},
            "no channels of TinyNetwork",
        ),
        ({"structure": "channels", "macs": 0.01}, r"macs=0.01 cannot be met within 1 %: the nearest .* is macs \d"),
        ({"parameters": 0.05}, r"parameters=0.05 cannot be met within 1 %: the nearest .* is parameters \d"),
        ({"parameters": 0.05, "schedule": "cubic"}, "parameters=0.05 cannot be met within 1 %"),
        (
            {"structure": "channels", "macs": 0.01, "schedule": "cubic", "schedule_end": 0.4},
            "macs=0.01 cannot be met within 1 %",
        ),
        ({"sparsity": 0.5, "keep_layers": ["layer2"]}, "there is no layer that can be pruned"),
    ],
)
def test_what_cannot_be_done_with_this_network(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    module, seen = pruning(**options), Zeros()
    with pytest.raises(UserError, match=message):
        fit(tmp_path, module, seen)
    assert seen.after == [], "it is noticed before the training"


@pytest.mark.parametrize(
    ("options", "fit_options", "message"),
    [
        ({"schedule_end": 0.99}, {}, "would end at step 18, but the last validation is after step 18"),
        ({"schedule_end": 0.5}, {"max_epochs": 5, "check_val_every_n_epoch": 3}, None),
        ({"schedule_end": 0.7}, {"max_epochs": 5, "check_val_every_n_epoch": 3}, "step 32, .* is after step 27"),
        ({"schedule_end": 0.97}, {"max_steps": 10, "max_epochs": -1}, "would end at step 10, .* is after step 10"),
        ({"structure": "channels"}, {}, "would end at step 18, but the last validation is after step 18"),
        ({"structure": "channels"}, {"max_epochs": 3}, None),
        ({}, {"max_epochs": -1, "max_steps": -1, "max_time": "00:00:00:01"}, "a schedule needs an end"),
        ({"schedule_end": 0.99}, {"fast_dev_run": True}, None),
    ],
)
def test_schedules_that_do_not_fit_the_training(
    tmp_path: Path, options: dict[str, Any], fit_options: dict[str, Any], message: str | None
) -> None:
    module = pruning(**{"schedule": "iterative", "sparsity": 0.4, "network": TinyNetwork(16), **options})
    if message is None:
        fit(tmp_path, module, **fit_options)
        assert module.compression_finished or fit_options.get("fast_dev_run")
        return
    with pytest.raises(UserError, match=message):
        fit(tmp_path, module, **fit_options)


def test_averaged_weights_and_a_gradual_schedule(tmp_path: Path) -> None:
    averaging = pl.callbacks.EMAWeightAveraging(decay=0.5)
    with pytest.raises(UserError, match="take the averaging callback away, or prune by one_shot"):
        fit(tmp_path, pruning(sparsity=0.5, schedule="cubic"), averaging)


def test_averaged_weights_are_zero_where_the_masks_are(tmp_path: Path) -> None:
    module = pruning(sparsity=0.5)
    fit(tmp_path, module, pl.callbacks.EMAWeightAveraging(decay=0.5), BestCheckpoint())
    assert share_of_zeros(zeros(module.model)) == 0.5
    saved = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert float((saved["model.layer2.0.weight"] == 0).double().mean()) == 0.5


def test_a_fit_that_ends_before_its_schedule(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Stop(pl.Callback):
        def on_train_batch_end(self, loop: Any, *args: Any) -> None:
            loop.should_stop = loop.global_step == 6

    module = pruning(sparsity=0.5, schedule="iterative", schedule_steps=4)
    with caplog.at_level(logging.WARNING):
        fit(tmp_path, module, Stop())
    assert "the fit has ended after 2 of 4 updates" in caplog.text
    assert not module.compression_finished


def test_a_checkpoint_of_another_method_cannot_be_continued(tmp_path: Path) -> None:
    fit(tmp_path, ImageClassifier(TinyNetwork(8), OPTIMIZER), LastCheckpoint(), BestCheckpoint())
    loop = trainer(tmp_path, [], max_epochs=3)
    with pytest.raises(UserError, match=r"not that of a pruning run: give it as network.weights instead"):
        loop.fit(pruning(sparsity=0.5), datamodule=NoiseData(), ckpt_path=tmp_path / "checkpoints" / "last.ckpt")


def test_nothing_is_pruned_for_an_evaluation(tmp_path: Path) -> None:
    module = pruning(sparsity=0.5)
    before = copy.deepcopy(module.model.state_dict())
    trainer(tmp_path, []).validate(module, datamodule=NoiseData(), verbose=False)
    assert all(torch.equal(before[name], value) for name, value in module.model.state_dict().items())


def test_a_fit_of_no_epochs_prunes(tmp_path: Path) -> None:
    module = pruning(sparsity=0.5)
    fit(tmp_path, module, BestCheckpoint(), max_epochs=0)
    saved = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert float((saved["model.layer2.0.weight"] == 0).double().mean()) == 0.5
