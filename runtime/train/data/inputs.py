"""Samples without targets, as `weft predict` takes them: arrays in files, one or several.

    new.npy   parts/   'new-*.npy'      .npy files, and IDX files
    new.npz:x   'new-*.h5:fields/u'     an array in .npz files, a dataset in HDF5 files, by its name

What kind a file is its first bytes say. Where it holds one array alone, that needs no name.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import DataError
from . import hdf5, idx, npy, npz
from .arrays import one_array, require_numbers
from .files import STARTS, MissingData, filled, reading
from .parts import parts
from .stored import Array

ENDINGS = (".npy", *npz.ENDINGS, *hdf5.ENDINGS, *idx.ENDINGS)
"""Of the files of a folder that are read."""

STARTS_WITH = {b"\x93NUMPY": ".npy", b"PK": ".npz", b"\x89HDF": "HDF5"}
NAMED = (".npz", "HDF5")
"""Kinds of files that hold arrays by names."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """Where samples lie: files in their order, and the array's name in each, empty where it was not said."""

    given: str
    path: Path  # a file, a folder, or a pattern
    paths: tuple[Path, ...]
    name: str

    @classmethod
    def find(cls, given: str) -> Inputs:
        """What a command line names; DataError where there is nothing.

        A name is what stands behind the last colon, unless there is a file whose name has one.
        """
        before, _, behind = given.rpartition(":")
        path, name = (given, "") if not before or os.path.lexists(filled(given)) else (before, behind)
        try:
            return cls(given, filled(path), tuple(parts(path, ENDINGS)), name)
        except MissingData as error:
            raise MissingData(str(error).removesuffix(f" {STARTS}")) from error

    def open(self) -> Array:
        """All as one array, mapped or read by rows; DataError where they are no samples of numbers."""
        kind = self._kind()
        if self.name and kind not in NAMED:
            raise DataError(
                f"{self.given}: {self.paths[0]} is an {kind} file, which holds one array: leave "
                f"{':' + self.name!r} out"
            )
        name = self.name or (_only_name(self.paths[0], kind) if kind in NAMED else "")
        names = [f"{path}[{name}]" if name else str(path) for path in self.paths]
        found = one_array(_arrays(self.paths, kind, name), names, "inputs")
        require_numbers(found.dtype, self.given)
        if found.ndim == 0 or found.size == 0:
            raise DataError(f"{self.given}: holds no samples; its shape is {found.shape}")
        return found

    def _kind(self) -> str:
        kinds = {_kind(path): path for path in reversed(self.paths)}
        if len(kinds) > 1:
            shown = ", ".join(f"{path} is {kind}" for kind, path in kinds.items())
            raise DataError(f"{self.given}: holds files of several kinds ({shown}); name those of one")
        return next(iter(kinds))


def _kind(path: Path) -> str:
    with reading(path) as file:
        head = file.read(6)
    for begin, kind in STARTS_WITH.items():
        if head.startswith(begin):
            return kind
    if path.suffix in hdf5.ENDINGS:  # it may begin with a block of its user's, or be netCDF of old
        return "HDF5"
    if path.name.endswith(idx.ENDINGS):
        return "IDX"
    raise DataError(
        f"{path}: is no .npy, .npz, HDF5 or IDX file; write the samples, an array of numbers, by numpy.save"
    )


def _only_name(path: Path, kind: str) -> str:
    names = npz.names(path) if kind == ".npz" else hdf5.names(path)
    if len(names) == 1:
        return names[0]
    shown = ", ".join([*names[: hdf5.SHOWN], *["…"] * (len(names) > hdf5.SHOWN)])
    if not names:
        raise DataError(f"{path}: holds no array")
    raise DataError(
        f"{path}: holds {len(names)} arrays ({shown}); name the one of the samples behind a colon: "
        f"{path}:{names[0]}"
    )


def _arrays(paths: Sequence[Path], kind: str, name: str) -> list[Array]:
    if kind == "HDF5":
        return [array for (array,) in hdf5.arrays(paths, (name,))]
    if kind == ".npz":
        npz.require_sound(paths, {name}, set())
        return [array for path in paths for array in npz.arrays(path, (name,))]
    return [npy.mapped(path) if kind == ".npy" else idx.images(path) for path in paths]
