"""Weights of class activation maps that need no gradient, so they work on converted INT8 networks, too."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compresslens.cams.pooling import PoolingTap
from compresslens.errors import UserError

SCORE_CHUNK = 32
"""Masked images that Score-CAM gives the network at a time."""

EXACT = 1e-3
"""Relative difference of two vectors that are the same; in half precision, four units in the last place."""
ROUNDED = 0.3
"""The same if a quantizer stands between them."""


def plain_cam(activations: Tensor, logits: Tensor, pooling: PoolingTap, classes: Tensor) -> Tensor:
    """Zhou et al. 2016 (arXiv:1512.04150), equation 2: the map, weighted as the classifier weights its mean.

    The weights are those that the classifier computes with: masked, rounded, the product of its factors. Where class
    scores are pooled directly (SqueezeNet), a class's map is the score itself.

    Args:
        activations: N×C×h×w.
        logits: N×K of the same images.
        pooling: of a forward pass on them.
        classes: N.

    Returns:
        N×h×w, neither clipped nor scaled.

    Raises:
        UserError: logits are not a linear function of the map's mean.
    """
    # What reaches each linear layer must be what left the one before. Between them quantizers may round.
    tolerance = ROUNDED if pooling.rounded else max(EXACT, 4 * torch.finfo(logits.dtype).eps)
    value, matrix = activations.mean((2, 3)), None
    for call in pooling.linear:
        weight = call.weight.flatten(1).to(activations.dtype)
        if weight.shape[1] != value.shape[1] or not _equal(call.value, value, tolerance):
            raise _not_linear()
        value, matrix = call.result.flatten(1), weight if matrix is None else weight @ matrix
    if not _equal(logits, value, tolerance):
        raise _not_linear()
    if matrix is None:
        return activations[torch.arange(len(classes), device=classes.device), classes]
    return torch.einsum("nchw,nc->nhw", activations, matrix[classes])


def eigen_cam(activations: Tensor) -> Tensor:
    """Muhammad & Yeasin 2020 (arXiv:2008.00299): the pixels along their first principal component over channels.

    Pixels are centred per channel, as in pytorch-grad-cam (the paper does not centre them). A component has no sign;
    here it points to where the mean over the channels is high. It knows no class.

    Args:
        activations: N×C×h×w.

    Returns:
        N×h×w, neither clipped nor scaled; zeros where an image's activations are not finite.
    """
    pixels = activations.flatten(2).transpose(1, 2).double()  # N×hw×C
    pixels = torch.where(pixels.isfinite().all(2).all(1)[:, None, None], pixels, 0.0)
    centred = pixels - pixels.mean(1, keepdim=True)
    if centred.shape[1] <= centred.shape[2]:
        values, vectors = torch.linalg.eigh(centred @ centred.transpose(1, 2))  # ascending
        projections = vectors[:, :, -1] * values[:, -1:].clamp_min(0).sqrt()
    else:
        _, vectors = torch.linalg.eigh(centred.transpose(1, 2) @ centred)
        projections = (centred @ vectors[:, :, -1:])[:, :, 0]
    signs = (projections * centred.mean(2)).sum(1, keepdim=True)
    projections = torch.where(signs < 0, -projections, projections)
    return projections.view(len(activations), *activations.shape[2:])


@torch.no_grad()
def score_cam(network: nn.Module, images: Tensor, activations: Tensor, classes: Tensor) -> Tensor:
    """Wang et al. 2020 (arXiv:1910.01279): each channel weighs what the network makes of the image that it masks.

    A mask is a channel, scaled to the image's size and to [0, 1]; weights are the softmax, over the channels, of the
    class's logits. As in pytorch-grad-cam, that is the whole logit, not its increase over that of an empty image, which
    changes no weight. It takes C forward passes per image.

    Args:
        network: in eval mode.
        images: N×3×H×W.
        activations: N×C×h×w.
        classes: N.

    Returns:
        N×h×w, neither clipped nor scaled.
    """
    scores = activations.new_empty(activations.shape[:2])
    for row, (image, channels) in enumerate(zip(images, activations, strict=True)):
        for columns in torch.arange(len(channels), device=images.device).split(SCORE_CHUNK):
            # pytorch-grad-cam aligns corners here, but not where it enlarges the finished map
            masks = F.interpolate(channels[columns, None], image.shape[1:], mode="bilinear", align_corners=True)
            low, high = masks.amin((2, 3), keepdim=True), masks.amax((2, 3), keepdim=True)
            masks = (masks - low) / (high - low + 1e-8)
            scores[row, columns] = network(image * masks.to(image.dtype))[:, classes[row]].to(scores.dtype)
    return torch.einsum("nchw,nc->nhw", activations, scores.softmax(1))


def _equal(value: Tensor, other: Tensor, tolerance: float) -> bool:
    """Whether the difference is small beside the values; what is not finite is not compared."""
    value, other = value.flatten(1), other.flatten(1)
    if value.shape != other.shape:
        return False
    rows = value.isfinite().all(1) & other.isfinite().all(1)
    value, other = value[rows].double(), other[rows].double()
    return bool((value - other).norm() <= tolerance * other.norm())


def _not_linear() -> UserError:
    return UserError(
        "method 'cam' needs logits that are a linear function of the layer's spatial mean, as behind a global average "
        "pooling and one linear layer; here something else comes between: use another method, such as 'grad_cam' or "
        "'eigen_cam'"
    )
