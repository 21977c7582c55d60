"""Writes small data sets exactly as the real ones lie on disk, for tests of the data modules and the configs.

The images are colourful noise around a colour of their class, so that a network can learn something from a handful.
"""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WNIDS = ("n01440764", "n01443537", "n01484850")
CLASSES = ("cat", "dog", "owl")
CIFAR10_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def picture(label: int, width: int, height: int, seed: int) -> np.ndarray:
    """An RGB image, uint8 H×W×3."""
    generator = np.random.default_rng((seed, label))
    colour = np.random.default_rng(label).integers(40, 216, 3)
    return np.clip(colour + generator.normal(0, 30, (height, width, 3)), 0, 255).astype(np.uint8)


# CIFAR --------------------------------------------------------------------------------------------------------------


def write_cifar10(root: Path, per_class: int = 10, test_per_class: int = 4) -> Path:
    """``root/cifar-10-batches-py`` as in cifar-10-python.tar.gz; ``per_class`` (a multiple of 5) training images."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for number in range(1, 6):
        batch = _cifar_batch(10, per_class // 5, number)
        batch = {"batch_label": f"training batch {number} of 5", "labels": batch.pop("targets"), **batch}
        _dump(folder / f"data_batch_{number}", batch)
    batch = _cifar_batch(10, test_per_class, 6)
    _dump(folder / "test_batch", {"batch_label": "testing batch 1 of 1", "labels": batch.pop("targets"), **batch})
    _dump(folder / "batches.meta", {"num_cases_per_batch": 10000, "label_names": CIFAR10_NAMES, "num_vis": 3072})
    return root


def write_cifar100(root: Path, per_class: int = 2, test_per_class: int = 1) -> Path:
    """``root/cifar-100-python`` as in cifar-100-python.tar.gz."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    for number, (name, count) in enumerate([("train", per_class), ("test", test_per_class)]):
        batch = _cifar_batch(100, count, number)
        fine = batch.pop("targets")
        _dump(folder / name, {**batch, "fine_labels": fine, "coarse_labels": [label // 5 for label in fine]})
    names = {"fine_label_names": [f"fine_{label}" for label in range(100)]}
    _dump(folder / "meta", {**names, "coarse_label_names": [f"coarse_{label}" for label in range(20)]})
    return root


def _cifar_batch(classes: int, per_class: int, seed: int) -> dict[str, Any]:
    targets = [label for number in range(per_class) for label in range(classes)]
    images = [picture(label, 32, 32, 1000 * seed + number) for number, label in enumerate(targets)]
    data = np.stack(images).transpose(0, 3, 1, 2).reshape(len(targets), 3072)
    return {"targets": targets, "data": data, "filenames": [f"image_{number}.png" for number in range(len(targets))]}


def _dump(path: Path, content: dict[str, Any]) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))


# Fashion-MNIST ------------------------------------------------------------------------------------------------------


def write_fashion_mnist(root: Path, per_class: int = 10, test_per_class: int = 4, debian: bool = False) -> Path:
    """``root/FashionMNIST/raw/*-ubyte`` as torchvision leaves it, or ``root/*-ubyte.gz`` as Debian's package does."""
    folder = root if debian else root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", per_class), ("t10k", test_per_class)):
        targets = np.array([label for number in range(count) for label in range(10)], dtype=np.uint8)
        images = np.stack([picture(int(label), 28, 28, number)[..., 0] for number, label in enumerate(targets)])
        for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", targets)):
            content = idx(array)
            # torchvision keeps the downloaded .gz beside what it unpacked.
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            if not debian:
                (folder / name).write_bytes(content)
    return root


def idx(array: np.ndarray) -> bytes:
    """A uint8 array in MNIST's file format."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


# Files of images ----------------------------------------------------------------------------------------------------


def encode(image: np.ndarray, kind: str = "JPEG") -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def write_image_folder(
    root: Path,
    splits: dict[str, int] | None = None,
    masks: Path | None = None,
    classes: Sequence[str] = CLASSES,
    size: tuple[int, int] = (40, 30),
) -> Path:
    """``root/<split>/<class>/<n>.jpg`` for ``{split: images per class}``; the split "" means no split folders.

    With ``masks``, PNG masks go to the same places below that folder: a rectangle in the middle.
    """
    for split, per_class in (splits or {"train": 8, "val": 4, "test": 4}).items():
        for label, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(per_class):
                width, height = size[0] + number % 3, size[1] + label
                (folder / f"{number}.jpg").write_bytes(encode(picture(label, width, height, number)))
                if masks is not None:
                    mask = np.zeros((height, width), np.uint8)
                    mask[height // 4 : height // 2, width // 4 : width // 2] = 255
                    (masks / split / name).mkdir(parents=True, exist_ok=True)
                    (masks / split / name / f"{number}.png").write_bytes(encode(mask, "PNG"))
    return root


# ImageNet -----------------------------------------------------------------------------------------------------------


def imagenet_ids(wnids: Sequence[str] = WNIDS) -> dict[str, int]:
    """ILSVRC2012_ID of every class: not in the alphabetical order of the labels, as in reality."""
    return {wnid: len(wnids) - number for number, wnid in enumerate(wnids)}


def imagenet_val_labels(per_class: int, wnids: Sequence[str] = WNIDS) -> list[int]:
    """Label of validation image number 1, 2, ...: mixed, as in reality."""
    return [int(label) for label in np.random.default_rng(0).permutation(np.repeat(np.arange(len(wnids)), per_class))]


def write_imagenet(
    root: Path, per_class: int = 8, val_per_class: int = 4, wnids: Sequence[str] = WNIDS, flat_val: bool = False
) -> Path:
    """``root/train/<wnid>/*.JPEG`` and ``root/val/<wnid>/*.JPEG``, or ``root/val/*.JPEG``."""
    for wnid, files in _imagenet_train(per_class, wnids).items():
        (root / "train" / wnid).mkdir(parents=True)
        for name, content in files.items():
            (root / "train" / wnid / name).write_bytes(content)
    (root / "val").mkdir()
    for name, label, content, _ in _imagenet_val(val_per_class, wnids):
        folder = root / "val" if flat_val else root / "val" / wnids[label]
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return root


def write_imagenet_archives(
    root: Path, per_class: int = 8, val_per_class: int = 4, wnids: Sequence[str] = WNIDS
) -> Path:
    """The official archives: a tar of one tar per class, the flat validation tar, devkit, validation boxes."""
    root.mkdir(parents=True, exist_ok=True)
    train = {f"{wnid}.tar": _tar(files) for wnid, files in _imagenet_train(per_class, wnids).items()}
    (root / "ILSVRC2012_img_train.tar").write_bytes(_tar(train))
    val = _imagenet_val(val_per_class, wnids)
    (root / "ILSVRC2012_img_val.tar").write_bytes(_tar({name: content for name, _, content, _ in val}))
    write_imagenet_devkit(root, val_per_class, wnids)
    write_imagenet_boxes(root / "ILSVRC2012_bbox_val_v3.tgz", val_per_class, wnids)
    return root


def write_imagenet_devkit(root: Path, val_per_class: int = 4, wnids: Sequence[str] = WNIDS) -> Path:
    """``root/ILSVRC2012_devkit_t12.tar.gz`` with meta.mat (leaf and inner synsets) and the validation ground truth."""
    from scipy.io import savemat

    fields = ["ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height"]
    leaves = [(number, wnid, f"name {wnid}, alias", "gloss", 0, 0, 0) for wnid, number in imagenet_ids(wnids).items()]
    inner = [(len(wnids) + 1, "n00001740", "entity", "gloss", len(wnids), 1, 1)]
    # ImageNet's file has one row per synset, ordered by its id.
    synsets = np.zeros((len(leaves) + 1, 1), dtype=[(name, object) for name in fields])
    for row, synset in enumerate(sorted(leaves) + inner):
        synsets[row, 0] = synset
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets})
    ids = imagenet_ids(wnids)
    truth = "".join(f"{ids[wnids[label]]}\n" for label in imagenet_val_labels(val_per_class, wnids))
    folder = "ILSVRC2012_devkit_t12/data"
    files = {f"{folder}/meta.mat": meta.getvalue(), f"{folder}/ILSVRC2012_validation_ground_truth.txt": truth.encode()}
    path = root / "ILSVRC2012_devkit_t12.tar.gz"
    path.write_bytes(_tar({**files, "ILSVRC2012_devkit_t12/readme.txt": b"Development kit"}, "w:gz"))
    return path


def write_imagenet_boxes(path: Path, val_per_class: int = 4, wnids: Sequence[str] = WNIDS) -> Path:
    """The validation boxes: a .tgz with ``val/*.xml``, or a folder with them if ``path`` has no suffix."""
    files = {f"val/{Path(name).stem}.xml": xml for name, _, _, xml in _imagenet_val(val_per_class, wnids)}
    if path.suffix:
        path.write_bytes(_tar(files, "w:gz"))
    else:
        (path / "val").mkdir(parents=True)
        for name, content in files.items():
            (path / name).write_bytes(content)
    return path


def _imagenet_train(per_class: int, wnids: Sequence[str]) -> dict[str, dict[str, bytes]]:
    return {
        wnid: {f"{wnid}_{7 * n + 3}.JPEG": encode(picture(label, 50 + n, 40 + n, n)) for n in range(per_class)}
        for label, wnid in enumerate(wnids)
    }


def _imagenet_val(per_class: int, wnids: Sequence[str]) -> list[tuple[str, int, bytes, bytes]]:
    images = []
    for number, label in enumerate(imagenet_val_labels(per_class, wnids), start=1):
        name = f"ILSVRC2012_val_{number:08d}"
        width, height = 60 + number, 48
        boxes = [(10, 12, 30, 36), (20, 8, 40, 24)][: 1 + number % 2]
        images.append((f"{name}.JPEG", label, encode(picture(label, width, height, number)), b""))
        objects = "".join(
            f"<object><name>{wnids[label]}</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult>"
            f"<bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
            for x0, y0, x1, y1 in boxes
        )
        xml = (
            f"<annotation><folder>val</folder><filename>{name}</filename><source><database>ILSVRC_2012</database></source>"
            f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size><segmented>0</segmented>"
            f"{objects}</annotation>"
        )
        images[-1] = (*images[-1][:3], xml.encode())
    return images


def _tar(files: dict[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()
