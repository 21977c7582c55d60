import math

import pytest
import torch

from compresslens.attacks import AttackResult, concatenate, least_distance


def result(l2, evaluations, first):
    distances = torch.tensor(l2, dtype=torch.float64)
    return AttackResult(
        adversarials=distances.float().nan_to_num(posinf=0)[:, None, None, None].expand(-1, 1, 2, 2),
        success=torch.isfinite(distances),
        l2=distances,
        gradient_evaluations=torch.tensor(evaluations),
        first_success=torch.tensor(first),
    )


def test_the_nearest_of_each_image_and_the_sum_of_evaluations():
    a, b = result([0.5, math.inf, 0.2], [10, 10, 10], [3, -1, 4]), result([0.4, 0.9, math.inf], [5, 5, 5], [1, 2, -1])
    both = least_distance(a, b)
    assert both.l2.tolist() == [0.4, 0.9, 0.2]
    assert both.success.tolist() == [True, True, True]
    assert both.adversarials[:, 0, 0, 0].tolist() == pytest.approx([0.4, 0.9, 0.2])
    assert both.gradient_evaluations.tolist() == [15, 15, 15]
    assert both.first_success.tolist() == [3, 12, 4]


def test_failures_stay_failures():
    both = least_distance(result([math.inf], [1], [-1]), result([math.inf], [1], [-1]))
    assert not both.success.any()
    assert both.first_success.tolist() == [-1]


def test_results_of_other_images_are_refused():
    with pytest.raises(ValueError, match=r"\[1, 2\] images"):
        least_distance(result([1.0], [1], [1]), result([1.0, 1.0], [1, 1], [1, 1]))


def test_concatenate():
    both = concatenate([result([0.1], [1], [1]), result([0.2, math.inf], [2, 3], [2, -1])])
    assert both.l2.tolist() == [0.1, 0.2, math.inf]
    assert both.gradient_evaluations.tolist() == [1, 2, 3]
