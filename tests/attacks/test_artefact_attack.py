"""Attacks on networks without gradients: what is reported holds on the artefact itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compresslens.attacks import carlini_wagner_l2
from compresslens.attacks.artefact import FURTHER, attack_artefact
from compresslens.attacks.margin import margin
from compresslens.attacks.result import AttackResult
from compresslens.attacks.victim import REFINEMENT, Victim, predict
from compresslens.quantization import calibrate, fake_quantize
from tests.attacks.trained import correct, trained
from tests.lightning_modules.recipes import in_pixels
from tests.lightning_modules.tiny import NoiseData, TinyNetwork

LEVELS = 31


class Coarse(nn.Module):
    """Rounds its input to 32 levels before the network sees it; with `straight_through`, it has a gradient."""

    def __init__(self, network: nn.Module, straight_through: bool) -> None:
        super().__init__()
        self.network = network
        self.straight_through = straight_through

    def forward(self, images: Tensor) -> Tensor:
        rounded = torch.round(images * LEVELS) / LEVELS
        return self.network(images + (rounded - images).detach() if self.straight_through else rounded)


class Linear(nn.Module):
    """Two classes, one in the upper half of the images' mean, one in the lower."""

    def __init__(self, threshold: float = 0.5) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, images: Tensor) -> Tensor:
        score = images.flatten(1).mean(1) - self.threshold
        return torch.stack([-score, score], 1)


def check(result: AttackResult, artefact: nn.Module, images: Tensor, labels: Tensor) -> None:
    """What is reported, from nothing but the artefact's own logits."""
    with torch.no_grad():
        fooled = margin(artefact(result.adversarials), labels) < 0
    assert torch.equal(fooled, result.success)
    distance = (result.adversarials.double() - images.double()).flatten(1).norm(dim=1)
    torch.testing.assert_close(result.l2, torch.where(fooled, distance, torch.inf))
    assert torch.equal(result.adversarials[~fooled], images[~fooled])
    assert float(result.adversarials.min()) >= 0
    assert float(result.adversarials.max()) <= 1


def test_each_source_is_verified_and_the_nearest_counts() -> None:
    network = trained()
    artefact, twin = Coarse(network, False).eval(), Coarse(network, True).eval()
    images, labels = correct(artefact, 16)
    reference = carlini_wagner_l2(network, images, labels)
    found = attack_artefact(artefact, twin, images, labels, transfer=reference.adversarials, refine=20)
    assert list(found.sources) == ["straight_through", "transfer", "refinement"]
    for result in (*found.sources.values(), found.nearest):
        check(result, artefact, images, labels)
    distances = torch.stack([result.l2 for result in found.sources.values()])
    assert torch.equal(found.nearest.l2, distances.min(0).values)
    assert len(set(distances.argmin(0).tolist())) > 1, "no source is the best for all images"
    assert found.nearest.success.all()
    assert found.nearest.gradient_evaluations.tolist() == [40 + 20 + 2 * len(FURTHER)] * 16
    assert (found.nearest.first_success >= 1).all()
    # the rounding moves a pixel by up to half a level, so distances cannot differ by more than all pixels' together
    bound = 0.5 / LEVELS * images[0].numel() ** 0.5
    assert (found.nearest.l2 <= reference.l2 * 1.01 + bound).all()


def test_the_attack_that_trusts_the_artefacts_gradient_sees_robustness() -> None:
    """What this is for."""
    network = trained()
    artefact, twin = Coarse(network, False).eval(), Coarse(network, True).eval()
    images, labels = correct(artefact, 16)
    assert not carlini_wagner_l2(artefact, images, labels).success.any()
    assert attack_artefact(artefact, twin, images, labels, refine=0).nearest.success.all()


def test_closed_form() -> None:
    """The rounded mean of grey images must move by the margin, or by half a level more or less."""
    images = torch.tensor([0.2, 0.35, 0.8])[:, None, None, None].expand(3, 1, 8, 8).contiguous()
    labels = torch.tensor([0, 0, 1])
    artefact, twin = Coarse(Linear(), False), Coarse(Linear(), True)
    found = attack_artefact(artefact, twin, images, labels)
    check(found.nearest, artefact, images, labels)
    margins = (images.flatten(1).mean(1).double() - 0.5).abs() * 8
    assert ((found.nearest.l2 - margins).abs() <= 0.5 / LEVELS * 8 * 1.02).all()


def test_where_the_twin_is_wrong_its_gradient_still_leads_the_way() -> None:
    images = torch.full((2, 1, 8, 8), 0.48)
    labels = torch.tensor([0, 0])
    artefact, twin = Linear(0.5), Linear(0.45)  # the twin sees class 1 without any perturbation
    found = attack_artefact(artefact, twin, images, labels, refine=0)
    check(found.nearest, artefact, images, labels)
    torch.testing.assert_close(found.nearest.l2, torch.full((2,), 0.02 * 8, dtype=torch.float64), rtol=0.03, atol=0)
    assert found.nearest.gradient_evaluations.tolist() == [1, 1]


