"""Do the maps depend on what the network has learned (Adebayo et al. 2018, "Sanity Checks for Saliency Maps")?

A map that stays the same when the weights are shuffled is a picture of the image's edges, not of the network's reasons.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import ceil

import torch
from torch import Tensor, nn

from compresslens.cams.shapes import constant
from compresslens.cams.similarity import rank_correlation
from compresslens.errors import UserError

MapsOf = Callable[[nn.Module, Tensor, Tensor], Tensor]
Similarity = Callable[[Tensor, Tensor], Tensor]


@contextmanager
def shuffled_weights(network: nn.Module, share: float = 1.0, seed: int = 0) -> Iterator[nn.Module]:
    """Within the block, the entries of each weight of the network's last layers stand in random order.

    Unlike a fresh initialization this works for every network, quantized or pruned or converted: only values move.
    Weights are all parameters, and the int8 tensors that the weights of converted networks are stored in. Those with
    one value only (biases of zero) stay as they are. After the block all weights are exactly as before, on exceptions
    too; the random state is neither used nor changed. Within it the network should evaluate, not train: other buffers
    are left alone, since some mirror a mode that the network keeps elsewhere, and must not be put back by themselves.

    Args:
        network: whose weights change in place; a copy would fail for some networks.
        share: of the weights, from the classifier down, in the order of their definition (Adebayo et al.: cascading
            randomization); 1 shuffles all (and is their end).
        seed: of the order.

    Raises:
        UserError: the network has no weights that can be shuffled.
        ValueError: share is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; it must be above 0 and at most 1")
    weights = [*network.parameters(), *(buffer for buffer in network.buffers() if _is_weight(buffer))]
    if not any(weight.numel() > 1 for weight in weights):
        raise UserError("the network has no weights that could be shuffled: maps cannot be checked against them")
    weights = weights[len(weights) - ceil(share * len(weights)) :]
    saved = [weight.detach().clone() for weight in weights]
    generator = torch.Generator().manual_seed(seed)
    try:
        with torch.no_grad():
            for weight in weights:
                order = torch.randperm(weight.numel(), generator=generator).to(weight.device)
                weight.copy_(weight.flatten()[order].view(weight.shape))
        yield network
    finally:
        with torch.no_grad():
            for weight, before in zip(weights, saved, strict=True):
                weight.copy_(before)


def randomization_similarity(
    maps_of: MapsOf,
    network: nn.Module,
    images: Tensor,
    classes: Tensor,
    *,
    shares: Sequence[float] = (0.25, 0.5, 1.0),
    similarity: Similarity = rank_correlation,
    seed: int = 0,
) -> Tensor:
    """How like its maps with shuffled weights the network's maps are; the less, the better.

    Where shuffling makes a map constant that was not, the map is destroyed, and the similarity 0. Where the map was
    constant to begin with, there is nothing to destroy: NaN.

    Args:
        maps_of: from network, images and classes to maps N×H×W; the network must be left as it was.
        network: left as it was.
        images: N×C×H×W in [0, 1].
        classes: N int64; the same classes for all maps.
        shares: of the weights that are shuffled, each as in :func:`shuffled_weights`.
        similarity: any of `compresslens.cams.similarity`. Rank correlation is what the paper finds most telling.
        seed: of the shuffling.

    Returns:
        N×S float64, one column for each share.
    """
    original = maps_of(network, images, classes)
    columns = []
    for share in shares:
        with shuffled_weights(network, share, seed):
            maps = maps_of(network, images, classes)
        alike = similarity(original, maps).double()
        columns.append(alike.masked_fill(constant(maps) & ~constant(original), 0.0))
    return torch.stack(columns, 1)


def depends_on_weights(similarities: Tensor, threshold: float = 0.5) -> bool:
    """The verdict: whether the maps of a network with all weights shuffled are unlike its own, on average.

    Args:
        similarities: N, the last column of :func:`randomization_similarity`; NaN are left out.
        threshold: passed if the mean is below it. The paper gives none: unrelated maps have a mean of about 0, but maps
            that are brighter in the middle, as many are, resemble each other anyhow. Half-way between unrelated
            and equal is a lenient bound: what fails it is surely wrong.

    Raises:
        ValueError: no similarity is known.
    """
    known = similarities[~similarities.isnan()]
    if len(known) == 0:
        raise ValueError("every map was constant: there is nothing to check")
    return bool(known.mean() < threshold)


def _is_weight(buffer: Tensor) -> bool:
    return buffer.dtype == torch.int8 and buffer.ndim >= 2
