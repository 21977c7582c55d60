from __future__ import annotations

import copy
import itertools
import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau, StepLR

from callbacks import BestCheckpoint, LastCheckpoint
from compresslens.errors import UserError
from lightning_modules import ImageClassifier
from tests.lightning_modules.tiny import BATCHES, CLASSES, SIZE, NoiseData, TinyNetwork, probes, trainer


def fit(folder: Path, module: pl.LightningModule, data: NoiseData | None = None, **options: Any) -> pl.Trainer:
    loop = trainer(folder, **{"callbacks": [], "max_epochs": 1, **options})
    loop.fit(module, datamodule=data or NoiseData())
    return loop


def everything(data: NoiseData, split: Any) -> tuple[Tensor, Tensor]:
    """All images of a split and their labels."""
    samples = [data.dataset(split)[index] for index in range(len(data.dataset(split)))]
    return torch.stack([sample[0] for sample in samples]), torch.tensor([sample[1] for sample in samples])


# Construction and set-up ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"label_smoothing": -0.1}, "label_smoothing is -0.1"),
        ({"mixup_alpha": -1.0}, "must not be negative"),
        ({"cutmix_alpha": -1.0}, "must not be negative"),
    ],
)
def test_settings_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ImageClassifier(TinyNetwork(), **options)


def test_a_network_for_other_classes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the network gives 5 logits but the data has 7 classes; set its num_classes"):
        fit(tmp_path, ImageClassifier(TinyNetwork(classes=5)))
    module = ImageClassifier(TinyNetwork())
    module.set_reference(TinyNetwork(classes=9))
    with pytest.raises(UserError, match="the reference network gives 9 logits but the data has 7 classes"):
        fit(tmp_path, module)


def test_data_without_a_number_of_classes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="LightningDataModule has no num_classes"):
        trainer(tmp_path, []).fit(ImageClassifier(TinyNetwork()), datamodule=pl.LightningDataModule())


def test_mixup_needs_an_even_batch(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"make data.batch_size an even number"):
        fit(tmp_path, ImageClassifier(TinyNetwork(), mixup_alpha=1.0), NoiseData(batch_size=7))


