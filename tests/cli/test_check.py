"""Misspelt keys in config files, found before the parser sees them."""

from __future__ import annotations

from typing import Any

import pytest

from compresslens.cli.check import misspelt_keys

DESTINATIONS = ["seed_everything", "trainer.max_epochs", "trainer.callbacks", "model", "data", "ckpt_path"]


@pytest.mark.parametrize(
    ("document", "messages"),
    [
        ({"trainer": {"max_epochs": 3, "callbacks+": []}, "model": {"class_path": "a.B", "init_args": {}}}, []),
        ({"modle": {}}, ["there is no key 'modle'; did you mean 'model'?"]),
        ({"require": []}, ["there is no key 'require'; did you mean 'requires'?"]),
        ({"qqq": 1}, ["there is no key 'qqq'"]),
        ({7: 1}, ["there is no key 7"]),
        ({"trainer": {"max_epoch": 3}}, ["trainer has no key 'max_epoch'; did you mean 'max_epochs'?"]),
        ({"trainer": {"callback+": []}}, ["trainer has no key 'callback+'; did you mean 'callbacks'?"]),
        ({"trainer": {None: 1}}, ["trainer has no key 'None'"]),
        (
            {"model": {"class_path": "a.B", "init_arg": {}}},
            ["model: 'init_arg' beside class_path; did you mean 'init_args'?"],
        ),
        (
            {"trainer": {"callbacks": [{"class_path": "a.B"}, {"class_path": "a.C", "lr": 1}]}},
            ["trainer.callbacks[1]: 'lr' beside class_path"],
        ),
        (
            {"model": {"init_args": {"network": {"class_path": "a.B", "args": {}}}}},
            ["model.init_args.network: 'args' beside class_path; did you mean 'init_args'?"],
        ),
        (
            {"modle": 1, "dta": 2},
            ["there is no key 'modle'; did you mean 'model'?", "there is no key 'dta'; did you mean 'data'?"],
        ),
    ],
)
def test_messages(document: dict[Any, Any], messages: list[str]) -> None:
    assert list(misspelt_keys(document, DESTINATIONS)) == messages
