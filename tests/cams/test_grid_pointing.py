from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compresslens.cams.grid_pointing import cell_shares, choose_cells, confidences, grid_pointing, mosaics
from compresslens.errors import UserError
from tests.references import cam_measures as reference


def coloured(labels, side=4):
    """Images whose pixels are their class, and thus their cell in a mosaic known."""
    return labels[:, None, None, None].float().expand(-1, 3, side, side).contiguous()


def map_of_class(images, classes):
    """The perfect map: where the class is."""
    return (images[:, :1] == classes[:, :, None, None]).float()


def test_confidence_is_that_of_right_predictions():
    probabilities = torch.tensor([[0.7, 0.3], [0.4, 0.6], [0.9, 0.1]])
    assert torch.equal(confidences(probabilities, torch.tensor([0, 1, 1])), torch.tensor([0.7, 0.6, 0.0]))


@pytest.mark.parametrize("cells", [2, 3])
def test_a_perfect_map_scores_one_and_others_what_they_deserve(cells):
    labels = torch.arange(10).repeat(5)
    images = coloured(labels)
    chosen = choose_cells(labels, torch.rand(50), cells=cells, least=0, count=4)
    assert chosen.shape == (4, cells**2)
    assert (grid_pointing(map_of_class, images, labels, chosen, chunk_size=3) == 1).all()
    wrong = grid_pointing(lambda x, c: 1 - map_of_class(x, c), images, labels, chosen)
    assert (wrong == 0).all()
    for value in (1.0, 0.0):  # a map that knows nothing, or is blank: chance
        blank = grid_pointing(
            lambda x, c, value=value: torch.full_like(map_of_class(x, c), value), images, labels, chosen
        )
        torch.testing.assert_close(blank, torch.full_like(blank, 1 / cells**2))


def test_each_cell_is_judged_by_the_map_of_its_own_class():
    labels = torch.arange(4)
    chosen = torch.tensor([[2, 0, 3, 1]])

    def right_for_two_classes(images, classes):
        return torch.where((classes < 2)[:, :, None, None], map_of_class(images, classes), 1.0)

    found = grid_pointing(right_for_two_classes, coloured(labels), labels, chosen)
    assert found.tolist() == [[0.25, 1.0, 0.25, 1.0]]


def test_mosaics_put_cells_row_by_row_with_images_upright():
    images = torch.rand(6, 2, 3, 5)
    made = mosaics(images, torch.tensor([[4, 0, 2, 5]]))
    assert made.shape == (1, 2, 6, 10)
    rows = [torch.cat([images[4], images[0]], 2), torch.cat([images[2], images[5]], 2)]
    assert torch.equal(made[0], torch.cat(rows, 1))


def test_shares_are_the_slow_ones():
    maps = torch.randn(4, 6, 9, dtype=torch.float64)
    expected = [
        [reference.cell_share(m.numpy(), 3, row, column) for row in range(3) for column in range(3)] for m in maps
    ]
    np.testing.assert_allclose(cell_shares(maps, 3), expected, rtol=1e-12)


def test_the_same_arguments_make_the_same_mosaics_and_leave_the_random_state():
    labels, confidence = torch.arange(6).repeat(9), torch.rand(54)
    state = torch.get_rng_state()
    first = choose_cells(labels, confidence, least=0, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, choose_cells(labels, confidence, least=0, seed=3))
    assert not torch.equal(first, choose_cells(labels, confidence, least=0, seed=4))


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(0, 7), min_size=4, max_size=8), seed=st.integers(0, 99), count=st.integers(1, 9))
def test_mosaics_are_as_many_as_can_be_of_distinct_confident_images(sizes, seed, count):
    labels = torch.tensor([label for label, size in enumerate(sizes) for _ in range(size)])
    confidence = torch.rand(len(labels), generator=torch.Generator().manual_seed(seed))
    usable = Counter(labels[confidence >= 0.3].tolist())
    # M mosaics of 4 classes exist if and only if the classes supply 4·M images, at most M each.
    possible = max(m for m in range(count + 1) if sum(min(size, m) for size in usable.values()) >= 4 * m)
    if possible == 0:
        with pytest.raises(UserError, match=f"only {len(usable)} classes"):
            choose_cells(labels, confidence, count=count, least=0.3, seed=seed)
        return
    chosen = choose_cells(labels, confidence, count=count, least=0.3, seed=seed)
    assert len(chosen) == possible
    assert len(chosen.unique()) == chosen.numel()
    assert (confidence[chosen] >= 0.3).all()
    assert all(len(row.unique()) == 4 for row in labels[chosen])
    for label in usable:  # of each class the most confident
        taken = [index for index in chosen.flatten().tolist() if labels[index] == label]
        others = [i for i in range(len(labels)) if labels[i] == label and i not in taken]
        assert all(confidence[i] <= confidence[t] for i in others for t in taken)


def test_wrong_images_are_left_out_whatever_the_bound():
    labels = torch.tensor([0, 1, 2, 3, 4])
    with pytest.raises(UserError, match="only 3 classes have an image"):
        choose_cells(labels, torch.tensor([0.9, 0.8, 0.7, 0.0, 0.0]), least=0)


def test_wrong_arguments():
    labels = torch.arange(4)
    with pytest.raises(ValueError, match="as long"):
        choose_cells(labels, torch.rand(3))
    for wrong in ({"cells": 1}, {"count": 0}):
        with pytest.raises(ValueError, match="at least 2 and 1"):
            choose_cells(labels, torch.rand(4), **wrong)
    with pytest.raises(ValueError, match="do not divide into 2×2"):
        cell_shares(torch.rand(1, 4, 5), 2)
    for chosen in (torch.zeros(1, 5, dtype=torch.long), torch.zeros(0, 4, dtype=torch.long)):
        with pytest.raises(ValueError, match="expected M×n²"):
            grid_pointing(map_of_class, coloured(labels), labels, chosen)
    assert cell_shares(torch.full((1, 4, 4), torch.nan), 2).isnan().all()
