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
    """Passes values on; its gradient is noise, as long as the true one."""

    @staticmethod
    def forward(ctx: object, values: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        noise = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(0))
        return noise * gradient.flatten(1).norm(dim=1)[:, None, None, None]


class Random(nn.Module):
    """Adds noise to its images in eval mode, too."""

    def forward(self, images: Tensor) -> Tensor:
        return images + 0.01 * torch.randn_like(images)


def misleading_for_some(images: Tensor) -> Tensor:
    """Gradients that mislead at bright images only: three of the sixteen."""
    bright = images.flatten(1).mean(1) > 0.333
    return torch.where(bright[:, None, None, None], Misleading.apply(images), images)


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
    elif kind == "misleading for some":
        network = Changed(trained(), misleading_for_some)
    elif kind == "random":
        network = Changed(trained(), Random())
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


def test_gradients_that_mislead_on_some_images_are_caught() -> None:
    """Square, with its few queries, is weaker on most of the others: that is no excuse."""
    checks = checks_of("misleading for some")
    assert verdicts(checks, "fail") >= {"noise", "black_box", "apgd", "transfer"}
    assert checks["black_box"].value == 2 / 16


def test_a_network_that_answers_at_random_is_caught() -> None:
    checks = checks_of("random")
    assert checks["deterministic"].verdict == "fail"
    assert panel(list(checks.values()))[1].startswith("unreliable: gradients are masked because two forward passes")
    artefact = checks_by_artefact(trained(), Changed(trained(), Random()))
    assert artefact["deterministic"].verdict == "fail"


def checks_by_artefact(twin: nn.Module, artefact: nn.Module) -> dict[str, Check]:
    images, labels = correct(trained(), 16)
    options: dict[str, Any] = {"artefact": artefact, "reference": trained(0.2), "evaluations": 20, "refine": 10}
    return by_name(examine(twin, images, labels, **options))


def test_a_twin_that_misleads_is_caught_though_the_artefact_is_fooled_by_transfer() -> None:
    checks = checks_by_artefact(Changed(trained(), Misleading.apply), trained())
    assert verdicts(checks, "pass") >= {"gradients", "unbounded", "noise"}, "the reference's perturbations hide it"
    assert checks["transfer"].verdict == "fail"
    assert panel(list(checks.values()))[0] == "unreliable"
    assert checks_by_artefact(trained(), trained())["transfer"].verdict == "pass"


def test_apgd_is_not_blind_where_logits_are_large() -> None:
    """Cross-entropy alone has no gradient there."""
    check = checks_of("large logits")["apgd"]
    assert check.curves[1].label == "APGD"
    assert check.curves[1].y[2] > 0.4
    two_classes = Changed(trained(), after=lambda logits: logits[:, :2])
    images, labels = correct(trained(), 100)
    few = labels < 2
    small: dict[str, Any] = {"evaluations": 10, "queries": 2, "directions": 1, "apgd_steps": 2}
    assert by_name(examine(two_classes, images[few], labels[few], **small))["apgd"].verdict != "skipped"


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
    """On the stairs of a network that learned nothing, APGD may end on a nearer one: a miss, but no mask."""
    assert verdicts(examined(quantized(), refine=60), "fail") <= {"apgd"}
    by_way_of_its_twin = examined(quantized(), artefact=convert(quantized()), refine=60)
    assert verdicts(by_way_of_its_twin, "fail") <= {"apgd"}


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
    with pytest.raises(ValueError, match="labels go up to 10 but the network has 10 classes"):
        examine(network, images, labels + 1)
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
