import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torchmetrics.functional.image import structural_similarity_index_measure

from compresslens.cams.baselines import random_maps
from compresslens.cams.similarity import pearson_correlation, rank_correlation, structural_similarity, top_area_iou
from tests.references import cam_measures as reference

MEASURES = [pearson_correlation, rank_correlation, structural_similarity, top_area_iou]


def example(count=4, height=13, width=9, seed=0):
    return tuple(random_maps(range(count), height, width, resolution=4, seed=seed + part) for part in (0, 1000))


def with_ties(maps):
    """As of Grad-CAM, much is zero."""
    return (maps - 0.6).relu()


@pytest.mark.parametrize("prepare", [lambda maps: maps, with_ties])
def test_correlations_are_those_of_scipy(prepare):
    maps, others = map(prepare, example())
    pairs = [(a.flatten().double(), b.flatten().double()) for a, b in zip(maps, others, strict=True)]
    np.testing.assert_allclose(pearson_correlation(maps, others), [stats.pearsonr(*p)[0] for p in pairs], atol=1e-12)
    np.testing.assert_allclose(rank_correlation(maps, others), [stats.spearmanr(*p)[0] for p in pairs], atol=1e-12)


def test_ssim_is_the_slow_one():
    maps, others = example(count=2)
    expected = [reference.ssim(a.double().numpy(), b.double().numpy()) for a, b in zip(maps, others, strict=True)]
    np.testing.assert_allclose(structural_similarity(maps, others), expected, rtol=1e-9)


def test_ssim_is_that_of_torchmetrics():
    maps, others = example(count=3, height=20, width=33)
    theirs = structural_similarity_index_measure(maps[:, None], others[:, None], reduction="none", data_range=1.0)
    torch.testing.assert_close(structural_similarity(maps, others).float(), theirs, rtol=0, atol=1e-5)


def test_iou_of_the_highest_is_that_of_sets():
    maps, others = torch.rand(5, 10, 10), torch.rand(5, 10, 10)
    for row, found in enumerate(top_area_iou(maps, others).tolist()):
        first, second = (set(m[row].flatten().argsort(descending=True)[:20].tolist()) for m in (maps, others))
        assert found == pytest.approx(len(first & second) / len(first | second))


def test_iou_in_closed_form_with_ties():
    # Ten pixels are each one's highest, the other ten are shared by the 90 zeros. As sets of memory order they overlap.
    maps, others = torch.zeros(1, 10, 10), torch.zeros(1, 10, 10)
    maps[0, 0], others[0, 9] = 1, 1
    minima = 2 * 10 * (1 / 9) + 80 / 9
    assert top_area_iou(maps, others).item() == pytest.approx(minima / (40 - minima))
    assert top_area_iou(maps, others, area=0.1).item() == 0
    assert top_area_iou(maps, maps).item() == 1


def test_unrelated_maps_are_at_chance():
    maps, others = torch.rand(200, 16, 16), torch.rand(200, 16, 16)
    for measure in (pearson_correlation, rank_correlation):
        assert measure(maps, others).mean().abs() < 0.02
    assert top_area_iou(maps, others).mean().item() == pytest.approx(0.2 / 1.8, abs=0.01)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), ties=st.booleans())
def test_properties(seed, ties):
    maps, others = example(seed=seed)
    if ties:
        maps, others = with_ties(maps), with_ties(others)
    order = torch.randperm(len(maps), generator=torch.Generator().manual_seed(seed))
    for measure in MEASURES:
        scores = measure(maps, others)
        assert scores.dtype == torch.float64
        assert ((scores >= -1) & (scores <= 1)).all()
        torch.testing.assert_close(measure(others, maps), scores)
        torch.testing.assert_close(measure(maps, maps), torch.ones_like(scores))
        torch.testing.assert_close(measure(maps[order], others[order]), scores[order])
        torch.testing.assert_close(measure(maps[:1], others[:1]), scores[:1])
        torch.testing.assert_close(measure(maps.flip(1, 2), others.flip(1, 2)), scores)
    for measure in (pearson_correlation, rank_correlation, top_area_iou):
        torch.testing.assert_close(measure(maps * 4, others), measure(maps, others))
    for measure in (rank_correlation, top_area_iou):
        torch.testing.assert_close(measure(maps.double().exp(), others), measure(maps, others))


@pytest.mark.parametrize("measure", MEASURES)
def test_constant_maps_and_nan_are_nan_and_leave_the_others_alone(measure):
    maps, others = example()
    known = measure(maps, others)
    maps[0] = 0
    others[1] = 0.3
    maps[2, 3, 3] = math.nan
    for scores in (measure(maps, others), measure(others, maps)):
        assert scores.isnan().tolist() == [True, True, True, False]
        torch.testing.assert_close(scores[3], known[3])


@pytest.mark.parametrize("measure", MEASURES)
def test_what_does_not_fit_is_refused(measure):
    maps, others = example()
    with pytest.raises(ValueError, match="pairs are alike"):
        measure(maps, others[:2])
    with pytest.raises(ValueError, match="N×H×W"):
        measure(maps[0], others[0])
    with pytest.raises(ValueError, match="others is int64"):
        measure(maps, others.long())
    assert measure(maps[:0], others[:0]).shape == (0,)


def test_other_wrong_arguments():
    with pytest.raises(ValueError, match="too small for the window"):
        structural_similarity(torch.rand(1, 5, 9), torch.rand(1, 5, 9))
    with pytest.raises(ValueError, match="area is 1"):
        top_area_iou(*example(), area=1)


def test_tiny_maps_do_not_vanish():
    maps, others = (values.double() for values in example())
    torch.testing.assert_close(pearson_correlation(maps * 1e-200, others), pearson_correlation(maps, others))
