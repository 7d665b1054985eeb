"""Data sources: what is read from good files, and what is said about bad ones."""

from __future__ import annotations

import errno
import gzip
import io
import os
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.pure.train.loaded import AnyArray, gathered, load
from weft.runtime.errors import DataError
from weft.runtime.train.data.samples import split
from weft.runtime.train.tally import Tally

N = 40


def images(dtype: str = "u1") -> AnyArray:
    """N images whose first pixel is their number, so that a sample can be followed through the split."""
    made = np.random.default_rng(0).integers(0, 100, (N, 3, 5)).astype(dtype)
    made[:, 0, 0] = np.arange(N)
    return made


LABELS = np.arange(N) % 7


def idx_bytes(array: AnyArray, code: int) -> bytes:
    head = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", images())
    np.save(tmp_path / "y.npy", LABELS)
    np.savez(tmp_path / "plain.npz", x=images(), y=LABELS)
    np.savez_compressed(tmp_path / "small.npz", x=images(), y=LABELS)
    (tmp_path / "x.idx").write_bytes(idx_bytes(images(), 0x08))
    (tmp_path / "y.idx").write_bytes(idx_bytes(LABELS.astype("u1"), 0x08))
    (tmp_path / "x.idx.gz").write_bytes(gzip.compress(idx_bytes(images(), 0x08)))
    (tmp_path / "y.idx.gz").write_bytes(gzip.compress(idx_bytes(LABELS.astype("i4"), 0x0C)))
    rows = [f"{number},{number / 2},{label}" for number, label in enumerate(LABELS)]
    (tmp_path / "t.csv").write_text("a,b,y\n" + "\n".join(rows) + "\n")
    return tmp_path


SOURCES = {
    "digits": {"source": "digits"},
    "a pair of npy files": {"source": "npy", "inputs": "x.npy", "targets": "y.npy"},
    "a plain npz file": {"source": "npz", "path": "plain.npz"},
    "a compressed npz file": {"source": "npz", "path": "small.npz"},
    "IDX files": {"source": "idx", "inputs": "x.idx", "targets": "y.idx"},
    "gzipped IDX files": {"source": "idx", "inputs": "x.idx.gz", "targets": "y.idx.gz"},
    "CSV": {"source": "csv", "path": "t.csv", "target": "y", "header": True},
}


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("keys", SOURCES.values(), ids=SOURCES)
def test_three_splits_of_one_kind(keys: dict[str, Any], here: Path) -> None:
    data = load(**keys)
    total = 1797 if keys["source"] == "digits" else N
    counts = [len(data.train), len(data.validation), len(data.test)]
    assert counts == [total - round(total * 0.1) - round(total * 0.2), round(total * 0.1), round(total * 0.2)]
    assert data.classes == (10 if keys["source"] == "digits" else 7)
    assert (data.input_spec.dtype, data.target_spec.dtype, data.target_spec.shape) == ("float32", "int32", ())
    assert data.digest() == load(**keys).digest() != load(**keys, seed=1).digest()


@pytest.mark.parametrize("name", [name for name in SOURCES if name not in ("digits", "CSV")])
def test_every_image_arrives_once_with_its_label(name: str, here: Path) -> None:
    data = load(**SOURCES[name])
    inputs, targets = (
        np.concatenate(both)
        for both in zip(*map(gathered, (data.train, data.validation, data.test)), strict=True)
    )
    numbers = np.rint(inputs.reshape(N, -1)[:, 0] * 255).astype(int)
    assert sorted(numbers) == list(range(N))
    np.testing.assert_array_equal(targets, LABELS[numbers])
    np.testing.assert_allclose(inputs.reshape(N, 3, 5), images()[numbers] / np.float32(255), rtol=1e-6)


def test_digits_are_raw_in_the_file_and_from_0_to_1_in_training() -> None:
    data = load("digits")
    inputs, _ = gathered(data.train)
    assert (inputs.min(), inputs.max()) == (0.0, 1.0)
    assert data.affine.scale == 1 / 16


def test_images_of_idx_files_have_a_channel(here: Path) -> None:
    assert load(**SOURCES["IDX files"]).input_spec.shape == (1, 3, 5)
    assert load(**SOURCES["a plain npz file"]).input_spec.shape == (3, 5)
    assert load(**SOURCES["a plain npz file"], shape=[1, 5, 3]).input_spec.shape == (1, 5, 3)


