from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import nn

from compresslens.errors import UserError
from compresslens.footprint import count_macs, count_parameters
from compresslens.low_rank import apply_plan, factorize, plan_factorization, rebuild
from compresslens.networks import create_network, feature_taps
from compresslens.networks.changes import apply_changes, changes_of
from tests.low_rank.layers import image
from tests.low_rank.networks import SIZE, SmallNetwork, full_plan

METHODS = ["tucker", "spatial_svd", "cp"]


@pytest.mark.parametrize("method", METHODS)
def test_full_energy_changes_nothing(method: Any) -> None:
    for options in ({"energy": 1.0}, {"macs": 1.0}, {"macs": count_macs(SmallNetwork(), SIZE)}):
        network = SmallNetwork()
        modules, before = list(network.modules()), copy.deepcopy(network.state_dict())
        factorize(network, method, image_size=SIZE, **options)
        assert list(network.modules()) == modules
        assert changes_of(network) == []
        assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


@pytest.mark.parametrize("method", METHODS)
def test_more_energy_less_error(method: Any) -> None:
    images = image(4, 3, SIZE, SIZE)
    expected, errors, macs = SmallNetwork()(images), [], []
    for energy in (0.7, 0.8, 0.95):
        network = SmallNetwork()
        factorize(network, method, energy=energy, image_size=SIZE)
        errors.append((network(images) - expected).square().mean().item())
        macs.append(count_macs(network, SIZE))
    assert 0 < errors[-1] < 0.5 * min(errors[:-1])
    assert macs == sorted(macs)
    assert macs[-1] < count_macs(SmallNetwork(), SIZE)


@pytest.mark.parametrize("method", METHODS)
def test_the_change_is_recorded_in_plain_values_and_rebuilt(method: Any) -> None:
    network, images = SmallNetwork(), image(2, 3, SIZE, SIZE)
    factorize(network, method, macs=0.5, image_size=SIZE)
    changes = json.loads(json.dumps(changes_of(network)))
    assert changes == changes_of(network)
    (change,) = changes
    assert change["kind"] == "factorize"
    assert set(change["layers"]) <= {"body.0", "body.4", "body.6", "hidden"}
    assert change["layers"]["hidden"]["method"] == "svd"
    assert change["layers"]["body.0"]["method"] == method
    fresh = SmallNetwork()
    apply_changes(fresh, changes)
    assert changes_of(fresh) == changes
    assert fresh(images).isfinite().all()
    fresh.load_state_dict(network.state_dict())
    assert torch.equal(fresh(images), network(images))


def test_factorized_twice() -> None:
    network, images = SmallNetwork(), image(2, 3, SIZE, SIZE)
    factorize(network, energy=0.9, image_size=SIZE)
    factorize(network, energy=0.5, image_size=SIZE)
    assert len(changes_of(network)) == 2
    fresh = SmallNetwork()
    apply_changes(fresh, changes_of(network))
    fresh.load_state_dict(network.state_dict())
    assert torch.equal(fresh(images), network(images))


def test_a_plan_changes_nothing_and_is_what_is_done() -> None:
    network = SmallNetwork()
    before = list(network.modules())
    plan = plan_factorization(network, energy=0.6, image_size=SIZE)
    assert list(network.modules()) == before
    apply_plan(network, plan)
    assert changes_of(network) == [{"kind": "factorize", "layers": plan}]
    parameters, macs = count_parameters(network)[0], count_macs(network, SIZE)
    other = SmallNetwork()
    factorize(other, energy=0.6, image_size=SIZE)
    assert (count_parameters(other)[0], count_macs(other, SIZE)) == (parameters, macs)


def test_layers_keep_their_names_for_taps() -> None:
    network, images = SmallNetwork(), image(2, 3, SIZE, SIZE)
    with feature_taps(network, ["body.0", "features"]) as before:
        network(images)
    factorize(network, energy=0.9, image_size=SIZE)
    with feature_taps(network, ["body.0", "features"]) as after:
        network(images)
    assert isinstance(network.body[0], nn.Sequential)
    for name in before:
        assert after[name].shape == before[name].shape
        assert (after[name] - before[name]).norm() < 0.5 * before[name].norm()


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either energy or macs, and not both"),
        ({"energy": 0.5, "macs": 0.5}, "give either energy or macs, and not both"),
        ({"energy": 0.0}, "energy is 0.0: it must be above 0 and at most 1"),
        ({"energy": 1.1}, "energy is 1.1"),
        ({"energy": float("nan")}, "energy is nan"),
        ({"macs": 0}, "macs is 0: it must be positive"),
        ({"macs": float("nan")}, "macs is nan"),
        ({"energy": 0.5, "method": "tukker"}, "unknown method 'tukker'. Nearest: tucker."),
    ],
)
def test_settings_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        factorize(SmallNetwork(), image_size=SIZE, **options)


