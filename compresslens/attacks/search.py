"""What every solver shares: evaluating the network, counting, and keeping each image's nearest adversarial."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from compresslens.attacks.margin import UNTARGETED, is_adversarial, lane_margin, margin
from compresslens.attacks.result import NEVER, Evaluation
from compresslens.networks.modes import input_gradients

Observer = Callable[[Evaluation], None]
MIN_ROWS = 16  # of a network call; smaller ones use CPU kernels that sum in another order


def forward_rows(network: nn.Module, images: Tensor) -> Tensor:
    """Logits M×C of images M×C×H×W, each bitwise independent of the others (on CPU)."""
    count = len(images)
    if count < MIN_ROWS:
        images = torch.cat([images, images[:1].detach().expand(MIN_ROWS - count, *images.shape[1:])])
    logits = network(images)[:count]
    return logits if logits.dtype == torch.float64 else logits.float()


def logits_in_chunks(network: nn.Module, images: Tensor, chunk_size: int = 64) -> Tensor:
    """Logits N×C of at least one image, in eval mode and without autograd; the network is left as it was."""
    with input_gradients(network), torch.no_grad():
        return torch.cat([forward_rows(network, part) for part in images.split(chunk_size)])


class Search:
    """The images under attack, and the best that has been found for each of them.

    Points are rows of D = C·H·W pixels. A row belongs to an image; an image may have several rows (lanes).

    Args:
        network: in the state of `compresslens.networks.modes.input_gradients`.
        images: N×C×H×W in [0, 1].
        labels: N, the class to get away from, or with `targeted` the class to get to.
        targeted: see `labels`.
        confidence: by how much the winning logit must exceed the others.
        observe: is told each evaluation.
        numbers: N, what the observer knows the images by; 0 to N - 1 if None.

    Attributes:
        best: N×D, the nearest adversarial; the image where there is none.
        distance: N float32, its L2 distance; infinite where there is none.
        evaluations: N int64, gradient evaluations so far.
        first_success: N int64, see `AttackResult`.
    """

    def __init__(
        self,
        network: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        targeted: bool = False,
        confidence: float = 0.0,
        observe: Observer | None = None,
        numbers: Tensor | None = None,
    ) -> None:
        self.network = network
        self.shape = images.shape[1:]
        self.images = images.flatten(1)
        self.labels = labels
        self.targeted = targeted
        self.confidence = confidence
        self.observe = observe
        self.numbers = torch.arange(len(images), device=images.device) if numbers is None else numbers
        self.best = self.images.clone()
        self.distance = torch.full_like(self.images[:, 0], torch.inf)
        self.evaluations = torch.zeros_like(labels)
        self.first_success = torch.full_like(labels, NEVER)

    def __len__(self) -> int:
        return len(self.images)

    def evaluate(
        self, samples: Tensor, points: Tensor, distances: Tensor, against: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Margins and their gradients at some points, which become the best where they are adversarial and nearer.

        Args:
            samples: M int64, the image of each row.
            points: M×D in [0, 1].
            distances: M, of the points from their images.
            against: M class indices; the margin is against that class rather than against the best other. Untargeted
                attacks only.

        Returns:
            Margin plus confidence (M; the constraint is that it is at most 0), its gradient (M×D), and whether the
            point is adversarial (M bool; decided by the margin against all classes).
        """
        inputs, logits = self._forward(points)
        labels = self.labels[samples]
        overall = margin(logits.detach(), labels)
        if self.targeted:
            overall = -overall
            constraint = -margin(logits, labels)
        else:
            constraint = lane_margin(
                logits, labels, torch.full_like(labels, UNTARGETED) if against is None else against
            )
        gradients = self._backward(constraint.sum(), inputs)
        self._count(samples)
        adversarial = is_adversarial(overall, self.confidence)
        self._keep(samples, inputs.detach(), distances, adversarial)
        if self.observe is not None:
            self._tell(samples, inputs.detach(), overall, gradients)
        return constraint.detach() + self.confidence, gradients, adversarial

    def look(self, points: Tensor, distances: Tensor) -> None:
        """A point of each image (N×D), which becomes the best where it is adversarial and nearer; costs no gradient.

        Args:
            points: N×D in [0, 1].
            distances: N, of the points from their images.
        """
        with torch.no_grad():
            margins = margin(forward_rows(self.network, points.view(-1, *self.shape)), self.labels)
        adversarial = is_adversarial(-margins if self.targeted else margins, self.confidence)
        self._keep(torch.arange(len(self), device=points.device), points, distances, adversarial)

    def class_gradients(self, samples: Tensor, points: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of some logits, from one forward pass; each class counts one evaluation.

        Args:
            samples: M, as in :meth:`evaluate`.
            points: M×D.
            classes: M×K class indices.

        Returns:
            Logits M×C and gradients M×K×D.
        """
        inputs, logits = self._forward(points)
        chosen = logits.gather(1, classes)
        gradients = [
            self._backward(chosen[:, k].sum(), inputs, retain_graph=k + 1 < classes.shape[1])
            for k in range(classes.shape[1])
        ]
        for _ in gradients:
            self._count(samples)
        return logits.detach(), torch.stack(gradients, 1)

    def _forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        inputs = points.detach().requires_grad_(True)
        return inputs, forward_rows(self.network, inputs.view(-1, *self.shape))

    def _backward(self, value: Tensor, inputs: Tensor, retain_graph: bool = False) -> Tensor:
        if not value.requires_grad:  # thresholds, integer arithmetic: there is no way back to the input
            return torch.zeros_like(inputs)
        (gradient,) = torch.autograd.grad(value, inputs, retain_graph=retain_graph, allow_unused=True)
        return torch.zeros_like(inputs) if gradient is None else gradient.nan_to_num_(0, 0, 0)

    def _count(self, samples: Tensor) -> None:
        self.evaluations.index_add_(0, samples, torch.ones_like(samples))

    def _keep(self, samples: Tensor, points: Tensor, distances: Tensor, adversarial: Tensor) -> None:
        distance = torch.where(adversarial, distances, torch.inf)
        nearest = self.distance.scatter_reduce(0, samples, distance, "amin")
        better = adversarial & (distance == nearest[samples]) & (distance < self.distance[samples])
        self.best[samples[better]] = points[better]
        self.distance = nearest
        new = torch.isfinite(nearest) & (self.first_success == NEVER)
        self.first_success = torch.where(new, self.evaluations, self.first_success)

    def _tell(self, samples: Tensor, points: Tensor, margins: Tensor, gradients: Tensor) -> None:
        assert self.observe is not None
        shape = (-1, *self.shape)
        self.observe(Evaluation(self.numbers[samples], points.view(shape), margins, gradients.view(shape)))
