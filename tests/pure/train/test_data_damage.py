"""Data that cannot be read: what is said about it."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.pure.train.loaded import load
from tests.pure.train.sources import LABELS, SOURCES, N, images
from weft.runtime.errors import DataError


def rewrite(name: str, change: Any) -> None:
    Path(name).write_bytes(change(Path(name).read_bytes()))


def store_again_damaged(name: str, member: str) -> None:
    """A second member of that name, which is read in place of the first."""
    with zipfile.ZipFile(name, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(member, archive.read(member))
    at = Path(name).read_bytes().rindex(b"\x93NUMPY") + 200
    rewrite(name, lambda b: b[:at] + bytes([b[at] ^ 1]) + b[at + 1 :])


def rezip(name: str, member: str, change: Any) -> None:
    with zipfile.ZipFile(name) as archive:
        held = {entry: archive.read(entry) for entry in archive.namelist()}
    with zipfile.ZipFile(name, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry, content in held.items():
            archive.writestr(entry, change(content) if entry == member else content)


def rehdf5(change: Any) -> None:
    with h5py.File("plain.h5", "a") as file:
        change(file)


def damaged_lzma(archive: bytes) -> bytes:
    """The archive's members compressed by LZMA, and 30 bytes amid the first of them lost."""
    made = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(archive)) as plain,
        zipfile.ZipFile(made, "w", zipfile.ZIP_LZMA) as packed,
    ):
        for entry in plain.namelist():
            packed.writestr(entry, plain.read(entry))
    content = made.getvalue()
    return content[:200] + b"\xff" * 30 + content[230:]


