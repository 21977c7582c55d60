"""Quantization-aware training as Lightning runs it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.optim import SGD

from callbacks import BestCheckpoint, LastCheckpoint
from compresslens.errors import UserError
from compresslens.networks import PixelNetwork, changes_of
from compresslens.networks.weights import load_weights
from compresslens.quantization import convert
from compresslens.quantization.fake_quant import quantized_graph
from lightning_modules import ImageClassifier, QuantizationAwareTraining
from tests.lightning_modules.recipes import in_pixels, learned_steps, rounded, rounded_without_training
from tests.lightning_modules.tiny import NoiseData, TinyNetwork, trainer, unequal

SGD_ = partial(SGD, lr=0.05, momentum=0.9)


class Watch(pl.Callback):
    """Notes what is frozen at each step."""

    def __init__(self) -> None:
        self.frozen: list[tuple[bool, bool]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        graph = quantized_graph(pl_module.model)
        assert graph is not None
        self.frozen.append((graph.observers_frozen, graph.batchnorm_frozen))


def test_it_learns_and_freezes_on_time(tmp_path: Path) -> None:
    module, data, options, _ = rounded()
    watch = Watch()
    loop = trainer(tmp_path, [watch], **options)
    loop.fit(module, datamodule=data)
    steps = 27
    assert watch.frozen == [(step >= 0.4 * steps, step >= 0.7 * steps) for step in range(steps)]
    assert module.reference is not None
    assert quantized_graph(module.reference) is None
    agreement = module.model.eval()(batch(data)).argmax(1) == convert(module.model)(batch(data)).argmax(1)
    assert agreement.float().mean() >= 0.95


@pytest.mark.parametrize("scheme", ["int8", "learned_steps"])
def test_it_learns(tmp_path: Path, scheme: Any) -> None:
    module = QuantizationAwareTraining(in_pixels(TinyNetwork(8, dropout=0.0)), scheme, optimizer=SGD_)
    loop = trainer(tmp_path, [])
    loop.fit(module, datamodule=NoiseData())
    assert loop.callback_metrics["val/top1"] > 0.6


def batch(data: NoiseData) -> torch.Tensor:
    return torch.stack([data.dataset("test")[index][0] for index in range(43)])


@pytest.mark.parametrize("recipe", [rounded, learned_steps], ids=lambda recipe: recipe.__name__)
def test_a_checkpoint_is_the_start_of_another_run(tmp_path: Path, recipe: Callable[[], Any]) -> None:
    """The structure comes with it, into a plain network of that name."""
    module, data, options, _ = recipe()
    loop = trainer(tmp_path, [BestCheckpoint(), LastCheckpoint()], **{**options, "max_epochs": 1})
    loop.fit(module, datamodule=data)
    network = in_pixels(TinyNetwork(seed=3)).eval()
    load_weights(network, tmp_path / "checkpoints" / "last.ckpt")
    assert changes_of(network) == changes_of(module.model)
    assert torch.equal(network(batch(data)), module.model.eval()(batch(data)))


def test_without_an_epoch_it_is_calibrated_and_saved(tmp_path: Path) -> None:
    module, data, options, _ = rounded_without_training()
    loop = trainer(tmp_path, [BestCheckpoint(), LastCheckpoint()], **options)
    loop.fit(module, datamodule=data)
    fresh = rounded_without_training()[0]
    loop = trainer(tmp_path, [])
    best = tmp_path / "checkpoints" / "best.ckpt"
    (result,) = loop.test(fresh, datamodule=data, ckpt_path=best, weights_only=True, verbose=False)
    assert torch.equal(fresh.model.eval()(batch(data)), module.model.eval()(batch(data)))
    assert "test/top1" in result


@pytest.mark.parametrize("scheme", ["int8", "learned_steps"])
def test_what_was_pruned_stays_zero(tmp_path: Path, scheme: Any) -> None:
    network = in_pixels(TinyNetwork())
    weight = network.backbone.layer2[0].weight  # type: ignore[index, union-attr]
    zero = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    weight.data[zero] = 0.0
    module = QuantizationAwareTraining(network, scheme, optimizer=SGD_, calibration_samples=8)
    trainer(tmp_path, [], max_epochs=1).fit(module, datamodule=NoiseData())
    (trained,) = (value for name, value in module.model.named_parameters() if name.endswith("layer2.0.weight"))
    assert torch.equal(trained == 0, zero)


def test_32_bits_are_plain_fine_tuning(tmp_path: Path) -> None:
    """Bit for bit."""
    bits = {"weight_bits": 32, "activation_bits": 32, "freeze_batchnorm_after": 1.0}
    states = []
    for module in (
        ImageClassifier(in_pixels(TinyNetwork()), SGD_),
        QuantizationAwareTraining(in_pixels(TinyNetwork()), "learned_steps", optimizer=SGD_, **bits),
    ):
        pl.seed_everything(0, verbose=False)
        trainer(tmp_path, []).fit(module, datamodule=NoiseData())
        states.append(module.model.state_dict())
    assert unequal(*states) == []


def test_batch_normalization_freezes_with_learned_steps(tmp_path: Path) -> None:
    options: dict[str, Any] = {"freeze_batchnorm_after": 0.0, "calibration_samples": 8}
    module = QuantizationAwareTraining(in_pixels(TinyNetwork()), "learned_steps", 4, 4, optimizer=SGD_, **options)
    trainer(tmp_path, [], max_epochs=1).fit(module, datamodule=NoiseData())
    backbone: Any = module.model.backbone
    assert torch.equal(backbone.layer1[1].running_mean, torch.zeros(4)), "as when it was new"


def test_layers_that_accuracy_needs_stay_in_float(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured by a stand-in: float 0.9, all quantized 0.5, two layers less 0.9, and so on."""
    module = QuantizationAwareTraining(in_pixels(TinyNetwork()), tolerance=0.01, calibration_samples=8)
    values = [0.9, 0.9, 0.5, 0.6, 0.9, 0.9]
    monkeypatch.setattr(module, "_accuracy", lambda: lambda network: values.pop(0))
    trainer(tmp_path, [], max_epochs=0).fit(module, datamodule=NoiseData())
    (change,) = changes_of(module.model)
    assert len(change["float_layers"]) == 2
    assert values == []


