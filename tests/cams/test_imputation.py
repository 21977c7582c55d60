import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_grad_cam.metrics.road import NoisyLinearImputer

from compresslens.cams.imputation import impute
from tests.references import cam_measures as reference


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), height=st.integers(1, 7), width=st.integers(2, 7), share=st.floats(0.05, 0.99))
def test_it_is_the_dense_system(seed, height, width, share):
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(3, height, width, generator=generator, dtype=torch.float64)
    removed = torch.rand(height, width, generator=generator) < share
    removed[0, seed % width] = False
    filled = impute(image, removed)
    np.testing.assert_allclose(filled, reference.impute(image.numpy(), removed.numpy()), rtol=1e-10)
    assert torch.equal(filled[:, ~removed], image[:, ~removed])
    assert filled.min() >= image.min() - 1e-12  # a mean stays between
    assert filled.max() <= image.max() + 1e-12


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_it_is_that_of_pytorch_grad_cam(share):
    image, values = torch.rand(3, 16, 12), torch.rand(16, 12)
    removed = values < share
    theirs = NoisyLinearImputer(noise=0)(image, (~removed).float())
    torch.testing.assert_close(impute(image, removed), theirs, rtol=0, atol=1e-6)


def test_a_constant_surrounding_fills_in_its_colour():
    image = torch.rand(3, 9, 9)
    removed = torch.zeros(9, 9, dtype=torch.bool)
    removed[2:7, 3:] = True
    image[:, ~removed] = torch.tensor([0.1, 0.5, 0.9])[:, None]
    expected = torch.tensor([0.1, 0.5, 0.9])[:, None, None].expand(3, 9, 9)
    torch.testing.assert_close(impute(image, removed), expected)


def test_nothing_removed_and_everything():
    image = torch.rand(3, 4, 4)
    same = impute(image, torch.zeros(4, 4, dtype=torch.bool))
    assert torch.equal(same, image)
    assert same.data_ptr() != image.data_ptr()
    with pytest.raises(ValueError, match="every pixel is removed"):
        impute(image, torch.ones(4, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="as the image"):
        impute(image, torch.zeros(4, 5, dtype=torch.bool))