def without_endings(archive: bytes) -> bytes:
    """The archive, its members named without .npy, and a byte of the first of them flipped."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as named, zipfile.ZipFile(made, "w") as renamed:
        for entry in named.namelist():
            renamed.writestr(entry.removesuffix(".npy"), named.read(entry))
    content = made.getvalue()
    return content[:300] + bytes([content[300] ^ 1]) + content[301:]


def with_a_password(archive: bytes) -> bytes:
    """The archive, its first member marked as encrypted in the directory at the end."""
    flags = archive.index(b"PK\1\2") + 8
    return archive[:flags] + b"\1" + archive[flags + 1 :]


DAMAGE = {
    "a missing file": (
        "IDX files",
        lambda: Path("x.idx").unlink(),
        r"^x.idx: there is no such file; .* exists",
    ),
    "a truncated IDX file": (
        "IDX files",
        lambda: rewrite("x.idx", lambda b: b[:-1]),
        r"x.idx: has 615 bytes, but its header, uint8 of shape \(40, 3, 5\), makes it 616; fetch it again",
    ),
    "an IDX file with more behind": (
        "IDX files",
        lambda: rewrite("x.idx", lambda b: b + b"x"),
        r"has 617 bytes",
    ),
    "an IDX file cut in its header": (
        "IDX files",
        lambda: rewrite("x.idx", lambda b: b[:9]),
        r"ends within its header",
    ),
    "a wrong magic": (
        "IDX files",
        lambda: rewrite("x.idx", lambda b: b"RIFF"),
        r"starts with 52 49 46 46; an IDX file",
    ),
    "an IDX type that does not exist": (
        "IDX files",
        lambda: rewrite("x.idx", lambda b: b"\0\0\7" + b[3:]),
        r"00 00 07 03",
    ),
    "an empty IDX file": (
        "IDX files",
        lambda: rewrite("x.idx", lambda b: b""),
        r"x.idx: starts with nothing",
    ),
    "truncated gzip": (
        "gzipped IDX files",
        lambda: rewrite("x.idx.gz", lambda b: b[:-20]),
        r"x.idx.gz: is not whole gzip data",
    ),
    "unequal lengths": (
        "a pair of npy files",
        lambda: np.save("y.npy", LABELS[:-1]),
        r"x.npy holds 40 samples but y.npy 39; the first axis of both counts the samples",
    ),
    "a truncated npy file": (
        "a pair of npy files",
        lambda: rewrite("x.npy", lambda b: b[:-1]),
        r"x.npy: is not a whole .npy file",
    ),
    "a negative extent in the header of an npy file": (
        "a pair of npy files",
        lambda: rewrite("x.npy", lambda b: b.replace(b"(40, 3", b"(-4, 3")),
        r"not a whole .npy file: it has 728 bytes, but .* \(-4, 3, 5\), makes it 68; save or fetch it again$",
    ),
    "an extent beyond all memory in that of a compressed npz file": (
        "a compressed npz file",
        lambda: rezip(
            "small.npz", "x.npy", lambda b: b.replace(b", 3, 5), }         ", b", 1099511627776), }")
        ),
        r"small.npz: is not a whole .npz file: it has 728 bytes, .* \(40, 1099511627776\), makes it 43,980,",
    ),
    "a header of an npy file that is cut off in a line": (
        "a pair of npy files",
        lambda: rewrite("x.npy", lambda b: b.replace(b"}", b"{", 1)),
        r"x.npy: is not a whole .npy file: .*; save or fetch it again$",
    ),
    "something else than npy": (
        "a pair of npy files",
        lambda: rewrite("x.npy", lambda b: b"{}"),
        r"is not a whole .npy",
    ),
    "strings for labels": (
        "a pair of npy files",
        lambda: np.save("y.npy", LABELS.astype(str)),
        r"y.npy: holds <U21 where",
    ),
    "no samples": (
        "a pair of npy files",
        lambda: (np.save("x.npy", images()[:0]), np.save("y.npy", LABELS[:0])),
        r"x.npy: holds no samples; its shape is \(0, 3, 5\)",
    ),
    "too few samples for a validation set": (
        "a pair of npy files",
        lambda: (np.save("x.npy", images()[:4]), np.save("y.npy", LABELS[:4])),
        r"x.npy: 4 samples leave none for \[data\] validation = 0.1; give more data, a larger fraction",
    ),
    "a truncated npz file": (
        "a plain npz file",
        lambda: rewrite("plain.npz", lambda b: b[:-30]),
        r"is not a whole .npz",
    ),
    "flipped bytes in an npz file": (
        "a plain npz file",
        lambda: rewrite("plain.npz", lambda b: b[:300] + bytes([b[300] ^ 1]) + b[301:]),
        r"plain.npz: is not a whole .npz file: Bad CRC-32 for file 'x.npy'",
    ),
    "flipped bytes in the later of two arrays of one name": (
        "a plain npz file",
        lambda: store_again_damaged("plain.npz", "x.npy"),
        r"plain.npz: is not a whole .npz file: Bad CRC-32 for file 'x.npy'",
    ),
    "flipped bytes in an npz file whose members have no ending": (
        "a plain npz file",
        lambda: rewrite("plain.npz", without_endings),
        r"plain.npz: is not a whole .npz file: Bad CRC-32 for file 'x'",
    ),
    "flipped bytes in an npz file of another compression": (
        "a plain npz file",
        lambda: rewrite("plain.npz", damaged_lzma),
        r"plain.npz: is not a whole .npz file: Corrupt input data; save or fetch it again$",
    ),
    "an npz file without the array": (
        "a plain npz file",
        lambda: np.savez("plain.npz", xx=images(), y=LABELS),
        r"plain.npz: holds no array 'x'(; did you mean xx\?)?; it holds xx, y",
    ),
    "objects in an npz file": (
        "a plain npz file",
        lambda: np.savez("plain.npz", x=np.array([{}] * N), y=LABELS),
        r"plain.npz: x.npy: holds Python objects; save it as numbers",
    ),
    "objects in a compressed npz file": (
        "a compressed npz file",
        lambda: np.savez_compressed("small.npz", x=np.array([{}] * N), y=LABELS),
        r"small.npz: x.npy: holds Python objects; save it as numbers",
    ),
    "objects in an npy file": (
        "a pair of npy files",
        lambda: np.save("x.npy", np.array([{}] * N)),
        r"x.npy: holds Python objects; save it as numbers",
    ),
    "an encrypted npz file": (
        "a plain npz file",
        lambda: rewrite("plain.npz", with_a_password),
        r"plain.npz: x.npy is encrypted; store it without a password",
    ),
    "a folder for an npz file": (
        "a plain npz file",
        lambda: (Path("plain.npz").unlink(), Path("plain.npz").mkdir()),
        r"^plain.npz: is a folder, and no file in it ends in .npz; name a file, or a pattern such as plain",
    ),
    "a folder for an npy file": (
        "a pair of npy files",
        lambda: (Path("x.npy").unlink(), Path("x.npy").mkdir()),
        r"^x.npy: is a folder, and no file in it ends in .npy; name a file, or a pattern",
    ),
    "a truncated HDF5 file": (
        "a compressed HDF5 file",
        lambda: rewrite("small.h5", lambda b: b[:-30]),
        r"^small.h5: is not a whole HDF5 file: .*truncated.*; save or fetch it again$",
    ),
    "a damaged chunk of an HDF5 file": (
        "a compressed HDF5 file",
        lambda: rewrite("small.h5", lambda b: b.replace(b"\x78\x5e", b"\0\0").replace(b"x\x01", b"\0\0")),
        r"^small.h5\[fields/x\]: cannot be read: .*; save or fetch it again$",
    ),
    "an archive called HDF5": (
        "an HDF5 file",
        lambda: Path("plain.npz").rename("plain.h5"),
        r"^plain.h5: is not a whole HDF5 file: .*signature not found",
    ),
    "netCDF of before HDF5": (
        "an HDF5 file",
        lambda: rewrite("plain.h5", lambda b: b"CDF\1" + b[4:]),
        r"^plain.h5: is a netCDF file of before version 4; convert it by `nccopy -k nc4`$",
    ),
    "an HDF5 file without the dataset": (
        "an HDF5 file",
        lambda: rehdf5(lambda file: file.move("fields/x", "fields/xx")),
        r"^plain.h5: holds no dataset 'fields/x'(; did you mean fields/xx\?)?; it holds fields/xx, y$",
    ),
    "a group for a dataset": (
        "an HDF5 file",
        lambda: rehdf5(lambda file: (file.move("fields/x", "z"), file.create_group("fields/x"))),
        r"^plain.h5: 'fields/x' is a group; it holds y, z$",
    ),
    "a dataset that was made and never written": (
        "an HDF5 file",
        lambda: rehdf5(lambda file: (file.pop("y"), file.create_dataset("y", data=h5py.Empty("f4")))),
        r"^plain.h5\[y\]: holds no samples; it is an empty dataset$",
    ),
    "a dataset of names": (
        "an HDF5 file",
        lambda: rehdf5(lambda file: (file.pop("y"), file.create_dataset("y", data=["a"] * N))),
        r"^plain.h5\[y\]: holds object where numbers are needed",
    ),
    "packed numbers": (
        "an HDF5 file",
        lambda: rehdf5(lambda file: file["fields/x"].attrs.create("scale_factor", [0.01])),
        r"^plain.h5\[fields/x\]: is packed \(scale_factor = 0.01\); store its numbers themselves",
    ),
    "complex numbers": (
        "a pair of npy files",
        lambda: np.save("x.npy", images("c8")),
        r"^x.npy: holds complex64 where numbers are needed; store real and imaginary parts as two",
    ),
    "records": (
        "a pair of npy files",
        lambda: np.save("x.npy", np.zeros(N, [("a", "f4"), ("b", "i4")])),
        r"^x.npy: holds \[.*\] where numbers are needed; store its fields as one array of numbers$",
    ),
    "times": (
        "a pair of npy files",
        lambda: np.save("x.npy", np.arange(N).astype("M8[s]")),
        r"^x.npy: holds datetime64\[s\] where numbers are needed; store times as numbers, such as seconds$",
    ),
    "a pipe, of whose first bytes a second look knows nothing": (
        "CSV",
        lambda: (Path("t.csv").unlink(), os.mkfifo("t.csv")),
        r"^t.csv: is a device or a pipe, which cannot be read more than once; store what it gives as a file$",
    ),
    "a device without an end": (
        "a plain npz file",
        lambda: (Path("plain.npz").unlink(), Path("plain.npz").symlink_to("/dev/zero")),
        r"^plain.npz: is a device or a pipe",
    ),
}


@pytest.mark.parametrize(("source", "damage", "expected"), DAMAGE.values(), ids=DAMAGE)
def test_damage(source: str, damage: Any, expected: str, here: Path) -> None:
    damage()
    with pytest.raises(DataError, match=expected):
        load(**SOURCES[source])


def test_data_in_a_folder_of_somebody_elses_is_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat = os.stat

    def guarded(path: Any, **options: Any) -> Any:
        if str(path).endswith("plain.npz"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", guarded)
    with pytest.raises(DataError, match=r"^plain.npz: cannot be read: Permission denied$"):
        load(**SOURCES["a plain npz file"])


def test_data_in_the_home_folder_of_nobody_is_missing() -> None:
    with pytest.raises(DataError, match=r"^~nobody-of-that-name/a.npz: there is no such file"):
        load("npz", path="~nobody-of-that-name/a.npz")


def test_arrays_of_an_npz_file_may_lack_the_suffix(here: Path) -> None:
    with zipfile.ZipFile("bare.npz", "w") as archive:
        archive.write("x.npy", "x")
        archive.write("y.npy")
    assert load("npz", path="bare.npz").digest() == load("npz", path="plain.npz").digest()


def test_a_python_without_lzma_reads_what_is_packed_otherwise():
    """Many are built without it, and none of the sources could be imported there."""
    program = "import sys; sys.modules['_lzma'] = None; import weft.runtime.train.data.npz"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
