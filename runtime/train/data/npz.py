""".npz files: arrays by name, memory-mapped where they were stored without compression."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from ...errors import DataError
from ..section import nearest
from .arrays import Pair, joined
from .files import MissingData, reading
from .npy import header
from .parts import parts
from .section import NpzData
from .stored import AnyArray

ENDINGS = (".npz",)

LOCAL_HEADER_BYTES = 30  # a zip member's own header, before its name and extra field

CHUNK_BYTES = 1 << 20

ENCRYPTED = 1  # the flag of a member that wants a password

# What zipfile, the decompressors (OSError is bz2's) and NumPy raise of bytes that are not those of before.
DAMAGED: tuple[type[Exception], ...] = (
    zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError,
)  # fmt: skip
with suppress(ImportError):  # of a Python that was built without it, where zipfile opens no such member
    import lzma

    DAMAGED = (*DAMAGED, lzma.LZMAError)


def pairs(data: NpzData) -> tuple[Pair, Pair | None]:
    """The samples, and the test set if the job names one.

    What is mapped is not compared with its checksums here: `compare` does it, on one rank of a node.
    """
    paths = parts(data.path, ENDINGS)
    pair = _pair(paths, data.path, data.inputs, data.targets)
    if not (data.test_inputs and data.test_targets):
        return pair, None
    return pair, _pair(paths, data.path, data.test_inputs, data.test_targets)


Sound = set[tuple[Path, int]]
"""Archives, and where in them members begin, that have been compared with their checksums."""


def compare(data: NpzData, sound: Sound) -> None:
    """DataError where the bytes of arrays that are mapped are not those that were stored.

    A mapping never asks: a file with flipped bytes was trained on. To read a gigabyte takes a second, as it
    does of a compressed file, but no memory. So what is in `sound` is not read again, and what is found to
    be is added. What there is none of, `pairs` says.
    """
    try:
        paths = parts(data.path, ENDINGS)
    except MissingData:
        return
    require_sound(paths, {data.inputs, data.targets, data.test_inputs, data.test_targets}, sound)


def require_sound(paths: Sequence[Path], names: Collection[str | None], sound: Sound) -> None:
    """The same of arrays of these names."""
    for path in paths:
        with _opened(path) as archive:
            for member in archive.infolist():
                known = path.resolve(), member.header_offset  # of two with one name the last is mapped
                if _name(member) in names and _is_plain(member) and known not in sound:
                    _read_through(archive, member)
                    sound.add(known)


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The archive; DataError for whatever shows that it is damaged."""
    try:
        with reading(path) as file, zipfile.ZipFile(file) as archive:
            yield archive
    except DAMAGED as error:
        raise DataError(f"{path}: is not a whole .npz file: {error}; save or fetch it again") from error


def _pair(paths: Sequence[Path], all_of_them: str, inputs: str, targets: str) -> Pair:
    made = []
    for path in paths:
        x, y = arrays(path, (inputs, targets))
        made.append(Pair(x, y, f"{path}[{inputs}]", f"{path}[{targets}]"))
    return joined(made, f"{all_of_them}[{inputs}]", f"{all_of_them}[{targets}]")


def arrays(path: Path, names: Sequence[str]) -> list[AnyArray]:
    """Arrays of an archive by their names."""
    with _opened(path) as archive:
        return [_array(archive, path, name) for name in names]


def names(path: Path) -> list[str]:
    """Those of an archive's arrays."""
    with _opened(path) as archive:
        return [_name(member) for member in archive.infolist()]


def _array(archive: zipfile.ZipFile, path: Path, name: str) -> AnyArray:
    members = {_name(entry): entry for entry in archive.infolist()}
    if name not in members:
        hint = nearest(name, members)
        raise DataError(f"{path}: holds no array {name!r}{hint}; it holds {', '.join(members) or 'nothing'}")
    member = members[name]
    if member.flag_bits & ENCRYPTED:
        raise DataError(f"{path}: {member.filename} is encrypted; store it without a password")
    if _is_plain(member):
        return _mapped(path, member)
    with archive.open(member) as file:
        header(file, f"{path}: {member.filename}", member.file_size)
        file.seek(0)
        array: AnyArray = np.lib.format.read_array(file, allow_pickle=False)
    return array


def _name(member: zipfile.ZipInfo) -> str:
    """The array's: NumPy takes members without an ending, too."""
    return member.filename.removesuffix(".npy")


def _is_plain(member: zipfile.ZipInfo) -> bool:
    """Whether its bytes lie in the archive as they are, and can be mapped."""
    return member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & ENCRYPTED


def _read_through(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """BadZipFile where the member's bytes are not those that were stored."""
    with archive.open(member) as file:
        while file.read(CHUNK_BYTES):  # zipfile compares the checksum at the end
            pass


def _mapped(path: Path, member: zipfile.ZipInfo) -> AnyArray:
    """The array of a member stored as it is: np.load would read it whole, on every rank of a node."""
    with reading(path) as file:
        file.seek(member.header_offset)
        local = file.read(LOCAL_HEADER_BYTES)
        name_bytes, extra_bytes = (
            int.from_bytes(local[26:28], "little"),
            int.from_bytes(local[28:30], "little"),
        )
        file.seek(name_bytes + extra_bytes, 1)
        shape, fortran, dtype = header(file, f"{path}: {member.filename}", member.file_size)
        if 0 in shape:
            return np.empty(shape, dtype)
        return np.memmap(path, dtype, "r", file.tell(), shape, "F" if fortran else "C")
