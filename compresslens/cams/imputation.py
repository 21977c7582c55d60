"""Filling in removed pixels from those around them (Rong et al. 2022, "A Consistent and Efficient Evaluation Strategy
for Attribution Methods", section 4.2).

A blank patch has a shape that gives the class away; a patch that fades into its surroundings has none.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array, diags_array
from scipy.sparse.linalg import splu
from torch import Tensor

_WEIGHTS = {(0, 1): 1 / 6, (1, 0): 1 / 6, (1, 1): 1 / 12, (1, -1): 1 / 12}  # and the opposite ones


def impute(image: Tensor, removed: Tensor) -> Tensor:
    """Each removed pixel becomes the weighted mean of its neighbours, removed ones included: a linear system.

    The four direct neighbours weigh 1/6 each and the four diagonal ones 1/12; at the border, where some are missing,
    the others weigh in proportion.

    Args:
        image: C×H×W.
        removed: H×W bool; at least one pixel must stay.

    Returns:
        C×H×W, of the image's type and on its device. The system is solved directly, in float64 on the CPU.

    Raises:
        ValueError: no pixel stays, or the sizes differ.
    """
    if removed.dtype != torch.bool or removed.shape != image.shape[1:]:
        raise ValueError(f"removed is {removed.dtype} of shape {tuple(removed.shape)}; expected bool, as the image")
    if removed.all():
        raise ValueError("every pixel is removed: there is nothing to fill in from")
    if not removed.any():
        return image.clone()
    height, width = removed.shape
    gone = removed.flatten().cpu().numpy()
    values = image.flatten(1).cpu().double().numpy().T.copy()  # pixels × channels
    laplacian, neighbours = _system(height, width)
    unknown, known = np.flatnonzero(gone), np.flatnonzero(~gone)
    matrix = laplacian[unknown][:, unknown].tocsc()
    given = neighbours[unknown][:, known] @ values[known]
    # Symmetric and diagonally dominant: no pivoting is needed, and this order keeps the factors sparse.
    factors = splu(matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    values[unknown] = factors.solve(given)
    return torch.from_numpy(values.T.reshape(image.shape)).to(image)


@lru_cache(maxsize=4)
def _system(height: int, width: int) -> tuple[Any, Any]:
    """Sparse matrices over all pixels: sum of weights minus neighbours, and neighbours."""
    index = np.arange(height * width).reshape(height, width)
    rows, columns, weights = [], [], []
    for (down, right), weight in _WEIGHTS.items():
        here = index[: height - down, max(0, -right) : width - max(0, right)].ravel()
        there = index[down:, max(0, right) : width + min(0, right)].ravel()
        rows += [here, there]
        columns += [there, here]
        weights.append(np.full(2 * len(here), weight))
    places = (np.concatenate(rows), np.concatenate(columns))
    neighbours = coo_array((np.concatenate(weights), places), shape=(index.size, index.size)).tocsr()
    return (diags_array(neighbours.sum(1)) - neighbours).tocsr(), neighbours
