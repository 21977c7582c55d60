"""The blind and bounded attacks that the white-box attack is held against."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compresslens.attacks.checks import check_classes, check_images, check_labels, check_logits
from compresslens.attacks.margin import margin
from compresslens.attacks.peers import torchattacks_attack
from compresslens.attacks.ray import ray_search
from compresslens.attacks.result import AttackResult, least_distance
from compresslens.attacks.search import logits_in_chunks

REACH = 1 / 20  # length of a random direction, as a share of √D; the ray search goes from a quarter of it to 30 times


def right_ones(network: nn.Module, images: Tensor, labels: Tensor, chunk_size: int = 64) -> tuple[Tensor, Tensor]:
    """The images that the network classifies correctly, and their labels.

    Args:
        network: from pixels to logits; its state is left as it was.
        images: N×C×H×W in [0, 1].
        labels: N int64.
        chunk_size: images at a time.

    Raises:
        ValueError: bad images, labels or logits.
    """
    check_images(images)
    check_labels("labels", labels, images)
    if len(images) == 0:
        return images, labels
    logits = logits_in_chunks(network, images, chunk_size)
    check_logits(logits, torch.arange(len(images), device=images.device))
    check_classes("labels", labels, logits)
    right = margin(logits, labels) > 0
    return images[right], labels[right]


def gaussian_noise(
    network: nn.Module, images: Tensor, labels: Tensor, directions: int, seed: int = 0, chunk_size: int = 64
) -> AttackResult:
    """The nearest adversarial of each image along some Gaussian directions, by forward passes alone.

    Args:
        network: from pixels to logits; its state is left as it was.
        images: N×C×H×W in [0, 1].
        labels: N int64.
        directions: per image, at least 1.
        seed: of the directions.
        chunk_size: images at a time.
    """
    generator = torch.Generator().manual_seed(seed)
    length = REACH * math.sqrt(images[0].numel()) if len(images) else 0.0
    found = []
    for _ in range(directions):
        noise = torch.randn(images.shape, generator=generator).to(images)
        noise = noise * (length / noise.flatten(1).norm(dim=1)[:, None, None, None])
        found.append(ray_search(network, images, labels, noise, chunk_size=chunk_size))
    return least_distance(*found)


def within_radii(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    attack: str,
    radii: Sequence[float],
    **options: Any,
) -> list[AttackResult]:
    """An attack of torchattacks within each of some L2 radii.

    Raises:
        UserError: see `torchattacks_attack`.
    """
    return [torchattacks_attack(network, images, labels, attack, eps=radius, **options) for radius in radii]
