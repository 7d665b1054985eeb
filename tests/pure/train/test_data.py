"""Data sources: what is read from good files, and what is said about bad ones."""

from __future__ import annotations

import gzip
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import TypeAdapter

from weft.runtime.errors import DataError
from weft.runtime.train.data import Data, Samples, load_data
from weft.runtime.train.data.samples import split
from weft.runtime.train.data.section import DataSection
from weft.runtime.train.job import load_job
from weft.runtime.train.tally import Tally

AnyArray = NDArray[Any]
N = 40


def load(source: str, loss: str = "softmax_cross_entropy", seed: int = 0, **keys: Any) -> Data:
    section: DataSection = TypeAdapter(DataSection).validate_python({"source": source, **keys})
    return load_data(section, seed, loss)


def gathered(samples: Samples, indices: list[int] | None = None) -> tuple[AnyArray, AnyArray]:
    chosen = np.array(range(len(samples)) if indices is None else indices)
    inputs = np.full((len(chosen) + 1, *samples.input_spec.shape), 99, samples.input_spec.dtype)
    targets = np.full((len(chosen) + 1, *samples.target_spec.shape), 99, samples.target_spec.dtype)
    samples.gather(chosen, inputs, targets)
    assert (inputs[-1] == 99).all(), "wrote behind the samples asked for"
    assert (targets[-1] == 99).all()
    return inputs[:-1], targets[:-1]


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


