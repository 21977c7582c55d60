from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import wandb
from PIL import Image

from compresslens.errors import UserError
from compresslens.reporting.wandb_logger import OfflineFirstWandbLogger
from compresslens.reporting.wandb_media import MediaBudget
from tests.reporting.wandb_records import of_kind, records

pytestmark = pytest.mark.usefixtures("isolated_wandb")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)).save(path)
    return path


def test_what_is_over_the_budget_is_left_out_with_one_note(picture: Path, tmp_path: Path) -> None:
    size = picture.stat().st_size
    said: list[str] = []
    budget = MediaBudget(3 * size, said.append)
    pictures = [wandb.Image(str(picture)) for _ in range(2)]
    assert budget.admit({"two": pictures, "x": 1.0}, tmp_path) == {"two": pictures, "x": 1.0}
    assert budget.used == 2 * size
    assert budget.admit({"two more": pictures, "x": 2.0}, tmp_path) == {"x": 2.0}
    assert set(budget.admit({"one": pictures[0], "text": "a", "list": [1, 2]}, tmp_path)) == {"one", "text", "list"}
    assert budget.admit({"one more": pictures[0]}, tmp_path) == {}
    assert budget.used == 3 * size
    assert said == [
        f"'two more' and further media over media_budget ({3 * size / 1e6:g} MB a run) are not logged to W&B"
    ]


def test_a_continued_run_has_what_is_left(run_folder: Path, picture: Path) -> None:
    budget = 2 * picture.stat().st_size
    logger = OfflineFirstWandbLogger(save_dir=str(run_folder), media_budget=budget)
    logger.log_image("first", [str(picture)], 0)
    logger.log_metrics({"second": wandb.Image(str(picture)), "x": 0}, 0)
    logger.finish()
    # two parts that start within the same second would get the same folder
    (part,) = run_folder.glob("wandb/offline-run-2*")
    part.rename(part.with_name("offline-run-part0"))

    logger = OfflineFirstWandbLogger(save_dir=str(run_folder), media_budget=budget)
    with pytest.warns(UserWarning, match="'third' and further media over media_budget"):
        logger.log_metrics({"third": wandb.Image(str(picture)), "x": 1}, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logger.log_image("fourth", [str(picture)], 1)
    logger.finish()

    history = [record["item"] for record in of_kind(records(run_folder), "history")]
    assert [item["x"] for item in history if "x" in item] == [0, 1]
    logged = {key.removesuffix("._type") for item in history for key in item if key.endswith("._type")}
    assert logged == {"first", "second"}
    assert len(list(run_folder.glob("wandb/*/files/media/images/*.png"))) == 2


def test_pages_count_too(run_folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("x" * 1000)
    logger = OfflineFirstWandbLogger(save_dir=str(run_folder), media_budget=1500)
    logger.log_page("first", page)
    with pytest.warns(UserWarning, match="'second' and further media"):
        logger.log_page("second", page)
    logger.finish()
    assert len(list(run_folder.glob("wandb/*/files/media/html/*.html"))) == 1


def test_a_budget_cannot_be_negative() -> None:
    with pytest.raises(UserError, match="media_budget is -1"):
        OfflineFirstWandbLogger(media_budget=-1)
