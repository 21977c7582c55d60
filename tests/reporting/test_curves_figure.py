from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from compresslens.reporting.curves_figure import draw_curves, read_curves, smooth
from compresslens.reporting.curves_logger import CurvesLogger


def run_of(folder: Path, epochs: int = 3, steps: int = 20, every: int = 2) -> Path:
    logger = CurvesLogger(str(folder))
    for step in range(epochs * steps):
        epoch = step // steps
        if (step + 1) % every == 0:
            logger.log_metrics({"train/loss": 1 / (step + 1), "epoch": epoch}, step)
        if (step + 1) % steps == 0:
            logger.log_metrics({"val/loss": 0.5 / (epoch + 1), "val/top1": 0.3 * (epoch + 1), "epoch": epoch}, step)
    logger.log_metrics({"test/top1": 0.9, "epoch": epochs}, epochs * steps)
    return logger.path


def test_the_figure_is_written(tmp_path: Path) -> None:
    target = tmp_path / "figures" / "curves.png"
    assert draw_curves(run_of(tmp_path), target, "a run")
    with Image.open(target) as image:
        assert image.width >= 1200
        assert round(image.info["dpi"][0]) == 150
        colours = {
            tuple(pixel) for row in np.asarray(image.convert("RGB")) for pixel in np.unique(row, axis=0).tolist()
        }
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)} <= colours
    assert [path.name for path in target.parent.iterdir()] == ["curves.png"]


def test_no_global_state_of_matplotlib_is_touched(tmp_path: Path) -> None:
    from matplotlib import get_backend, pyplot, rcParams

    before = (pyplot.get_fignums(), get_backend(), dict(rcParams))
    assert draw_curves(run_of(tmp_path), tmp_path / "curves.png", "a run")
    assert (pyplot.get_fignums(), get_backend(), dict(rcParams)) == before


@pytest.mark.parametrize("text", ["", "step,epoch,name,value\n", "step,epoch,name,value\n3,0,test/top1,0.5\n"])
def test_nothing_to_draw_gives_no_figure(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.csv").write_text(text)
    assert not draw_curves(tmp_path / "metrics.csv", tmp_path / "curves.png", "a run")
    assert not (tmp_path / "curves.png").exists()


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        draw_curves(tmp_path / "metrics.csv", tmp_path / "curves.png", "a run")


@pytest.mark.parametrize(
    "rows",
    [
        "4,0,train/loss,nan\n5,0,train/loss,inf\n",
        "4,0,val/loss,nan\n4,0,val/top1,nan\n",
        "4,0,val/top1,0.5\n",
        "4,,train/loss,0.5\n9,,train/top1,0.5\n",
        "0,0,train/loss,0.0\n",
    ],
)
def test_odd_values_are_drawn_too(tmp_path: Path, rows: str) -> None:
    (tmp_path / "metrics.csv").write_text(f"step,epoch,name,value\n{rows}")
    assert draw_curves(tmp_path / "metrics.csv", tmp_path / "curves.png", "a run")


def test_validations_lie_at_the_end_of_their_epochs(tmp_path: Path) -> None:
    curves, label = read_curves(run_of(tmp_path))
    assert label == "epoch"
    assert set(curves) == {"train/loss", "val/loss", "val/top1"}
    assert curves["val/top1"].x.tolist() == pytest.approx([1, 2, 3])
    assert curves["val/top1"].y.tolist() == pytest.approx([0.3, 0.6, 0.9])
    assert curves["train/loss"].x[:3].tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_steps_serve_where_no_epochs_are_known(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,epoch,name,value\n4,,train/loss,0.5\n9,,train/loss,0.4\n")
    curves, label = read_curves(tmp_path / "metrics.csv")
    assert label == "training step"
    assert curves["train/loss"].x.tolist() == [5, 10]


@given(st.lists(st.floats(-100, 100) | st.just(float("nan")), max_size=200))
def test_smoothing_equals_a_loop(values: list[float]) -> None:
    half = int(len(values) * 0.05 / 2)
    windows = [np.array(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]
    expected = [w[np.isfinite(w)].mean() if np.isfinite(w).any() else np.nan for w in windows]
    assert smooth(np.array(values)) == pytest.approx(expected, abs=1e-9, nan_ok=True)
