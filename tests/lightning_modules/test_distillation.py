from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD

from callbacks import BestCheckpoint
from compresslens.distillation import (
    AttentionTransferLoss,
    ClassActivationLoss,
    DecoupledKDLoss,
    DistillationLoss,
    HintLoss,
    LogitKDLoss,
    RelationalKDLoss,
)
from compresslens.errors import UserError
from lightning_modules import Distillation, ImageClassifier
from tests.lightning_modules.recipes import augmentation
from tests.lightning_modules.test_classifier import Losses
from tests.lightning_modules.tiny import BATCHES, NoiseData, TinyNetwork, probes, trainer

OPTIMIZER = partial(SGD, lr=0.1, momentum=0.9)


def fit(folder: Path, module: pl.LightningModule, data: NoiseData | None = None, **options: Any) -> list[float]:
    """The losses of the steps."""
    losses = Losses()
    loop = trainer(folder, [losses], **{"max_epochs": 2, "limit_val_batches": 0, **options})
    loop.fit(module, datamodule=data or NoiseData())
    return losses.values


def distillation(losses: list[DistillationLoss], **options: Any) -> Distillation:
    return Distillation(TinyNetwork(), TinyNetwork(6, seed=1), losses, optimizer=OPTIMIZER, **options)


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


# What it comes down to at the ends of its settings --------------------------------------------------------------------


@pytest.mark.parametrize(
    "losses", [[], [LogitKDLoss(weight=0.0), HintLoss(["layer2"], weight=0.0)]], ids=["none", "zero"]
)
@pytest.mark.parametrize("options", [{}, {"mixup_alpha": 0.5}], ids=["plain", "mixup"])
def test_without_losses_it_is_the_classifier(tmp_path: Path, losses: list[DistillationLoss], options: Any) -> None:
    ours = distillation(losses, **options)
    plain = ImageClassifier(TinyNetwork(), OPTIMIZER, **options)
    data = {"train_transforms": augmentation()}
    assert fit(tmp_path, ours, NoiseData(**data)) == fit(tmp_path, plain, NoiseData(**data))
    assert same_weights(ours.model, plain.model)
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in plain.named_parameters()]


def test_the_total_is_the_weighted_sum(tmp_path: Path) -> None:
    student, teacher = TinyNetwork(dropout=0.0), TinyNetwork(6, seed=1)
    losses = [LogitKDLoss(temperature=2.0, weight=0.7), DecoupledKDLoss(weight=0.2)]
    module = Distillation(student, teacher, losses, label_weight=0.3, label_smoothing=0.1, channels_last=False)
    module._cache = None
    images, labels = torch.rand(6, 3, 12, 12), torch.arange(6)
    total = module.training_loss(images, labels, labels, 0)
    logits, targets = student(images), teacher(images).detach()
    kd = F.kl_div((logits / 2).log_softmax(1), (targets / 2).softmax(1), reduction="batchmean") * 4
    from compresslens.distillation import Outputs

    decoupled = losses[1](Outputs(logits), Outputs(targets), labels)
    expected = 0.3 * F.cross_entropy(logits, labels, label_smoothing=0.1) + 0.7 * kd + 0.2 * decoupled
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)


# The teacher's cache --------------------------------------------------------------------------------------------------


class Uncached(LogitKDLoss):
    cacheable = False


def test_the_cache_changes_nothing_but_rounding(tmp_path: Path) -> None:
    cached, plain = distillation([LogitKDLoss()]), distillation([Uncached()])
    assert fit(tmp_path, cached) == pytest.approx(fit(tmp_path, plain), rel=1e-5)
    assert cached._cache is not None
    assert plain._cache is None
    weights = zip(cached.state_dict().values(), plain.state_dict().values(), strict=True)
    assert all(torch.allclose(a.float(), b.float(), atol=1e-5) for a, b in weights)


@pytest.mark.parametrize(
    ("losses", "data", "options"),
    [
        ([LogitKDLoss()], {"train_transforms": augmentation()}, {}),
        ([LogitKDLoss()], {}, {"mixup_alpha": 0.2}),
        ([LogitKDLoss(), HintLoss(["layer2"])], {}, {}),
        ([LogitKDLoss()], {}, {"cache_limit": 75 * 7 * 4 - 1}),
        ([], {}, {}),
    ],
    ids=["augmentation", "mixup", "layers", "too large", "no losses"],
)
def test_when_there_is_no_cache(tmp_path: Path, losses: Any, data: dict[str, Any], options: dict[str, Any]) -> None:
    module = distillation(losses, **options)
    fit(tmp_path, module, NoiseData(**data), max_epochs=1)
    assert module._cache is None


def test_a_cache_of_just_the_limit(tmp_path: Path) -> None:
    module = distillation([LogitKDLoss()], cache_limit=75 * 7 * 4)
    fit(tmp_path, module, max_epochs=1)
    assert module._cache is not None
    fit(tmp_path, module, NoiseData(train_transforms=augmentation()), max_epochs=1)
    assert module._cache is None, "of the data before"


