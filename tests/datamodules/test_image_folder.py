"""Folders of classes, their masks, and files that cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder as TorchvisionFolder
from torchvision.transforms import v2

from compresslens.errors import UserError
from datamodules import ImageFolder
from tests.real_formats import CLASSES, encode, write_image_folder


def folder(root: Path, **options: Any) -> ImageFolder:
    return ImageFolder(str(root), **{"image_size": 16, "num_workers": 0, "batch_size": 4, **options})


def test_split_folders(tmp_path: Path) -> None:
    write_image_folder(tmp_path, {"train": 6, "val": 3, "test": 2})
    data = folder(tmp_path)
    assert (data.num_classes, data.class_names) == (3, list(CLASSES)), "known before setup"
    for split, expected in (("train", 6), ("val", 3), ("test", 2)):
        images = data.dataset(split).samples  # type: ignore[arg-type]
        official = TorchvisionFolder(str(tmp_path / split))
        assert list(zip(images.paths, images.targets.tolist(), strict=True)) == official.samples  # type: ignore[attr-defined]
        assert len(official) == 3 * expected
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        assert next(iter(loader))[0].shape == (4, 3, 16, 16)


@pytest.mark.parametrize("splits", [{"": 20}, {"train": 20}])
def test_splits_without_a_folder_are_held_out(tmp_path: Path, splits: dict[str, int]) -> None:
    write_image_folder(tmp_path, splits)

    def paths(**options: Any) -> dict[str, list[str]]:
        data = folder(tmp_path, **options)
        return {split: data.dataset(split).samples.paths for split in ("train", "val", "test")}  # type: ignore

    parts = paths(validation_fraction=0.2, test_fraction=0.1)
    assert [len(part) for part in parts.values()] == [42, 12, 6]
    assert len({path for part in parts.values() for path in part}) == 60
    for part, per_class in (("val", 4), ("test", 2)):
        assert [sum(f"/{name}/" in path for path in parts[part]) for name in CLASSES] == [per_class] * 3
    assert paths(validation_fraction=0.4)["test"] == parts["test"]
    assert paths(seed=1)["test"] != parts["test"]


def test_a_test_folder_is_kept_when_validation_is_held_out(tmp_path: Path) -> None:
    write_image_folder(tmp_path, {"train": 10, "test": 5})
    data = folder(tmp_path)
    data.setup("fit")
    assert (len(data.dataset("train")), len(data.dataset("val")), len(data.dataset("test"))) == (27, 3, 15)


def test_images_are_found_at_any_depth_and_hidden_files_ignored(tmp_path: Path) -> None:
    write_image_folder(tmp_path, {"": 12})
    deep = tmp_path / "cat" / "more" / "still"
    deep.mkdir(parents=True)
    (tmp_path / "cat" / "0.jpg").rename(deep / "x.JPG")
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "cat" / "._1.jpg").write_text("no image")
    (tmp_path / ".cache").mkdir()
    assert len(folder(tmp_path).dataset("train")) == 36 - 4 - 4


def test_masks_move_with_their_images(tmp_path: Path) -> None:
    root, masks = tmp_path / "images", tmp_path / "masks"
    write_image_folder(root, {"train": 4, "val": 4, "test": 4}, masks=masks)
    for path in root.rglob("*.jpg"):
        mask = np.array(Image.open(masks / path.relative_to(root).with_suffix(".png")))
        path.unlink()
        path.with_suffix(".png").write_bytes(encode(np.stack([mask] * 3, axis=-1), "PNG"))
    data = folder(
        root, masks=str(masks), train_transforms=[v2.RandomResizedCrop(16, (0.3, 1.0)), v2.RandomHorizontalFlip()]
    )
    for loader in (data.train_dataloader(), data.val_dataloader()):
        for images, labels, found in loader:
            assert found.shape == (len(labels), 16, 16)
            assert found.dtype == torch.bool
            agree = (images[:, 0] > 0.5) == found
            assert float(agree.float().mean()) > 0.93, "equal up to interpolation"


def test_kinds_of_mask_files(tmp_path: Path) -> None:
    root, masks = tmp_path / "images", tmp_path / "masks"
    write_image_folder(root, {"": 12}, masks=masks, size=(16, 16), classes=("cat", "dog"))
    images = folder(root, masks=str(masks), eval_transforms=[]).build_dataset("train")
    first = masks / Path(images.paths[0]).relative_to(root).with_suffix(".png")
    expected = images[0][2]
    assert expected.any()
    assert not expected.all()
    for convert in (
        lambda mask: Image.fromarray(mask > 0),
        lambda mask: Image.fromarray(mask // 255),
        lambda mask: Image.fromarray(np.stack([mask, 0 * mask, 0 * mask], axis=-1)),
        lambda mask: Image.fromarray(np.stack([mask, mask, mask, 0 * mask + 255], axis=-1)),
        lambda mask: Image.fromarray(mask // 255).convert("P"),
        lambda mask: Image.fromarray((mask // 255).astype(np.uint16)),
    ):
        convert(expected.numpy().astype(np.uint8) * 255).save(first)
        assert torch.equal(images[0][2], expected)


def test_bad_masks_are_named(tmp_path: Path) -> None:
    root, masks = tmp_path / "images", tmp_path / "masks"
    write_image_folder(root, {"": 12}, masks=masks)
    (masks / "dog" / "3.png").write_bytes(encode(np.zeros((5, 6), np.uint8), "PNG"))
    images = folder(root, masks=str(masks))._folder("train")
    index = images.paths.index(str(root / "dog" / "3.jpg"))
    with pytest.raises(UserError, match=r"The mask .*dog/3.png has 6x5 pixels but its image has 40x31"):
        images[index]
    (masks / "dog" / "3.png").unlink()
    with pytest.raises(UserError, match=r"1 of 36 images have no mask; .*masks/dog/3.png is missing"):
        folder(root, masks=str(masks)).setup("fit")


@pytest.mark.parametrize(
    ("workers", "content", "reason"), [(0, None, "truncated"), (1, b"not an image", "cannot identify")]
)
def test_a_corrupt_file_is_named(tmp_path: Path, workers: int, content: bytes | None, reason: str) -> None:
    write_image_folder(tmp_path, {"train": 4, "val": 4, "test": 4})
    path = tmp_path / "val" / "dog" / "2.jpg"
    path.write_bytes(path.read_bytes()[:-200] if content is None else content)
    data = folder(tmp_path, num_workers=workers)
    with pytest.raises(UserError) as error:
        list(data.val_dataloader())
    message = str(error.value)
    assert message.startswith(f"The file {path} is no readable image (")
    assert reason in message
    assert "\n" not in message


def test_a_file_that_vanishes_is_named(tmp_path: Path) -> None:
    write_image_folder(tmp_path, {"train": 4, "val": 4, "test": 4})
    data = folder(tmp_path)
    data.setup("fit")
    (tmp_path / "val" / "cat" / "0.jpg").unlink()
    with pytest.raises(UserError, match=r"The file .*val/cat/0.jpg is missing\."):
        data.dataset("val")[0]


def test_corrupt_files_can_be_skipped(tmp_path: Path) -> None:
    write_image_folder(tmp_path, {"train": 4, "val": 4, "test": 4})
    bad = [tmp_path / "train" / name / f"{number}.jpg" for name in CLASSES for number in (1, 2)]
    for path in bad:
        path.write_bytes(b"")
    data = folder(tmp_path, on_corrupt="skip")
    with pytest.warns(UserWarning, match="Left out 6 of 12 files") as caught:
        data.setup("fit")
    message = next(str(warning.message) for warning in caught if "Left out" in str(warning.message))
    assert [str(path) in message for path in bad] == [True] * 5 + [False]
    assert len(data.dataset("train")) == 6
    assert len(list(data.train_dataloader())) == 1


@pytest.mark.parametrize(
    ("prepare", "options", "message"),
    [
        (lambda root: None, {"root": "nowhere"}, r"The data folder nowhere does not exist; data.root must hold train/"),
        (lambda root: (root / "train" / "emu").mkdir(), {}, r"The class folder .*train/emu holds no images"),
        (lambda root: (root / "val" / "emu").mkdir(), {}, r"val has class folders that the training data lacks: emu"),
        (lambda root: None, {"class_count": 4}, r"train has 3 class folder\(s\); expected 4"),
        (lambda root: None, {"validation_fraction": 0.0}, r"must be above 0 and below 1 together"),
        (lambda root: None, {"validation_fraction": 0.6, "test_fraction": 0.5}, r"below 1 together"),
    ],
)
def test_faults_are_explained(tmp_path: Path, prepare: Any, options: dict[str, Any], message: str) -> None:
    write_image_folder(tmp_path)
    prepare(tmp_path)
    with pytest.raises(UserError, match=message):
        folder(**{"root": tmp_path, **options}).setup("fit")


def test_one_class_is_too_few(tmp_path: Path) -> None:
    write_image_folder(tmp_path, classes=["cat"])
    with pytest.raises(UserError, match=r"has 1 class folder\(s\); expected at least 2"):
        _ = folder(tmp_path).num_classes
