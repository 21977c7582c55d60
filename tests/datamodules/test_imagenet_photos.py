from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from compresslens.errors import UserError
from datamodules import ImageNetPhotos
from tests.real_formats import encode, picture


def write(root: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encode(picture(number, 40, 50, 0)))


def labels(root: Path) -> dict[str, int]:
    images = ImageNetPhotos(str(root), num_workers=0).dataset("val").samples
    paths = [str(Path(path).relative_to(root)) for path in images.paths]  # type: ignore[attr-defined]
    return dict(zip(paths, images.targets.tolist(), strict=True))  # type: ignore[attr-defined]


def test_classes_are_told_by_folders_and_names(tmp_path: Path) -> None:
    expected = {
        "n01443537/a.jpg": 1,
        "val/n15075141/more/b.JPEG": 999,
        "281/c.jpg": 281,
        "great_white_shark/d.jpg": 2,
        "Tiger Cat/e.jpg": 282,
        "2012/n01440764_10026.JPEG": 0,
        "n02123159_tiger.jpg": 282,
    }
    write(tmp_path, *expected)
    assert labels(tmp_path) == expected


def test_wordnet_ids_and_names_are_in_the_order_of_the_weights() -> None:
    data = ImageNetPhotos("anywhere")
    assert data.num_classes == len(data.wnids) == len(set(data.wnids)) == 1000
    assert data.wnids == sorted(data.wnids)
    known = {"n01440764": "tench", "n02123045": "tabby", "n02504458": "African elephant", "n15075141": "toilet tissue"}
    for wnid, name in known.items():
        assert data.class_names[data.wnids.index(wnid)] == name


@pytest.mark.parametrize("name", ["cardigan/a.jpg", "cat/a.jpg", "1000/a.jpg", "a.jpg", "n00000000_a.jpg"])
def test_what_says_no_class_is_refused(tmp_path: Path, name: str) -> None:
    """A cardigan may be a dog or a garment."""
    write(tmp_path, "goldfish/a.jpg", name)
    with pytest.raises(UserError, match=r"1 of 2 photos have no class, such as .*a\.jpg: put them into folders"):
        labels(tmp_path)


def test_all_photos_are_evaluated_and_none_trained_on(tmp_path: Path) -> None:
    write(tmp_path, "1/a.jpg", "2/b.jpg", "2/c.jpg")
    data = ImageNetPhotos(str(tmp_path), image_size=32, num_workers=0)
    for split in ("val", "test"):
        assert data.labels(split).tolist() == [1, 2, 2]  # type: ignore[arg-type]
    images, targets = next(iter(data.val_dataloader()))
    assert images.shape == (3, 3, 32, 32)
    assert targets.tolist() == [1, 2, 2]
    with pytest.raises(UserError, match="ImageNetPhotos is for evaluation; train on"):
        data.setup("fit")


def test_preprocessing_is_that_of_the_published_weights(tmp_path: Path) -> None:
    """Shorter side to 256 by bicubic interpolation, centre of 224."""
    write(tmp_path, "1/a.jpg")
    data = ImageNetPhotos(str(tmp_path), num_workers=0)
    (tmp_path / "1" / "a.jpg").write_bytes(encode(picture(0, 300, 400, 0), "PNG"))
    image, _ = data.dataset("val")[0]
    photo = Image.open(tmp_path / "1" / "a.jpg").resize((256, 341), Image.Resampling.BICUBIC)
    left, top = (256 - 224) // 2, round((341 - 224) / 2)
    expected = torch.tensor(list(photo.crop((left, top, left + 224, top + 224)).tobytes())).view(224, 224, 3) / 255
    assert (image.permute(1, 2, 0) - expected).abs().max() < 2.5 / 255


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere does not exist; data\.root must be a folder of photos"):
        ImageNetPhotos(str(tmp_path / "nowhere")).setup("validate")
    with pytest.raises(UserError, match="holds no images"):
        ImageNetPhotos(str(tmp_path)).setup("validate")
