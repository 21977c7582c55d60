"""What our solvers must reach, judged on the figures of `carlini_wagner.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from carlini_wagner_attacks import ATTACKS, CHUNK
from torch import Tensor, nn

from compresslens.attacks import carlini_wagner_l2

Found = Mapping[str, Mapping[str, Any]]
PAPER = "foolbox_cw_9x1000"
FLOAT_NETWORKS = ("standard", "adversarial")
OURS = [name for name, attack in ATTACKS.items() if attack.package == "compresslens"]
# The longest runs of the peers whose distances are the smallest; further peers count where they were run.
STRONGEST = ("foolbox_ddn_1000", "adv_lib_ddn_1000", "adv_lib_alma_1000", "adv_lib_alma_1000_far", "adv_lib_pdgd_500")
FASTER, FEWER, NEAR = 150, 20, 1.01
OVERHEAD = 1.15
LINEAR_ERROR = 1e-3
LINEAR_IMAGES = 64


@dataclass(frozen=True)
class Check:
    """A statement with its figures; `passed` is None if it could not be checked."""

    text: str
    passed: bool | None

    @property
    def verdict(self) -> str:
        """For the print."""
        return {True: "PASS", False: "FAIL", None: "not checked"}[self.passed]


def checks(found: Found) -> list[Check]:
    """All checks on the networks that were attacked."""
    outcome: list[Check] = []
    for network in (name for name in FLOAT_NETWORKS if name in found):
        figures = found[network]
        outcome += needing(figures, network, ("projection_40", PAPER), against_paper)
        outcome += needing(figures, network, ("projection_60_refine_40", PAPER, *STRONGEST), against_best)
        outcome += needing(figures, network, ("adam", PAPER), adam_against_paper)
        outcome += [overhead_check(network, name, figures[name]) for name in OURS if name in figures]
    if "fake_quant" in found:
        needed = ("projection_40_refine_60", "adv_lib_ddn_1000")
        outcome += needing(found["fake_quant"], "fake_quant", needed, quantized)
    return outcome


def needing(
    figures: Mapping[str, Any], network: str, names: tuple[str, ...], judge: Callable[..., Iterator[Check]]
) -> list[Check]:
    """Checks that need all of some attacks."""
    absent = [name for name in names if name not in figures]
    if absent:
        return [Check(f"{network}: {names[0]} needs {', '.join(absent)}", None)]
    return list(judge(network, figures))


def against_paper(network: str, figures: Mapping[str, Any]) -> Iterator[Check]:
    """40 evaluations against foolbox's C&W."""
    mine, paper = figures["projection_40"], figures[PAPER]
    yield budget(network, "projection_40", mine, 40)
    text = f"{network}: projection_40 success {mine.success:.1%} >= {paper.success:.1%} of {PAPER}"
    yield Check(text, mine.success >= paper.success)
    yield from no_farther(network, "projection_40", mine, {PAPER: paper})
    text = f"{network}: {PAPER} takes {paper.ratio:.0f} >= {FASTER} times as long as projection_40"
    yield Check(text, paper.ratio >= FASTER)


def against_best(network: str, figures: Mapping[str, Any]) -> Iterator[Check]:
    """100 evaluations, of which 40 refine, against the best of every peer."""
    mine = figures["projection_60_refine_40"]
    yield budget(network, "projection_60_refine_40", mine, 100)
    yield from no_farther(network, "projection_60_refine_40", mine, {n: f for n, f in figures.items() if n not in OURS})


def adam_against_paper(network: str, figures: Mapping[str, Any]) -> Iterator[Check]:
    """The paper's own way, but quicker."""
    mine, paper = figures["adam"], figures[PAPER]
    text = f"{network}: adam median L2 {mine.median:.4f} <= {NEAR} x {paper.median:.4f} of {PAPER}"
    yield Check(text, mine.median <= NEAR * paper.median)
    text = f"{network}: adam {mine.gradients:.0f} gradient evaluations <= 1/{FEWER} of {paper.gradients:.0f} of {PAPER}"
    yield Check(text, FEWER * mine.gradients <= paper.gradients)


def quantized(network: str, figures: Mapping[str, Any]) -> Iterator[Check]:
    """Projection and refinement on a staircase."""
    peers = {"adv_lib_ddn_1000": figures["adv_lib_ddn_1000"]}
    yield budget(network, "projection_40_refine_60", figures["projection_40_refine_60"], 100)
    yield from no_farther(network, "projection_40_refine_60", figures["projection_40_refine_60"], peers)


def budget(network: str, name: str, mine: Any, allowed: int) -> Check:
    """Counted outside of the attack, and as the attack says of each image."""
    text = (
        f"{network}: {name} {mine.gradients:.1f} gradient evaluations (most of an image {mine.reported}) <= {allowed}"
    )
    return Check(text, mine.gradients <= allowed and mine.reported <= allowed)


def no_farther(network: str, name: str, mine: Any, peers: Mapping[str, Any]) -> Iterator[Check]:
    """Median and mean L2 at most those of the best peer."""
    for what in ("median", "mean"):
        best = min(peers, key=lambda peer, what=what: getattr(peers[peer], what))  # type: ignore[misc]
        ours, theirs = getattr(mine, what), getattr(peers[best], what)
        yield Check(f"{network}: {name} {what} L2 {ours:.4f} <= {theirs:.4f} of {best}", ours <= theirs)


def overhead_check(network: str, name: str, mine: Any) -> Check:
    """Time beyond that of the network itself."""
    text = f"{network}: {name} takes {mine.overhead:.3f} <= {OVERHEAD} x the network's own time for its evaluations"
    return Check(text, mine.overhead <= OVERHEAD)


def linear_check(verified: Callable[[nn.Module, Tensor, Tensor, Tensor], list[float]]) -> Check:
    """A linear classifier has a closed form: the least margin over ‖w_i - w_j‖, where no pixel clips."""
    generator = torch.Generator().manual_seed(0)
    images = 0.3 + 0.4 * torch.rand(LINEAR_IMAGES, 3, 32, 32, generator=generator)
    network = nn.Sequential(nn.Flatten(), nn.Linear(images[0].numel(), 10))
    linear: Any = network[1]
    with torch.no_grad():
        linear.weight.copy_(torch.randn(linear.weight.shape, generator=generator))
        linear.bias.copy_(torch.randn(10, generator=generator))
        weight, bias = linear.weight.double(), linear.bias.double()
        logits = images.flatten(1).double() @ weight.T + bias
        labels = logits.argmax(1)
        margins = logits.gather(1, labels[:, None]) - logits
        exact = (margins / torch.cdist(weight, weight)[labels]).scatter(1, labels[:, None], torch.inf).amin(1)
    result = carlini_wagner_l2(network, images, labels, chunk_size=CHUNK)
    clipped = bool(((result.adversarials <= 0) | (result.adversarials >= 1)).any())
    l2 = torch.tensor(verified(network, images, labels, result.adversarials), dtype=torch.float64)
    worst = float((l2 / exact - 1).abs().max())
    text = f"linear: projection_40 is at most {worst:.4%} <= {LINEAR_ERROR:.1%} from the closed form, no pixel clips"
    return Check(text, worst <= LINEAR_ERROR and not clipped)
