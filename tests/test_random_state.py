import random

import numpy as np
import pytest
import torch

from compresslens.random_state import seeded

CPU = torch.device("cpu")


def draw():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def test_the_same_seed_draws_the_same_and_another_does_not():
    drawn = []
    for seed in (3, 3, 4):
        with seeded(seed, CPU):
            drawn.append(draw())
    assert drawn[0] == drawn[1]
    assert all(a != b for a, b in zip(drawn[0], drawn[2], strict=True))


@pytest.mark.parametrize("fails", [False, True])
def test_the_states_are_put_back(fails):
    before = states()
    try:
        with seeded(1, CPU):
            draw()
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert states() == before
