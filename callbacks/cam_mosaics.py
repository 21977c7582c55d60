"""The Grid Pointing Game over the fixed images of a probe, shared among ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from callbacks.accuracy import Columns, gather
from callbacks.probe_images import Share
from compresslens.cams.columns import MODEL, REFERENCE
from compresslens.cams.findings import mean_metric, mean_summary
from compresslens.cams.grid_pointing import choose_cells, grid_pointing
from compresslens.errors import UserError
from compresslens.reporting.metric import Metric
from datamodules.transformed import collate

Mosaics = dict[int, int]
MapsOf = Callable[[str, nn.Module, Tensor, Tensor], Tensor]
CHUNK = 8  # mosaics at a time; each is as large as several images


@dataclass
class GridFindings:
    """What the game found.

    Attributes:
        metrics: `cam/grid_pointing`, unless no mosaic could be made.
        details: by number of cells; None where no mosaic could be made, with the reason in `notes`.
        notes: why there are no mosaics.
    """

    metrics: dict[str, Metric] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def grid_pointing_findings(
    maps_of: MapsOf, networks: dict[str, nn.Module], samples: Columns, share: Share, mosaics: Mosaics
) -> GridFindings:
    """Plays the game with the images that all networks are sure of.

    Args:
        maps_of: from the prefix of a network, the network, images and classes to maps.
        networks: by the prefix of their columns.
        samples: of all ranks, with index, label and `cam_confidence`.
        share: this rank's.
        mosaics: how many by the cells along their sides.
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
        scores = gather([_play(maps_of, networks, samples, share, chosen)])
        ours, theirs = scores[MODEL], scores.get(REFERENCE)
        if not found.metrics:
            found.metrics["cam/grid_pointing"] = mean_metric(ours, theirs)
        of_networks = {"model": mean_summary(ours)} | ({} if theirs is None else {"reference": mean_summary(theirs)})
        found.details[f"{cells}x{cells}"] = {**of_networks, "mosaics": len(chosen), "chance": 1 / cells**2}
    return found


def _play(
    maps_of: MapsOf, networks: dict[str, nn.Module], samples: Columns, share: Share, chosen: Tensor
) -> dict[str, Any]:
    """Mean score of each of this rank's mosaics; "index" is the mosaic."""
    mine = torch.arange(len(chosen))[share.rank :: share.ranks]
    scores: dict[str, Any] = {"index": mine.numpy()} | {prefix: np.zeros(0) for prefix in networks}
    if len(mine) == 0:
        return scores
    used, places = chosen[mine].unique(return_inverse=True)
    batch = collate([share.dataset[int(samples["index"][row])] for row in used])
    images, labels = batch[0].to(share.device, share.dtype), batch[1].to(share.device)
    for prefix, network in networks.items():
        found = grid_pointing(partial(maps_of, prefix, network), images, labels, places, chunk_size=CHUNK)
        scores[prefix] = found.mean(1).cpu().numpy()
    return scores
