"""Lines of TOML keys, and TOML written and read again."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.runtime.train.toml import key_lines, to_toml


def every_path(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield (*path, key)
        yield from every_path(item, (*path, key))


TEXTS = {
    "keys of sections": (
        'a = 1\n\n[b]\nc = 2 # c = 3\n[b.d]\ne = "x"\n',
        {("a",): 1, ("b", "c"): 4, ("b", "d", "e"): 6},
    ),
    "dotted keys": ("a.b.c = 1\na.d = 2", {("a",): 1, ("a", "b", "c"): 1, ("a", "d"): 2}),
    "quoted keys": ('"a b" = 1\n\'c.d\'."e\\u0041" = 2', {("a b",): 1, ("c.d", "eA"): 2}),
    "inline tables": ("a = { b = 1, c = { d = [2] } }", {("a", "b"): 1, ("a", "c", "d", 0): 1}),
    "lists over several lines": (
        "a = [\n  1, # one ]\n\n  { b = 2 },\n  [3,\n4],\n]\nc = 5",
        {("a", 0): 2, ("a", 1): 4, ("a", 1, "b"): 4, ("a", 2, 1): 6, ("c",): 8},
    ),
    "arrays of tables": (
        "[[a]]\nb = 1\n[[a]]\nb = 2\n[a.c]\nd = 3\n[[a.e]]\nf = 4",
        {("a", 0, "b"): 2, ("a", 1, "b"): 4, ("a", 1, "c", "d"): 6, ("a", 1, "e", 0, "f"): 8},
    ),
    "strings that look like keys": (
        'a = """\nb = 1\n\\""" [x]\n""""\nc = \'\'\'\nd = 2\n\'\'\'\ne = "f = \\" #"\ng = \'#\' # h',
        {("a",): 1, ("c",): 5, ("e",): 8, ("g",): 9},
    ),
    "dates and signs": (
        "a = 1979-05-27 07:32:00Z # b\nc = -inf\nd = [+1, 2.5e-3]\ne = 0",
        {("c",): 2, ("e",): 4},
    ),
    "carriage returns": ("a = 1\r\nb = [\r\n2]\r\n[c]\r\nd = 4\r\n", {("b", 0): 3, ("c", "d"): 5}),
    "nothing at all": ("# only a comment", {}),
}


@pytest.mark.parametrize(("text", "expected"), TEXTS.values(), ids=TEXTS)
def test_lines_of(text: str, expected: dict[tuple[str | int, ...], int]) -> None:
    lines = key_lines(text)
    assert {path: lines[path] for path in expected} == expected
    assert set(lines) == set(every_path(tomllib.loads(text)))


scalars = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
)
keys = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(keys, values, max_size=4))
def test_what_is_written_is_read_again_and_every_key_has_a_line(document: dict[str, Any]) -> None:
    text = to_toml(document)
    assert tomllib.loads(text) == document
    assert set(key_lines(text)) == set(every_path(document))
