"""The attacks of torchattacks (Kim 2020, arXiv:2010.01950), for comparisons with our own.

torchattacks reaches for what it should leave alone: it sets train flags wholesale, leaves gradients in parameters,
draws from the global random state and seeds it anew, raises in inference mode and where a network has no gradient, and
reports nothing about success. The adapter lets it see a stand-in for the network and judges the outcome by itself.
"""

from __future__ import annotations

import difflib
import inspect
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compresslens.attacks.checks import check_classes, check_images, check_labels, check_logits
from compresslens.attacks.margin import is_adversarial, margin
from compresslens.attacks.result import NEVER, AttackResult
from compresslens.attacks.search import forward_rows
from compresslens.errors import UserError
from compresslens.networks.modes import input_gradients
from compresslens.random_state import seeded

WRAPPERS = ("LGV", "MultiAttack")  # train the network, or combine attacks: not attacks on one network
MIN_CLASSES = {"APGDT": 4}  # its loss compares with the third and fourth largest logits


def torchattacks_attack(
    network: nn.Module, images: Tensor, labels: Tensor, attack: str, *, seed: int = 0, **options: Any
) -> AttackResult:
    """Runs an untargeted attack of torchattacks on the images that are classified correctly.

    Pixels are in [0, 1] and nothing is normalized; `norm` is "L2" unless said otherwise, where the attack has a norm;
    `eps` is then a distance in pixel units and must be given. The network's flags and gradients, the caller's autograd
    mode and the random states of torch, numpy and Python are as before afterwards. The same arguments give the same
    result; unlike our own attacks, an image's result depends on the others of the call, by way of the random numbers.

    Where there is no way back from the logits to the input (thresholds, integer arithmetic), the gradient is zero.

    Args:
        network: from pixels to logits.
        images: N×C×H×W in [0, 1]; N may be 0.
        labels: N int64.
        attack: name of the class, e.g. "APGD", "APGDT", "Square", "PGDL2", "FAB", "GN" (Gaussian noise), "CW".
        seed: of everything that the attack draws.
        options: those of the class, e.g. `eps=0.5, steps=20` (`n_queries=500` for Square).

    Returns:
        What the attack returned, clipped to [0, 1] and judged by a forward pass of ours: adversarial if the margin is
        negative. Backward passes are counted as they happen, by image; a row of an attack that goes on with only some
        of the images counts for the image it is nearest to. `first_success` counts those until the network first saw an
        adversarial of the image: 0 for attacks that need none.

    Raises:
        UserError: no such attack, an option it does not have, `eps` missing, too few classes, or a size of
            images that it cannot do.
        ValueError: bad images, labels or logits.
    """
    check_images(images)
    check_labels("labels", labels, images)
    chosen, options = _choose(attack, {"seed": seed, **options})
    with input_gradients(network):
        images, labels = images.detach().clone(), labels.clone()
        result = AttackResult(
            adversarials=images.clone(),
            success=torch.zeros_like(labels, dtype=torch.bool),
            l2=torch.full_like(labels, torch.inf, dtype=torch.float64),
            gradient_evaluations=torch.zeros_like(labels),
            first_success=torch.full_like(labels, NEVER),
        )
        if len(images) == 0:
            return result
        with torch.no_grad():
            logits = forward_rows(network, images)
        check_logits(logits, torch.arange(len(images)))
        check_classes("labels", labels, logits)
        if logits.shape[1] < MIN_CLASSES.get(attack, 2):
            raise UserError(f"{attack} needs at least {MIN_CLASSES[attack]} classes; the network has {logits.shape[1]}")
        if attack in ("Square", "AutoAttack") and options["norm"] == "L2":
            _check_tiling(attack, *images.shape[2:])
        if "n_classes" in inspect.signature(chosen.__init__).parameters:
            options.setdefault("n_classes", logits.shape[1])
        wrong = is_adversarial(margin(logits, labels))
        result.success[wrong] = True
        result.l2[wrong] = 0.0
        result.first_success[wrong] = 0
        right = torch.nonzero(~wrong)[:, 0]
        if len(right) == 0:
            return result
        stand_in = StandIn(network, images[right], labels[right])
        with seeded(seed, images.device):
            found = chosen(stand_in, **options)(images[right], labels[right]).detach().to(images.dtype)
        _enter(result, right, stand_in, torch.clamp(found, 0, 1))
    return result


