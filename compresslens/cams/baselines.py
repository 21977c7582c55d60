"""Maps that know nothing of the network: what its own must beat."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor


def centre_gaussian_maps(count: int, height: int, width: int, sigma: float = 0.25) -> Tensor:
    """An isotropic Gaussian in the middle of the image: photographers put objects there (Choe et al. 2020, section 5).

    Pointing game, boxes at the best threshold and pixel-wise average precision depend on the order of the pixels alone,
    whatever `sigma`; the energy in the mask does depend on it.

    Args:
        count: N.
        height: H.
        width: W.
        sigma: standard deviation, as a fraction of the image's side (in each direction).

    Returns:
        N×H×W float32 in [0, 1], on the CPU; the greatest value is 1.

    Raises:
        ValueError: sigma is not positive.
    """
    if not sigma > 0:
        raise ValueError(f"sigma is {sigma}; it must be positive")
    rows, columns = (
        torch.exp(-0.5 * (((torch.arange(side, dtype=torch.float64) + 0.5) / side - 0.5) / sigma) ** 2)
        for side in (height, width)
    )
    centred = torch.outer(rows, columns)
    return (centred / centred.max()).float().repeat(count, 1, 1)


def random_maps(samples: ArrayLike, height: int, width: int, *, resolution: int | None = 7, seed: int = 0) -> Tensor:
    """Uniform noise, drawn as coarse as the feature maps of a network are and upsampled as class activation maps are.

    A sample gets the same map in whatever batch or process it comes; the global random state is neither used nor
    changed.

    Args:
        samples: N integers, at least 0: the samples' indices in their data set.
        height: H.
        width: W.
        resolution: cells along each side of the noise; None draws each pixel by itself.
        seed: at least 0.

    Returns:
        N×H×W float32 in [0, 1], on the CPU, each from 0 to 1 (a single cell: constant 0).
    """
    rows, columns = (height, width) if resolution is None else (resolution, resolution)
    shape = (rows, columns)
    drawn = [np.random.default_rng([seed, int(index)]).random(shape, dtype=np.float32) for index in np.asarray(samples)]
    noise = torch.from_numpy(np.stack(drawn) if drawn else np.empty((0, *shape), np.float32))
    maps = F.interpolate(noise[:, None], (height, width), mode="bilinear", align_corners=False)[:, 0]
    maps = maps - maps.amin((1, 2), keepdim=True)
    return maps / maps.amax((1, 2), keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)
