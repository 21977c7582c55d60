"""Networks whose gradients are masked must be caught; others must not be accused."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compresslens.attacks.honesty import Check, examine, panel
from compresslens.attacks.honesty.runs import gaussian_noise, right_ones
from compresslens.quantization import calibrate, convert, fake_quantize
from compresslens.reporting.honesty_figure import TITLES
from tests.attacks.trained import correct, digits, trained
from tests.quantization.networks import images as noise
from tests.quantization.networks import residual

NAMES = list(TITLES)


class Changed(nn.Module):
    """A network with something before and after it."""

    def __init__(
        self,
        network: nn.Module,
        before: Callable[[Tensor], Tensor] = torch.clone,
        after: Callable[[Tensor], Tensor] = torch.clone,
    ) -> None:
        super().__init__()
        self.network, self.before, self.after = network, before, after

    def forward(self, images: Tensor) -> Tensor:
        return self.after(self.network(self.before(images)))


class Misleading(torch.autograd.Function):
    """Passes values on; its gradient is noise."""

    @staticmethod
    def forward(ctx: object, values: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return torch.randn(gradient.shape, generator=torch.Generator().manual_seed(0))


@cache
def checks_of(kind: str) -> dict[str, Check]:
    """The checks by name, on 16 images that the network is right on."""
    network: nn.Module = trained()
    reference: nn.Module | None = trained(0.2)
    if kind == "adversarially trained":
        network = trained(1.0)
    elif kind == "thresholded":
        network = Changed(trained(), lambda images: (images > 0.5).float())
    elif kind == "saturated":
        network = Changed(trained(), after=lambda logits: (1e4 * logits).softmax(1))
    elif kind == "clipped":
        network = Changed(trained(), after=lambda logits: torch.tanh(100 * logits))
    elif kind == "misleading":
        network = Changed(trained(), Misleading.apply)
    elif kind == "large logits":
        network = Changed(trained(), after=lambda logits: 1e4 * logits)
    return by_name(examine(network, *correct(network, 16), reference=reference, queries=50, directions=4))


def by_name(checks: list[Check]) -> dict[str, Check]:
    assert [check.name for check in checks] == NAMES
    return {check.name: check for check in checks}


def verdicts(checks: dict[str, Check], outcome: str) -> set[str]:
    return {name for name, check in checks.items() if check.verdict == outcome}


@pytest.mark.parametrize("kind", ["plain", "adversarially trained", "large logits"])
def test_networks_that_do_nothing_of_the_sort_pass(kind: str) -> None:
    checks = checks_of(kind)
    assert verdicts(checks, "fail") == verdicts(checks, "skipped") == set(), panel(list(checks.values()))
    word, text = panel(list(checks.values()))
    assert word == "ok"
    assert text.startswith("no sign of masked gradients")
    assert checks["noise"].value > 2.5  # type: ignore[operator]


@pytest.mark.parametrize("kind", ["thresholded", "saturated", "clipped"])
def test_vanished_gradients_are_caught(kind: str) -> None:
    checks = checks_of(kind)
    assert verdicts(checks, "fail") >= {"gradients", "descent", "unbounded", "noise", "transfer"}
    if kind != "clipped":  # where Square, too, sees nothing but plateaus
        assert checks["black_box"].verdict == "fail"
    word, text = panel(list(checks.values()))
    assert word == "unreliable"
    assert text.startswith("unreliable: gradients are masked because ")
    assert "robust" not in text


def test_gradients_that_mislead_are_caught_by_attacks_that_do_not_use_them() -> None:
    checks = checks_of("misleading")
    assert checks["gradients"].verdict == "pass", "they are there"
    assert verdicts(checks, "fail") >= {"noise", "black_box", "transfer"}
    assert panel(list(checks.values()))[0] == "unreliable"


def quantized() -> nn.Module:
    network = residual()
    fake_quantize(network)
    calibrate(network, [noise(32)])
    return network


def examined(network: nn.Module, **options: Any) -> dict[str, Check]:
    images = noise(24, 3)
    labels = network(images).argmax(1)
    checks = by_name(examine(network, images, labels, reference=residual(), directions=4, **options))
    assert checks["black_box"].verdict == "skipped", "torchattacks' Square cannot do images of 12×12"
    return checks


def test_a_converted_network_is_caught() -> None:
    checks = examined(convert(quantized()))
    assert verdicts(checks, "fail") >= {"gradients", "descent", "unbounded", "noise", "transfer"}
    word, text = panel(list(checks.values()))
    assert word == "unreliable"
    assert "100% of the gradients at the images" in text


@pytest.mark.slow
def test_straight_through_gradients_are_gradients() -> None:
    checks = examined(quantized(), refine=60)
    masking = {"gradients", "descent", "best_point", "unbounded", "noise", "apgd", "transfer", "logit_scale"}
    assert not verdicts(checks, "fail") & masking
    by_way_of_its_twin = examined(quantized(), artefact=convert(quantized()), refine=60)
    assert not verdicts(by_way_of_its_twin, "fail") & masking


def test_the_same_twice_and_nothing_changes() -> None:
    network, reference = trained(), trained(0.2)
    images, labels = correct(network, 8)
    network.train()
    network[1].eval()
    flags = [module.training for module in network.modules()]
    statistics = {name: value.clone() for name, value in network.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    small = {"evaluations": 10, "queries": 5, "directions": 2, "apgd_steps": 3}
    try:
        with torch.inference_mode():
            results = [examine(network, images, labels, reference=reference, **small) for _ in range(2)]  # type: ignore[arg-type]
        assert results[0] == results[1]
        assert [module.training for module in network.modules()] == flags
    finally:
        network.eval()
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(statistics[name], value) for name, value in network.state_dict().items())


def test_images_that_are_misclassified_are_left_out() -> None:
    network = trained()
    images, labels = (part[:60] for part in digits())
    right = network(images).argmax(1) == labels
    kept = right_ones(network, images, labels, chunk_size=25)
    assert torch.equal(kept[0], images[right])
    assert torch.equal(kept[1], labels[right])
    assert examine(network, images[right], (labels[right] + 1) % 10) == []
    assert examine(network, images[:0], labels[:0]) == []
    with pytest.raises(ValueError, match="NaN"):
        examine(Changed(network, after=lambda logits: logits * torch.nan), images, labels)


def test_noise_finds_the_boundary_along_its_directions() -> None:
    network = trained()
    images, labels = correct(network, 8)
    one, four = (gaussian_noise(network, images, labels, count, seed=1) for count in (1, 4))
    assert (four.l2 <= one.l2).all()
    assert four.success.all()
    assert (network(four.adversarials).argmax(1) != labels).all()
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    unit = direction / direction.flatten(1).norm(dim=1)[:, None, None, None]
    lengths = torch.linspace(0, 15, 3000)
    for row in range(8):
        along = (images[row] + lengths[:, None, None, None] * unit[row]).clamp(0, 1)
        fooled = network(along).argmax(1) != labels[row]
        first = int(fooled.int().argmax())
        assert float(one.l2[row]) >= float((along[first] - images[row]).norm()) - 0.01
        assert bool(fooled[first])
