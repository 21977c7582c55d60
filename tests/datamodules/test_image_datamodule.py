"""What all data modules share."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor
from torchvision.transforms import v2

from compresslens.errors import UserError
from datamodules import ImageDataModule
from tests.datamodules.tiny import SIZE, Squares, TinyData, indices


def test_batches() -> None:
    data = TinyData(masks=True, eval_batch_size=3)
    images, labels, masks = next(iter(data.train_dataloader()))
    assert images.shape == (4, 3, SIZE, SIZE)
    assert (images.dtype, labels.dtype, masks.dtype) == (torch.float32, torch.int64, torch.bool)
    assert masks.shape == (4, SIZE, SIZE)
    assert 0 <= float(images.min()) <= float(images.max()) <= 1
    assert labels.tolist() == [index % 3 for index in indices(images)]
    assert [indices(batch[0]) for batch in data.test_dataloader()] == [[0, 1, 2], [3, 4, 5], [6]]
    assert len(TinyData().val_dataloader()) == 3
    assert len(next(iter(TinyData().val_dataloader()))) == 2


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_changes_nothing(workers: int) -> None:
    transforms: list[Any] = [v2.RandomCrop(SIZE, padding=3), v2.GaussianNoise()]

    def epochs(num_workers: int) -> list[Tensor]:
        loader = TinyData(train_transforms=transforms, num_workers=num_workers, seed=1).train_dataloader()
        images = []
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
            images += [batch[0] for batch in loader]
        return images

    torch.manual_seed(0)
    alone = epochs(0)
    torch.manual_seed(1)
    torch.testing.assert_close(alone, epochs(workers), rtol=0, atol=0)


def test_loading_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    data = TinyData(train_transforms=[v2.GaussianNoise()])
    for loader in (data.train_dataloader(), data.val_dataloader()):
        list(loader)
    assert torch.equal(torch.rand(1), expected)


def test_training_images() -> None:
    assert TinyData().deterministic_training_images
    assert TinyData(train_transforms=[v2.Resize(SIZE)]).deterministic_training_images
    assert not TinyData(train_transforms=[v2.RandomHorizontalFlip()]).deterministic_training_images
    samples = TinyData(seed=2).train_samples
    assert indices(torch.stack([sample[0] for sample in samples])) == list(range(29))  # type: ignore[attr-defined]


def test_eval_transforms_also_serve_training_without_augmentation() -> None:
    data = TinyData(eval_transforms=[v2.CenterCrop(4)])
    assert next(iter(data.train_dataloader()))[0].shape[-1] == 4
    data = TinyData(eval_transforms=[v2.CenterCrop(4)], train_transforms=[])
    assert next(iter(data.train_dataloader()))[0].shape[-1] == SIZE


def test_the_probe_subset_is_fixed_and_balanced() -> None:
    data = TinyData(val=200, probe_samples=30)
    probe = data.probe_dataset()
    assert probe.indices == TinyData(val=200, probe_samples=30, batch_size=2, num_workers=3).probe_dataset().indices
    assert data.probe_indices().tolist() == probe.indices
    assert [sum(label == number for _, label in probe) for number in range(3)] == [10, 10, 10]  # type: ignore[attr-defined]
    assert probe.indices != TinyData(val=200, probe_samples=30, seed=1).probe_dataset().indices
    with pytest.warns(UserWarning, match="The test split has 7 images, fewer than probe_samples=30"):
        assert len(data.probe_dataset("test")) == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "data.batch_size is 0 but must be at least 1"),
        ({"seed": -1}, "data.seed is -1"),
        ({"num_workers": -1}, "data.num_workers is -1"),
        ({"probe_samples": 0}, "data.probe_samples is 0"),
        ({"train_transforms": [v2.Normalize([0.5], [0.5])]}, "Take Normalize out"),
        ({"eval_transforms": [v2.Compose([v2.Normalize([0.5], [0.5])])]}, "Take Normalize out"),
    ],
)
def test_settings_are_checked_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TinyData(**options)


def test_data_is_checked_at_setup() -> None:
    with pytest.raises(UserError, match="the val split is empty"):
        TinyData(val=0).setup("fit")
    TinyData(val=0).setup("test")
    with pytest.raises(UserError, match="training split has 3 images, fewer than one batch of 4"):
        TinyData(train=3).train_dataloader()

    class OneLabel(TinyData):
        label = 1

        def build_dataset(self, split: Any) -> Squares:
            return Squares(10, label=self.label)

    with pytest.raises(UserError, match="has 3 classes but its training split has no image of class 0, 2"):
        OneLabel().setup("fit")
    data = OneLabel()
    data.label = 5
    with pytest.raises(UserError, match="has 3 classes"):
        data.setup("fit")


def test_labels_without_targets_are_read_from_the_items() -> None:
    class NoTargets(TinyData):
        def build_dataset(self, split: Any) -> Any:
            return [(torch.zeros(3, SIZE, SIZE, dtype=torch.uint8), number % 3) for number in range(9)]

    assert NoTargets().labels("train").tolist() == [0, 1, 2] * 3


def test_yaml_gives_transforms_by_class_path(tmp_path: Path) -> None:
    config = tmp_path / "data.yaml"
    config.write_text(
        """
data:
  class_path: datamodules.CIFAR10
  init_args:
    root: somewhere
    batch_size: 8
    train_transforms:
      - class_path: torchvision.transforms.v2.RandomCrop
        init_args: {size: 32, padding: 4}
      - class_path: torchvision.transforms.v2.RandomHorizontalFlip
"""
    )
    parser = ArgumentParser()
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(ImageDataModule, "data")
    data = parser.instantiate_classes(parser.parse_args([f"--config={config}", "--data.seed=3"])).data
    assert [type(transform) for transform in data.train_transforms] == [v2.RandomCrop, v2.RandomHorizontalFlip]
    assert (data.batch_size, data.seed, data.num_classes, data.image_size) == (8, 3, 10, 32)


def test_importing_the_package_is_light() -> None:
    code = """
import sys
import pytorch_lightning, torchmetrics
before = set(sys.modules)
import datamodules
print({name.partition(".")[0] for name in set(sys.modules) - before} - {"compresslens"} - set(sys.stdlib_module_names))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "{'datamodules'}"