def test_the_dry_run_leaves_no_trace(tmp_path: Path) -> None:
    network = TinyNetwork()
    network.layer1.eval()
    before, modes = copy.deepcopy(network.state_dict()), [m.training for m in network.modules()]
    loop = trainer(tmp_path, [])
    loop.test(module := ImageClassifier(network), datamodule=NoiseData(), verbose=False)
    module.setup("test")
    assert [m.training for m in network.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


# The reference --------------------------------------------------------------------------------------------------------


def test_the_reference_is_hidden_frozen_and_never_changes(tmp_path: Path) -> None:
    reference = TinyNetwork(6, seed=1)
    reference.train()
    before = copy.deepcopy(reference.state_dict())
    module = ImageClassifier(TinyNetwork(), partial(SGD, lr=0.1))
    module.set_reference(reference)
    assert module.reference is reference
    loop = trainer(tmp_path, [BestCheckpoint(), *probes()], max_epochs=1)
    loop.fit(module, datamodule=NoiseData())
    loop.test(module, datamodule=NoiseData(), verbose=False)
    assert not any(m.training for m in reference.modules())
    assert not any(p.requires_grad for p in reference.parameters())
    assert all(p.grad is None for p in reference.parameters())
    assert all(torch.equal(before[name], value) for name, value in reference.state_dict().items())
    assert reference not in set(module.modules())
    own = {id(p) for p in module.model.parameters()}
    assert {id(p) for p in module.parameters()} == own
    assert {id(p) for group in loop.optimizers[0].param_groups for p in group["params"]} == own
    saved = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    assert {name.split(".")[0] for name in saved["state_dict"]} == {"model"}


def test_the_reference_returns_to_eval_mode_and_follows_the_module() -> None:
    module = ImageClassifier(TinyNetwork())
    assert module.reference is None
    module.set_reference(TinyNetwork())
    assert module.reference is not None
    module.reference.train()
    assert not module.reference.training
    module.double()
    assert next(module.reference.parameters()).dtype == torch.float64
    assert next(module.to("meta").reference.parameters()).device.type == "meta"  # type: ignore[union-attr]


# Optimizer and scheduler ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay_norm_and_bias", [True, False])
def test_weight_decay_may_spare_biases_and_normalization(tmp_path: Path, decay_norm_and_bias: bool) -> None:
    network = TinyNetwork()
    network.layer1[0].requires_grad_(False)
    optimizer = partial(AdamW, lr=0.01, weight_decay=0.05)
    module = ImageClassifier(network, optimizer, decay_norm_and_bias=decay_norm_and_bias)
    groups = fit(tmp_path, module, max_steps=1).optimizers[0].param_groups
    decayed = [p for group in groups if group["weight_decay"] == 0.05 for p in group["params"]]
    spared = [p for group in groups if group["weight_decay"] == 0 for p in group["params"]]
    assert len(decayed) + len(spared) == len([p for p in network.parameters() if p.requires_grad])
    assert {id(p) for p in [*decayed, *spared]} == {id(p) for p in network.parameters() if p.requires_grad}
    expected = [] if decay_norm_and_bias else [p for p in network.parameters() if p.ndim <= 1]
    assert {id(p) for p in spared} == {id(p) for p in expected}


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, 2 * BATCHES),
        ({"accumulate_grad_batches": 2}, 2 * 5),
        ({"limit_train_batches": 4}, 2 * 4),
        ({"limit_train_batches": 0.5}, 2 * 4),
        ({"max_steps": 11}, 11),
        ({"max_epochs": -1, "max_steps": 11}, 11),
        ({"overfit_batches": 3}, 2 * 3),
        ({"fast_dev_run": True}, 1),
    ],
)
def test_the_schedule_ends_with_the_training(tmp_path: Path, options: dict[str, Any], steps: int) -> None:
    module = ImageClassifier(TinyNetwork(), partial(SGD, lr=0.1, momentum=0.9), partial(OneCycleLR, max_lr=0.1))
    loop = fit(tmp_path, module, **{"max_epochs": 2, **options})
    scheduler = loop.lr_scheduler_configs[0].scheduler
    assert isinstance(scheduler, OneCycleLR)
    assert scheduler.total_steps == steps == loop.global_step


def test_a_schedule_over_epochs(tmp_path: Path) -> None:
    module = ImageClassifier(TinyNetwork(), partial(SGD, lr=0.1), CosineAnnealingLR, scheduler_interval="epoch")
    loop = fit(tmp_path, module, max_epochs=3)
    scheduler = loop.lr_scheduler_configs[0].scheduler
    assert isinstance(scheduler, CosineAnnealingLR)
    assert scheduler.T_max == 3
    assert loop.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)
    module = ImageClassifier(TinyNetwork(), partial(SGD, lr=0.1), CosineAnnealingLR, scheduler_interval="epoch")
    loop = fit(tmp_path, module, max_epochs=-1, max_steps=2 * BATCHES + 1)
    assert loop.lr_scheduler_configs[0].scheduler.T_max == 3  # type: ignore[union-attr]


def test_what_the_config_says_of_the_schedule_stands(tmp_path: Path) -> None:
    factory = partial(StepLR, step_size=1, gamma=0.5)
    module = ImageClassifier(TinyNetwork(), partial(SGD, lr=0.8), factory, scheduler_interval="epoch")
    assert fit(tmp_path, module, max_epochs=3).optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1)


def test_a_schedule_without_an_end(tmp_path: Path) -> None:
    module = ImageClassifier(TinyNetwork(), partial(SGD, lr=0.1), CosineAnnealingLR)
    with pytest.raises(UserError, match=r"set trainer.max_epochs or trainer.max_steps"):
        fit(tmp_path, module, max_epochs=-1)


