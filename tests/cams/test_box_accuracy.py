import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from compresslens.cams.baselines import random_maps
from compresslens.cams.box_accuracy import (
    OVERLAPS,
    best_box_overlaps,
    max_box_accuracy,
    pixel_average_precision,
    pixel_histograms,
)
from tests.references import cam_measures as reference

COARSE = (0.0, 0.25, 0.5, 0.75, 0.9)


def example(count=5, side=12, seed=0):
    maps = random_maps(range(count), side, side, resolution=4, seed=seed)
    masks = random_maps(range(count), side, side, resolution=3, seed=seed + 1000) > 0.7
    return maps, masks


def rectangle(side, top, bottom, left, right):
    mask = torch.zeros(1, side, side, dtype=torch.bool)
    mask[0, top:bottom, left:right] = True
    return mask


@pytest.mark.parametrize("noisy", [False, True])
def test_overlaps_are_those_of_flood_fill_and_sets_of_pixels(noisy):
    maps, masks = example()
    if noisy:  # many components, with holes
        maps, masks = torch.rand(3, 9, 11), torch.rand(3, 9, 11) > 0.8
        masks[:, 4, 4] = True
    expected = [
        [reference.best_overlap(m.double().numpy(), k.numpy(), threshold) for threshold in COARSE]
        for m, k in zip(maps, masks, strict=True)
    ]
    np.testing.assert_allclose(best_box_overlaps(maps, masks, COARSE), expected, rtol=1e-12)


def test_a_map_that_comes_again_is_held_against_each_mask():
    maps, masks = example()
    twice = maps[[0, 0, 1, 0, 0]]
    alone = [best_box_overlaps(twice[row : row + 1], masks[row : row + 1])[0] for row in range(5)]
    assert torch.equal(best_box_overlaps(twice, masks), torch.stack(alone))


def test_the_statistic_is_the_slow_one_and_the_mean_of_its_samples():
    maps, masks = example(count=12)
    overlaps = best_box_overlaps(maps, masks)
    found = max_box_accuracy(overlaps)
    assert found.value == pytest.approx(reference.max_box_accuracy(overlaps.tolist(), OVERLAPS))
    assert found.per_sample.mean().item() == pytest.approx(found.value)
    assert len(found.thresholds) == len(OVERLAPS)
    # at the thresholds named, each sample by itself
    columns = [round(threshold * 100) for threshold in found.thresholds]
    rows = [np.mean([row[c] >= o for c, o in zip(columns, OVERLAPS, strict=True)]) for row in overlaps.tolist()]
    assert found.per_sample.tolist() == pytest.approx(rows)


def test_a_perfect_map_and_a_blank_one():
    masks = torch.cat([rectangle(16, 2, 7, 3, 9), rectangle(16, 10, 12, 0, 16)])
    assert (best_box_overlaps(masks.float(), masks) == 1).all()
    assert max_box_accuracy(best_box_overlaps(masks.float(), masks)).value == 1
    for blank in (0.0, -1.0):
        assert (best_box_overlaps(torch.full(masks.shape, blank), masks) == 0).all()
    everywhere = best_box_overlaps(torch.ones(masks.shape), masks)  # a uniform map: the box is the image
    torch.testing.assert_close(everywhere[:, 0], torch.tensor([30 / 256, 32 / 256], dtype=torch.float64))


def test_the_best_of_all_boxes_counts_and_holes_make_none():
    two = rectangle(20, 1, 5, 1, 5) | rectangle(20, 10, 18, 8, 18)
    assert (best_box_overlaps(two.float(), rectangle(20, 1, 5, 1, 5)) == 1).all()  # not only the largest component
    ring = rectangle(20, 2, 18, 2, 18) & ~rectangle(20, 6, 14, 6, 14)
    hole = rectangle(20, 6, 14, 6, 14)  # contours of the hole would hit this box
    torch.testing.assert_close(best_box_overlaps(ring.float(), hole)[0, 0].item(), 64 / 256)
    corner = rectangle(8, 0, 4, 0, 4) | rectangle(8, 4, 8, 4, 8)  # touch by a corner: one box
    assert (best_box_overlaps(torch.ones(1, 8, 8), corner, (0.5,)) == 1).all()


