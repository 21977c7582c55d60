import math

import numpy as np
import pandas as pd
import pytest

from compresslens.statistics import bootstrap_interval
from compresslens.study.claims import claims
from compresslens.study.models import models_of
from compresslens.study.reading import find_runs
from compresslens.study.summary import summary
from compresslens.study.verdicts import Thresholds, as_hard_to_fool, looks_at_the_right_thing
from tests.study.study_runs import write_run


def model(tmp_path, name="prune", **options):
    write_run(tmp_path, name, **options)
    (found,) = models_of(find_runs([name], tmp_path)[0])
    return found


@pytest.mark.parametrize(
    ("energy", "answer"),
    [(0.0, "yes"), (0.1, "yes"), (-0.02, "yes"), (-0.04, "undecided"), (-0.2, "weaker"), (-0.35, "no")],
)
def test_looks(tmp_path, energy, answer):
    verdict = looks_at_the_right_thing(model(tmp_path, energy=energy), Thresholds(0.1, 0.1))
    assert verdict.answer == answer
    assert verdict.estimate.value == pytest.approx(energy / 0.4, abs=0.03)
    assert f"{verdict.estimate.n} images" in verdict.reason


def test_maps_that_do_not_depend_on_the_weights_are_not_trusted(tmp_path):
    assert looks_at_the_right_thing(model(tmp_path, sanity=False), Thresholds()).answer == "unreliable figure"


@pytest.mark.parametrize(
    ("distance", "answer"),
    [(1.0, "yes"), (1.05, "yes"), (1.5, "harder"), (0.6, "easier"), (1.1, "harder"), (0.909, "easier")],
)
def test_fools(tmp_path, distance, answer):
    verdict = as_hard_to_fool(model(tmp_path, distance=distance), Thresholds(0.1, 0.1))
    assert verdict.answer == answer
    assert verdict.estimate.value == pytest.approx(distance, rel=0.01)


def test_few_images_are_undecided(tmp_path):
    found = model(tmp_path, n=8, distance=1.0)
    folder = found.runs[0].folder
    frame = pd.read_parquet(folder / "samples.parquet")
    frame["cw_l2"] = frame["reference_cw_l2"] * np.exp(np.random.default_rng(0).standard_normal(len(frame)))
    frame.to_parquet(folder / "samples.parquet", index=False)
    (found,) = models_of(find_runs(["prune"], tmp_path)[0])
    assert as_hard_to_fool(found, Thresholds()).answer == "undecided"


def test_masked_gradients_make_the_figure_unreliable(tmp_path):
    verdict = as_hard_to_fool(model(tmp_path, masking=2, distance=3.0), Thresholds())
    assert verdict.answer == "unreliable figure"
    assert "masked because" in verdict.reason
    unchecked = as_hard_to_fool(model(tmp_path, "qat", masking=None), Thresholds())
    assert "not checked" in unchecked.reason


def test_one_seed_has_the_intervals_of_its_run_and_several_are_pooled(tmp_path):
    found = model(tmp_path, accuracy=0.1)
    change = found.change("accuracy/top1")
    assert change.estimate.value == pytest.approx(-0.1)
    assert change.p == pytest.approx(2 * 0.5**12)  # 12 pairs, all one way
    differences = found.runs[0].samples["cam_energy_in_mask"] - found.runs[0].samples["reference_cam_energy_in_mask"]
    assert found.change("cam/energy_in_mask").estimate.interval == bootstrap_interval(differences.to_numpy())
    assert found.estimate("cam/energy_in_mask").interval is not None
    write_run(tmp_path, "prune", seed=1, stamp="2", accuracy=0.2)
    (both,) = models_of(find_runs(["prune"], tmp_path)[0])
    assert both.change("accuracy/top1").estimate.value == pytest.approx(-0.15)
    assert both.value("accuracy/top1") == pytest.approx(np.mean([m["value"] for m in _metrics(both, "accuracy/top1")]))
    low, high = both.change("accuracy/top1").estimate.interval
    assert low < -0.2 < high or low < -0.1 < high  # wider than either seed


def _metrics(found, name):
    return [run.results["metrics"][name] for run in found.runs]


def outcomes(tmp_path, **by_name):
    for name, options in by_name.items():
        write_run(tmp_path, name, **options)
    models = models_of(find_runs(list(by_name), tmp_path)[0])
    compared = [one for one in models if one.has_reference]
    looks = {one.name: looks_at_the_right_thing(one, Thresholds()) for one in compared}
    fools = {one.name: as_hard_to_fool(one, Thresholds()) for one in compared}
    return [claim.outcome for claim in claims(compared, looks, fools)]


def test_claims(tmp_path):
    assert outcomes(tmp_path / "a", prune={}, qat={"distance": 1.5}) == ["supported", "supported", "supported"]
    assert outcomes(tmp_path / "b", prune={"energy": -0.2}, qat={"distance": 0.5}) == ["contradicted"] * 2 + [
        "undecided"
    ]
    assert outcomes(tmp_path / "c", prune={"masking": 1, "distance": 2.0}) == ["supported", "undecided", "undecided"]
    assert outcomes(tmp_path / "d", prune={"reference": False}) == ["not measured"] * 3


def test_a_model_that_was_not_measured_keeps_a_claim_about_all_undecided(tmp_path):
    write_run(tmp_path, "prune")
    folder = write_run(tmp_path, "qat")
    frame = pd.read_parquet(folder / "samples.parquet")
    frame.drop(columns=["cam_energy_in_mask", "cw_l2"]).to_parquet(folder / "samples.parquet", index=False)
    models = models_of(find_runs(["prune", "qat"], tmp_path)[0])
    looks = {one.name: looks_at_the_right_thing(one, Thresholds()) for one in models}
    fools = {one.name: as_hard_to_fool(one, Thresholds()) for one in models}
    assert [claim.outcome for claim in claims(models, looks, fools)][:2] == ["undecided", "undecided"]


def test_claims_about_time_need_costs(tmp_path):
    slower = {"evaluations_ratio": 1.3, "ci95": [1.1, 1.5], "seconds_ratio": 1.0, "seconds_ratio_without_networks": 1.2}
    details = {"cam": {}, "carlini_wagner": {"slower": slower}}
    assert outcomes(tmp_path / "a", prune={"details": details})[2] == "supported"
    faster = {**slower, "evaluations_ratio": 0.8, "ci95": [0.7, 0.9]}
    details = {"cam": {}, "carlini_wagner": {"slower": faster}}
    assert outcomes(tmp_path / "b", prune={"details": details, "distance": 0.8})[2] == "contradicted"


def test_summary_adjusts_over_all_models_and_measures(tmp_path):
    write_run(tmp_path, "prune", accuracy=0.1)
    write_run(tmp_path, "qat")
    write_run(tmp_path, "teacher", reference=False)
    content = summary(models_of(find_runs(["prune", "qat", "teacher"], tmp_path)[0]), Thresholds(), ["said"])
    assert content["notes"] == ["said", "without a reference, and so without verdicts: teacher"]
    changes = [change for one in content["models"] for change in one["changes"].values()]
    assert all(change["p_adjusted"] >= change["p"] for change in changes)
    assert content["models"][0]["changes"]["accuracy/top1"]["significant"]
    assert not content["models"][1]["changes"]["accuracy/top1"]["significant"]
    assert content["models"][2]["looks_at_the_right_thing"]["answer"] == "not measured"
    assert not any(isinstance(v, float) and math.isnan(v) for c in changes for v in c.values())
