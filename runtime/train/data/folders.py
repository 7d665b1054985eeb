"""Folders below a pattern that may not be looked into: to the pattern it is as if they were empty."""

from __future__ import annotations

import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from itertools import takewhile
from pathlib import Path

from ...errors import DataError


def require_readable(folder: Path, pattern: str, exclude: Sequence[str] = (), remedy: str = "") -> None:
    """DataError where a folder that the pattern leads into, and `exclude` does not name, cannot be read.

    Of a folder one part of which was somebody else's the rest was trained on, and nobody was told.
    `remedy` is said of folders below that from which the pattern's wildcards begin.
    """
    parts = Path(pattern).parts
    above = [*takewhile(lambda part: not set("*?[").intersection(part), parts)]
    # From where the pattern's wildcards begin: what lies beside that is none of its business.
    top, wild = folder.joinpath(*above), parts[len(above) :]

    def refuse(error: OSError) -> None:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return  # to the pattern, too, it is nothing
        told = "" if Path(error.filename) == top else remedy
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}{told}") from error

    for path, names, _ in os.walk(top, onerror=refuse) if wild else ():
        inside, depth = os.path.relpath(path, folder), len(Path(path).relative_to(top).parts)
        names[:] = [
            name
            for name in names
            if _leads_on(wild, depth, name)
            and not any(matches(os.path.normpath(f"{inside}/{name}") + "/", e) for e in exclude)
        ]


def _leads_on(wild: Sequence[str], depth: int, name: str) -> bool:
    """Whether a pattern of such parts looks into this folder, so many below where it begins."""
    if "**" in wild[: depth + 1]:
        return True
    return depth + 1 < len(wild) and fnmatchcase(name, wild[depth])


def matches(name: str, pattern: str) -> bool:
    """Whether a relative path matches a pattern in which ** also stands for no folder at all."""
    return fnmatchcase(name, pattern) or (pattern.startswith("**/") and fnmatchcase(name, pattern[3:]))
