import pytest
import torch

from compresslens.cams.baselines import centre_gaussian_maps, random_maps


def test_the_gaussian_is_the_closed_form():
    maps = centre_gaussian_maps(3, 5, 9, sigma=0.2)
    assert maps.shape == (3, 5, 9)
    assert maps.dtype == torch.float32
    assert torch.equal(maps[0], maps[2])
    assert maps[0, 2, 4] == maps.max() == 1
    # one pixel down is 1/5 of the height, one standard deviation; one to the right 1/9 of the width
    assert maps[0, 3, 4].item() == pytest.approx(torch.exp(torch.tensor(-0.5)).item())
    assert maps[0, 2, 5].item() == pytest.approx(torch.exp(torch.tensor(-0.5 * (1 / 9 / 0.2) ** 2)).item())
    torch.testing.assert_close(maps, maps.flip(1))
    torch.testing.assert_close(maps, maps.flip(2))


@pytest.mark.parametrize("resolution", [7, None, 3])
def test_a_sample_has_its_own_map_whatever_the_batch(resolution):
    state = torch.get_rng_state()
    maps = random_maps([4, 0, 9], 12, 10, resolution=resolution)
    assert torch.equal(torch.get_rng_state(), state)
    assert maps.shape == (3, 12, 10)
    assert torch.equal(maps[1:2], random_maps(torch.tensor([0]), 12, 10, resolution=resolution))
    assert not torch.equal(maps[0], maps[1])
    assert not torch.equal(maps, random_maps([4, 0, 9], 12, 10, resolution=resolution, seed=1))
    assert (maps.amin((1, 2)) == 0).all()
    assert (maps.amax((1, 2)) == 1).all()


def test_random_maps_are_as_coarse_as_asked():
    coarse, fine = (random_maps(range(50), 56, 56, resolution=resolution) for resolution in (7, None))
    steps = [maps.diff(dim=2).abs().mean() for maps in (coarse, fine)]
    assert steps[0] < steps[1] / 4
    assert coarse.mean(0).sub(coarse.mean()).abs().max() < 0.25  # no place is preferred


def test_degenerate_baselines():
    assert random_maps([], 5, 5).shape == (0, 5, 5)
    assert (random_maps([1], 5, 5, resolution=1) == 0).all()
    assert centre_gaussian_maps(0, 4, 4).shape == (0, 4, 4)
    with pytest.raises(ValueError, match="sigma is 0"):
        centre_gaussian_maps(1, 4, 4, sigma=0)
