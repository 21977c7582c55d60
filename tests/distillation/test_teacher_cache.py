from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from compresslens.distillation.teacher_cache import CHUNK, TeacherCache
from datamodules.samplers import TrainingSampler
from tests.lightning_modules.tiny import CLASSES, NoiseData, TinyNetwork

CPU = torch.device("cpu")


class Numbers(Dataset[Any]):
    """Sample number i is filled with i, has the label 0, and a mask."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, int, Tensor]:
        return torch.full((3, 2, 2), float(index)), 0, torch.ones(2, 2, dtype=torch.bool)


class Teacher(nn.Module):
    """Says what number it sees, and remembers how it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.calls: list[tuple[int, bool, bool]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.calls.append((len(images), self.training, torch.is_grad_enabled()))
        return torch.stack([images[:, 0, 0, 0] * self.weight, -images[:, 0, 0, 0]], 1)


@pytest.mark.parametrize("size", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 17])
def test_every_sample_has_its_own_logits(size: int) -> None:
    teacher = Teacher().train()
    cache = TeacherCache.fill(teacher, Numbers(size), 2, CPU, show_progress=False)
    assert cache.logits.shape == (size, 2)
    assert not cache.logits.requires_grad
    indices = torch.randperm(size)
    assert cache[indices].tolist() == [[index, -index] for index in indices.tolist()]
    assert [count for count, _, _ in teacher.calls] == [CHUNK] * (size // CHUNK) + [size % CHUNK] * (size % CHUNK > 0)
    assert not any(training or autograd for _, training, autograd in teacher.calls)


def test_workers_change_nothing() -> None:
    teacher, samples = TinyNetwork().eval(), NoiseData().train_samples
    alone, with_workers = (
        TeacherCache.fill(teacher, samples, CLASSES, CPU, workers, show_progress=False) for workers in (0, 2)
    )
    assert torch.equal(alone.logits, with_workers.logits)


def test_logits_are_float32_whatever_the_teacher_computes_in() -> None:
    for dtype in (torch.bfloat16, torch.float64):
        cache = TeacherCache.fill(Teacher().to(dtype), Numbers(5), 2, CPU, show_progress=False)
        assert cache.logits.dtype == torch.float32
        assert cache.logits[:, 0].tolist() == [0, 1, 2, 3, 4]


def test_training_batches_find_their_logits() -> None:
    data, teacher = NoiseData(), TinyNetwork().eval()
    cache = TeacherCache.fill(teacher, data.train_samples, CLASSES, CPU, show_progress=False)
    sampler = TrainingSampler(len(data.train_samples), 8, seed=0)
    sampler.set_epoch(3)
    loader = DataLoader(data.train_samples, 8, sampler=sampler, drop_last=True)
    order = torch.from_numpy(sampler.order(3))
    for number, (images, _) in enumerate(loader):
        with torch.no_grad():
            assert torch.allclose(cache[order[8 * number : 8 * number + 8]], teacher(images), atol=1e-5)
    assert number == 8
