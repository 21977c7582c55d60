from __future__ import annotations

import json
import math

import pytest
import torch

from compresslens.errors import UserError
from compresslens.export.parity import FLOAT, INT8, Tolerance, check, compare


def test_figures_by_hand() -> None:
    expected = torch.tensor([[0.0, 10.0, 3.0], [4.0, 1.0, 0.0], [1.0, 2.0, 5.0]])
    got = torch.tensor([[0.5, 10.0, 3.0], [3.0, 3.25, 0.0], [1.0, 2.0, 5.0]])
    parity = compare(expected, got, "here")
    assert (parity.images, parity.difference, parity.range, parity.disagreements) == (3, 2.25, 10.0, 1)
    assert parity.agreement == pytest.approx(2 / 3)
    assert json.loads(json.dumps(parity.as_json()))["agreement"] == pytest.approx(2 / 3)


def test_equal_logits_pass_everything() -> None:
    logits = torch.randn(50, 7)
    parity = compare(logits, logits.clone(), "here")
    assert (parity.difference, parity.agreement) == (0, 1)
    check(parity, Tolerance(0.0, 1.0), "file")


def test_a_tie_is_no_disagreement() -> None:
    expected = torch.tensor([[0.0, 10.0, 9.995], [0.0, 10.0, 9.98]])
    got = expected.flip(1).roll(1, 1)  # exchanges the last two
    assert got.argmax(1).tolist() == [2, 2]
    assert compare(expected, got, "here").disagreements == 1, "only the second image's classes are 0.2 % apart"


def test_what_is_not_finite_is_a_disagreement() -> None:
    expected = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    got = torch.tensor([[0.0, 1.0], [math.nan, 1.0]])
    parity = compare(expected, got, "here")
    assert parity.disagreements == 1
    assert parity.as_json()["difference"] is None
    for tolerance in (FLOAT, Tolerance(None, 1.0)):
        with pytest.raises(UserError, match="1 of 2 predictions differ"):
            check(parity, tolerance, "file")
    with pytest.raises(UserError, match="differ by up to nan"):
        check(compare(expected, torch.full((2, 2), math.nan), "here"), Tolerance(1e9, 0.0), "file")


def test_a_difference_beyond_the_tolerance() -> None:
    expected = torch.tensor([[0.0, 10.0]])
    check(compare(expected, expected + 0.0099, "here"), FLOAT, "file")
    message = (
        r"model.onnx does not .*: in there its logits differ by up to 0.0101 \(at most 0.01 is tolerated\), and 0 of 1"
    )
    with pytest.raises(UserError, match=message):
        check(compare(expected, expected + 0.0101, "there"), FLOAT, "model.onnx")
    check(compare(expected, expected + 5, "here"), INT8, "file")


@pytest.mark.parametrize(("images", "allowed"), [(10, 1), (128, 1), (200, 1), (201, 2), (1000, 5)])
def test_how_many_predictions_of_an_int8_network_may_differ(images: int, allowed: int) -> None:
    expected = torch.zeros(images, 2)
    expected[:, 1] = 1
    got = expected.clone()
    got[:allowed] = got[:allowed].flip(1)
    check(compare(expected, got, "here"), INT8, "file")
    got[allowed] = got[allowed].flip(0)
    with pytest.raises(
        UserError, match=rf"{allowed + 1} of {images} predictions differ \(at most {allowed} tolerated\)"
    ):
        check(compare(expected, got, "here"), INT8, "file")


def test_another_shape() -> None:
    with pytest.raises(UserError, match=r"there gives logits \(2, 3\) where the network gives \(2, 4\)"):
        compare(torch.zeros(2, 4), torch.zeros(2, 3), "there")