def test_overfitting_some_batches(tmp_path: Path) -> None:
    module = distillation([LogitKDLoss()])
    assert len(fit(tmp_path, module, max_epochs=1, overfit_batches=2)) == 2


# The teacher and the adapters -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "losses",
    [
        [LogitKDLoss()],
        [DecoupledKDLoss(), RelationalKDLoss(["features"])],
        [HintLoss(["layer1", "layer2"]), AttentionTransferLoss(["layer2"], weight=1.0)],
        [ClassActivationLoss(["layer2"]), LogitKDLoss()],
    ],
    ids=lambda losses: "+".join(type(loss).__name__ for loss in losses),
)
def test_the_teacher_stays_as_it_was(tmp_path: Path, losses: list[DistillationLoss]) -> None:
    module = distillation(losses)
    teacher = module.teacher
    before = copy.deepcopy(teacher.state_dict())
    values = fit(tmp_path, module, NoiseData(train_transforms=augmentation()), limit_val_batches=1.0)
    assert len(values) == 2 * BATCHES
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items()), "statistics, too"
    assert not any(m.training for m in teacher.modules())
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert not any(hook for m in teacher.modules() for hook in (m._forward_hooks, m._forward_pre_hooks))


def test_adapters_are_trained_but_no_part_of_the_model(tmp_path: Path) -> None:
    module = distillation([HintLoss(["layer2"])])
    loop = trainer(tmp_path, [BestCheckpoint()], max_epochs=1)
    loop.fit(module, datamodule=NoiseData())
    adapter = module.losses[0].adapters[0]  # type: ignore[index, union-attr]
    assert (adapter.in_channels, adapter.out_channels) == (8, 12)
    trained = {id(p) for group in loop.optimizers[0].param_groups for p in group["params"]}
    assert {id(p) for p in adapter.parameters()} <= trained
    assert trained == {id(p) for p in [*module.model.parameters(), *adapter.parameters()]}
    assert loop.optimizers[0].state[adapter.weight]["momentum_buffer"].abs().sum() > 0
    assert not any("adapter" in name for name, _ in module.model.named_modules())
    saved = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert {name.split(".")[0] for name in saved} == {"model", "losses"}


def test_a_checkpoint_with_adapters_can_be_tested_in_a_new_process(tmp_path: Path) -> None:
    module = distillation([HintLoss(["layer2"])])
    loop = trainer(tmp_path, [BestCheckpoint(), *probes()], max_epochs=1)
    loop.fit(module, datamodule=NoiseData())
    best = tmp_path / "checkpoints" / "best.ckpt"
    after = loop.test(module, datamodule=NoiseData(), ckpt_path=best, weights_only=True, verbose=False)
    fresh = trainer(tmp_path, [BestCheckpoint(), *probes()])
    anew = fresh.test(
        distillation([HintLoss(["layer2"])]), datamodule=NoiseData(), ckpt_path=best, weights_only=True, verbose=False
    )
    assert after == anew


@pytest.mark.parametrize("training", [True, False])
def test_building_the_losses_leaves_the_student_as_it_was(training: bool) -> None:
    module = distillation([HintLoss(["layer2"]), ClassActivationLoss(["layer2"])])
    module.model.train(training)
    module.model.layer1.eval()
    before, modes = copy.deepcopy(module.model.state_dict()), [m.training for m in module.model.modules()]
    module._build_losses(12)
    assert [m.training for m in module.model.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in module.model.state_dict().items())


def test_adapters_are_built_where_the_student_is() -> None:
    """Lightning claims the module to be on its device before it is."""
    module = distillation([HintLoss(["layer2"])])
    module._device = torch.device("meta")
    module._build_losses(12)
    assert module.losses[0].adapters[0].weight.device.type == "cpu"  # type: ignore[index, union-attr]


@pytest.mark.parametrize(
    ("losses", "options", "message"),
    [
        ([LogitKDLoss()], {"label_weight": -0.1}, "label_weight is -0.1"),
        ([LogitKDLoss(weight=0.0)], {"label_weight": 0.0}, "nothing to learn"),
        ([], {"label_weight": 0.0}, "nothing to learn"),
    ],
)
def test_settings_that_make_no_sense(losses: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        distillation(losses, **options)


def test_a_layer_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no layer 'layer3' in TinyNetwork"):
        fit(tmp_path, distillation([HintLoss(["layer3"])]))


def test_a_teacher_of_other_classes(tmp_path: Path) -> None:
    module = Distillation(TinyNetwork(), TinyNetwork(classes=9), [LogitKDLoss()])
    with pytest.raises(ValueError, match="reference network gives 9 logits but the data has 7 classes"):
        fit(tmp_path, module)
