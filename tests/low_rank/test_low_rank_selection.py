from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from compresslens.errors import UserError
from compresslens.low_rank import factorize
from compresslens.low_rank.selection import select_layers
from compresslens.low_rank.uses import measure_uses
from compresslens.networks.changes import changes_of
from tests.low_rank.networks import SIZE, SmallNetwork


def replaced(network: nn.Module, **options: Any) -> list[str]:
    factorize(network, **{"energy": 0.5, "image_size": SIZE, **options})
    return [name for change in changes_of(network) for name in change["layers"]]


def test_all_but_first_convolution_classifier_and_grouped_ones() -> None:
    assert replaced(SmallNetwork()) == ["body.0", "body.4", "body.6", "hidden"]


def test_the_first_convolution_is_the_one_that_runs_first() -> None:
    class Reversed(SmallNetwork):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Conv2d(48, 48, 3).double()
            self.last, self.stem = self.stem, self.last  # by registration the stem comes first

        def forward(self, images: Tensor) -> Tensor:
            images = self.last(images)
            return self.head(self.hidden(self.stem(self.body(images)).mean((2, 3))).relu())

    assert "stem" in replaced(Reversed(), energy=0.3)


@pytest.mark.parametrize(
    ("keep", "expected"), [(["body"], ["hidden"]), (["body.0", "hidden"], ["body.4", "body.6"]), (["stem"], None)]
)
def test_layers_to_keep(keep: list[str], expected: list[str] | None) -> None:
    assert replaced(SmallNetwork(), keep=keep) == (expected or ["body.0", "body.4", "body.6", "hidden"])


@pytest.mark.parametrize(
    ("layers", "expected"),
    [(["hidden"], ["hidden"]), (["stem"], ["stem"]), (["body"], ["body.0", "body.4", "body.6"])],
)
def test_layers_to_factorize(layers: list[str], expected: list[str]) -> None:
    assert replaced(SmallNetwork(), layers=layers, energy=0.3) == expected


def test_a_layer_in_a_module_can_be_kept() -> None:
    assert replaced(SmallNetwork(), layers=["body"], keep=["body.0"]) == ["body.4", "body.6"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ["body.2"]}, "'body.2' cannot be factorized: it is a convolution in 32 groups"),
        ({"layers": ["head"]}, "'head' cannot be factorized: it is the classifier"),
        ({"layers": ["body.1"]}, "'body.1' cannot be factorized: there is no layer in it that can"),
        ({"layers": ["hiden"]}, "there is no layer 'hiden' in SmallNetwork. Nearest: hidden"),
        ({"keep": ["steem"]}, "there is no layer 'steem' in SmallNetwork. Nearest: stem"),
        ({"keep": ["stem"], "layers": ["stem"]}, "'stem' is to be kept and to be factorized"),
        ({"layers": []}, "the list of layers to factorize is empty"),
    ],
)
def test_names_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        factorize(SmallNetwork(), energy=0.5, image_size=SIZE, **options)


class Doubled(nn.Conv2d):
    """A subclass that uses its weight in its own way."""

    def forward(self, images: Tensor) -> Tensor:
        return 2 * super().forward(images)


def doubled(network: SmallNetwork) -> None:
    network.body[4] = Doubled(32, 32, 1).double()


def hooked(network: SmallNetwork) -> None:
    network.body[4].register_forward_hook(lambda module, inputs, output: 2 * output)


def normalized(network: SmallNetwork) -> None:
    parametrizations.weight_norm(network.body[4])


def shared_module(network: SmallNetwork) -> None:
    network.body[5] = nn.Sequential(network.body[4], nn.ReLU())


def shared_weight(network: SmallNetwork) -> None:
    network.body[5] = nn.Conv2d(32, 32, 1).double()
    network.body[5].weight = network.body[4].weight


def read_directly(network: SmallNetwork) -> None:
    class Outside(nn.Module):
        def __init__(self, layer: nn.Conv2d) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, images: Tensor) -> Tensor:
            return nn.functional.conv2d(images, self.layer.weight)

    network.body[4] = Outside(network.body[4])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "name", "reason"),
    [
        (doubled, "body.4", "is a Doubled, not a plain two-dimensional convolution or linear layer"),
        (hooked, "body.4", "has hooks, which may change its weight or its output"),
        (normalized, "body.4", "is a ParametrizedConv2d, not a plain two-dimensional convolution or linear layer"),
        (shared_module, "body.4", "shares its weight with another layer"),
        (shared_weight, "body.4", "shares its weight with another layer"),
        (read_directly, "body.4.layer", "does not run by itself"),
    ],
)
def test_what_is_not_understood_is_left_alone(
    change: Any, name: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    network = SmallNetwork()
    change(network)
    layer = network.get_submodule(name)
    with caplog.at_level(logging.WARNING):
        names = replaced(network)
    assert names == ["body.0", "body.6", "hidden"]
    assert network.get_submodule(name) is layer
    assert [record.getMessage().split(" and ")[0] for record in caplog.records] == [
        f"not factorized, since it {reason}: {name}"
    ]
    with pytest.raises(UserError, match=f"'{name}' cannot be factorized: it {reason}"):
        factorize(network, energy=0.5, image_size=SIZE, layers=[name])


def test_measuring_leaves_no_trace() -> None:
    network = SmallNetwork().train()
    network.body.eval()
    modes = [module.training for module in network.modules()]
    state = torch.get_rng_state()
    uses, _ = measure_uses(network, SIZE)
    select_layers(network, uses, [], None)
    assert [module.training for module in network.modules()] == modes
    assert not any(module._forward_hooks for module in network.modules())
    assert torch.equal(torch.get_rng_state(), state)