def test_empty_masks_are_left_out():
    maps, masks = example()
    known = max_box_accuracy(best_box_overlaps(maps[1:], masks[1:]))
    masks[0] = False
    overlaps = best_box_overlaps(maps, masks)
    found = max_box_accuracy(overlaps)
    assert overlaps.isnan().all(1).tolist() == [True, False, False, False, False]
    assert (found.value, found.thresholds) == (known.value, known.thresholds)
    assert found.per_sample.isnan().tolist() == [True, False, False, False, False]
    with pytest.raises(ValueError, match="every mask is empty"):
        max_box_accuracy(overlaps[:1])


def test_pixel_precision_is_that_of_scikit_learn_and_the_slow_one():
    maps, masks = example(count=4)
    histograms = pixel_histograms(maps, masks, bins=50)
    assert histograms.shape == (4, 2, 51)
    assert histograms.sum((1, 2)).tolist() == [144] * 4
    binned = (maps.double() * 50).floor()
    each = [average_precision_score(k.flatten(), m.flatten()) for m, k in zip(binned, masks, strict=True)]
    np.testing.assert_allclose(pixel_average_precision(histograms), each, rtol=1e-12)
    together = pixel_average_precision(histograms.sum(0)).item()
    assert together == pytest.approx(average_precision_score(masks.flatten(), binned.flatten()))
    slow = reference.average_precision(binned.flatten().tolist(), masks.flatten().tolist())
    assert together == pytest.approx(slow)


def test_pixel_precision_in_closed_form():
    _, masks = example()
    assert (pixel_average_precision(pixel_histograms(masks.float(), masks)) == 1).all()
    area = masks.double().mean((1, 2))
    for value in (0.0, 0.4, 1.0):  # one threshold finds everything
        scores = pixel_average_precision(pixel_histograms(torch.full(masks.shape, value), masks))
        torch.testing.assert_close(scores, area)
    masks[0] = False
    scores = pixel_average_precision(pixel_histograms(torch.rand(masks.shape), masks))
    assert scores.isnan().tolist() == [True, False, False, False, False]


def test_histograms_of_batches_can_be_joined():
    maps, masks = example()
    parts = [pixel_histograms(maps[rows], masks[rows]) for rows in (slice(2), slice(2, 5))]
    assert torch.equal(torch.cat(parts), pixel_histograms(maps, masks))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 500), scale=st.sampled_from([0.125, 2.0, 1024.0]))
def test_boxes_do_not_depend_on_the_scale_nor_on_the_other_samples(seed, scale):
    maps, masks = example(count=3, side=8, seed=seed)
    overlaps = best_box_overlaps(maps, masks, COARSE)
    assert ((overlaps >= 0) & (overlaps <= 1)).all()
    assert torch.equal(best_box_overlaps(maps * scale, masks, COARSE), overlaps)
    assert torch.equal(best_box_overlaps(maps.flip(0), masks.flip(0), COARSE), overlaps.flip(0))
    assert torch.equal(best_box_overlaps(maps.flip(2), masks.flip(2), COARSE), overlaps)
    order = torch.tensor([2, 0, 1])
    histograms = pixel_histograms(maps, masks)
    assert torch.equal(pixel_histograms(maps[order], masks[order]), histograms[order])


def test_wrong_arguments():
    maps, masks = example()
    with pytest.raises(ValueError, match="resize"):
        best_box_overlaps(maps, masks[:, :5])
    for thresholds in ((), (1.0,), (-0.1, 0.5), (math.nan,)):
        with pytest.raises(ValueError, match="thresholds must be"):
            best_box_overlaps(maps, masks, thresholds)
    with pytest.raises(ValueError, match="expected N×5"):
        max_box_accuracy(torch.rand(3, 4), COARSE)
    for wrong in (maps * 2, maps - 0.5, maps * math.nan):
        with pytest.raises(ValueError, match=r"in \[0, 1\]"):
            pixel_histograms(wrong, masks)
