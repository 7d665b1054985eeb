"""A text file, or a folder's files one after the other in sorted order, as bytes.

    ┌ train ──────────────────────┬ validation ┬ test ┐     contiguous ranges of bytes
    │ window │ window │ window │ …│ window │ … │ …    │     no window crosses from one range into the next

A shuffled split would be no test: neighbouring windows of a text resemble each other.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...errors import DataError
from .files import is_gzip, locate, reading
from .folders import matches, require_readable
from .samples import Data, Windows, split_counts
from .section import TextData
from .stored import AnyArray


class Text(NamedTuple):
    """All its bytes, and in how many files they lie."""

    content: AnyArray
    files: int


def read(data: TextData) -> Text:
    """The text: that of a file mapped, of a folder's files read."""
    path = locate(data.path)
    return _folder(path, data) if path.is_dir() else Text(_file(path), 1)


def windows(whole: Text, data: TextData) -> Data:
    """The windows of the text's three ranges."""
    path, (text, files) = locate(data.path), whole
    counts = split_counts(len(text), data.validation, data.test, str(path))
    for name, size in zip(("train", "validation", "test"), counts, strict=True):
        if 0 < size <= data.context:  # before windows are made: NumPy has none of 2^63 bytes
            raise DataError(
                f"{path}: its {name} part has {size} of {len(text)} bytes, too few for one window of "
                f"[data] context = {data.context} and the byte behind; give more text or a smaller context"
            )
    ranges = np.split(text, np.cumsum(counts)[:-1])
    train, validation, test = (Windows(part, data.context, files) for part in ranges)
    return Data(train, validation, test)


def is_one_file(data: TextData) -> bool:
    """Whether the text is that of a file, and not of a folder's."""
    return locate(data.path).is_file()


def _file(path: Path) -> AnyArray:
    if is_gzip(path):
        raise DataError(f"{path}: is gzipped, and so its bytes are no text; gunzip it first")
    if not path.stat().st_size:
        raise DataError(f"{path}: is empty")
    return np.memmap(path, np.uint8, "r")


def _folder(folder: Path, data: TextData) -> Text:
    """All files one after the other; read, for a mapping cannot join them."""
    try:
        names = sorted(
            found.relative_to(folder).as_posix() for found in folder.glob(data.files) if _is_file(found)
        )
    except (ValueError, IndexError, NotImplementedError) as error:
        raise DataError(
            f"{folder}: [data] files = {data.files!r} is no pattern of files in it; give one like '**/*.txt'"
        ) from error
    require_readable(folder, data.files, data.exclude, "; leave it out with [data] exclude")
    kept = [name for name in names if not any(matches(name, pattern) for pattern in data.exclude)]
    if not kept:
        raise DataError(
            f"{folder}: {len(names)} files match [data] files = {data.files!r}, "
            f"and exclude = {data.exclude} leaves none of them"
        )
    parts = []
    for name in kept:
        with reading(folder / name) as file:
            parts.append(file.read())
    return Text(np.frombuffer(b"".join(parts), np.uint8), len(parts))


def _is_file(path: Path) -> bool:
    """Whether it is one; True where nobody may ask, too: who then reads it says so, unless it is left out."""
    try:
        return path.is_file()
    except PermissionError:
        return True
