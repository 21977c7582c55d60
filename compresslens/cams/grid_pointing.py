"""Grid Pointing Game (Böhle et al. 2021, CoDA-Nets, section 5.1): localization without masks, so on any data.

Images of different classes that the network is sure of stand side by side in a mosaic. The map of one of these classes
should lie in its cell alone.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isqrt

import torch
from torch import Tensor

from compresslens.cams.shapes import check_maps
from compresslens.errors import UserError


def confidences(probabilities: Tensor, labels: Tensor) -> Tensor:
    """N: probability of the label where that is the predicted class, else 0, for :func:`choose_cells`.

    Where models are compared, take the minimum over them, so that all are sure of the images in the mosaics.

    Args:
        probabilities: N×K.
        labels: N int64.
    """
    of_label = probabilities.gather(1, labels[:, None])[:, 0]
    return torch.where(probabilities.argmax(1) == labels, of_label, 0)


def choose_cells(
    labels: Tensor, confidence: Tensor, *, cells: int = 2, count: int = 50, least: float = 0.5, seed: int = 0
) -> Tensor:
    """Which images make up the mosaics.

    No image is used twice, so that mosaics are independent samples; a mosaic has no class twice. Of each class the most
    confident come first; mosaics draw on the classes that have most images left, which makes as many mosaics as can be.

    Args:
        labels: N int64.
        confidence: N in [0, 1], from :func:`confidences`.
        cells: n, along each side of a mosaic.
        count: mosaics wanted, at least 1; fewer are made where the images do not suffice.
        least: images of less confidence are left out, as are those of confidence 0.
        seed: of the order of the cells, and of the choice between classes that have as many images.

    Returns:
        M×n² int64 on the CPU, 1 ≤ M ≤ count: indices of images; cells row by row.

    Raises:
        ValueError: different lengths, or cells or count out of range.
        UserError: not even one mosaic can be made, since too few classes have a confident image.
    """
    if labels.ndim != 1 or labels.shape != confidence.shape:
        raise ValueError(f"labels {tuple(labels.shape)} and confidence {tuple(confidence.shape)} must be as long")
    if cells < 2 or count < 1:
        raise ValueError(f"cells is {cells} and count is {count}; they must be at least 2 and 1")
    pools: dict[int, list[int]] = {}
    for index in confidence.argsort(descending=True, stable=True).tolist():
        if confidence[index] > 0 and confidence[index] >= least:
            pools.setdefault(int(labels[index]), []).append(index)
    pools = {label: pools[label][:count] for label in sorted(pools)}
    if len(pools) < cells**2:
        raise UserError(
            f"mosaics of {cells}×{cells} need confident images of {cells**2} classes, and only {len(pools)} classes "
            f"have an image with a confidence of {least} or more: choose fewer cells or a lower bound"
        )
    generator = torch.Generator().manual_seed(seed)
    chosen: list[list[int]] = []
    while len(chosen) < count and sum(map(bool, pools.values())) >= cells**2:
        labels_left = [label for label in pools if pools[label]]
        shuffled = [labels_left[place] for place in torch.randperm(len(labels_left), generator=generator).tolist()]
        largest = sorted(shuffled, key=lambda label: -len(pools[label]))[: cells**2]
        places = torch.randperm(cells**2, generator=generator).tolist()
        chosen.append([pools[largest[place]].pop(0) for place in places])
    return torch.tensor(chosen)


def mosaics(images: Tensor, chosen: Tensor) -> Tensor:
    """Puts images side by side, at their full size.

    Args:
        images: N×C×H×W.
        chosen: M×n² int64 from :func:`choose_cells`.

    Returns:
        M×C×(n·H)×(n·W).
    """
    cells = _cells_of(chosen)
    parts = images[chosen.to(images.device)].unflatten(1, (cells, cells))
    count, _, _, channels, height, width = parts.shape
    return parts.permute(0, 3, 1, 4, 2, 5).reshape(count, channels, cells * height, cells * width)


def cell_shares(maps: Tensor, cells: int) -> Tensor:
    """Share of each map's energy (sum where positive) in each of the cells; of a map without energy 1/n² in each.

    Args:
        maps: N×H×W; negative values count as zero.
        cells: n, which must divide H and W.

    Returns:
        N×n² float64 in [0, 1], cells row by row; NaN for a map that contains NaN. Chance is 1/n².

    Raises:
        ValueError: the sides of the maps are no multiples of n.
    """
    check_maps(maps)
    count, height, width = maps.shape
    if cells < 1 or height % cells or width % cells:
        raise ValueError(f"maps of {height}×{width} pixels do not divide into {cells}×{cells} cells")
    energy = maps.double().relu().reshape(count, cells, height // cells, cells, width // cells).sum((2, 4)).flatten(1)
    total = energy.sum(1, keepdim=True)
    return torch.where(total == 0, 1 / cells**2, energy / total)


def grid_pointing(
    maps_of: Callable[[Tensor, Tensor], Tensor], images: Tensor, labels: Tensor, chosen: Tensor, chunk_size: int = 4
) -> Tensor:
    """For each cell of each mosaic the share of the energy that the map of the cell's class has in that cell.

    Args:
        maps_of: from mosaics B×C×(n·H)×(n·W) and classes B×n² to maps B×n²×h×w, h and w multiples of n. The network
            must take images of that size; resize within `maps_of` if it does not.
        images: N×C×H×W in [0, 1].
        labels: N int64.
        chosen: M×n² int64 from :func:`choose_cells`.
        chunk_size: mosaics at a time.

    Returns:
        M×n² float64 in [0, 1]. Chance is 1/n². Cells of a mosaic are not independent: average them before resampling.

    Raises:
        ValueError: the number of cells is no square, or what :func:`cell_shares` refuses.
    """
    cells = _cells_of(chosen)
    chosen = chosen.to(images.device)
    classes = labels.to(images.device)[chosen]
    scores = []
    for some, of_some in zip(chosen.split(chunk_size), classes.split(chunk_size), strict=True):
        shares = cell_shares(maps_of(mosaics(images, some), of_some).flatten(0, 1), cells)
        scores.append(shares.view(len(some), cells**2, cells**2).diagonal(dim1=1, dim2=2))
    return torch.cat(scores)


def _cells_of(chosen: Tensor) -> int:
    cells = isqrt(chosen.shape[-1])
    if chosen.ndim != 2 or cells**2 != chosen.shape[1] or len(chosen) == 0:
        raise ValueError(f"chosen has shape {tuple(chosen.shape)}; expected M×n² with at least one mosaic")
    return cells
