"""Attacks on networks without gradients: what is reported holds on the artefact itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compresslens.attacks import carlini_wagner_l2
from compresslens.attacks.artefact import attack_artefact
from compresslens.attacks.margin import margin
from compresslens.attacks.paired import attack_cost, attack_pair
from compresslens.attacks.result import AttackResult
from compresslens.attacks.victim import REFINEMENT, Victim, is_right, predict, refinement
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
    assert found.nearest.gradient_evaluations.tolist() == [40 + 20] * 16
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
    found, sources = victim.attack(images, labels, 20, REFINEMENT, transfer=transfer)
    check(found, victim.network, images, labels)
    assert found.success.all()
    assert set(sources) == {"straight_through", "transfer", "refinement"}
    assert found.gradient_evaluations.tolist() == [20 + REFINEMENT] * len(images)
    assert not carlini_wagner_l2(victim.network, images, labels).success.any(), "INT8 has no gradient"
    assert (predict(victim.network, images) == predict(quantized, images)).all()


def of_few_bits(network: Any, images: Tensor) -> Any:
    from compresslens.quantization import learn_steps

    few_bits: Any = in_pixels(TinyNetwork(8, dropout=0.0))
    few_bits.load_state_dict(network.state_dict())
    learn_steps(few_bits.eval(), [images], 8, 8)
    return few_bits


def test_other_networks_are_attacked_as_they_are(rounded: tuple[Any, Any, Tensor, Tensor]) -> None:
    network, _, images, labels = rounded
    for plain in (network, of_few_bits(network, images)):
        victim = Victim.of(plain)
        assert victim.network is victim.differentiable is plain
        found, sources = victim.attack(images, labels, 10, refine=3)
        assert sources == {}
        attacked = found.l2 > 0
        assert (found.gradient_evaluations[attacked] == 13).all()
        assert attacked.sum() >= 10


@pytest.mark.parametrize("kind", ["int8", "few bits"])
@pytest.mark.parametrize(("refine", "spent"), [(None, 10 + REFINEMENT), (3, 13), (0, 10)])
def test_both_of_a_pair_get_the_same_budget(
    rounded: tuple[Any, Any, Tensor, Tensor], kind: str, refine: int | None, spent: int
) -> None:
    network, quantized, images, labels = rounded
    model = quantized if kind == "int8" else of_few_bits(network, images)
    pair = attack_pair(
        images, labels, {"": Victim.of(model), "reference_": Victim.of(network)}, evaluations=10, refine=refine
    )
    right = predict(model, images) == labels  # else its twin has nothing to descend
    assert right.sum() >= 10
    assert pair.columns["cw_evaluations"][right.numpy()].tolist() == [spent] * int(right.sum())
    assert pair.columns["reference_cw_evaluations"][right.numpy()].tolist() == [spent] * int(right.sum())


def test_no_refinement_where_nothing_is_rounded() -> None:
    network = trained()
    plain, rounded = (Victim(network, network, value) for value in (False, True))
    assert [refinement(None, victims) for victims in ([plain], [plain, plain])] == [0, 0]
    assert [refinement(None, victims) for victims in ([plain, rounded], [rounded, plain])] == [REFINEMENT] * 2
    assert [refinement(asked, [plain, rounded]) for asked in (0, 7)] == [0, 7]


class Nowhere(nn.Module):
    """Has no logits for bright images."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        bright = images.flatten(1).mean(1, keepdim=True) > 0.33
        return torch.where(bright, torch.nan, self.network(images))


class Tie(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.zeros(len(images), 10)


def test_images_without_logits_are_not_attacked() -> None:
    network = trained()
    images, labels = correct(network, 16)
    dark = images.flatten(1).mean(1) <= 0.33
    assert 0 < dark.sum() < 16
    victims = {"": Victim.of(Nowhere(network)), "reference_": Victim.of(network)}
    pair = attack_pair(images, labels, victims, evaluations=1)
    assert torch.equal(pair.attacked, dark)
    assert len(pair.results[""]) == len(pair.results["reference_"]) == int(dark.sum())


def test_what_is_right() -> None:
    network = trained()
    images, labels = correct(network, 16)
    assert is_right(network, images, labels, chunk_size=5).all()
    assert not is_right(network, images, (labels + 1) % 10).any()
    assert not is_right(Tie(), images, torch.zeros_like(labels)).any()
    assert is_right(network, images[:0], labels[:0]).tolist() == []
    with pytest.raises(ValueError, match="labels go up to 10 but the network has 10 classes"):
        is_right(network, images, torch.full_like(labels, 10))


@pytest.mark.parametrize("count", [1, 5])
def test_what_an_attack_costs_is_measured_in_turns(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that gets slower and slower, a network is not slower than itself."""
    clock, order = 0.0, []

    def attacked(network: nn.Module, images: Tensor, labels: Tensor, **options: Any) -> AttackResult:
        nonlocal clock
        order.append(network)
        clock += 10 + len(order)
        return carlini_wagner_l2(network, images, labels, evaluations=1)

    monkeypatch.setattr("compresslens.attacks.paired.carlini_wagner_l2", attacked)
    monkeypatch.setattr("compresslens.attacks.paired.now", lambda device: clock)
    model, reference = nn.Sequential(trained()), nn.Sequential(trained())
    images, labels = correct(model, 6)
    victims = {"": Victim.of(model), "reference_": Victim.of(reference)}
    rows = torch.arange(6) < count
    columns = attack_cost(images, labels, rows, victims, 32)
    assert order == [model, reference, reference, model]
    assert all(np.isnan(values).tolist() == (~rows).tolist() for values in columns.values())
    ours, theirs = (np.nansum(columns[f"{prefix}cw_adam_seconds"]) for prefix in victims)
    assert (ours, theirs) == ((25, 25) if count == 5 else (11, 12))


def test_predictions_do_not_depend_on_the_batch() -> None:
    network = trained()
    images, _ = correct(network, 24)
    whole = predict(network, images)
    assert torch.equal(whole, torch.cat([predict(network, image[None]) for image in images]))
    assert torch.equal(whole, predict(network, images, chunk_size=5))
    assert predict(network, images[:0]).tolist() == []
