"""Text: windows of bytes from files and folders, and what is said where there are none."""

from __future__ import annotations

import errno
import gzip
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.pure.train.loaded import gathered, load
from weft.runtime.errors import DataError
from weft.runtime.train.data import load_data
from weft.runtime.train.job import load_job


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_targets_are_the_next_bytes_and_no_window_crosses() -> None:
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


def test_a_folder_is_read_in_sorted_order() -> None:
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


def test_a_folder_of_somebody_elses_is_not_left_out_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("open/a.txt", "closed/b.txt"):
        Path("f", name).parent.mkdir(parents=True)
        Path("f", name).write_text("A" * 50)
    scandir = os.scandir

    def guarded(path: Any = ".") -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    keys = {"path": "f", "context": 9, "validation": 0.0, "test": 0.0}
    refused = r"f/closed: cannot be read: Permission denied; leave it out with \[data\] exclude"
    for files in ("**/*", "*/*.txt", "[co]*/*", "?l*/**/*.txt"):
        with pytest.raises(DataError, match=refused):
            load("text", **keys, files=files)
    with pytest.raises(DataError, match=r"f/closed: cannot be read: Permission denied$"):
        load("text", **keys, files="closed/*.txt")
    for left_out in (
        {"files": "open/*"},
        {"files": "open/**/*.txt"},
        {"files": "[no]*/*.txt"},
        {"exclude": ["closed/**"]},
    ):
        assert len(load("text", **keys, **left_out).train) == 5


def test_a_file_that_nobody_may_ask_after_is_named_unless_it_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("open/a.txt", "listed/b.txt"):  # of "listed" the names may be read, and nothing else
        Path("f", name).parent.mkdir(parents=True)
        Path("f", name).write_text("A" * 50)

    def guard(function: Any) -> Any:
        def guarded(path: Any, *args: Any, **options: Any) -> Any:
            if str(path).endswith("b.txt"):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return function(path, *args, **options)

        return guarded

    monkeypatch.setattr(Path, "is_file", guard(Path.is_file))
    monkeypatch.setattr("builtins.open", guard(open))
    keys = {"path": "f", "context": 9, "validation": 0.0, "test": 0.0}
    with pytest.raises(DataError, match=r"^f/listed/b.txt: cannot be read: Permission denied"):
        load("text", **keys)
    assert len(load("text", **keys, exclude=["listed/*"]).train) == 5


def test_the_standard_library_is_there() -> None:
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
        (
            b"x" * 100,
            {"context": 1 << 63},
            r"its train part has 70 of 100 bytes, too few .* = 9223372036854775808",
        ),
        (b"x" * 100, {"context": 15}, "its validation part has 10 of 100 bytes, too few for one window"),
        (gzip.compress(b"x" * 100, mtime=0), {}, "is gzipped, and so its bytes are no text"),
    ],
)
def test_wrong(content: bytes, keys: dict[str, Any], expected: str) -> None:
    Path("t.txt").write_bytes(content)
    with pytest.raises(DataError, match=expected):
        load("text", path="t.txt", **keys)


def test_a_pattern_without_files() -> None:
    Path("t.csv").write_text("1,2\n")
    with pytest.raises(
        DataError, match=r"1 files match \[data\] files = '\*.csv', and exclude = \['t\*'\] leaves none"
    ):
        load("text", path=".", files="*.csv", exclude=["t*"])
    with pytest.raises(DataError, match=r"\[data\] files = '/etc/\*' is no pattern of files in it"):
        load("text", path=".", files="/etc/*")