def fit(module: QuantizationAwareTraining, folder: Path, **options: Any) -> None:
    trainer(folder, [], **options).fit(module, datamodule=NoiseData())


def tiny(**options: Any) -> QuantizationAwareTraining:
    return QuantizationAwareTraining(in_pixels(TinyNetwork()), **options)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda folder: tiny(weight_bits=4), "scheme 'int8' has 8 bits: use scheme 'learned_steps'"),
        (lambda folder: tiny(scheme="learned_steps", tolerance=0.1), "tolerance is for scheme 'int8'"),
        (lambda folder: tiny(tolerance=1.5), "tolerance is 1.5"),
        (lambda folder: tiny(freeze_observers_after=2.0), "freeze_observers_after is 2.0"),
        (lambda folder: tiny(calibration_samples=0), "must be at least 1"),
        (lambda folder: fit(tiny(), folder, precision="bf16-mixed"), "needs trainer.precision 32-true, not bf16-mixed"),
        (lambda folder: fit(tiny(float_layers=["layer3"]), folder), "there is no layer 'layer3'"),
        (lambda folder: fit(QuantizationAwareTraining(TinyNetwork()), folder), "wrap it in .*PixelNetwork"),
    ],
)
def test_what_is_refused(act: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        act(tmp_path)


def test_a_checkpoint_that_was_quantized_otherwise_is_refused(tmp_path: Path) -> None:
    module, data, options, _ = rounded_without_training()
    trainer(tmp_path, [BestCheckpoint(), LastCheckpoint()], **options).fit(module, datamodule=data)
    network: PixelNetwork = in_pixels(TinyNetwork())
    from compresslens.quantization import fake_quantize

    fake_quantize(network, ["layer2"])
    best = tmp_path / "checkpoints" / "best.ckpt"
    with pytest.raises(UserError, match="compressed otherwise"):
        trainer(tmp_path, []).test(ImageClassifier(network), datamodule=data, ckpt_path=best, weights_only=True)
