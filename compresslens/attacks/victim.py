"""A network under attack as it is deployed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compresslens.attacks.artefact import attack_artefact
from compresslens.attacks.carlini_wagner import carlini_wagner_l2
from compresslens.attacks.checks import check_classes
from compresslens.attacks.margin import margin
from compresslens.attacks.result import AttackResult
from compresslens.attacks.search import logits_in_chunks
from compresslens.export.ready import is_int8, is_rounded

REFINEMENT = 60  # steps where activations are rounded


@dataclass(frozen=True)
class Victim:
    """What is attacked.

    Attributes:
        network: what is deployed, and decides whether an image is adversarial.
        differentiable: what gradients are taken from: the network itself, or the twin with fake quantizers that a
            converted INT8 network comes from.
        rounded: whether activations are rounded, also if only in simulation.
    """

    network: nn.Module
    differentiable: nn.Module
    rounded: bool

    @classmethod
    def of(cls, network: nn.Module) -> Victim:
        """The INT8 form of a network with fake quantizers; any other network itself.

        Learned steps of a few bits are deployed as they are simulated, so that network is attacked itself.

        Raises:
            UserError: the ranges of the fake quantizers were never calibrated.
        """
        if not is_int8(network):
            return cls(network, network, is_rounded(network))
        from compresslens.quantization.int8 import deployable

        with torch.inference_mode(False):
            return cls(deployable(network), network, True)

    @property
    def is_artefact(self) -> bool:
        """Whether the network is a converted one, without gradients."""
        return self.network is not self.differentiable

    def attack(
        self,
        images: Tensor,
        labels: Tensor,
        evaluations: int,
        refine: int = 0,
        transfer: Tensor | None = None,
        square_queries: int = 0,
        chunk_size: int = 64,
        seed: int = 0,
    ) -> tuple[AttackResult, dict[str, AttackResult]]:
        """The nearest adversarials, by projection and refinement.

        Args:
            images: N×C×H×W in [0, 1].
            labels: N int64.
            evaluations: see `carlini_wagner_l2`.
            refine: likewise; see `refinement`.
            transfer: see `attack_artefact`, which this and what follows is for.
            square_queries: likewise.
            chunk_size: images at a time.
            seed: of Square.

        Returns:
            The nearest of each image, and for a converted network those of each source (else nothing).
        """
        if not self.is_artefact:
            found = carlini_wagner_l2(
                self.network, images, labels, evaluations=evaluations, refine=refine, chunk_size=chunk_size
            )
            return found, {}
        both = attack_artefact(
            self.network,
            self.differentiable,
            images,
            labels,
            transfer=transfer,
            evaluations=evaluations,
            refine=refine,
            square_queries=square_queries,
            chunk_size=chunk_size,
            seed=seed,
        )
        return both.nearest, both.sources


def refinement(refine: int | None, victims: Iterable[Victim]) -> int:
    """Steps of refinement for networks that are compared: what is asked for, the same for all.

    If nothing is (None), it is `REFINEMENT` where the activations of any are rounded, else none: distances that took
    different budgets cannot be compared.
    """
    if refine is not None:
        return refine
    return REFINEMENT if any(victim.rounded for victim in victims) else 0


def is_right(network: nn.Module, images: Tensor, labels: Tensor, chunk_size: int = 64) -> Tensor:
    """Whether each of N images is classified correctly, with a positive margin (bool); NaN is not right.

    Raises:
        ValueError: the network has too few classes for the labels.
    """
    if len(images) == 0:
        return torch.zeros(0, dtype=torch.bool, device=images.device)
    logits = logits_in_chunks(network, images, chunk_size)
    check_classes("labels", labels, logits)
    return margin(logits, labels) > 0


def predict(network: nn.Module, images: Tensor, chunk_size: int = 64) -> Tensor:
    """Predicted classes N of images N×C×H×W, in float32 and eval mode, each independent of the other images."""
    if len(images) == 0:
        return torch.zeros(0, dtype=torch.int64, device=images.device)
    return logits_in_chunks(network, images, chunk_size).argmax(1)