def test_a_plateau_is_looked_for_after_each_validation(tmp_path: Path) -> None:
    factory = partial(ReduceLROnPlateau, patience=0, threshold=1e9, threshold_mode="abs", factor=0.5)
    module = ImageClassifier(TinyNetwork(), partial(SGD, lr=0.8), factory)  # watches val/loss unless told otherwise
    loop = fit(tmp_path, module, max_epochs=3)
    assert loop.lr_scheduler_configs[0].scheduler.last_epoch == 3
    assert loop.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.8 / 4), "the first is the best so far"
    factory = partial(pl.cli.ReduceLROnPlateau, monitor="val/typo")
    with pytest.raises(UserError, match=r"no metric 'val/typo' for the scheduler; there are: train/loss, val/ece"):
        fit(tmp_path, ImageClassifier(TinyNetwork(), partial(SGD, lr=0.8), factory))


# The loss -------------------------------------------------------------------------------------------------------------


class Losses(pl.Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, *args: Any) -> None:
        self.values.append(float(outputs["loss"]))


def test_training_is_a_plain_loop(tmp_path: Path) -> None:
    """Bit for bit, with the same random state in each step."""
    network, losses = TinyNetwork(), Losses()
    mine = copy.deepcopy(network)
    module = ImageClassifier(network, partial(SGD, lr=0.1, momentum=0.9), label_smoothing=0.1, channels_last=False)
    fit(tmp_path, module, callbacks=[losses], max_epochs=2, limit_val_batches=0)

    expected = []
    data, optimizer = NoiseData(), SGD(mine.parameters(), lr=0.1, momentum=0.9)
    images, labels = everything(data, "train")
    from compresslens.training import step_seed

    for epoch in range(2):
        order = np.random.default_rng((0, epoch)).permutation(len(images))
        for batch in range(BATCHES):
            chosen = order[8 * batch : 8 * batch + 8]
            torch.manual_seed(step_seed(0, 0, epoch, batch))
            loss = F.cross_entropy(mine(images[chosen]), labels[chosen], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            expected.append(loss.item())
    assert losses.values == expected
    assert all(
        torch.equal(a, b) for a, b in zip(network.state_dict().values(), mine.state_dict().values(), strict=True)
    )


def test_label_smoothing_is_a_mixture_with_the_uniform_distribution() -> None:
    logits, labels = torch.randn(5, CLASSES), torch.randint(CLASSES, (5,))
    targets = 0.8 * F.one_hot(labels, CLASSES) + 0.2 / CLASSES
    expected = -(targets * logits.log_softmax(1)).sum(1).mean()
    module = ImageClassifier(TinyNetwork(), label_smoothing=0.2)
    assert module.supervised_loss(logits, labels).item() == pytest.approx(expected.item(), rel=1e-6)


class MixedBatches(ImageClassifier):
    """Keeps what the loss is given."""

    def training_loss(self, images: Tensor, labels: Tensor, targets: Tensor, batch_idx: int) -> Tensor:
        if not hasattr(self, "seen"):
            self.seen = (images.clone(), labels, targets)
        return super().training_loss(images, labels, targets, batch_idx)


@pytest.mark.parametrize("options", [{"mixup_alpha": 0.8}, {"cutmix_alpha": 0.8}], ids=str)
def test_mixed_images_have_mixed_targets(tmp_path: Path, options: dict[str, float]) -> None:
    data, losses = NoiseData(), Losses()
    module = MixedBatches(TinyNetwork(), partial(SGD, lr=0.1), **options)
    fit(tmp_path, module, data, callbacks=[losses])
    images, labels, targets = module.seen
    chosen = np.random.default_rng((0, 0)).permutation(75)[:8]
    plain = everything(data, "train")[0][chosen]
    assert targets.shape == (8, CLASSES)
    assert torch.allclose(targets.sum(1), torch.ones(8))
    other = labels.flip(0)
    share = next(targets[i, labels[i]].item() for i in range(8) if labels[i] != other[i])
    expected = share * F.one_hot(labels, CLASSES) + (1 - share) * F.one_hot(other, CLASSES)
    assert torch.allclose(targets, expected.float(), atol=1e-6)
    if "mixup_alpha" in options:
        assert torch.allclose(images, share * plain + (1 - share) * plain.flip(0), atol=1e-6)
    else:
        pasted = (images != plain).any(1).float().mean((1, 2))[labels != other]
        assert torch.allclose(pasted, torch.full_like(pasted, 1 - share), atol=1e-6)
    assert len(losses.values) == BATCHES


@pytest.mark.parametrize("rank", [0, 1])
def test_each_step_has_its_own_random_state(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ImageClassifier(TinyNetwork(), seed=5)
    module._trainer = type("Trainer", (), {"current_epoch": 0, "global_rank": rank})()  # type: ignore[assignment]

    def draw(epoch: int, batch: int) -> tuple[float, ...]:
        module.trainer.current_epoch = epoch  # type: ignore[misc]
        module.on_train_batch_start(None, batch)
        return torch.rand(()).item(), float(np.random.rand()), random.random()

    first = draw(0, 0)
    assert draw(0, 0) == first
    others = [draw(0, 1), draw(1, 0)]
    monkeypatch.setattr(module.trainer, "global_rank", rank + 1)
    others.append(draw(0, 0))
    assert len({first, *others}) == 4


class NotANumber(nn.Module):
    def __init__(self, after: int) -> None:
        super().__init__()
        self.network, self.calls, self.after = TinyNetwork(), 0, after

    def forward(self, images: Tensor) -> Tensor:
        self.calls += self.training
        return self.network(images) * (torch.nan if self.calls > self.after else 1)


def test_a_loss_that_is_not_a_number_names_the_step_and_the_last_checkpoint(tmp_path: Path) -> None:
    callbacks = [BestCheckpoint(), LastCheckpoint(4)]
    with pytest.raises(UserError) as error:
        fit(tmp_path, ImageClassifier(NotANumber(BATCHES + 6)), callbacks=callbacks, max_epochs=2)
    assert str(error.value) == (
        f"the loss is nan at step {BATCHES + 6} (epoch 1, batch 6); last good checkpoint: "
        f"{tmp_path / 'checkpoints' / 'last.ckpt'}; lower the learning rate"
    )
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 12
    with pytest.raises(UserError, match=r"at step 2 .* last good checkpoint: none yet"):
        fit(tmp_path / "other", ImageClassifier(NotANumber(2)), callbacks=[BestCheckpoint(), LastCheckpoint()])


# Evaluation -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["validate", "test"])
def test_metrics_are_those_of_a_plain_computation(tmp_path: Path, what: str) -> None:
    network, data = TinyNetwork(), NoiseData()
    loop = trainer(tmp_path, [])
    measured = getattr(loop, what)(ImageClassifier(network), datamodule=data, verbose=False)[0]
    part = "val" if what == "validate" else "test"
    images, labels = everything(data, part)
    network.eval()
    with torch.no_grad():
        logits = network(images)
    ranks = (logits > logits.gather(1, labels[:, None])).sum(1)
    confidence, prediction = logits.softmax(1).max(1)
    bins = torch.linspace(0, 1, 16)
    ece = 0.0
    for low, high in itertools.pairwise(bins):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            gap = (prediction == labels)[inside].float().mean() - confidence[inside].mean()
            ece += float(gap.abs() * inside.float().mean())
    expected = {
        f"{part}/top1": (ranks < 1).float().mean().item(),
        f"{part}/top5": (ranks < 5).float().mean().item(),
        f"{part}/loss": F.cross_entropy(logits, labels).item(),
        f"{part}/ece": ece,
    }
    assert measured == pytest.approx(expected, abs=1e-6)


def test_predictions_are_probabilities(tmp_path: Path) -> None:
    network, data = TinyNetwork(), NoiseData()
    batches = trainer(tmp_path, []).predict(ImageClassifier(network), datamodule=data)
    probabilities = torch.cat(batches)  # type: ignore[arg-type]
    with torch.no_grad():
        expected = network.eval()(everything(data, "test")[0]).softmax(1)
    assert torch.allclose(probabilities, expected, atol=1e-6)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_other_precisions(tmp_path: Path, precision: Any) -> None:
    module = ImageClassifier(TinyNetwork(), partial(SGD, lr=0.1))
    module.set_reference(TinyNetwork(6))
    loop = trainer(tmp_path, [BestCheckpoint(), *probes()], max_epochs=1, precision=precision)
    loop.fit(module, datamodule=NoiseData())
    best = tmp_path / "checkpoints" / "best.ckpt"
    loop.test(module, datamodule=NoiseData(), ckpt_path=best, weights_only=True, verbose=False)
    assert (tmp_path / "results.json").is_file()


def test_few_classes_have_no_top5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.lightning_modules.tiny.CLASSES", 3)
    loop = trainer(tmp_path, [])
    measured = loop.validate(ImageClassifier(TinyNetwork(classes=3)), datamodule=NoiseData(), verbose=False)[0]
    assert sorted(measured) == ["val/ece", "val/loss", "val/top1"]


@pytest.mark.parametrize("channels_last", [True, False])
def test_memory_format(channels_last: bool) -> None:
    module = ImageClassifier(TinyNetwork(), channels_last=channels_last)
    weight = module.model.layer1[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last) == channels_last
    assert weight.is_contiguous() != channels_last
    assert module(torch.rand(2, 3, SIZE, SIZE)).shape == (2, CLASSES)


# Checkpoints ----------------------------------------------------------------------------------------------------------


class Other(TinyNetwork):
    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Linear(2, 2)


def test_a_checkpoint_of_another_architecture(tmp_path: Path) -> None:
    fit(tmp_path, ImageClassifier(TinyNetwork(), partial(SGD, lr=0.1)), callbacks=[BestCheckpoint()])
    best = tmp_path / "checkpoints" / "best.ckpt"
    with pytest.raises(UserError, match="the checkpoint holds a TinyNetwork, but the config asks for a Other"):
        trainer(tmp_path, []).test(ImageClassifier(Other()), datamodule=NoiseData(), ckpt_path=best, weights_only=True)


def test_a_checkpoint_can_be_evaluated_in_other_batches(tmp_path: Path) -> None:
    fit(tmp_path, ImageClassifier(TinyNetwork(), partial(SGD, lr=0.1)), callbacks=[BestCheckpoint()])
    best = tmp_path / "checkpoints" / "best.ckpt"
    loop = trainer(tmp_path, [])
    loop.validate(
        ImageClassifier(TinyNetwork(seed=3)), datamodule=NoiseData(batch_size=5), ckpt_path=best, weights_only=True
    )
    saved = torch.load(best, weights_only=True)
    assert float(loop.callback_metrics["val/top1"]) == pytest.approx(saved["callbacks"]["BestCheckpoint"]["best"])


def test_averaged_weights_are_tested_after_a_fit_as_in_a_new_process(tmp_path: Path) -> None:
    module = ImageClassifier(TinyNetwork(), partial(SGD, lr=0.1))
    loop = trainer(tmp_path, [BestCheckpoint(), pl.callbacks.EMAWeightAveraging(decay=0.8)])
    loop.fit(module, datamodule=NoiseData())
    best = tmp_path / "checkpoints" / "best.ckpt"
    after_fit = loop.test(module, datamodule=NoiseData(), ckpt_path=best, weights_only=True, verbose=False)
    saved = torch.load(best, weights_only=True)
    name = "model.classifier.weight"
    assert not torch.equal(saved["state_dict"][name], saved["current_model_state"][name])
    assert torch.equal(module.state_dict()[name], saved["state_dict"][name])
    fresh = trainer(tmp_path, [])
    alone = fresh.test(
        ImageClassifier(TinyNetwork()), datamodule=NoiseData(), ckpt_path=best, weights_only=True, verbose=False
    )
    assert after_fit == alone
