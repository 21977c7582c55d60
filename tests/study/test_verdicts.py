import math

import numpy as np
import pandas as pd
import pytest

from compresslens.statistics import bootstrap_interval
from compresslens.study.claims import claims
from compresslens.study.models import models_of
from compresslens.study.reading import find_runs
from compresslens.study.summary import summary
from compresslens.study.thresholds import Thresholds
from compresslens.study.verdicts import as_hard_to_fool, looks_at_the_right_thing
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
    [(1.0, "yes"), (1.05, "yes"), (1.5, "harder"), (0.6, "easier"), (1.1, "undecided"), (0.909, "undecided")],
)
def test_fools(tmp_path, distance, answer):
    verdict = as_hard_to_fool(model(tmp_path, distance=distance), Thresholds(0.1, 0.1))
    assert verdict.answer == answer
    assert verdict.estimate.value == pytest.approx(distance, rel=0.01)


@pytest.mark.parametrize(("distance", "energy"), [(1.0, 0.0), (2.0, -0.2)])
def test_few_images_decide_nothing(tmp_path, distance, energy):
    found = model(tmp_path, n=9, distance=distance, energy=energy)
    for verdict in (as_hard_to_fool(found, Thresholds()), looks_at_the_right_thing(found, Thresholds())):
        assert verdict.answer == "undecided"
        assert "too few images" in verdict.reason


def test_an_attack_that_fails_is_no_sign_of_robustness(tmp_path):
    """The images on which it succeeded say "yes"; those on which it failed say nothing."""
    verdict = as_hard_to_fool(model(tmp_path, failures=0.2), Thresholds())
    assert verdict.answer == "unreliable figure"
    assert "failed on 24 of" in verdict.reason
    one = as_hard_to_fool(model(tmp_path / "one", failures=1 / 120), Thresholds())
    assert one.answer == "yes"
    assert "failed on 1 of" in one.reason


def test_an_attack_that_fails_on_everything_is_not_unmeasured(tmp_path):
    assert as_hard_to_fool(model(tmp_path, failures=1.0), Thresholds()).answer == "unreliable figure"


def test_what_the_reason_counts(tmp_path):
    verdict = as_hard_to_fool(model(tmp_path, accuracy=0.2), Thresholds())
    right = int(pd.read_parquet(next(tmp_path.glob("prune/*/samples.parquet")))["cw_attacked"].sum())
    assert f"{right} images of 120, those that both classify correctly" in verdict.reason


def test_seeds_that_differ_do_not_prove_chance(tmp_path):
    """Energies of 0.3, 0.2 and 0.1 where chance is 0.06: weaker than 0.4, and more than chance."""
    for seed, energy in enumerate((-0.1, -0.2, -0.3)):
        write_run(tmp_path, "prune", seed=seed, stamp=str(seed), energy=energy)
    (found,) = models_of(find_runs(["prune"], tmp_path)[0])
    assert looks_at_the_right_thing(found, Thresholds()).answer != "no"


def test_the_relative_change_has_the_interval_of_a_ratio(tmp_path):
    """Against a bootstrap of the ratio of means itself."""
    found = model(tmp_path, energy=-0.05)
    samples = found.runs[0].samples
    ours, theirs = (samples[f"{side}cam_energy_in_mask"].to_numpy() for side in ("", "reference_"))
    generator = np.random.default_rng(0)
    picks = generator.integers(len(ours), size=(4000, len(ours)))
    bounds = np.quantile(ours[picks].mean(1) / theirs[picks].mean(1) - 1, [0.025, 0.975])
    change = found.relative_change("cam/energy_in_mask").estimate
    assert change.value == pytest.approx(ours.mean() / theirs.mean() - 1)
    assert change.interval == pytest.approx(bounds, abs=0.0005)


def test_masked_gradients_make_the_figure_unreliable(tmp_path):
    verdict = as_hard_to_fool(model(tmp_path, masking=2, distance=3.0), Thresholds())
    assert verdict.answer == "unreliable figure"
    assert "masked because" in verdict.reason
    unchecked = as_hard_to_fool(model(tmp_path, "qat", masking=None), Thresholds())
    assert "not checked" in unchecked.reason


