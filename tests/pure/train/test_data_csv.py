"""CSV files: what is read from good ones, and what is said about bad ones."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.pure.train.loaded import gathered, load
from weft.runtime.errors import DataError

N = 40


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [f"{number},{number / 2},{number % 7}" for number in range(N)]
    (tmp_path / "t.csv").write_text("a,b,y\n" + "\n".join(rows) + "\n")
    monkeypatch.chdir(tmp_path)


def test_columns_keep_their_order_without_the_target() -> None:
    data = load("csv", path="t.csv", target="a", header=True, normalise="none", loss="mean_squared_error")
    inputs, targets = gathered(data.train)
    np.testing.assert_array_equal(inputs[:, 0], targets[:, 0] / 2)
    np.testing.assert_array_equal(inputs[:, 1], targets[:, 0] % 7)


def test_a_target_may_hold_names() -> None:
    lines = [f'{i},"b, with comma"\n' if i % 2 else f"{i},  a\n" for i in range(N)]
    Path("n.csv").write_text("".join(lines))
    data = load("csv", path="n.csv", target=-1, header=False, normalise="none")
    assert data.labels == ("a", "b, with comma")
    inputs, targets = gathered(data.train)
    np.testing.assert_array_equal(targets, inputs[:, 0] % 2)
    with pytest.raises(DataError, match=r"holds names \('a', …\), and mean_squared_error takes numbers; for"):
        load("csv", "mean_squared_error", path="n.csv", target=-1, header=False)


def test_names_that_python_alone_takes_for_numbers_are_names() -> None:
    Path("n.csv").write_text("".join(f"{i},1_{i % 2}\n" for i in range(N)))
    assert load("csv", path="n.csv", target=-1, header=False).labels == ("1_0", "1_1")


def test_gz_byte_order_mark_and_other_delimiters() -> None:
    text = "\ufeffa;b\n" + "".join(f"{i};{i % 3}\n" for i in range(N))
    Path("s.csv").write_bytes(gzip.compress(text.encode()))
    data = load("csv", path="s.csv", target="b", header=True, delimiter=";", test_path="s.csv")
    assert (len(data.test), data.classes) == (N, 3)


def test_a_test_sets_columns_are_found_by_their_names() -> None:
    Path("a.csv").write_text("\na,b,y\n" + "".join(f"{i},{-i},{i % 2}\n" for i in range(N)))
    Path("b.csv").write_text("y,b,a\n" + "".join(f"{i % 2},{-i},{i}\n" for i in range(N)))
    keys = {"path": "a.csv", "target": "y", "header": True, "normalise": "none"}
    inputs, targets = gathered(load("csv", test_path="b.csv", **keys).test)
    np.testing.assert_array_equal(inputs, np.stack([np.arange(N), -np.arange(N)], 1))
    np.testing.assert_array_equal(targets, np.arange(N) % 2)
    for head in ("u,b,y", "a,b,b,y", "a,b,y,c"):
        columns = head.count(",") + 1
        Path("b.csv").write_text(f"{head}\n" + f"{','.join('1' * columns)}\n" * N)
        with pytest.raises(DataError, match=r"b.csv: has the columns .*, but a.csv a, b, y; name the same"):
            load("csv", test_path="b.csv", **keys)


def test_what_is_quoted_may_hold_delimiters_and_ends_of_lines() -> None:
    rows = "".join(f'{i},"{"one" if i % 2 else "x, y"}\n\nmore, too"\n' for i in range(N))
    Path("q.csv").write_text('"the\nfirst",y\n' + rows)
    data = load("csv", path="q.csv", target="y", header=True, normalise="none")
    assert (len(data.labels), sum(map(len, (data.train, data.validation, data.test)))) == (2, N)


def test_a_quotation_mark_within_a_name_is_one() -> None:
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
        ("1,2,0\n3,1_000,1\n", {}, r"t.csv:2: column 1 holds '1_000', not a finite number$"),
        ("1,2,0\n\n3,,1\n", {}, r"t.csv:3: column 1 holds '', not a finite number$"),
        ("  \na,b,y\n\n1,2,0\n  \n3,x,1\n", {"header": True}, r"t.csv:6: column 1 \(b\) holds 'x'"),
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
            '1,cat\n2,"dog\n' + 20_000 * "3,cow\n",
            {},
            r"'2,.dog.* has 20,001 lines: a quotation mark is missing",
        ),
        (
            '1,cat\n2,"dog\n' + 30_000 * "3,cow\n",
            {},
            r"'2,.dog.* has 21,\d+ lines: a quotation mark is missing",
        ),
        (
            '1,"cat\n' + 30_000 * "3,cow\n",
            {},
            r"field larger than field limit .131072.; is a quotation mark missing in its first",
        ),
        (
            "y,a,y\n1,2,0\n",
            {"header": True, "target": "y"},
            r"t.csv: has 2 columns 'y'; say which by its",
        ),
        ("1,\xff,0\n", {}, r"t.csv: cannot be read: 'utf-8' codec can't decode byte 0xff"),
    ],
)
def test_wrong(text: str, keys: dict[str, Any], expected: str) -> None:
    Path("t.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=expected):
        load("csv", **{"path": "t.csv", "target": -1, "header": False, **keys})
