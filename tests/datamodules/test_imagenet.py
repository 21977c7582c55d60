"""ImageNet in folders, flat with the devkit, and as the official archives."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision import datasets
from torchvision.transforms import v2

from compresslens.errors import UserError
from datamodules import ImageNet
from datamodules.imagenet_files import parse_boxes, read_devkit
from tests.real_formats import (
    WNIDS,
    imagenet_val_labels,
    write_imagenet,
    write_imagenet_archives,
    write_imagenet_boxes,
    write_imagenet_devkit,
)


def imagenet(root: Path, **options: Any) -> ImageNet:
    defaults = {"image_size": 16, "num_workers": 0, "batch_size": 4, "class_count": 3, "validation_samples": 6}
    return ImageNet(str(root), **{**defaults, **options})


def contents(data: ImageNet, split: Any) -> set[tuple[str, int]]:
    images = data.build_dataset(split)
    return {(Path(path).name, int(label)) for path, label in zip(images.paths, images.targets, strict=True)}


def test_folders(tmp_path: Path) -> None:
    data = imagenet(write_imagenet(tmp_path))
    data.setup("fit")
    data.setup("test")
    assert [len(data.dataset(split)) for split in ("train", "val", "test")] == [18, 6, 12]  # type: ignore[arg-type]
    assert np.bincount(data.labels("val")).tolist() == [2, 2, 2]
    assert not contents(data, "train") & contents(data, "val")
    assert data.class_names == list(WNIDS)
    assert [next(iter(loader))[0].shape for loader in (data.train_dataloader(), data.test_dataloader())] == [
        (4, 3, 16, 16)
    ] * 2
    numbers = enumerate(imagenet_val_labels(4), start=1)
    assert contents(data, "test") == {(f"ILSVRC2012_val_{number:08d}.JPEG", label) for number, label in numbers}


@pytest.mark.parametrize("unpacked", [False, True])
def test_flat_validation_images_get_labels_from_the_devkit(tmp_path: Path, unpacked: bool) -> None:
    flat, sorted_ = write_imagenet(tmp_path / "flat", flat_val=True), write_imagenet(tmp_path / "sorted")
    archive = write_imagenet_devkit(flat)
    if unpacked:
        with tarfile.open(archive) as tar:
            tar.extractall(flat, filter="data")
        archive.unlink()
    assert contents(imagenet(flat), "test") == contents(imagenet(sorted_), "test")
    assert imagenet(flat).class_names[1] == f"name {WNIDS[1]}, alias"
    (flat / "val" / "ILSVRC2012_val_00000001.JPEG").unlink()
    assert contents(imagenet(flat), "test") < contents(imagenet(sorted_), "test"), "labels go by the number in the name"


def test_the_official_archives_are_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = write_imagenet_archives(tmp_path / "ours")
    data = imagenet(ours, boxes=str(ours / "ILSVRC2012_bbox_val_v3.tgz"))
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    assert next(iter(data.test_dataloader()))[2].any()

    # torchvision unpacks the same archives to the same files with the same labels.
    theirs = write_imagenet_archives(tmp_path / "theirs")
    monkeypatch.setattr(datasets.imagenet, "check_integrity", lambda path, md5=None: Path(path).is_file())
    for split, own in (("train", {"train", "val"}), ("val", {"test"})):
        official = datasets.ImageNet(str(theirs), split)
        expected = {(Path(path).name, label) for path, label in official.samples}
        assert set().union(*(contents(data, part) for part in own)) == expected
    assert contents(imagenet(theirs), "test") == contents(data, "test"), "what torchvision unpacked can be read, too"

    (ours / "ILSVRC2012_img_train.tar").unlink()
    again = imagenet(ours)
    again.prepare_data()
    assert contents(again, "train") == contents(data, "train")


def test_a_damaged_archive_leaves_no_folder_behind(tmp_path: Path) -> None:
    write_imagenet_archives(tmp_path)
    path = tmp_path / "ILSVRC2012_img_train.tar"
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(UserError, match=r"ILSVRC2012_img_train.tar could not be unpacked"):
        imagenet(tmp_path).prepare_data()
    assert not (tmp_path / "train").exists()


@pytest.mark.parametrize("archive", [True, False])
def test_boxes_become_masks_that_move_with_the_image(tmp_path: Path, archive: bool) -> None:
    root = write_imagenet(tmp_path / "data")
    boxes = write_imagenet_boxes(tmp_path / ("boxes.tgz" if archive else "boxes"))
    flip: Any = [v2.RandomHorizontalFlip(p=1.0)]
    plain = imagenet(root, boxes=str(boxes), eval_transforms=[])
    flipped = imagenet(root, boxes=str(boxes), eval_transforms=flip)
    for index, path in enumerate(plain.build_dataset("test").paths):
        number = int(Path(path).stem[-8:])
        image, _, mask = plain.dataset("test")[index]
        expected = torch.zeros(image.shape[1:], dtype=torch.bool)
        expected[12:36, 10:30] = True
        if number % 2:
            expected[8:24, 20:40] = True
        assert torch.equal(mask, expected)
        assert torch.equal(flipped.dataset("test")[index][2], expected.flip(1))
    assert len(plain.dataset("val")[0]) == 2, "the boxes are the validation images' only"


def test_boxes_are_relative_to_the_annotated_size() -> None:
    box = "<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>"
    size = "<size><width>200</width><height>100</height></size>"
    xml = f"<annotation>{size}<object>{box.format(50, 20, 100, 60)}</object></annotation>".encode()
    assert parse_boxes(xml) == [(0.25, 0.2, 0.5, 0.6)]
    with pytest.raises(ValueError, match="no <bndbox>"):
        parse_boxes(f"<annotation>{size}</annotation>".encode())
    with pytest.raises(ValueError, match="no <size/width>"):
        parse_boxes(b"<annotation/>")


def test_the_devkit(tmp_path: Path) -> None:
    assert read_devkit(tmp_path) is None
    write_imagenet_devkit(tmp_path)
    devkit = read_devkit(tmp_path)
    assert devkit is not None
    assert devkit.wnids == {3: WNIDS[0], 2: WNIDS[1], 1: WNIDS[2]}
    assert [WNIDS.index(devkit.wnids[number]) for number in devkit.ground_truth] == imagenet_val_labels(4)


def test_names_of_all_thousand_classes(tmp_path: Path) -> None:
    for number in range(1000):
        (tmp_path / "train" / f"n{number:08d}").mkdir(parents=True)
    names = imagenet(tmp_path, class_count=1000).class_names
    assert (names[0], names[999]) == ("tench", "toilet tissue")


def set_up_all(root: Path, options: dict[str, Any]) -> None:
    data = imagenet(root, **options)
    for stage in ("fit", "test"):
        data.setup(stage)


def remove_val(root: Path) -> None:
    shutil.rmtree(root / "val")


def flatten_val(root: Path) -> None:
    for path in (root / "val").glob("*/*"):
        path.rename(root / "val" / path.name)


def flatten_val_beside_a_short_devkit(root: Path) -> None:
    flatten_val(root)
    write_imagenet_devkit(root, val_per_class=2)


def break_devkit(root: Path) -> None:
    flatten_val(root)
    (root / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(b"no tar")


def remove_a_box(root: Path) -> None:
    next(write_imagenet_boxes(root / "boxes").glob("*/*07.xml")).unlink()


def break_a_box(root: Path) -> None:
    next(write_imagenet_boxes(root / "boxes").glob("*/*07.xml")).write_text("<annotation>")


@pytest.mark.parametrize(
    ("prepare", "options", "message"),
    [
        (lambda root: shutil.rmtree(root / "train"), {}, r"train does not exist; data.root must hold train/<wnid>"),
        (remove_val, {}, "val does not exist; it must hold the official validation images"),
        (lambda root: None, {"class_count": 1000}, "has 3 class folders instead of 1000"),
        (lambda root: (root / "val" / "n99999999").mkdir(), {}, "lacks: n99999999"),
        (lambda root: shutil.rmtree(root / "train" / WNIDS[0]), {"class_count": 2}, f"lacks: {WNIDS[0]}"),
        (lambda root: None, {"validation_samples": 24}, "validation_samples is 24 but there are 24 training images"),
        (lambda root: None, {"validation_samples": 0}, "validation_samples is 0 but must be at least 1"),
        (flatten_val, {}, r"put ILSVRC2012_devkit_t12\.tar\.gz in"),
        (flatten_val_beside_a_short_devkit, {}, r"give no label for .*val_00000007.JPEG: it has 6 validation labels"),
        (break_devkit, {}, "The devkit in .* is damaged"),
        (lambda root: None, {"boxes": "nowhere"}, "The bounding boxes nowhere do not exist"),
        (remove_a_box, {"boxes": "boxes"}, "1 of 12 images have no bounding boxes: ILSVRC2012_val_00000007.xml"),
        (break_a_box, {"boxes": "boxes"}, "ILSVRC2012_val_00000007.xml in boxes are damaged"),
    ],
)
def test_faults_are_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepare: Any, options: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(write_imagenet(tmp_path))
    prepare(tmp_path)
    with pytest.raises(UserError, match=message):
        set_up_all(tmp_path, options)
