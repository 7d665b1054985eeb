"""What `--help` of a bench says: its module's docstring and its options, as wide as the terminal.

rtt_us    awaited request of 8 bytes, received and replied to        rtt_us    awaited request of 8
          by the other rank                                     ->             bytes, received and
raw_us    the same in mpi4py                                                   replied to by the
                                                                               other rank
                                                                     raw_us    the same in mpi4py
"""

from __future__ import annotations

import argparse
import re
import shutil
import textwrap
import time
from typing import Any, Final, NoReturn

from bench.harness import launched_rank
from weft.runtime.launcher import HEAD_START_S

ENTRY: Final = re.compile(r"\s*\S(?:.*?\S)?\s{2,}(?=\S)")
"""The beginning of a line that two blanks divide: a name, behind which comes what it means."""

FULL: Final = 88
"""Characters from which on a line of prose in the sources has ended because it was full."""

WIDEST: Final = 110
"""Columns. Longer lines are hard to read."""

NARROWEST: Final = 24
"""Columns. Where fewer are left behind a name, what it means begins at the left."""


def columns() -> int:
    """Of the terminal, as argparse counts them."""
    return shutil.get_terminal_size().columns - 2


def fitted(text: str, width: int) -> str:
    """`text`, whose lines are at most `width` wide, a word that is longer apart.

    Lines of prose are joined before; what a name means stays behind its name, in a column of its own.
    """
    filled: list[str] = []
    for line, hanging in _joined(text):
        if width - hanging < NARROWEST:
            hanging = len(line) - len(line.lstrip()) + 4
        filled += textwrap.wrap(
            line,
            min(width, WIDEST),
            subsequent_indent=" " * hanging,
            break_long_words=False,
            break_on_hyphens=False,
        ) or [""]
    return "\n".join(filled)


def _joined(text: str) -> list[tuple[str, int]]:
    """Its lines, each with those behind it that it goes on in, and the column in which it does."""
    found: list[tuple[str, int]] = []
    full = False  # the line before is prose, and ended because no other word had room in it
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        entry = ENTRY.match(line)
        if found and line and not entry and indent == found[-1][1] and (full or ENTRY.match(found[-1][0])):
            found[-1] = (f"{found[-1][0]} {line.lstrip()}", indent)
        else:
            found.append((line, entry.end() if entry else indent))
        full = not entry and len(line) > FULL
    return found


class _Fitted(argparse.RawDescriptionHelpFormatter):
    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return textwrap.indent(fitted(text, width), indent)


class Options(argparse.ArgumentParser):
    """Options of which each one's help ends with its default, and that rank 0 alone tells of."""

    def __init__(self, **keys: Any) -> None:
        super().__init__(formatter_class=_Fitted, **keys)

    def add_argument(self, *names: Any, **keys: Any) -> argparse.Action:
        """As argparse's; a help that ends with brackets tells the default itself."""
        text = keys.get("help") or ""
        if (default := _written(keys.get("default"))) and not text.endswith(")"):
            keys["help"] = f"{text} ({default})".strip()
        return super().add_argument(*names, **keys)

    def print_help(self, file: Any = None) -> None:
        if not launched_rank():
            super().print_help(file)

    def print_usage(self, file: Any = None) -> None:
        if not launched_rank():
            super().print_usage(file)

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        if launched_rank():
            message = None
            if status:
                time.sleep(HEAD_START_S)
        super().exit(status, message)


def _written(default: Any) -> str:
    """A default as it is given on the command line; empty where nothing is."""
    if default is None or default is False or default == argparse.SUPPRESS:
        return ""
    values = default if isinstance(default, list | tuple) else [default]
    return " ".join(str(each).removesuffix(".0") for each in values)