class StandIn(nn.Module):
    """What torchattacks gets to see of a network: it computes the same but owns neither its modules nor its parameters.

    Args:
        network: in the state of `compresslens.networks.modes.input_gradients`.
        images: N×C×H×W, those under attack.
        labels: N.

    Attributes:
        evaluations: N int64, backward passes so far.
        first: N int64, backward passes until the network first saw an adversarial of the image, or `NEVER`.
    """

    def __init__(self, network: nn.Module, images: Tensor, labels: Tensor) -> None:
        super().__init__()
        self.hidden = (network,)  # a tuple keeps it out of parameters(), train() and eval()
        self.device = nn.Parameter(images.new_empty(0), requires_grad=False)  # torchattacks asks a parameter for it
        self.images = images
        self.labels = labels
        self.evaluations = torch.zeros_like(labels)
        self.first = torch.full_like(labels, NEVER)

    def forward(self, points: Tensor) -> Tensor:
        """Logits M×C of points M×C×H×W."""
        rows = self._rows(points)
        differentiable = points.requires_grad and torch.is_grad_enabled()
        if differentiable:
            points = points.view_as(points)
            points.register_hook(partial(self._count, rows))
        logits = forward_rows(self.hidden[0], points)
        if differentiable and not logits.requires_grad:
            logits = logits + 0 * points.flatten(1).sum(1, keepdim=True)
        fooled = is_adversarial(margin(logits.detach(), self.labels[rows]))
        new = rows[fooled & (self.first[rows] == NEVER)]
        self.first[new] = self.evaluations[new] + int(differentiable)
        return logits if differentiable else logits.clone()  # Square writes into it

    def _count(self, rows: Tensor, gradient: Tensor) -> None:
        self.evaluations.index_add_(0, rows, torch.ones_like(rows))

    def _rows(self, points: Tensor) -> Tensor:
        """Which image each point belongs to."""
        if len(points) == len(self.images):
            return torch.arange(len(points), device=points.device)
        return torch.cdist(points.detach().flatten(1), self.images.flatten(1)).argmin(1)


def _choose(attack: str, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The attack's class and the options it is made with."""
    import torchattacks

    names = [name for name in torchattacks.__all__ if name not in WRAPPERS]
    if attack not in names:
        near = difflib.get_close_matches(attack.upper(), names, 1, 0.3)
        raise UserError(f"torchattacks has no attack {attack!r}" + (f"; did you mean {near[0]}?" if near else ""))
    chosen = getattr(torchattacks, attack)
    known = set(inspect.signature(chosen.__init__).parameters) - {"self", "model"}
    if "seed" not in known:
        options.pop("seed")
    unknown = sorted(set(options) - known)
    if unknown:
        raise UserError(f"{attack} has no option {unknown[0]!r}; its options are {', '.join(sorted(known))}")
    if "norm" in known:
        options.setdefault("norm", "L2")
        if "eps" in known and "eps" not in options:
            raise UserError(f"{attack} needs eps, the greatest {options['norm']} distance in pixel units")
    return chosen, options


def _check_tiling(attack: str, height: int, width: int) -> None:
    """Raises UserError where the tiles that Square starts from in L2 would stick out of the image, as with 12×12."""
    side = height // 5
    start = (height - 5 * side) // 2
    fits = side > 0 and all(start + length // side * side <= length for length in (height, width))
    if not fits and side != 1:  # tiles of one pixel are cut off without complaint
        raise UserError(f"torchattacks' {attack} cannot do L2 on images of {height}×{width}: its tiles do not fit")


def _enter(result: AttackResult, numbers: Tensor, stand_in: StandIn, found: Tensor) -> None:
    """Judges what an attack returned for some of the images, and enters it."""
    with torch.no_grad():
        logits = forward_rows(stand_in.hidden[0], found)
    fooled = is_adversarial(margin(logits, stand_in.labels))  # comparisons with NaN are false
    rows = numbers[fooled]
    result.adversarials[rows] = found[fooled]
    result.success[rows] = True
    result.l2[rows] = (found.double() - stand_in.images.double()).flatten(1).norm(dim=1)[fooled]
    result.gradient_evaluations[numbers] = stand_in.evaluations
    # an adversarial that the attack itself never looked at, such as a last step, was found at the end
    first = torch.where(stand_in.first == NEVER, stand_in.evaluations, stand_in.first)
    result.first_success[rows] = first[fooled]
