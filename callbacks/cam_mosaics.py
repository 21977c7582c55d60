"""The Grid Pointing Game over the fixed images of a probe, shared among ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from callbacks.accuracy import gather
from callbacks.probe_images import Share
from compresslens.cams.grid_pointing import choose_cells, grid_pointing
from compresslens.errors import UserError
from compresslens.networks.modes import evaluation_mode
from compresslens.networks.names import first_line
from compresslens.reporting.metric import Metric
from compresslens.samples import MODEL, REFERENCE, Columns, mean_metric, mean_summary
from datamodules.transformed import collate

Mosaics = dict[int, int]
MapsOf = Callable[[str, nn.Module, Tensor, Tensor], Tensor]


@dataclass
class GridFindings:
    """What the game found.

    Attributes:
        metrics: `cam/grid_pointing`, unless no mosaic could be made.
        details: by number of cells, where mosaics could be made.
        notes: why there are no mosaics, or small ones.
    """

    metrics: dict[str, Metric] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def grid_pointing_findings(
    maps_of: MapsOf,
    networks: dict[str, nn.Module],
    samples: Columns,
    share: Share,
    mosaics: Mosaics,
    chunk_size: int,
) -> GridFindings:
    """Plays the game with the images that all networks are sure of.

    Where one of the networks takes images of its own size only (as those with fake quantizers do), mosaics are shrunk
    to that size for all networks, so that they remain comparable.

    Args:
        maps_of: from the prefix of a network, the network, images and several classes of each to maps N×J×H×W.
        networks: by the prefix of their columns.
        samples: of all ranks, with index, label and `cam_confidence`.
        share: this rank's.
        mosaics: how many by the cells along their sides.
        chunk_size: images at a time; a mosaic counts as many as it has cells.
    """
    found = GridFindings()
    labels = torch.from_numpy(samples["label"])
    confidence = torch.from_numpy(np.min([samples[f"{prefix}cam_confidence"] for prefix in networks], axis=0))
    for cells, count in mosaics.items():
        try:
            chosen = choose_cells(labels, confidence, cells=cells, count=count)
        except UserError as error:  # the images are what they are: that is no reason to lose what else was measured
            found.notes.append(f"no Grid Pointing Game: {error}")
            continue
        refusal = _refusal(networks, share, cells)
        if refusal is not None:
            found.notes.append(refusal)
        scores = gather([_play(maps_of, networks, samples, share, chosen, chunk_size, refusal is not None)])
        ours, theirs = scores[MODEL], scores.get(REFERENCE)
        if not found.metrics:
            found.metrics["cam/grid_pointing"] = mean_metric(ours, theirs)
        of_networks = {"model": mean_summary(ours)} | ({} if theirs is None else {"reference": mean_summary(theirs)})
        counts = {"mosaics": len(chosen), "chance": 1 / cells**2, "shrunk": refusal is not None}
        found.details[f"{cells}x{cells}"] = of_networks | counts
    return found


def _refusal(networks: dict[str, nn.Module], share: Share, cells: int) -> str | None:
    """What to say if one of the networks does not take images as large as the mosaics; the same on all ranks."""
    height, width = collate([share.dataset[0]])[0].shape[2:]
    blank = torch.zeros(1, 3, cells * height, cells * width, device=share.device, dtype=share.dtype)
    for prefix, network in networks.items():
        try:
            with evaluation_mode(network):
                network(blank)
        except torch.OutOfMemoryError:  # a RuntimeError, too, but it says nothing of the network
            raise
        except (AssertionError, RuntimeError, ValueError) as error:  # captured graphs assert; shapes do not fit
            name = "reference" if prefix == REFERENCE else "model"
            return (
                f"the mosaics of {cells}×{cells} images were shrunk to the size of one, for all networks alike, since "
                f"the {name} takes no larger images ({first_line(error)}): compare with others of that kind only"
            )
    return None


def _play(
    maps_of: MapsOf,
    networks: dict[str, nn.Module],
    samples: Columns,
    share: Share,
    chosen: Tensor,
    chunk_size: int,
    shrink: bool,
) -> dict[str, Any]:
    """Mean score of each of this rank's mosaics; "index" is the mosaic."""
    mine = torch.arange(len(chosen))[share.rank :: share.ranks]
    scores: dict[str, Any] = {"index": mine.numpy()} | {prefix: np.zeros(0) for prefix in networks}
    if len(mine) == 0:
        return scores
    used, places = chosen[mine].unique(return_inverse=True)
    batch = collate([share.dataset[int(samples["index"][row])] for row in used])
    images, labels = batch[0].to(share.device, share.dtype), batch[1].to(share.device)
    at_a_time = max(1, chunk_size // chosen.shape[1])

    def maps_of_mosaics(prefix: str, mosaics: Tensor, classes: Tensor) -> Tensor:
        if not shrink:
            return maps_of(prefix, networks[prefix], mosaics, classes)
        small = F.interpolate(mosaics.float(), images.shape[2:], mode="bilinear", antialias=True).to(mosaics.dtype)
        # enlarged again, since the sides of the small ones may be no multiples of the number of cells
        return F.interpolate(maps_of(prefix, networks[prefix], small, classes), mosaics.shape[2:], mode="bilinear")

    for prefix in networks:
        found = grid_pointing(partial(maps_of_mosaics, prefix), images, labels, places, chunk_size=at_a_time)
        scores[prefix] = found.mean(1).cpu().numpy()
    return scores