@pytest.mark.parametrize(
    ("name", "entry", "message"),
    [
        ("body.9", {"method": "svd", "ranks": [2]}, "there is no layer 'body.9'"),
        ("body.2", {"method": "tucker", "ranks": [2, 2]}, "'body.2' is a convolution in 32 groups"),
        ("body.1", {"method": "tucker", "ranks": [2, 2]}, "'body.1' is a ReLU"),
        ("body.0", {"method": "svd", "ranks": [2]}, "'body.0' cannot be factorized by svd"),
        ("body.4", {"method": "cp", "ranks": [2]}, "'body.4' cannot be factorized by cp"),
        ("body.0", {"method": "tucker", "ranks": [2]}, r"'body.0' cannot be factorized by tucker with ranks \[2\]"),
        ("body.0", {"method": "cp", "ranks": [0]}, r"'body.0' cannot be factorized by cp with ranks \[0\]"),
        ("body.0", {"method": "magic", "ranks": [2]}, "unknown method 'magic'"),
    ],
)
def test_a_change_of_another_network(name: str, entry: dict[str, Any], message: str) -> None:
    network = SmallNetwork()
    before = list(network.modules())
    layers = {"hidden": {"method": "svd", "ranks": [2]}, name: entry}
    with pytest.raises(UserError, match=message):
        rebuild(network, {"kind": "factorize", "layers": layers})
    assert list(network.modules()) == before
    assert changes_of(network) == []


# Real architectures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("test_resnet", {}),
        ("test_byobnet", {}),
        ("test_convnext", {}),
        ("test_efficientnet", {}),
        ("test_efficientnet", {"pad_type": "same"}),
        ("torchvision/squeezenet1_1", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value.values()),
)
@pytest.mark.parametrize("method", METHODS)
def test_networks_compute_the_same_at_full_rank(architecture: str, options: dict[str, Any], method: str) -> None:
    """Every layer that can be replaced is, though it costs more."""
    import timm
    import torchvision

    library, _, name = architecture.rpartition("/")
    maker: Any = torchvision.models.get_model if library else timm.create_model
    network = maker(name, num_classes=5, **options).double().eval()
    plan = full_plan(network, method, 37)
    assert {entry["method"] for entry in plan.values()} == {method, "svd"}
    kinds = {type(network.get_submodule(name)).__name__ for name in plan}
    assert ("Conv2dSame" in kinds) == bool(options)
    images = image(2, 3, 37, 37)
    with torch.no_grad():
        expected = network(images)
        apply_plan(network, plan)
        torch.testing.assert_close(network(images), expected, rtol=1e-7, atol=1e-9)


def test_weight_standardization_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    network: Any = create_network("test_nfnet", 5, image_size=32)
    standardized = {name for name, m in network.backbone.named_modules() if type(m).__name__ == "ScaledStdConv2d"}
    factorize(network, energy=0.5, image_size=32)
    assert "not factorized, since it is a ScaledStdConv2d" in caplog.text
    replaced = set(changes_of(network)[0]["layers"])
    assert replaced
    assert not replaced & standardized


def test_weights_of_a_factorized_network_from_a_file(tmp_path: Any) -> None:
    network = create_network("test_resnet", 5, image_size=32).eval()
    factorize(network, macs=0.5, image_size=32)
    content = {"state_dict": network.state_dict(), "architecture": "test_resnet", "changes": changes_of(network)}
    torch.save(content, tmp_path / "small.ckpt")
    loaded = create_network("test_resnet", 5, image_size=32, weights=str(tmp_path / "small.ckpt")).eval()
    assert changes_of(loaded) == changes_of(network)
    images = image(2, 3, 32, 32, dtype=torch.float32)
    assert torch.equal(loaded(images), network(images))
    assert list(loaded.state_dict()) == list(network.state_dict())
    names = [name for name in changes_of(network)[0]["layers"]]
    assert all(name.startswith("layer") for name in names), "relative to the backbone"
    wider = create_network("test_resnet", 9, image_size=32, weights=str(tmp_path / "small.ckpt"))
    assert wider(images).shape == (2, 9)
