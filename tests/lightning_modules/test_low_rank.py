from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.optim import SGD

from callbacks import BestCheckpoint, LastCheckpoint
from compresslens.distillation import LogitKDLoss
from compresslens.errors import UserError
from compresslens.footprint import count_macs
from compresslens.low_rank import factorize
from compresslens.networks import create_network
from compresslens.networks.changes import changes_of
from lightning_modules import ImageClassifier
from lightning_modules.low_rank import FactorizeAndFinetune
from tests.lightning_modules import recipes
from tests.lightning_modules.tiny import (
    CLASSES,
    SIZE,
    Kill,
    NoiseData,
    TinyNetwork,
    differences,
    on_two_ranks,
    trainer,
    whole_run,
)

METHODS = ["tucker", "spatial_svd", "cp"]
sgd = partial(SGD, lr=0.05, momentum=0.9)


def fit(folder: Path, module: pl.LightningModule, **options: Any) -> pl.Trainer:
    loop = trainer(folder, **{"callbacks": [BestCheckpoint()], "max_epochs": 1, **options})
    loop.fit(module, datamodule=NoiseData())
    return loop


@pytest.mark.parametrize("method", METHODS)
def test_full_energy_is_plain_finetuning(tmp_path: Path, method: Any) -> None:
    """Bit for bit."""
    modules = [
        FactorizeAndFinetune(TinyNetwork(), method, energy=1.0, optimizer=sgd),
        ImageClassifier(TinyNetwork(), sgd),
    ]
    for number, module in enumerate(modules):
        fit(tmp_path / str(number), module, max_epochs=2)
    states = [module.model.state_dict() for module in modules]
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("method", METHODS)
def test_a_fit_comes_down_to_the_target_and_trains_the_new_layers(tmp_path: Path, method: Any) -> None:
    network = TinyNetwork(64)
    before = copy.deepcopy(network)
    module = FactorizeAndFinetune(network, method, macs=0.5, optimizer=sgd)
    loop = fit(tmp_path, module)
    assert count_macs(module.model, SIZE) == pytest.approx(0.5 * count_macs(before, SIZE), rel=0.01)
    assert isinstance(module.model.layer2[0], nn.Sequential)
    assert isinstance(module.model.layer1[0], nn.Conv2d)
    trained = {id(p) for group in loop.optimizers[0].param_groups for p in group["params"]}
    assert trained == {id(p) for p in module.model.parameters()}
    fresh = copy.deepcopy(before)
    factorize(fresh, method, macs=0.5, image_size=SIZE)
    for name, value in module.model.named_parameters():
        assert not torch.equal(value, fresh.get_parameter(name)), name
        assert value.isfinite().all()
    assert module.reference is not None
    assert all(torch.equal(a, b) for a, b in zip(module.reference.parameters(), before.parameters(), strict=True))


@pytest.mark.parametrize("channels_last", [True, False])
def test_new_layers_have_the_memory_format_of_the_others(tmp_path: Path, channels_last: bool) -> None:
    module = FactorizeAndFinetune(TinyNetwork(16), energy=0.5, optimizer=sgd, channels_last=channels_last)
    fit(tmp_path, module)
    fresh = FactorizeAndFinetune(TinyNetwork(16, seed=1), energy=0.7, channels_last=channels_last)
    fresh.rebuild(changes_of(module.model))
    for network in (module.model, fresh.model):
        core = network.layer2[0].core.weight
        assert core.is_contiguous(memory_format=torch.channels_last) == channels_last
    strides = [[p.stride() for p in network.parameters()] for network in (module.model, fresh.model)]
    assert strides[0] == strides[1]


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_rebuilds_the_structure(tmp_path: Path, method: Any) -> None:
    network = create_network("test_resnet", CLASSES, image_size=SIZE)
    module = FactorizeAndFinetune(network, method, macs=0.6, optimizer=sgd)
    fit(tmp_path, module)
    best = tmp_path / "checkpoints" / "best.ckpt"
    images = torch.rand(5, 3, SIZE, SIZE)
    expected = module.model.eval()(images)
    loaded = create_network("test_resnet", CLASSES, image_size=SIZE, weights=str(best)).eval()
    assert changes_of(loaded) == changes_of(module.model)
    # kernels of one value have several memory formats at once, and the convolutions may sum up in another order
    loaded.to(memory_format=torch.channels_last)
    assert torch.equal(loaded(images), expected)
    # evaluated by a module that knows nothing of it but the config, here even with other settings
    other = FactorizeAndFinetune(create_network("test_resnet", CLASSES, image_size=SIZE), method, energy=0.3)
    measured = [
        trainer(tmp_path, []).validate(m, datamodule=NoiseData(), ckpt_path=path, weights_only=True, verbose=False)
        for m, path in ((module, None), (other, best))
    ]
    assert measured[0] == measured[1]
    assert torch.equal(other.model.eval()(images), expected)


