import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compresslens.cams.localization import energy_in_mask, mask_area, pointing_game
from tests.references import cam_measures as reference


def example(count=6, height=9, width=7, seed=0, levels=None):
    """Random maps (of few levels: with ties) and masks, none of them empty."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.rand(count, height, width, generator=generator)
    if levels:
        maps = (maps * levels).floor() / levels
    masks = torch.rand(count, height, width, generator=generator) > 0.8
    masks[:, 0, 0] = True
    return maps, masks


@pytest.mark.parametrize("tolerance", [0, 1, 2, 5, 20])
@pytest.mark.parametrize("levels", [None, 3])
def test_pointing_game_is_the_slow_one(tolerance, levels):
    maps, masks = example(seed=tolerance, levels=levels)
    expected = [reference.pointing(m.numpy(), k.numpy(), tolerance) for m, k in zip(maps, masks, strict=True)]
    assert pointing_game(maps, masks, tolerance).tolist() == expected


def test_the_tolerance_is_a_disc_and_includes_its_rim():
    masks = torch.zeros(1, 31, 31, dtype=torch.bool)
    masks[0, 15, 15] = True
    for dy, dx, hit in [(0, 5, 1), (3, 4, 1), (4, 4, 0), (0, 6, 0), (-5, 0, 1), (-4, -3, 1)]:
        maps = torch.zeros(1, 31, 31)
        maps[0, 15 + dy, 15 + dx] = 1
        assert pointing_game(maps, masks, tolerance=5).item() == hit


def test_energy_is_the_slow_one():
    maps, masks = example()
    maps[0] -= 0.5  # negative values count as zero
    expected = [reference.energy(m.double().numpy(), k.numpy()) for m, k in zip(maps, masks, strict=True)]
    np.testing.assert_allclose(energy_in_mask(maps, masks), expected, rtol=1e-6)
    np.testing.assert_allclose(energy_in_mask(maps.double(), masks), expected, rtol=1e-13)


def test_closed_forms():
    _, masks = example()
    area = masks.double().mean((1, 2))
    assert torch.equal(mask_area(masks), area)
    torch.testing.assert_close(energy_in_mask(torch.full(masks.shape, 0.3), masks), area, rtol=1e-6, atol=0)
    for perfect, score in [(masks, 1.0), (~masks, 0.0)]:
        assert (energy_in_mask(perfect.float(), masks) == score).all()
        assert (pointing_game(perfect.float(), masks) == score).all()
    everywhere = torch.ones_like(masks)
    maps = torch.rand(masks.shape)
    assert (energy_in_mask(maps, everywhere) == 1).all()
    assert (pointing_game(maps, everywhere) == 1).all()


@pytest.mark.parametrize("value", [0.0, 0.5, -1.0])
def test_a_constant_map_scores_what_chance_would(value):
    _, masks = example()
    maps = torch.full(masks.shape, value)
    torch.testing.assert_close(energy_in_mask(maps, masks), mask_area(masks), rtol=1e-6, atol=0)
    assert torch.equal(pointing_game(maps, masks), mask_area(masks))


def test_empty_masks_and_nan_are_nan_and_leave_the_others_alone():
    maps, masks = example()
    known = [measure(maps, masks)[2:] for measure in (pointing_game, energy_in_mask)]
    masks[0] = False
    maps[1, 0, 0] = math.nan
    for measure, others in zip((pointing_game, energy_in_mask), known, strict=True):
        scores = measure(maps, masks)
        assert scores.isnan().tolist() == [True, True, False, False, False, False]
        assert torch.equal(scores[2:], others)
    assert pointing_game(maps, masks, tolerance=3).isnan().tolist()[:3] == [True, True, False]


def test_no_samples_give_no_scores():
    maps, masks = torch.empty(0, 4, 4), torch.empty(0, 4, 4, dtype=torch.bool)
    for scores in (pointing_game(maps, masks), pointing_game(maps, masks, 2), energy_in_mask(maps, masks)):
        assert scores.shape == (0,)


@pytest.mark.parametrize(
    ("maps", "masks", "message"),
    [
        (torch.rand(2, 4, 4), torch.ones(2, 4, 5, dtype=torch.bool), "resize"),
        (torch.rand(2, 4, 4), torch.ones(3, 4, 4, dtype=torch.bool), "masks has shape"),
        (torch.rand(2, 4, 4), torch.ones(2, 4, 4), "expected bool"),
        (torch.rand(2, 1, 4, 4), torch.ones(2, 1, 4, 4, dtype=torch.bool), "N×H×W"),
        (torch.ones(2, 4, 4, dtype=torch.long), torch.ones(2, 4, 4, dtype=torch.bool), "floating"),
        (torch.rand(2, 0, 4), torch.ones(2, 0, 4, dtype=torch.bool), "N×H×W"),
    ],
)
def test_what_does_not_fit_is_refused(maps, masks, message):
    for measure in (pointing_game, energy_in_mask):
        with pytest.raises(ValueError, match=message):
            measure(maps, masks)


def test_other_wrong_arguments():
    maps, masks = example()
    with pytest.raises(ValueError, match="tolerance is -1"):
        pointing_game(maps, masks, -1)
    with pytest.raises(ValueError, match="expected bool"):
        mask_area(maps)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(1e-3, 1e3), levels=st.sampled_from([None, 2, 5]))
def test_scores_are_shares_whatever_the_scale_and_belong_to_their_sample(seed, scale, levels):
    maps, masks = example(seed=seed, levels=levels)
    order = torch.randperm(len(maps), generator=torch.Generator().manual_seed(seed))
    for measure in (pointing_game, energy_in_mask):
        scores = measure(maps, masks)
        assert ((scores >= 0) & (scores <= 1)).all()
        torch.testing.assert_close(measure(maps * scale, masks), scores, rtol=1e-5, atol=0)
        assert torch.equal(measure(maps[order], masks[order]), scores[order])
        torch.testing.assert_close(measure(maps[:1], masks[:1]), scores[:1], rtol=1e-6, atol=0)
    assert (pointing_game(maps, masks, 2) >= pointing_game(maps, masks)).all()
    rest = energy_in_mask(maps, ~masks)
    torch.testing.assert_close(energy_in_mask(maps, masks) + rest, torch.ones_like(rest), rtol=1e-5, atol=0)


def test_layout_and_caller_modes_do_not_matter():
    maps, masks = example(height=8, width=8)
    turned = maps.transpose(1, 2), masks.transpose(1, 2)
    with torch.inference_mode():
        assert torch.equal(pointing_game(*turned), pointing_game(maps, masks))
        torch.testing.assert_close(energy_in_mask(*turned), energy_in_mask(maps, masks))