def test_transfer_helps_where_the_twin_misleads() -> None:
    network = trained()
    images, labels = correct(network, 8)
    twin = Coarse(nn.Sequential(network, Reversed()), True).eval()
    transfer = carlini_wagner_l2(network, images, labels).adversarials
    alone = attack_artefact(network, twin, images, labels, refine=0)
    both = attack_artefact(network, twin, images, labels, transfer=transfer, refine=0)
    assert both.sources["transfer"].success.all()
    assert (alone.nearest.l2 > 1.1 * both.nearest.l2).all()


class Reversed(nn.Module):
    """Keeps the predicted class, but gives the others in reverse order of preference."""

    def forward(self, logits: Tensor) -> Tensor:
        best = logits.max(1, keepdim=True).values
        return torch.where(logits == best, logits, 2 * logits.mean(1, keepdim=True) - logits - 2 * best.abs())


def test_square_needs_no_gradient_at_all() -> None:
    network = trained()
    images, labels = correct(network, 8)
    twin = nn.Sequential(nn.Flatten(), nn.Linear(100, 10)).requires_grad_(False)
    with torch.no_grad():
        twin[1].weight.zero_()
        twin[1].bias.zero_()
    random_state = torch.get_rng_state()
    found = attack_artefact(network, twin, images, labels, square_queries=60)
    assert list(found.sources)[-1] == "square"
    assert found.sources["square"].success.any(), "by its radius where nothing else succeeds"
    check(found.nearest, network, images, labels)
    assert torch.equal(random_state, torch.get_rng_state())


@pytest.mark.parametrize("caller", [torch.no_grad, torch.inference_mode])
def test_callers_mode_and_state(caller: Any) -> None:
    network = trained()
    artefact, twin = Coarse(network, False), Coarse(network, True)
    images, labels = correct(network, 4)
    expected = attack_artefact(artefact, twin, images, labels, transfer=images.roll(1, 0)).nearest
    twin.train()
    twin.network.eval()
    with caller():
        found = attack_artefact(artefact, twin, images.clone(), labels.clone(), transfer=images.roll(1, 0)).nearest
    assert torch.equal(found.l2, expected.l2)
    assert (twin.training, twin.network.training) == (True, False)
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_no_images() -> None:
    network = trained()
    images, labels = torch.zeros(0, 1, 10, 10), torch.zeros(0, dtype=torch.int64)
    found = attack_artefact(network, network, images, labels, transfer=images)
    assert len(found.nearest) == 0


# The victim -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rounded() -> tuple[Any, Any, Tensor, Tensor]:
    """A float network trained on noise, the same with fake quantizers, and test images that both classify correctly."""
    data = NoiseData()
    images, labels = (torch.stack([data.dataset("train")[i][0] for i in range(75)]), torch.arange(75) % 7)
    network: Any = in_pixels(TinyNetwork(8, dropout=0.0))
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    network.eval()
    quantized: Any = in_pixels(TinyNetwork(8, dropout=0.0))
    quantized.load_state_dict(network.state_dict())
    fake_quantize(quantized.eval())
    calibrate(quantized, [images])
    tests = torch.stack([data.dataset("test")[i][0] for i in range(43)])
    classes = torch.arange(43) % 7
    right = (predict(network, tests) == classes) & (predict(quantized, tests) == classes)
    return network, quantized, tests[right][:12], classes[right][:12]


def test_a_network_with_fake_quantizers_is_attacked_as_int8(rounded: tuple[Any, Any, Tensor, Tensor]) -> None:
    network, quantized, images, labels = rounded
    with torch.inference_mode():
        victim = Victim.of(quantized)
    assert victim.is_artefact
    transfer = Victim.of(network).attack(images, labels, 20)[0].adversarials
    found, sources = victim.attack(images, labels, 20, transfer=transfer)
    check(found, victim.network, images, labels)
    assert found.success.all()
    assert set(sources) == {"straight_through", "transfer", "refinement"}
    assert found.gradient_evaluations.tolist() == [20 + REFINEMENT + 4] * len(images)
    assert not carlini_wagner_l2(victim.network, images, labels).success.any(), "INT8 has no gradient"
    assert (predict(victim.network, images) == predict(quantized, images)).all()


def test_other_networks_are_attacked_as_they_are(rounded: tuple[Any, Any, Tensor, Tensor]) -> None:
    from compresslens.quantization import learn_steps

    network, _, images, labels = rounded
    few_bits: Any = in_pixels(TinyNetwork(8, dropout=0.0))
    few_bits.load_state_dict(network.state_dict())
    learn_steps(few_bits.eval(), [images], 8, 8)
    for plain, refinement in ((network, 0), (few_bits, REFINEMENT)):
        victim = Victim.of(plain)
        assert victim.network is victim.differentiable is plain
        found, sources = victim.attack(images, labels, 10)
        assert sources == {}
        attacked = found.l2 > 0
        assert (found.gradient_evaluations[attacked] == 10 + refinement).all()
        assert attacked.sum() >= 10
    found, _ = Victim.of(few_bits).attack(images, labels, 10, refine=3)
    assert found.gradient_evaluations.max() == 13


def test_predictions_do_not_depend_on_the_batch() -> None:
    network = trained()
    images, _ = correct(network, 24)
    whole = predict(network, images)
    assert torch.equal(whole, torch.cat([predict(network, image[None]) for image in images]))
    assert torch.equal(whole, predict(network, images, chunk_size=5))
    assert predict(network, images[:0]).tolist() == []
