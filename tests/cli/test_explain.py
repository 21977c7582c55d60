"""One line for whatever the parser, a constructor or the trainer complains about."""

from __future__ import annotations

import itertools

import pytest
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from compresslens.cli.explain import LONGEST, arguments_of, causes, expected, nearest, reason, run_error, unknown_key
from compresslens.errors import UserError


def test_nearest_names_something_similar_or_nothing() -> None:
    assert nearest("max_epoch", ["min_epochs", "max_epochs"]) == "; did you mean 'max_epochs'?"
    assert nearest("qqq", ["min_epochs", "max_epochs"]) == ""


def test_the_arguments_of_a_class_include_those_that_it_passes_on() -> None:
    names = arguments_of("datamodules.CIFAR10")
    assert names[:2] == ["root", "download"]
    assert {"batch_size", "train_transforms"} <= set(names)
    assert not {"self", "kwargs"} & set(names)
    assert arguments_of("compresslens.networks.create_network")[:2] == ["architecture", "num_classes"]


def test_an_unknown_key_names_the_nearest_or_all() -> None:
    assert unknown_key("momentun", "torch.optim.SGD").endswith("has no option 'momentun'; did you mean 'momentum'?")
    message = unknown_key("qqq", "compresslens.distillation.LogitKDLoss")
    assert message == "compresslens.distillation.LogitKDLoss has no option 'qqq'; it has: temperature, weight"
    assert unknown_key("qqq", None) == "there is no option 'qqq'"


def test_expected_types_are_said_in_a_few_words() -> None:
    text = "Subtypes: [<class 'int'>, collections.abc.Sequence[int], <class 'NoneType'>] Errors: - Expected"
    assert expected(text) == "; expected int or Sequence[int] or null"
    assert expected(f"Subtypes: [{'x' * 80}] Errors:") == ""
    assert expected("anything else") == ""


# Exceptions -----------------------------------------------------------------------------------------------------------


def chained(*errors: Exception) -> Exception:
    """The last error, raised from the one before, and so on."""
    for cause, error in itertools.pairwise(errors):
        error.__cause__ = cause
    return errors[-1]


def test_the_reason_is_our_own_message_wherever_it_is_in_the_chain() -> None:
    inner, ours, outer = KeyError("x"), UserError("ours"), ValueError("the parser's")
    assert causes(chained(inner, ours, outer)) == [outer, ours, inner]
    assert reason(outer) == run_error(outer) == "ours"


def test_without_ours_the_reason_is_the_first_cause() -> None:
    assert reason(chained(TypeError("p must be a number"), ValueError("long story"))) == "p must be a number"
    assert reason(TypeError()) == "TypeError"
    assert len(reason(ValueError("x" * 1000))) < LONGEST + 10


def test_suppressed_contexts_and_loops_end_the_chain() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__context__, first.__suppress_context__ = second, True
    assert causes(first) == [first]
    first.__suppress_context__ = False
    second.__context__ = first
    assert causes(first) == [first, second]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MisconfigurationException("no such accelerator"), "no such accelerator"),
        (OSError(28, "No space left on device", "/a/b"), "No space left on device: /a/b"),
        (FileNotFoundError("Checkpoint file not found: x"), "Checkpoint file not found: x"),
        (
            RuntimeError("Error(s) in loading state_dict for X:\n\tsize mismatch for fc.weight: a\n\tb"),
            "the checkpoint does not fit the model: size mismatch for fc.weight: a b",
        ),
        (
            RuntimeError("[tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:8119."),
            "another process of this run has failed; see its message",
        ),
        (RuntimeError("shapes cannot be multiplied"), None),
        (ValueError("a bug"), None),
        (ZeroDivisionError(), None),
    ],
)
def test_what_may_be_a_bug_keeps_its_traceback(error: Exception, message: str | None) -> None:
    assert run_error(error) == message
