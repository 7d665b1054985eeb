"""Where each key of a TOML text stands, and a TOML text for given values.

`tomllib` reads values but forgets lines; an error worth reading names the line. So `key_lines` walks the same
text a second time and keeps only places. tomllib has accepted the text before, so nothing is checked here.

    [train]                       ("train",)                     1
    optimizer = { rate = 0.1 }    ("train", "optimizer")         2
                                  ("train", "optimizer", "rate") 2
"""

from __future__ import annotations

import json
import re
import tomllib
from typing import Any

Path = tuple[str | int, ...]

_SPACE = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_STRING = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}' r"|'''.*?'{3,5}" r'|"(?:\\.|[^"\\])*"' r"|'[^']*'", re.DOTALL
)
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SCALAR = re.compile(r"[^,\]}#\n]+")


def key_lines(text: str) -> dict[Path, int]:
    """The line (from 1) of every key and array element of a valid TOML text."""
    scanner = _Scanner(text)
    scanner.document()
    return scanner.lines


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[Path, int] = {}
        self.lengths: dict[Path, int] = {}  # of arrays of tables, while they grow

    def document(self) -> None:
        table: Path = ()
        while self.skip_space():
            if self.text.startswith("[", self.at):
                table = self.header()
            else:
                self.assignment(table)

    def skip_space(self) -> bool:
        """Move past blanks, line ends and comments; whether anything is left."""
        match = _SPACE.match(self.text, self.at)
        self.at = match.end() if match else self.at
        return self.at < len(self.text)

    def place(self, path: Path) -> None:
        """Note this line for `path` and for every parent that has none yet."""
        line = self.text.count("\n", 0, self.at) + 1
        for length in range(1, len(path) + 1):
            self.lines.setdefault(path[:length], line)

    def header(self) -> Path:
        several = self.text.startswith("[[", self.at)
        self.at += 2 if several else 1
        keys = self.key()
        path: Path = ()
        for key in keys[:-1]:  # a parent that is an array of tables means its last element
            path = (*path, key)
            if path in self.lengths:
                path = (*path, self.lengths[path] - 1)
        path = (*path, keys[-1])
        if several:
            index = self.lengths.get(path, 0)
            self.lengths[path] = index + 1
            self.place(path)
            path = (*path, index)
        self.place(path)
        self.at = self.text.index("]]" if several else "]", self.at) + (2 if several else 1)
        return path

    def key(self) -> tuple[str, ...]:
        """A possibly dotted, possibly quoted key."""
        parts: list[str] = []
        while True:
            self.skip_space()
            if match := _STRING.match(self.text, self.at):
                parts.append(tomllib.loads(f"k = {match.group()}")["k"])
            else:
                match = _BARE_KEY.match(self.text, self.at)
                assert match is not None, "tomllib accepted a text without a key here"
                parts.append(match.group())
            self.at = match.end()
            self.skip_space()
            if not self.text.startswith(".", self.at):
                return tuple(parts)
            self.at += 1

    def assignment(self, table: Path) -> None:
        start = self.at
        path = (*table, *self.key())
        end, self.at = self.at, start
        self.place(path)
        self.at = self.text.index("=", end) + 1
        self.value(path)

    def value(self, path: Path) -> None:
        self.skip_space()
        opening = self.text[self.at]
        if opening not in "[{":
            match = _STRING.match(self.text, self.at) or _SCALAR.match(self.text, self.at)
            assert match is not None, "tomllib accepted a text without a value here"
            self.at = match.end()
            return
        closing = "]" if opening == "[" else "}"
        self.at += 1
        index = 0
        while self.skip_space() and not self.text.startswith(closing, self.at):
            if opening == "[":
                self.place((*path, index))
                self.value((*path, index))
                index += 1
            else:
                self.assignment(path)
            self.skip_space()
            if self.text.startswith(",", self.at):
                self.at += 1
        self.at += 1


def to_toml(values: dict[str, Any]) -> str:
    """A TOML text of plain values: one section for each dictionary at the top, inline tables below."""
    tables = {key: value for key, value in values.items() if isinstance(value, dict)}
    text = _lines({key: value for key, value in values.items() if key not in tables})
    return text + "".join(f"\n[{_key(key)}]\n{_lines(table)}" for key, table in tables.items())


def _lines(values: dict[str, Any]) -> str:
    return "".join(f"{_key(key)} = {to_toml_value(value)}\n" for key, value in values.items())


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else to_toml_value(key)


def to_toml_value(value: Any) -> str:
    """One value as TOML writes it."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # TOML forbids a bare DEL
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(key)} = {to_toml_value(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return "[\n" + "".join(f"    {to_toml_value(item)},\n" for item in value) + "]"
    if isinstance(value, list):
        return "[" + ", ".join(map(to_toml_value, value)) + "]"
    return repr(value)
