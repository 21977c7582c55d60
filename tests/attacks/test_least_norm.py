import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from compresslens.attacks.least_norm import least_norm
from tests.references.attacks import least_norm_reference


def problems(seed, rows=6, pixels=20):
    """Normals, offsets and boxes with pixels at their bounds, as images have them."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(rows, pixels, generator=generator, dtype=torch.float64)
    images[images < 0.2] = 0
    images[images > 0.8] = 1
    normals = torch.randn(rows, pixels, generator=generator, dtype=torch.float64)
    most = (normals * torch.where(normals > 0, 1 - images, -images)).sum(1)
    offsets = most * torch.rand(rows, generator=generator, dtype=torch.float64)
    return normals, offsets, -images, 1 - images


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
@example(5403)  # nearly all pixels at their bounds: a millionth of the offset is 5e-5 in the others
def test_equals_bisection(seed):
    normals, offsets, lower, upper = problems(seed)
    steps = least_norm(normals, offsets, lower, upper)
    for row in range(len(normals)):
        expected = least_norm_reference(normals[row], float(offsets[row]), lower[row], upper[row])
        # what is promised is the constraint; how far that fixes the pixels depends on how many can still move
        assert normals[row] @ steps[row] == pytest.approx(float(offsets[row]), rel=2e-5)
        assert np.linalg.norm(steps[row]) == pytest.approx(np.linalg.norm(expected), rel=3e-4)
        assert np.allclose(steps[row], expected, rtol=1e-4, atol=3e-3)


def test_the_constraint_is_met_and_the_box_is_kept():
    normals, offsets, lower, upper = problems(3, rows=50)
    steps = least_norm(normals, offsets, lower, upper)
    assert ((normals * steps).sum(1) >= offsets * (1 - 2e-5)).all()
    assert ((steps >= lower) & (steps <= upper)).all()


def test_without_a_box_it_is_the_orthogonal_projection():
    normals = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    offsets = torch.rand(5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    wide = torch.full_like(normals, 1e6)
    expected = offsets[:, None] * normals / normals.square().sum(1, keepdim=True)
    assert torch.allclose(least_norm(normals, offsets, -wide, wide), expected, rtol=1e-5)


def test_an_impossible_offset_gives_the_best_corner():
    normals, _, lower, upper = problems(5)
    steps = least_norm(normals, torch.full((6,), 1e3, dtype=torch.float64), lower, upper)
    assert torch.allclose(steps, torch.where(normals > 0, upper, lower))


def test_a_zero_normal_and_a_zero_offset_give_no_step():
    normals, offsets, lower, upper = problems(6)
    assert (least_norm(torch.zeros_like(normals), offsets, lower, upper) == 0).all()
    assert (least_norm(normals, torch.zeros_like(offsets), lower, upper) == 0).all()


def test_a_tiny_normal_gives_no_nan():
    normals, offsets, lower, upper = (t.float() for t in problems(7))
    assert torch.isfinite(least_norm(normals * 1e-25, offsets, lower, upper)).all()


def test_a_negative_offset_is_a_step_the_other_way():
    normals, offsets, lower, upper = problems(8)
    expected = -least_norm(normals, offsets, -upper, -lower)
    assert torch.equal(least_norm(normals, -offsets, lower, upper), expected)