class TestCsv:
    def test_columns_keep_their_order_without_the_target(self, here: Path) -> None:
        data = load("csv", path="t.csv", target="a", header=True, normalise="none", loss="mean_squared_error")
        inputs, targets = gathered(data.train)
        np.testing.assert_array_equal(inputs[:, 0], targets[:, 0] / 2)
        np.testing.assert_array_equal(inputs[:, 1], targets[:, 0] % 7)

    def test_a_target_may_hold_names(self, here: Path) -> None:
        lines = [f'{i},"b, with comma"\n' if i % 2 else f"{i},  a\n" for i in range(N)]
        Path("n.csv").write_text("".join(lines))
        data = load("csv", path="n.csv", target=-1, header=False, normalise="none")
        assert data.labels == ("a", "b, with comma")
        inputs, targets = gathered(data.train)
        np.testing.assert_array_equal(targets, inputs[:, 0] % 2)
        with pytest.raises(
            DataError, match=r"holds names \('a', …\), which mean_squared_error cannot approach"
        ):
            load("csv", "mean_squared_error", path="n.csv", target=-1, header=False)

    def test_gz_byte_order_mark_and_other_delimiters(self, here: Path) -> None:
        text = "\ufeffa;b\n" + "".join(f"{i};{i % 3}\n" for i in range(N))
        Path("s.csv").write_bytes(gzip.compress(text.encode()))
        data = load("csv", path="s.csv", target="b", header=True, delimiter=";", test_path="s.csv")
        assert (len(data.test), data.classes) == (N, 3)

    def test_a_test_sets_columns_are_found_by_their_names(self, here: Path) -> None:
        Path("a.csv").write_text("\na,b,y\n" + "".join(f"{i},{-i},{i % 2}\n" for i in range(N)))
        Path("b.csv").write_text("y,b,a\n" + "".join(f"{i % 2},{-i},{i}\n" for i in range(N)))
        keys = {"path": "a.csv", "target": "y", "header": True, "normalise": "none"}
        inputs, targets = gathered(load("csv", test_path="b.csv", **keys).test)
        np.testing.assert_array_equal(inputs, np.stack([np.arange(N), -np.arange(N)], 1))
        np.testing.assert_array_equal(targets, np.arange(N) % 2)
        for head in ("u,b,y", "a,b,b,y", "a,b,y,c"):
            columns = head.count(",") + 1
            Path("b.csv").write_text(f"{head}\n" + f"{','.join('1' * columns)}\n" * N)
            with pytest.raises(
                DataError, match=r"b.csv: has the columns .*, but a.csv a, b, y; name the same"
            ):
                load("csv", test_path="b.csv", **keys)

    def test_what_is_quoted_may_hold_delimiters_and_ends_of_lines(self, here: Path) -> None:
        rows = "".join(f'{i},"{"one" if i % 2 else "x, y"}\n\nmore, too"\n' for i in range(N))
        Path("q.csv").write_text('"the\nfirst",y\n' + rows)
        data = load("csv", path="q.csv", target="y", header=True, normalise="none")
        assert (len(data.labels), sum(map(len, (data.train, data.validation, data.test)))) == (2, N)

    def test_a_quotation_mark_within_a_name_is_one(self, here: Path) -> None:
        Path("q.csv").write_text("".join(f'{i},{5 + i % 2}" pipe\n   \n\n' for i in range(N)))
        data = load("csv", path="q.csv", target=-1, header=False)
        assert data.labels == ('5" pipe', '6" pipe')
        assert sum(map(len, (data.train, data.validation, data.test))) == N

    @pytest.mark.parametrize(
        ("text", "keys", "expected"),
        [
            ("1,2,0\n3,2,1,5\n1,2,0\n", {}, r"t.csv:2: has 4 columns where the first row has 3"),
            ("0\n1\n", {}, r"t.csv: its samples hold no numbers; its shape is \(2, 0\)"),
            ("1,2,0\n3,nan,1\n", {}, r"t.csv:2: column 1 holds 'nan', not a finite number$"),
            ("1,2,0\n\n3,,1\n", {}, r"t.csv:3: column 1 holds '', not a finite number$"),
            ("a,b,y\n1,2,0\n3,x,1\n", {"header": True}, r"t.csv:3: column 1 \(b\) holds 'x'"),
            ("1,2,0\n1,2\n", {}, r"t.csv:2: has 2 columns where the first row has 3"),
            ("a,b,0\n1,2,0\n", {}, r"t.csv:1: column 0 holds 'a'.*if it is a header, say header = true"),
            ("1,2,0.5\n1,2,1\n", {}, r"t.csv\[2\]: target 0.5 of sample 0 is no class"),
            ("1,2,-1\n1,2,1\n", {}, r"targets reach from -1 to 1; classes are 0, 1, …"),
            ("1,2,0\n", {"target": 3}, r"has 3 columns, so there is none with number 3"),
            ("1,2,0\n", {"target": "y"}, r"header = false, so the target is a column's number, not 'y'"),
            (
                "aa,bb,y\n1,2,0\n",
                {"target": "b", "header": True},
                r"no column 'b'; did you mean bb\?; it has aa, bb, y",
            ),
            ("", {}, r"t.csv: holds no rows$"),
            ("a,y\n1,2,0\n", {"header": True}, r"t.csv: its header names 2 columns, and its first row has 3"),
            ("a,b,y\n1\n", {"header": True}, r"t.csv: its header names 3 columns, and its first row has 1"),
            ("1,cat\n1,\n", {}, r"t.csv:2: column 1 is empty, and names no class"),
            (
                "a,y\n1,cat\n\n1, \n",
                {"header": True, "target": "y"},
                r"t.csv:4: column 1 \(y\) is empty, and names no",
            ),
            ("a,b,y\n", {"header": True}, r"t.csv: holds no rows below its header"),
            ('1,2,0\n"3",2,1,5\n1,2,0\n', {}, r"t.csv:2: has 4 columns where the first row has 3"),
            ('1,"2",0\n3,2,1\n1,2,0,4\n', {}, r"t.csv:3: has 4 columns where the first row has 3"),
            ('1,"cat"\n2,"dog\n3,dog\n', {}, r"row that begins with '2,.dog.*has 2 lines: a quotation"),
            ('1,cat\n2,"dog\n3,"cat"\n', {}, r"'2,.dog.* has 2 lines: a quotation mark is missing"),
            (
                "y,a,y\n1,2,0\n",
                {"header": True, "target": "y"},
                r"t.csv: has 2 columns 'y'; say which by its",
            ),
            ("1,\xff,0\n", {}, r"t.csv: cannot be read: 'utf-8' codec can't decode byte 0xff"),
        ],
    )
    def test_wrong(self, text: str, keys: dict[str, Any], expected: str, here: Path) -> None:
        Path("t.csv").write_bytes(text.encode("latin-1"))
        with pytest.raises(DataError, match=expected):
            load("csv", **{"path": "t.csv", "target": -1, "header": False, **keys})


