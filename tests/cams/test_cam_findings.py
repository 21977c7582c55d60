"""Figures of explainability from columns of values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from compresslens.cams import findings
from compresslens.cams.baselines import random_maps
from compresslens.cams.box_accuracy import best_box_overlaps, max_box_accuracy
from compresslens.cams.columns import (
    BASELINES,
    SANITY_SHARES,
    baseline_maps,
    blur_for,
    control_columns,
    faithfulness_columns,
    localization_columns,
    pixel_columns,
    sanity_columns,
    similarity_columns,
)
from compresslens.statistics import bootstrap_interval, paired_difference_interval
from tests.cams.networks import images, small
from tests.references import cam_measures as reference

NAN = math.nan


def masks_of(count: int, side: int = 12) -> torch.Tensor:
    return random_maps(range(count), side, side, resolution=3, seed=5) > 0.6


# One metric -----------------------------------------------------------------------------------------------------------


def test_a_mean_is_of_the_images_that_both_networks_have_a_value_for() -> None:
    ours, theirs = np.array([1.0, NAN, 3.0, 5.0]), np.array([0.0, 7.0, NAN, 2.0])
    metric = findings.mean_metric(ours, theirs)
    assert (metric.value, metric.n, metric.reference) == (3.0, 2, 1.0)
    assert metric.ci95 == bootstrap_interval([1.0, 5.0])
    alone = findings.mean_metric(ours)
    assert (alone.value, alone.n, alone.reference) == (3.0, 3, None)


@pytest.mark.parametrize("others", [None, np.zeros(3), np.full(3, NAN)])
def test_a_mean_of_nothing_is_not_a_number(others: Any) -> None:
    metric = findings.mean_metric(np.full(3, NAN), others)
    assert math.isnan(metric.value)
    assert (metric.ci95, metric.n, metric.reference) == (None, 0, None)
    assert findings.mean_summary(np.full(3, NAN)) == {"value": None, "ci95": None, "n": 0}


def test_metrics_are_of_the_columns_that_are_there() -> None:
    columns = {"cam_energy_in_mask": np.array([0.2, 0.4]), "reference_cam_energy_in_mask": np.array([0.1, 0.5])}
    columns |= {"cam_similarity": np.array([0.5, NAN]), "cam_right": np.array([True, False])}
    found = findings.map_metrics(columns)
    assert set(found) == {"cam/energy_in_mask", "cam/similarity"}
    assert found["cam/energy_in_mask"].value == pytest.approx(0.3)
    assert found["cam/energy_in_mask"].reference == pytest.approx(0.3)
    assert (found["cam/similarity"].value, found["cam/similarity"].n) == (0.5, 1)
    assert findings.map_metrics({}) == {}


def test_changes_are_paired() -> None:
    generator = np.random.default_rng(0)
    theirs = generator.normal(size=40)
    ours = theirs + 0.1 + 0.01 * generator.normal(size=40)
    theirs[3], ours[5] = NAN, NAN
    columns = {"cam_deletion_auc": ours, "reference_cam_deletion_auc": theirs}
    columns |= {"cam_insertion_auc": np.full(40, NAN), "reference_cam_insertion_auc": theirs}
    columns |= {"cam_pointing_game": ours}
    found = findings.changes(columns)
    assert set(found) == {"deletion_auc"}, "those with a value for both"
    known = [row for row in range(40) if row not in (3, 5)]
    low, high = paired_difference_interval(ours[known], theirs[known])
    assert found["deletion_auc"] == {"change": pytest.approx(0.1, abs=0.01), "ci95": [low, high], "n": 38}
    assert 0 < low < high < 0.2, "although single values vary ten times as much"


# Boxes ----------------------------------------------------------------------------------------------------------------


def test_box_accuracy_is_at_the_best_thresholds_of_each_source() -> None:
    masks = masks_of(9)
    sources = {"": random_maps(range(9), 12, 12, seed=1), "reference_": masks.float()}
    columns = {f"{prefix}overlaps": best_box_overlaps(maps, masks).numpy() for prefix, maps in sources.items()}
    kept = {name: values.copy() for name, values in columns.items()}
    thresholds = findings.add_box_accuracy(columns)
    assert set(columns) == {"cam_max_box_acc_v2", "reference_cam_max_box_acc_v2"}
    for prefix in sources:
        expected = max_box_accuracy(torch.from_numpy(kept[f"{prefix}overlaps"]))
        assert thresholds[prefix] == expected.thresholds
        np.testing.assert_array_equal(columns[f"{prefix}cam_max_box_acc_v2"], expected.per_sample.numpy())
    assert (columns["reference_cam_max_box_acc_v2"] == 1).all()


def test_without_any_box_there_is_no_threshold() -> None:
    columns = {"overlaps": np.full((4, 100), NAN)}
    assert findings.add_box_accuracy(columns) == {}
    assert np.isnan(columns["cam_max_box_acc_v2"]).all()
    assert findings.add_box_accuracy({"index": np.arange(3)}) == {}


# Similarity -----------------------------------------------------------------------------------------------------------


def similar(rows: int = 8, seconds: bool = False) -> dict[str, Any]:
    generator = np.random.default_rng(1)
    columns: dict[str, Any] = {
        f"{prefix}{name}": generator.random(rows)
        for prefix in ("", *(["second_reference_"] if seconds else []))
        for name in ("cam_similarity", "cam_ssim", "cam_top_area_iou")
    }
    columns["cam_right"] = np.array([True, True, False, False] * (rows // 4))
    columns["reference_cam_right"] = np.array([True, False, True, False] * (rows // 4))
    columns["second_reference_cam_right"] = np.array([True, False, False, False] * (rows // 4))
    return columns


def test_similarity_is_split_by_who_is_right() -> None:
    columns = similar()
    found = findings.similarities(columns)
    groups = {"all": slice(None), "both_right": [0, 4], "only_model_right": [1, 5]}
    groups |= {"only_reference_right": [2, 6], "both_wrong": [3, 7]}
    assert set(found) == set(groups)
    for group, rows in groups.items():
        for name, column in {"pearson": "similarity", "ssim": "ssim", "top_area_iou": "top_area_iou"}.items():
            values = columns[f"cam_{column}"][rows]
            assert found[group][name]["value"] == pytest.approx(values.mean())
            assert found[group][name]["n"] == len(values)


def test_a_group_without_images_has_no_figure() -> None:
    columns = similar()
    columns["cam_right"][:] = True
    assert findings.similarities(columns)["both_wrong"]["ssim"] == {"value": None, "ci95": None, "n": 0}


def test_the_floor_is_compared_in_pairs() -> None:
    columns = similar(seconds=True)
    columns["cam_similarity"][2] = NAN
    columns["second_reference_cam_ssim"][:] = NAN
    floor = findings.similarities(columns)["second_reference"]
    second = columns["second_reference_cam_similarity"]
    assert floor["pearson"]["value"] == pytest.approx(second.mean())
    assert floor["ssim"]["value"] is None
    assert floor["right"]["value"] == 0.25
    known = ~np.isnan(columns["cam_similarity"])
    change = floor["model_minus_second"]["pearson"]
    assert (change["change"], change["n"]) == (pytest.approx((columns["cam_similarity"] - second)[known].mean()), 7)
    assert floor["model_minus_second"]["ssim"] is None
    assert change["ci95"] == list(paired_difference_interval(columns["cam_similarity"][known], second[known]))


# Sanity, pixels, baselines --------------------------------------------------------------------------------------------


def test_sanity() -> None:
    rows = np.array([[0.9, 0.5, 0.1], [NAN, NAN, NAN], [0.7, 0.3, -0.3]])
    found = findings.sanity(rows)
    assert found is not None
    assert list(found["rank_correlation"].values()) == pytest.approx([0.8, 0.4, -0.1])
    assert list(found["rank_correlation"]) == [str(share) for share in SANITY_SHARES]
    assert (found["n"], found["depends_on_weights"]) == (2, True)
    assert findings.sanity(np.full((2, 3), 0.9))["depends_on_weights"] is False  # type: ignore[index]
    assert findings.sanity(np.full((2, 3), NAN)) is None


def test_pixels_of_batches_add_up() -> None:
    maps, masks = random_maps(range(10), 12, 12, seed=2), masks_of(10)
    batches = [pixel_columns("reference_", maps[rows], masks[rows]) for rows in (slice(0, 3), slice(3, 10))]
    pixels = {"reference_pixels": np.concatenate([batch["reference_pixels"] for batch in batches])}
    found = findings.average_precision(pixels)
    assert list(found) == ["reference"]
    values = (maps.double() * 1000).long().numpy()
    expected = reference.average_precision(values.ravel().tolist(), masks.flatten().tolist())
    assert found["reference"] == pytest.approx(expected, rel=1e-9)
    nothing = pixel_columns("", maps, torch.zeros_like(masks))
    assert findings.average_precision(nothing) == {"model": None}


def test_baselines_are_judged_as_networks_are() -> None:
    masks = masks_of(6)
    columns: dict[str, Any] = {}
    for prefix, maps in baseline_maps(np.arange(6), masks).items():
        assert maps.shape == masks.shape
        columns |= localization_columns(prefix, maps, masks)
    findings.add_box_accuracy(columns)
    found = findings.baselines(columns)
    assert set(found) == {prefix.rstrip("_") for prefix in BASELINES}
    for prefix in BASELINES:
        for name in findings.LOCALIZATION:
            expected = columns[f"{prefix}cam_{name}"].mean()
            assert found[prefix.rstrip("_")][name]["value"] == pytest.approx(expected)


# Columns --------------------------------------------------------------------------------------------------------------


def test_some_images_are_chosen_and_the_others_have_no_value() -> None:
    network, x, classes = small(), images(4), torch.tensor([0, 1, 2, 3])
    maps = random_maps(range(4), 16, 16)
    rows = np.array([False, True, False, True])
    found = faithfulness_columns("reference_", network, x, classes, maps, rows)
    assert set(found) == {"reference_cam_insertion_auc", "reference_cam_deletion_auc"}
    alone = faithfulness_columns("", network, x[1::2], classes[1::2], maps[1::2], np.ones(2, dtype=bool))
    for name, values in alone.items():
        assert np.isnan(found[f"reference_{name}"][~rows]).all()
        np.testing.assert_allclose(found[f"reference_{name}"][rows], values, rtol=1e-6)

    def maps_of(network: Any, images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        return images.mean(1)  # knows nothing of the weights

    similarity = sanity_columns(maps_of, network, x, classes, rows)["sanity"]
    assert similarity.shape == (4, len(SANITY_SHARES))
    assert np.isnan(similarity[~rows]).all()
    np.testing.assert_allclose(similarity[rows], 1)
    indices = np.array([40, 30, 20, 10])
    control = control_columns("", network, x, classes, maps, rows, indices)
    by_itself = control_columns("", network, x[3:], classes[3:], maps[3:], rows[3:], indices[3:])
    assert set(control) == {"cam_insertion_auc_random", "cam_deletion_auc_random", "cam_road"}
    for name, values in control.items():
        assert np.isnan(values[~rows]).all()
        np.testing.assert_allclose(values[3:], by_itself[name], rtol=1e-6, err_msg="noise belongs to the image")
    none = np.zeros(4, dtype=bool)
    assert np.isnan(control_columns("", network, x, classes, maps, none, indices)["cam_road"]).all()
    assert np.isnan(sanity_columns(maps_of, network, x, classes, none)["sanity"]).all()
    assert np.isnan(faithfulness_columns("", network, x, classes, maps, none)["cam_deletion_auc"]).all()


def test_similarity_of_a_map_with_itself() -> None:
    maps = random_maps(range(3), 16, 16)
    found = similarity_columns("second_reference_", maps, maps)
    assert set(found) == {f"second_reference_cam_{name}" for name in ("similarity", "ssim", "top_area_iou")}
    for values in found.values():
        np.testing.assert_allclose(values, 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("side", "size"), [(224, 11), (448, 23), (64, 11), (600, 29), (12, 11), (11, 11), (10, 9), (8, 7), (3, 3)]
)
def test_the_blur_fits_the_images(side: int, size: int) -> None:
    found, sigma = blur_for(torch.zeros(1, 3, side, side + 4))
    assert (found, sigma) == (size, pytest.approx(5 * size / 11))
