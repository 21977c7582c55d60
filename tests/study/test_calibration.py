"""Calibration over runs: against closed forms and the obvious loop."""

import secrets

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compresslens.statistics import wilson_interval
from compresslens.study.calibration import calibration, outcomes, reliability
from compresslens.study.models import Model
from compresslens.study.reading import Run


def run(tmp_path, seed=0, reference=True, **columns):
    n = len(columns["confidence"])
    table = {"label": np.zeros(n, int), **columns}
    if not reference:
        table = {name: values for name, values in table.items() if not name.startswith("reference_")}
    return stored(tmp_path / secrets.token_hex(4), seed, pd.DataFrame(table))


def stored(folder, seed, samples):
    folder.mkdir()
    samples.assign(index=np.arange(len(samples))).to_parquet(folder / "samples.parquet", index=False)
    return Run(folder, "model", seed, {})


def sides(confidence, hit, reference_confidence, reference_hit):
    return {
        "confidence": np.asarray(confidence, float),
        "prediction": np.where(hit, 0, 1),
        "reference_confidence": np.asarray(reference_confidence, float),
        "reference_prediction": np.where(reference_hit, 0, 1),
    }


def test_overconfidence_by_hand(tmp_path):
    of_run = run(tmp_path, **sides([0.9, 0.8, 0.6], [True, False, True], [0.7, 0.5, 1.0], [True, False, True]))
    (found,) = calibration([Model("model", [of_run])])
    assert found["n"] == 3
    assert found["overconfidence"] == pytest.approx((0.9 + 0.8 + 0.6) / 3 - 2 / 3)
    assert found["reference_overconfidence"] == pytest.approx((0.7 + 0.5 + 1.0) / 3 - 2 / 3)
    assert found["ci95"][0] <= found["overconfidence"] <= found["ci95"][1]


def test_a_model_that_is_too_sure_is_found_out(tmp_path):
    rng = np.random.default_rng(0)
    truth = rng.uniform(0.5, 0.9, 2000)
    hit = rng.random(2000) < truth
    of_run = run(tmp_path, **sides(np.minimum(truth + 0.1, 1), hit, truth, hit))
    (worse,) = calibration([Model("worse", [of_run])])
    assert worse["ci95"][0] > 0.05
    assert abs(worse["reference_overconfidence"]) < 0.03


def test_seeds_count_alike_and_runs_without_confidences_are_left_out(tmp_path):
    first = run(tmp_path, 0, reference=False, **sides([1.0] * 4, [True] * 4, [1.0] * 4, [True] * 4))
    second = run(tmp_path, 1, reference=False, **sides([1.0] * 2, [False] * 2, [1.0] * 2, [True] * 2))
    (found,) = calibration([Model("model", [first, second])])
    assert found["overconfidence"] == pytest.approx(0.5)
    assert found["reference_overconfidence"] is None
    blank = stored(tmp_path / "blank", 0, pd.DataFrame({"label": [0]}))
    assert calibration([Model("blank", [blank])]) == []
    assert outcomes(blank.samples, "") is None


def test_only_samples_that_both_have_seen_count():
    samples = pd.DataFrame(
        {"label": [0, 0], **sides([0.9, 0.5], [True, True], [0.8, np.nan], [True, True])},
    )
    found = outcomes(samples, "")
    assert (found["confidence"].tolist(), found["hit"].tolist()) == ([0.9], [1.0])


@given(
    st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60),
    st.integers(1, 12),
)
def test_points_of_the_diagram_are_those_of_the_obvious_loop(outcome, bins):
    confidence = np.array([value for value, _ in outcome])
    hit = np.array([float(right) for _, right in outcome])
    expected = []
    for number in range(bins):
        inside = [
            place
            for place, value in enumerate(confidence)
            if (number < value * bins <= number + 1) or (number == 0 and value * bins == 0)
        ]
        if inside:
            hits = int(hit[inside].sum())
            bounds = wilson_interval(hits, len(inside))
            expected.append([confidence[inside].mean(), hits / len(inside), *bounds, len(inside)])
    np.testing.assert_allclose(reliability(confidence, hit, bins), expected)