class TestText:
    def test_targets_are_the_next_bytes_and_no_window_crosses(self, here: Path) -> None:
        Path("t.txt").write_bytes(bytes(range(200)))
        data = load("text", path="t.txt", context=8)
        first = {}
        for name in ("train", "validation", "test"):
            samples = getattr(data, name)
            inputs, targets = gathered(samples)
            np.testing.assert_array_equal(targets, inputs + 1)
            np.testing.assert_array_equal(inputs[:, 0], inputs[0, 0] + 8 * np.arange(len(samples)))
            first[name] = (inputs.min(), targets.max())
        assert first == {"train": (0, 136), "validation": (140, 156), "test": (160, 192)}
        assert (data.classes, data.input_spec.shape, data.input_spec.dtype) == (256, (8,), "int32")
        np.testing.assert_array_equal(gathered(data.train, [3, 1])[0][:, 0], [24, 8])

    def test_a_folder_is_read_in_sorted_order(self, here: Path) -> None:
        for name, text in {
            "b.py": "B" * 50,
            "a/z.py": "A" * 50,
            "test/x.py": "X" * 50,
            "c.txt": "C" * 50,
        }.items():
            Path("f", name).parent.mkdir(parents=True, exist_ok=True)
            Path("f", name).write_text(text)
        data = load(
            "text", path="f", files="**/*.py", exclude=["**/test/**"], context=9, validation=0.0, test=0.0
        )
        inputs, _ = gathered(data.train)
        assert bytes(inputs.astype("u1").ravel()) == b"A" * 50 + b"B" * 49

    def test_the_standard_library_is_there(self) -> None:
        job = load_job("stdlib-gpt")
        data = load_data(job.data, job.seed)
        assert len(data.train) > 20_000
        assert data.digest() == load_data(job.data, job.seed).digest()

    @pytest.mark.parametrize(
        ("content", "keys", "expected"),
        [
            (b"", {}, "t.txt: is empty"),
            (
                b"12345678",
                {"context": 8, "test": 0.0, "validation": 0.0},
                "its train part has 8 of 8 bytes, too few",
            ),
            (b"x" * 100, {"context": 15}, "its validation part has 10 of 100 bytes, too few for one window"),
            (gzip.compress(b"x" * 100, mtime=0), {}, "is gzipped, and so its bytes are no text"),
        ],
    )
    def test_wrong(self, content: bytes, keys: dict[str, Any], expected: str, here: Path) -> None:
        Path("t.txt").write_bytes(content)
        with pytest.raises(DataError, match=expected):
            load("text", path="t.txt", **keys)

    def test_a_pattern_without_files(self, here: Path) -> None:
        with pytest.raises(
            DataError, match=r"1 files match \[data\] files = '\*.csv', and exclude = \['t\*'\] leaves none"
        ):
            load("text", path=".", files="*.csv", exclude=["t*"])
        with pytest.raises(DataError, match=r"\[data\] files = '/etc/\*' is no pattern of files in it"):
            load("text", path=".", files="/etc/*")


def rewrite(name: str, change: Any) -> None:
    Path(name).write_bytes(change(Path(name).read_bytes()))


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
}


@pytest.mark.parametrize(("source", "damage", "expected"), DAMAGE.values(), ids=DAMAGE)
def test_damage(source: str, damage: Any, expected: str, here: Path) -> None:
    damage()
    with pytest.raises(DataError, match=expected):
        load(**SOURCES[source])


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


def test_nan_cannot_be_normalised(here: Path) -> None:
    np.save("x.npy", np.full((N, 2), np.nan, "f4"))
    with pytest.raises(DataError, match=r"x.npy: holds NaN or infinity"):
        load("npy", inputs="x.npy", targets="y.npy", normalise="standard")