@pytest.mark.parametrize("name", ["a pair of npy files", "a plain npz file", "IDX files"])
def test_large_arrays_stay_in_the_file(name: str, here: Path) -> None:
    inputs = load(**SOURCES[name]).train.content()[0]
    while inputs is not None and not isinstance(inputs, np.memmap):
        inputs = inputs.base  # type: ignore[assignment]
    assert isinstance(inputs, np.memmap)


@pytest.mark.parametrize("dtype", ["u1", "i2", "i8", "f2", "f4", "f8", ">f4", "?"])
@pytest.mark.parametrize("normalise", ["range", "standard", "none"])
def test_inputs_of_any_type_leave_as_float32(dtype: str, normalise: str, here: Path) -> None:
    raw = images("i8").reshape(N, 15)
    np.save("x.npy", raw.astype(dtype))
    data = load("npy", inputs="x.npy", targets="y.npy", normalise=normalise, test=0.0)
    inputs, _ = gathered(data.train)
    rows = data.train.content()[2]
    expected = raw.astype(dtype).astype(np.float64)[rows]
    if normalise == "range" and dtype == "u1":
        expected /= 255
    if normalise == "standard":
        deviation = expected.std(0)
        expected = (expected - expected.mean(0)) / np.where(deviation > 0, deviation, 1)
    np.testing.assert_allclose(inputs, expected, rtol=1e-5, atol=1e-5)


def test_a_column_far_from_zero_keeps_its_digits(here: Path) -> None:
    times = 1.7e9 + np.arange(N)
    np.save("x.npy", times)
    data = load("npy", inputs="x.npy", targets="y.npy", normalise="standard")
    inputs, _ = gathered(data.train)
    assert len(np.unique(inputs)) == len(data.train)
    assert abs(inputs.std() - 1) < 1e-5


@pytest.mark.parametrize(
    ("dtype", "mean", "deviation", "takes"),
    [
        ("float64", 1.7e9, 3e3, "float64"),
        ("int64", 1.7e9, 3e3, "float64"),
        ("float32", 1.7e9, 3e3, "float32"),  # as training took them
        ("float64", 1.7e9, 3e7, "float32"),
        ("float64", 300.0, 0.5, "float32"),
        ("uint8", 100.0, 9.0, "float32"),
        ("float64", 1.7e9, 0.0, "float64"),  # new samples may vary there
        ("float64", 1e3, 0.0, "float32"),
        ("float64", 0.0, 0.0, "float32"),
    ],
)
def test_a_model_takes_float64_where_float32_keeps_too_little_of_what_training_read(
    dtype: str, mean: float, deviation: float, takes: str, here: Path
) -> None:
    column = mean + deviation * np.linspace(-1, 1, N)
    np.save("x.npy", column.astype(dtype))
    assert load("npy", inputs="x.npy", targets="y.npy", normalise="standard").affine.takes == takes


@pytest.mark.parametrize("value", [0.1, 1 / 3, -7.7, 1e9 / 7, 0.0])
def test_a_column_of_one_number_is_as_large_as_it_is(value: float, here: Path) -> None:
    np.save("x.npy", np.stack([np.arange(N), np.full(N, value)], 1))
    np.save("other.npy", np.stack([np.arange(N), np.full(N, value + 1)], 1))
    test = {"test_inputs": "other.npy", "test_targets": "y.npy"}
    data = load("npy", inputs="x.npy", targets="y.npy", normalise="standard", **test)
    assert np.abs(gathered(data.train)[0][:, 1]).max() <= 1e-5 * abs(value)
    np.testing.assert_allclose(gathered(data.test)[0][:, 1], 1, rtol=1e-5)


