"""Whether the pixels that a map names are those that the network decides by: take them away, or give them alone.

All measures rank the pixels of a map; of equal values the first in reading order comes first. They look at softmax
probabilities. The network may be any module from images to logits; it is left as it was, and so is the random state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from compresslens.cams.imputation import impute
from compresslens.cams.shapes import check_maps
from compresslens.networks.modes import evaluation_mode

FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def deletion_auc(
    network: nn.Module,
    images: Tensor,
    classes: Tensor,
    maps: Tensor,
    *,
    steps: int = 16,
    fill: float | None = None,
    chunk_size: int = 64,
) -> Tensor:
    """Area under the curve of the class's probability as pixels are removed, highest first (Petsiuk et al. 2018, RISE).

    Low is good. A network that is unsure of the whole image scores low, too: compare with random maps.

    Args:
        network: N×C×H×W to logits N×K.
        images: N×C×H×W in [0, 1].
        classes: N int64, whose probability is looked at.
        maps: N×H×W.
        steps: in which the pixels are removed, as equal in number as can be; steps + 1 images go forward for each.
        fill: the colour of removed pixels; None takes each image's mean colour.
        chunk_size: images that go forward at a time.

    Returns:
        N float64 in [0, 1], on the CPU: by the trapezoidal rule, over the fraction that is removed.

    Raises:
        ValueError: shapes that do not belong together, maps that contain NaN, or a setting out of range.
    """
    blank = images.mean((2, 3), keepdim=True) if fill is None else torch.full_like(images[:, :, :1, :1], fill)
    return _area(probability_curves(network, images, blank.expand_as(images), classes, maps, steps, chunk_size))


def insertion_auc(
    network: nn.Module,
    images: Tensor,
    classes: Tensor,
    maps: Tensor,
    *,
    steps: int = 16,
    blur: tuple[int, float] = (11, 5.0),
    chunk_size: int = 64,
) -> Tensor:
    """Area under the curve of the class's probability as pixels appear in a blurred image, highest first (RISE).

    High is good.

    Args:
        network: as in :func:`deletion_auc`, like all that is not named here.
        images: likewise.
        classes: likewise.
        maps: likewise.
        steps: likewise.
        blur: size (odd) and standard deviation of the Gaussian kernel, in pixels, as in RISE. Borders are reflected,
            where RISE pads with black.
        chunk_size: likewise.

    Returns:
        N float64 in [0, 1], on the CPU.

    Raises:
        ValueError: as :func:`deletion_auc`, or images too small for the kernel.
    """
    size, sigma = blur
    if size // 2 >= min(images.shape[2:]):
        raise ValueError(f"images of {tuple(images.shape[2:])} pixels are too small for a blur over {size} pixels")
    start = gaussian_blur(images, [size, size], [sigma, sigma])
    return _area(probability_curves(network, start, images, classes, maps, steps, chunk_size))


def probability_curves(
    network: nn.Module, start: Tensor, end: Tensor, classes: Tensor, maps: Tensor, steps: int, chunk_size: int = 64
) -> Tensor:
    """Probability of the class while the pixels of one image take the place of another's, highest of the map first.

    Args:
        network: as in :func:`deletion_auc`, like all that is not named here.
        start: N×C×H×W.
        end: N×C×H×W.
        classes: likewise.
        maps: likewise.
        steps: likewise.
        chunk_size: likewise.

    Returns:
        N×(steps + 1) float64, on the CPU: from `start` to `end`.
    """
    _check(start, classes, maps)
    pixels = maps.shape[1:].numel()
    if not 1 <= steps <= pixels:
        raise ValueError(f"steps is {steps}; it must be between 1 and the number of pixels, {pixels}")
    ranks, points = _ranks(maps), steps + 1
    replaced = torch.tensor([round(pixels * step / steps) for step in range(points)], device=maps.device)

    def parts() -> Iterator[tuple[Tensor, Tensor]]:
        for rows in torch.arange(len(start) * points, device=maps.device).split(chunk_size):
            image, point = rows // points, rows % points
            new = (ranks[image] < replaced[point, None, None])[:, None]
            yield torch.where(new, end[image], start[image]), classes[image]

    return _probabilities(network, parts()).reshape(len(start), points)


def road(
    network: nn.Module,
    images: Tensor,
    classes: Tensor,
    maps: Tensor,
    *,
    fractions: Sequence[float] = FRACTIONS,
    noise: float = 0.01,
    samples: ArrayLike | None = None,
    seed: int = 0,
) -> Tensor:
    """ROAD (Rong et al. 2022): removed pixels are imputed from their neighbours, so that no shape gives the class away.

    It is half the mean difference between the class's probability after the lowest pixels are removed and after the
    highest are, as in pytorch-grad-cam's ROADCombined. High is good; a map that knows nothing scores about 0. All that
    becomes of an image goes forward at once.

    Args:
        network: as in :func:`deletion_auc`, like all that is not named here.
        images: likewise.
        classes: likewise.
        maps: likewise.
        fractions: of the pixels that are removed, each in (0, 1).
        noise: standard deviation of the noise on imputed pixels, in units of the image.
        samples: N integers, at least 0, that the noise is drawn by, whatever the batch; None: 0 to N - 1.
        seed: at least 0, of the noise.

    Returns:
        N float64 in [-1/2, 1/2], on the CPU.

    Raises:
        ValueError: as :func:`deletion_auc`, or a fraction out of range.
    """
    _check(images, classes, maps)
    if not fractions or not all(0 < fraction < 1 for fraction in fractions):
        raise ValueError("fractions must be at least one number, each between 0 and 1")
    ranks, pixels = _ranks(maps), maps.shape[1:].numel()
    amounts = [min(max(round(fraction * pixels), 1), pixels - 1) for fraction in fractions]
    numbers = np.arange(len(images)) if samples is None else np.asarray(samples)

    def imputed() -> Iterator[tuple[Tensor, Tensor]]:
        for image, rank, number, label in zip(images, ranks, numbers, classes, strict=True):
            drawn = np.random.default_rng([seed, int(number)]).standard_normal(image.shape)
            noisy = noise * torch.from_numpy(drawn).to(image)
            gone = [removed for amount in amounts for removed in (rank >= pixels - amount, rank < amount)]
            yield torch.stack([impute(image, removed) + noisy * removed for removed in gone]), label.expand(len(gone))

    found = _probabilities(network, imputed()).reshape(len(images), len(amounts), 2)
    return (found[:, :, 0] - found[:, :, 1]).mean(1) / 2


def _probabilities(network: nn.Module, parts: Iterator[tuple[Tensor, Tensor]]) -> Tensor:
    """Of one class of each image, in float64 on the CPU."""
    with evaluation_mode(network):
        found = [network(images).double().softmax(1).gather(1, labels[:, None])[:, 0].cpu() for images, labels in parts]
    return torch.cat(found) if found else torch.empty(0, dtype=torch.float64)


def _ranks(maps: Tensor) -> Tensor:
    """N×H×W int64: 0 for the highest pixel of each map, and so on."""
    order = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
    places = torch.arange(order.shape[1], device=maps.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places).reshape(maps.shape)


def _area(curves: Tensor) -> Tensor:
    return torch.trapezoid(curves, dim=1) / (curves.shape[1] - 1)


def _check(images: Tensor, classes: Tensor, maps: Tensor) -> None:
    check_maps(maps)
    if images.ndim != 4 or images.shape[2:] != maps.shape[1:] or not len(images) == len(classes) == len(maps):
        shapes = f"images {tuple(images.shape)}, classes {tuple(classes.shape)} and maps {tuple(maps.shape)}"
        raise ValueError(f"{shapes} do not belong together; expected N×C×H×W, N and N×H×W")
    if maps.isnan().any():
        raise ValueError("maps contains NaN: its pixels have no order")