def test_the_next_method_starts_from_a_checkpoint(tmp_path: Path) -> None:
    first = FactorizeAndFinetune(create_network("test_resnet", CLASSES, image_size=SIZE), macs=0.6, optimizer=sgd)
    fit(tmp_path / "first", first)
    network = create_network("test_resnet", CLASSES, image_size=SIZE, weights=str(tmp_path / "first"))
    second = FactorizeAndFinetune(network, macs=0.8, optimizer=sgd)
    fit(tmp_path / "second", second)
    assert [change["kind"] for change in changes_of(second.model)] == ["factorize", "factorize"]
    assert changes_of(second.model)[:1] == changes_of(first.model)
    both = create_network("test_resnet", CLASSES, image_size=SIZE, weights=str(tmp_path / "second"))
    assert count_macs(both, SIZE) == pytest.approx(0.8 * count_macs(first.model, SIZE), rel=0.01)


def test_distilled_from_the_original(tmp_path: Path) -> None:
    module = FactorizeAndFinetune(TinyNetwork(16), energy=0.5, optimizer=sgd, losses=[LogitKDLoss()], label_weight=0.0)
    fit(tmp_path, module)
    assert isinstance(module.teacher.layer2[0], nn.Conv2d)
    assert isinstance(module.model.layer2[0], nn.Sequential)


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_other_precisions(tmp_path: Path, precision: Any) -> None:
    module = FactorizeAndFinetune(TinyNetwork(16), energy=0.5, optimizer=sgd)
    fit(tmp_path, module, precision=precision)
    assert len({parameter.dtype for parameter in module.model.parameters()}) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either energy or macs, and not both"),
        ({"energy": 0.5, "macs": 0.5}, "give either energy or macs, and not both"),
        ({"energy": 0.5, "method": "cpp"}, "unknown method 'cpp'. Nearest: cp."),
        ({"energy": 0.5, "keep_layers": ["layer3"]}, "there is no layer 'layer3' in TinyNetwork. Nearest: layer"),
        ({"energy": 0.5, "layers": ["classifier"]}, "'classifier' cannot be factorized: it is the classifier"),
    ],
)
def test_settings_that_make_no_sense_fail_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        FactorizeAndFinetune(TinyNetwork(), **options)


def test_a_target_out_of_reach(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be met: the fewest that can be reached are"):
        fit(tmp_path, FactorizeAndFinetune(TinyNetwork(), macs=0.01, optimizer=sgd))


def test_every_setting_can_stand_in_a_config() -> None:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(FactorizeAndFinetune, "model")
    settings = {
        "network": {"class_path": "tests.lightning_modules.tiny.TinyNetwork"},
        **{"method": "cp", "macs": 1000000, "keep_layers": ["layer1"], "layers": ["layer2.0"]},
        "losses": [{"class_path": "compresslens.distillation.LogitKDLoss"}],
        **{"label_weight": 0.5, "label_smoothing": 0.1},
    }
    path = "lightning_modules.low_rank.FactorizeAndFinetune"
    config = parser.parse_object({"model": {"class_path": path, "init_args": settings}})
    module = parser.instantiate_classes(config).model
    assert (module.method, module.macs, module.energy) == ("cp", 1e6, None)
    assert (module.keep_layers, module.layers, module.label_smoothing) == (["layer1"], ["layer2.0"], 0.1)


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    recipe = partial(recipes.on_two_devices, recipes.factorized)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert on_two_ranks(whole_run, whole, recipe) == [0, 0]
    saved = torch.load(whole / "checkpoints" / "best.ckpt", weights_only=True)
    assert "layer2.0" in saved["changes"][0]["layers"]
    assert on_two_ranks(whole_run, killed, recipe, [Kill("on_train_batch_end", 14)]) == [-9, -9]
    assert on_two_ranks(whole_run, killed, recipe) == [0, 0]
    assert differences(whole, killed) == []


def test_without_an_epoch(tmp_path: Path) -> None:
    """What factorization alone does to the network."""
    module = FactorizeAndFinetune(TinyNetwork(16), energy=0.5, optimizer=sgd)
    fit(tmp_path, module, callbacks=[BestCheckpoint(), LastCheckpoint()], max_epochs=0)
    saved = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    assert saved["changes"] == changes_of(module.model) != []