def test_images_are_normalised_by_channel(here: Path) -> None:
    np.save("x.npy", np.random.default_rng(0).normal([[[[5]], [[-1]]]], [[[[2]], [[9]]]], (N, 2, 3, 3)))
    inputs, _ = gathered(load("npy", inputs="x.npy", targets="y.npy", normalise="standard").train)
    np.testing.assert_allclose(inputs.mean((0, 2, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(inputs.std((0, 2, 3)), 1, atol=1e-5)


def test_numbers_to_be_met_have_an_axis_as_a_dense_layers_output_has(here: Path) -> None:
    np.save("y.npy", np.linspace(-1, 1, N))
    data = load("npy", "mean_squared_error", inputs="x.npy", targets="y.npy")
    assert (data.classes, data.target_spec.shape, data.target_spec.dtype) == (None, (1,), "float32")
    _, targets = gathered(data.train)
    np.testing.assert_array_equal(targets[:, 0], np.linspace(-1, 1, N).astype("f4")[data.train.content()[2]])


def test_a_test_set_of_its_own_is_taken_whole(here: Path) -> None:
    np.savez("both.npz", x_train=images(), y_train=LABELS, x_test=images()[:5], y_test=LABELS[:5] + 3)
    keys = {"inputs": "x_train", "targets": "y_train", "test_inputs": "x_test", "test_targets": "y_test"}
    data = load("npz", path="both.npz", **keys)
    assert [len(data.train), len(data.validation), len(data.test)] == [36, 4, 5]
    np.testing.assert_array_equal(gathered(data.test)[1], LABELS[:5] + 3)
    assert data.classes == 8


@given(st.integers(11, 300), st.integers(0, 2**63 - 1), st.floats(0.1, 0.45), st.floats(0.1, 0.45))
def test_a_split_loses_and_doubles_nothing(n: int, seed: int, validation: float, test: float) -> None:
    parts = split(n, seed, validation, test, "data")
    assert sorted(np.concatenate(parts)) == list(range(n))
    assert [len(part) for part in parts[1:]] == [round(n * validation), round(n * test)]


@pytest.mark.parametrize("value", [np.nan, -np.inf, 1e300])
def test_the_sample_that_no_float32_holds_is_named(value: float, here: Path) -> None:
    inputs = images("f8")
    inputs[17, 1, 2] = value
    np.save("x.npy", inputs)
    data = load("npy", inputs="x.npy", targets="y.npy")
    rows = list(data.train.content()[2])
    first, others = rows.index(17), [index for index, row in enumerate(rows) if row != 17]
    assert data.train.damage(np.array([others[0], first])) == f"sample 17 of x.npy holds {value}"
    assert data.train.damage(np.array(others)) == ""
    tally = Tally.of(3, N, N)
    tally.enter(1, np.nan, 0)
    parts = [np.array([first]), np.array(others), np.array([first])]
    assert tally.damage(data.train, parts) == ""  # where the loss is a number, nobody looks
    tally.enter(2, np.inf, 0)
    assert tally.damage(data.train, parts) == f"sample 17 of x.npy holds {value}"


@pytest.mark.parametrize("value", [np.nan, np.inf, -1e39])
def test_targets_that_no_float32_holds_are_refused(value: float, here: Path) -> None:
    targets = np.zeros((N, 2))
    targets[5, 1] = value
    np.save("y.npy", targets)
    with pytest.raises(
        DataError, match=rf"y.npy: target {re.escape(str(value))} of sample 5 is no float32; clean"
    ):
        load("npy", "mean_squared_error", inputs="x.npy", targets="y.npy")


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e9, 0.5])
def test_numbers_that_are_no_class_are_told_as_they_are(value: float, here: Path) -> None:
    targets = LABELS.astype(float)
    targets[5] = value
    np.save("y.npy", targets)
    with pytest.raises(DataError, match=rf"y.npy: target {re.escape(str(value))} of sample 5 is no class"):
        load("npy", inputs="x.npy", targets="y.npy")


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
        r"plain.npz: cannot be read: Is a directory",
    ),
    "a folder for an npy file": (
        "a pair of npy files",
        lambda: (Path("x.npy").unlink(), Path("x.npy").mkdir()),
        r"x.npy: cannot be read: Is a directory",
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


def test_a_shape_that_does_not_fit(here: Path) -> None:
    with pytest.raises(
        DataError, match=r"a sample has shape \(3, 5\), which does not fit into \[data\] shape = \[4, 4\]"
    ):
        load(**SOURCES["a plain npz file"], shape=[4, 4])


@pytest.mark.parametrize(
    ("value", "told"),
    [
        pytest.param(np.nan, "sample 7 holds nan", id="a NaN is named"),
        pytest.param(-np.inf, "sample 7 holds -inf", id="so is an infinity, without a warning of NumPy's"),
        pytest.param(
            1e200, "it holds numbers too large to be squared", id="what is finite is not called NaN"
        ),
    ],
)
def test_what_cannot_be_normalised(value: float, told: str, here: Path) -> None:
    inputs = np.zeros((N, 2))
    inputs[7, 1] = value
    np.save("x.npy", inputs)
    with pytest.raises(DataError, match=rf"^x.npy: {told}, so that nothing can be normalised; clean it$"):
        load("npy", inputs="x.npy", targets="y.npy", normalise="standard", validation=0.0, test=0.0)


def test_a_python_without_lzma_reads_what_is_packed_otherwise():
    """Many are built without it, and none of the sources could be imported there."""
    program = "import sys; sys.modules['_lzma'] = None; import weft.runtime.train.data.npz"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
