"""The teacher's logits of the whole training set, computed once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

CHUNK = 128


class TeacherCache:
    """Logits by the index of the sample.

    They are computed in the order of the indices, in chunks of fixed size, so that they do not depend on the order of
    training: an interrupted run that is continued sees the same bits.
    """

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    def __getitem__(self, indices: Tensor) -> Tensor:
        """Logits (float32, N×C) of the samples with these indices (int64, N)."""
        return self.logits[indices]

    @classmethod
    @torch.no_grad()
    def fill(
        cls,
        teacher: nn.Module,
        samples: Dataset[Any],
        classes: int,
        device: torch.device,
        num_workers: int = 0,
        show_progress: bool = True,
    ) -> TeacherCache:
        """Runs the teacher, in eval mode, over all samples.

        With several processes, each computes every world-size-th chunk, and all get the whole.

        Args:
            teacher: maps images to logits N×classes.
            samples: items (image, label, ...), in a fixed order and always looking the same.
            classes: number of logits.
            device: where the teacher runs; the cache itself is kept in main memory.
            num_workers: processes that load images.
            show_progress: whether to draw a progress bar.
        """
        from tqdm.auto import tqdm

        size = len(samples)  # type: ignore[arg-type]
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank, ranks = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if distributed else (0, 1)
        chunks = [range(start, min(start + CHUNK, size)) for start in range(0, size, CHUNK)][rank::ranks]
        mine = Subset(samples, [index for chunk in chunks for index in chunk])
        loader = DataLoader(mine, CHUNK, num_workers=num_workers)
        logits = torch.zeros(size, classes, device=device)
        teacher.eval()
        dtype = next((parameter.dtype for parameter in teacher.parameters()), torch.float32)
        bar = tqdm(
            zip(chunks, loader, strict=True), "teacher", total=len(chunks), disable=not show_progress, leave=False
        )
        for chunk, batch in bar:
            images = batch[0].to(device, dtype).contiguous(memory_format=torch.channels_last)
            logits[chunk.start : chunk.stop] = teacher(images).float()
        if distributed:
            torch.distributed.all_reduce(logits)  # every row is zero on all ranks but one
        return cls(logits.cpu())
