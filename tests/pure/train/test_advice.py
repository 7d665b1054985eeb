"""What is said of several models before their first step."""

from __future__ import annotations

import pytest

from weft.runtime.train.advice import once

CASES = {
    "of one model all is its own": ({"a": "a: warms up"}, "", {"a": "a: warms up"}),
    "what holds for all is said once": (
        {"a": "a: idle\na: warms up", "b": "b: idle", "c": "c: far off\nc: idle"},
        "all models: idle",
        {"a": "a: warms up", "b": "", "c": "c: far off"},
    ),
    "what holds for some is said of each": (
        {"a": "a: idle", "b": "b: idle", "c": ""},
        "",
        {"a": "a: idle", "b": "b: idle", "c": ""},
    ),
}


@pytest.mark.parametrize(("notes", "of_all", "left"), CASES.values(), ids=CASES)
def test_notes(notes: dict[str, str], of_all: str, left: dict[str, str]) -> None:
    assert once(notes) == (of_all, left)