def test_of_several_seeds_the_one_that_fails_is_quoted(tmp_path):
    write_run(tmp_path, "prune", seed=0, stamp="0")
    write_run(tmp_path, "prune", seed=1, stamp="1", masking=1)
    (found,) = models_of(find_runs(["prune"], tmp_path)[0])
    verdict = as_hard_to_fool(found, Thresholds())
    assert (verdict.answer, verdict.reason) == ("unreliable figure", "unreliable: gradients are masked because <b>")


def test_maps_whose_sanity_was_not_checked_say_so(tmp_path):
    assert "not checked" in looks_at_the_right_thing(model(tmp_path, sanity=None), Thresholds()).reason


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
    return [claim.outcome for claim in claims(compared, looks, fools, Thresholds())]


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
    assert [claim.outcome for claim in claims(models, looks, fools, Thresholds())][:2] == ["undecided", "undecided"]


def test_claims_about_time_need_costs(tmp_path):
    assert outcomes(tmp_path / "a", prune={"cost": 1.3})[2] == "supported"
    assert outcomes(tmp_path / "b", prune={"cost": 0.8, "distance": 0.8})[2] == "contradicted"
    assert outcomes(tmp_path / "c", prune={"cost": 1.05})[2] == "contradicted"  # no more than counts as the same
    assert outcomes(tmp_path / "d", prune={"distance": 0.8})[2] == "undecided"
    assert outcomes(tmp_path / "e", prune={"cost": 1.3, "n": 9})[2] == "undecided"


def test_a_model_that_is_unreliable_keeps_the_third_claim_from_being_contradicted(tmp_path):
    lesser, masked = {"cost": 0.8, "distance": 0.8}, {"cost": 0.8, "masking": 1}
    assert outcomes(tmp_path, prune=lesser, qat=masked)[2] == "undecided"


def test_equal_models_seldom_contradict_or_support_a_claim_about_harder_and_easier(tmp_path):
    """Distances without any effect, of few images with much noise: by chance alone nothing may be claimed."""
    maintained, harder = [], []
    for number in range(20):
        folder = write_run(tmp_path / str(number), "prune", n=30, seed=number, cost=1.0)
        frame = pd.read_parquet(folder / "samples.parquet")
        generator = np.random.default_rng(number)
        for column in ("cw_l2", "cw_adam_evaluations"):
            frame[column] = frame[f"reference_{column}"] * np.exp(0.5 * generator.standard_normal(len(frame)))
        frame.to_parquet(folder / "samples.parquet", index=False)
        (one,) = models_of(find_runs(["prune"], tmp_path / str(number))[0])
        looks, fools = looks_at_the_right_thing(one, Thresholds()), as_hard_to_fool(one, Thresholds())
        _, second, third = claims([one], {"prune": looks}, {"prune": fools}, Thresholds())
        maintained.append(second.outcome)
        harder.append(third.outcome)
    assert "contradicted" not in maintained
    assert "supported" not in harder


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


def test_what_is_significant_has_an_interval_without_no_change(tmp_path):
    """Ranks that shift, and a mean that does not: many gain a little, few lose much."""
    folder = write_run(tmp_path, "prune")
    frame = pd.read_parquet(folder / "samples.parquet")
    change = np.where(np.arange(len(frame)) % 10 == 0, 0.09, -0.01)
    frame["brier"] = frame["reference_brier"] + change
    frame.to_parquet(folder / "samples.parquet", index=False)
    content = summary(models_of(find_runs(["prune"], tmp_path)[0]), Thresholds(), [])
    found = content["models"][0]["changes"]["accuracy/brier"]
    assert found["p_adjusted"] < 0.05
    assert found["ci95"][0] < 0 < found["ci95"][1]
    assert not found["significant"]


def test_one_test_set_seen_by_three_seeds_is_no_larger_test_set(tmp_path):
    """The same differences in each seed: as wide as one seed, not narrower by the root of three."""
    for seed in range(3):
        folder = write_run(tmp_path, "prune", seed=seed, stamp=str(seed))
        if seed == 0:
            first = pd.read_parquet(folder / "samples.parquet")
        first.to_parquet(folder / "samples.parquet", index=False)
    (found,) = models_of(find_runs(["prune"], tmp_path)[0])
    low, high = found.change("cam/energy_in_mask").estimate.interval
    differences = first["cam_energy_in_mask"] - first["reference_cam_energy_in_mask"]
    assert high - low == pytest.approx(2 * 1.98 * differences.std() / len(first) ** 0.5, rel=0.02)
