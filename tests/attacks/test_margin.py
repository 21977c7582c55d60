import pytest
import torch

from compresslens.attacks.margin import UNTARGETED, is_adversarial, lane_margin, margin


def test_margin_is_the_label_minus_the_best_other():
    logits = torch.tensor([[1.0, 4.0, 2.0], [-50.0, -53.0, -51.0]])
    assert margin(logits, torch.tensor([0, 0])).tolist() == [-3.0, 1.0]


@pytest.mark.parametrize("constant", [-1000.0, 1000.0])
def test_a_constant_changes_nothing(constant):
    logits = torch.randint(-5, 5, (20, 6), generator=torch.Generator().manual_seed(0)).float()
    labels = torch.arange(20) % 6
    assert torch.equal(margin(logits + constant, labels), margin(logits, labels))


def test_lane_margin_against_a_class_and_against_the_best():
    logits = torch.tensor([[5.0, 1.0, 3.0]]).repeat(2, 1)
    labels = torch.tensor([0, 0])
    assert lane_margin(logits, labels, torch.tensor([1, UNTARGETED])).tolist() == [4.0, 2.0]


def test_adversarial_needs_the_confidence_and_a_real_change_of_class():
    margins = torch.tensor([0.1, 0.0, -0.5, -1.0])
    assert is_adversarial(margins).tolist() == [False, False, True, True]
    assert is_adversarial(margins, 1.0).tolist() == [False, False, False, True]
