"""Which files a job's path means: one, those of a folder, or those that match a pattern.

    runs/a.npz        that file, whatever its name is
    runs              its files of the source's kind, without those of folders in it
    runs/**/u-*.npz   what matches; ** stands for any folders, or none, but for no links to folders

Their order is that of their names, in which numbers count by their value: u-2 comes before u-10.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from ...errors import DataError
from .files import STARTS, MissingData, existing, filled
from .folders import require_readable

DIGITS = "0123456789"
SHOWN = 4  # names in a line


def parts(name: str, endings: Sequence[str]) -> list[Path]:
    """The existing files of a job's path, in order; of a folder those whose names end so."""
    path = filled(name)
    if set("*?[").intersection(str(path)) and not os.path.lexists(path):
        return _matching(path)
    return _in_folder(path, endings) if existing(path).is_dir() else [path]


def _in_folder(folder: Path, endings: Sequence[str]) -> list[Path]:
    try:
        found = [folder / name for name in os.listdir(folder) if name.endswith(tuple(endings))]
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror}") from error
    found = [file for file in found if not file.name.startswith(".") and not file.is_dir()]
    if not found:
        raise DataError(
            f"{folder}: is a folder, and no file in it ends in {' or '.join(endings)}; name a file, or a "
            f"pattern such as {folder}/**/*{endings[0]}"
        )
    return [existing(file) for file in _sorted(found)]


def _matching(path: Path) -> list[Path]:
    """The files that match a pattern, below the last folder of its path that there is."""
    above = next(parent for parent in path.parents if os.path.isdir(parent))  # its name may have brackets
    pattern = str(path.relative_to(above))
    require_readable(above, pattern)
    found = [file for file in above.glob(_of_pathlib(pattern)) if not file.is_dir()]
    if not _is_hidden(Path(pattern)):
        found = [file for file in found if not _is_hidden(file.relative_to(above))]
    if not found:
        raise MissingData(f"{path}: no file matches this pattern; {above.absolute()} exists. {STARTS}")
    return [existing(file) for file in _sorted(found)]


def _of_pathlib(pattern: str) -> str:
    """The pattern as pathlib takes it on every Python: ** alone, and not at the end.

    The glob module looks into linked folders for **, too: with `latest` a link to one of the runs, that one's
    samples came twice, to be trained on and tested with; with links to a folder above it found no end.
    """
    parts = [part if part == "**" else re.sub(r"\*+", "*", part) for part in Path(pattern).parts]
    return "/".join(parts + ["*"] * (parts[-1] == "**"))


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") and part != ".." for part in path.parts)


def _sorted(paths: Sequence[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: [_by_value(part) for part in re.split("([0-9]+)", str(path))])


def _by_value(part: str) -> tuple[int, str]:
    return (int(part), part) if part.isdecimal() and part.isascii() else (0, part)


def together(inputs: Sequence[Path], targets: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Files of inputs with those of their targets; DataError where one has no partner.

    Of several, names differ from each other alike on both sides, as x-1, x-2 and y-1, y-2 do. Where a file
    was missing of each, and not the same one, samples would have had the targets of others.
    """
    ours, theirs = _differences(inputs), _differences(targets)
    if len(ours) == len(theirs) == 1:
        return [(inputs[0], targets[0])]
    if sorted(ours) != sorted(theirs):
        alone = [path for path, name in zip(inputs, ours, strict=True) if name not in theirs]
        alone += [path for path, name in zip(targets, theirs, strict=True) if name not in ours]
        if min(len(ours), len(theirs)) == 1:  # of one name nobody can say which part of it counts
            alone = []
        shown = ", ".join([*map(str, alone[:SHOWN]), *[f"{len(alone) - SHOWN} more"] * (len(alone) > SHOWN)])
        raise DataError(
            f"{inputs[0].parent}: of {len(inputs)} files of inputs and {len(targets)} of targets "
            f"{shown or 'some'} have no partner: name those that belong together alike, as in x-1.npy, "
            "x-2.npy and y-1.npy, y-2.npy"
        )
    # Not by their places: a.npy comes before a_b.npy, and a_y.npy behind a_b_y.npy.
    partners = dict(zip(theirs, targets, strict=True))
    return [(path, partners[name]) for path, name in zip(inputs, ours, strict=True)]


def _differences(paths: Sequence[Path]) -> list[str]:
    """Names less what they all begin and end with; of a number all its digits stay."""
    names = [str(path) for path in paths]
    begin = _begin(names)
    end = _begin([name[begin:][::-1] for name in names])
    return [name[begin : len(name) - end] for name in names]


def _begin(names: Sequence[str]) -> int:
    """How many letters all begin with, less digits at the end of these."""
    return len(os.path.commonprefix(names).rstrip(DIGITS))  # noqa: RUF071  letters are meant, not folders
