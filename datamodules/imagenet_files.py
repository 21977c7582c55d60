"""What ImageNet's official archives hold: class tars, the development kit, bounding boxes."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import torch
from torch import Tensor

from compresslens.errors import UserError

DEVKIT = "ILSVRC2012_devkit_t12"


class Devkit(NamedTuple):
    """What the official development kit says."""

    wnids: dict[int, str]  # ILSVRC2012_ID (from 1) -> WordNet id, of the leaf classes
    names: dict[str, str]  # WordNet id -> words
    ground_truth: list[int]  # ILSVRC2012_ID of validation image number 1, 2, ...


class BoxMasks:
    """Masks from bounding boxes: the union of an image's boxes.

    Args:
        source: folder or .tgz with one PASCAL-style ``<stem>.xml`` per image.
        images: the images, all of which must have one.

    Raises:
        UserError: if the source or a file in it is missing or damaged.
    """

    def __init__(self, source: Path, images: list[str]) -> None:
        if not source.exists():
            raise UserError(
                f"The bounding boxes {source} do not exist; data.boxes must be a folder of *.xml or a .tgz."
            )
        wanted = {Path(image).stem for image in images}
        self._boxes: dict[str, list[tuple[float, float, float, float]]] = {}
        for stem, content in _annotations(source):
            if stem in wanted:
                try:
                    self._boxes[stem] = parse_boxes(content)
                except (ElementTree.ParseError, ValueError) as error:
                    raise UserError(f"The bounding boxes {stem}.xml in {source} are damaged: {error}.") from error
        missing = sorted(wanted - set(self._boxes))
        if missing:
            raise UserError(
                f"{len(missing)} of {len(wanted)} images have no bounding boxes: {missing[0]}.xml is not in {source}, "
                "for example."
            )

    def __call__(self, image: str, size: tuple[int, int]) -> Tensor:
        width, height = size
        mask = torch.zeros(height, width, dtype=torch.bool)
        for left, top, right, bottom in self._boxes[Path(image).stem]:
            x, y = min(int(left * width), width - 1), min(int(top * height), height - 1)
            mask[y : max(y + 1, round(bottom * height)), x : max(x + 1, round(right * width))] = True
        return mask


def parse_boxes(content: bytes) -> list[tuple[float, float, float, float]]:
    """Boxes (left, top, right, bottom) in fractions of the annotated size, which is not always the image's.

    Raises:
        ValueError: if a number is missing or there is no box.
    """
    tree = ElementTree.fromstring(content)

    def number(element: ElementTree.Element, path: str) -> float:
        text = element.findtext(path)
        if text is None:
            raise ValueError(f"no <{path}>")
        return float(text)

    width, height = number(tree, "size/width"), number(tree, "size/height")
    boxes = [
        (
            number(box, "xmin") / width,
            number(box, "ymin") / height,
            number(box, "xmax") / width,
            number(box, "ymax") / height,
        )
        for box in tree.iter("bndbox")
    ]
    if not boxes:
        raise ValueError("no <bndbox>")
    return boxes


def _annotations(source: Path) -> Iterator[tuple[str, bytes]]:
    if source.is_dir():
        for path in [*source.glob("*.xml"), *source.glob("*/*.xml")]:
            yield path.stem, path.read_bytes()
        return
    try:
        with tarfile.open(source) as archive:
            for member in archive:
                if member.name.endswith(".xml") and (file := archive.extractfile(member)):
                    yield Path(member.name).stem, file.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"The archive {source} is damaged ({error}).") from error


def read_devkit(root: Path) -> Devkit | None:
    """Reads ``data/meta.mat`` and the validation ground truth from the devkit's folder or .tar.gz in ``root``.

    Raises:
        UserError: if it is incomplete or damaged.
    """
    names = ("data/meta.mat", "data/ILSVRC2012_validation_ground_truth.txt")
    folder, archive = root / DEVKIT, root / f"{DEVKIT}.tar.gz"
    try:
        if folder.is_dir():
            meta, truth = ((folder / name).read_bytes() for name in names)
        elif archive.is_file():
            with tarfile.open(archive) as tar:
                meta, truth = (tar.extractfile(f"{DEVKIT}/{name}").read() for name in names)  # type: ignore[union-attr]
        else:
            return None
        from scipy.io import loadmat

        synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        leaves = [synset for synset in synsets if int(synset["num_children"]) == 0]
        wnids = {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in leaves}
        words = {str(synset["WNID"]): str(synset["words"]) for synset in leaves}
        return Devkit(wnids, words, [int(line) for line in truth.decode().split()])
    except Exception as error:
        raise UserError(f"The devkit in {root} is damaged or incomplete ({type(error).__name__}: {error}).") from error


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks an official archive; tars inside it (one per class) become folders.

    The work is done in ``<folder>.partial``, so that an interrupted unpacking is not taken for a complete one.

    Raises:
        UserError: if the archive is damaged or the folder cannot be written.
    """
    from tqdm import tqdm

    partial = folder.with_name(folder.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        with tarfile.open(archive) as outer:
            for member in tqdm(outer, f"Unpacking {archive.name}", leave=False):
                inner_file = outer.extractfile(member) if member.name.endswith(".tar") else None
                if inner_file is None:
                    outer.extract(member, partial, filter="data")
                    continue
                with tarfile.open(fileobj=inner_file) as inner:
                    inner.extractall(partial / Path(member.name).stem, filter="data")
        partial.rename(folder)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{archive} could not be unpacked to {folder}: {error}.") from error
