"""What weft predict writes as CSV; system/test_predict.py runs it."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest

from weft.runtime.errors import Mistake
from weft.runtime.serve.request import TensorInfo
from weft.runtime.serve.table import ROWS, Table

LOGITS, VALUE, BARE = (TensorInfo("y", "FP32", shape) for shape in ((-1, 3), (-1, 1), (-1,)))
NAMES = ("birke", "tanne, groß", "x\n")

TABLES = {
    "a class by its name, however large its logits": (
        Table(LOGITS, NAMES),
        [[0, 0, np.log(2)], [5000, -5000, 0], [-5000, -4999, -5000]],
        [["0", "x\n", "0.5"], ["1", "birke", "1"], ["2", "tanne, groß", "0.576117"]],
    ),
    "a class that has no name by its number": (
        Table(LOGITS, NAMES[:2]),
        [[0, 50, 0], [0, 0, 50]],
        [["0", "tanne, groß", "1"], ["1", "2", "1"]],
    ),
    "classes without names": (Table(LOGITS, ()), [[0, 50, 0]], [["0", "1", "1"]]),
    "no class for what is no number": (
        Table(LOGITS, NAMES),
        [[np.nan, 1, 2], [np.inf, 1, 2], [50, 0, 0]],
        [["0", "", "nan"], ["1", "", "nan"], ["2", "birke", "1"]],
    ),
    "numbers as they are": (
        Table(LOGITS),
        [[0.1, -1e-30, np.nan], [65537, 3e38, -np.inf]],
        [["0", "0.1", "-1e-30", "nan"], ["1", "65537.0", "3e+38", "-inf"]],
    ),
    "the probability of each label, however large its logit": (
        Table(LOGITS, binary=True),
        [[0, -np.log(3), 5000], [-5000, np.nan, np.inf]],
        [["0", "0.5", "0.25", "1"], ["1", "0", "nan", "nan"]],
    ),
    "one number a sample": (Table(VALUE), [[0.5], [2]], [["0", "0.5"], ["1", "2.0"]]),
    "a number without an axis": (Table(BARE), [0.5, 2], [["0", "0.5"], ["1", "2.0"]]),
}


@pytest.mark.parametrize(("table", "values", "lines"), TABLES.values(), ids=TABLES)
def test_a_line_a_sample(table, values, lines):
    text = "".join(table.text(np.array(values, np.float32)))
    header, *found = csv.reader(io.StringIO(text))
    assert found == lines
    assert len(header) == len(lines[0])
    assert "\r" not in text


@pytest.mark.parametrize(
    ("table", "header"),
    [
        (Table(LOGITS, NAMES), "sample,class,probability"),
        (Table(LOGITS), "sample,y_0,y_1,y_2"),
        (Table(LOGITS, binary=True), "sample,probability_0,probability_1,probability_2"),
        (Table(VALUE, binary=True), "sample,probability"),
        (Table(VALUE), "sample,y"),
        (Table(BARE), "sample,y"),
    ],
    ids=["classes", "several numbers", "several labels", "one label", "one number", "no axis"],
)
def test_the_header(table, header):
    assert ",".join(table.header) == header


def test_further_outputs_stand_in_columns_behind_the_first():
    deviation = TensorInfo("y_deviation", "FP32", (-1, 2))
    values = np.array([[0, 9, 0], [9, 0, 0]], np.float32), np.array([[0.5, 1], [2, 3]], np.float32)
    table = Table(LOGITS, ("a", "b"), (deviation, BARE))
    found = "".join(table.text(*values, np.array([7.0, 8.0]))).splitlines()
    assert found == [
        "sample,class,probability,y_deviation_0,y_deviation_1,y",
        "0,b,0.999753,0.5,1.0,7.0",
        "1,a,0.999753,2.0,3.0,8.0",
    ]
    with pytest.raises(Mistake, match=r"^y_deviation gives \(2, 2\) for a sample"):
        Table(LOGITS, None, (TensorInfo("y_deviation", "FP32", (-1, 2, 2)),))


def test_whole_numbers_and_more_samples_than_are_written_at_once():
    table = Table(TensorInfo("y", "INT64", (-1, 1)))
    parts = list(table.text(np.arange(2**60, 2**60 + ROWS + 1)[:, None]))
    assert len(parts) == 2
    assert "".join(parts).splitlines() == ["sample,y", *(f"{i},{2**60 + i}" for i in range(ROWS + 1))]


def test_values_that_are_no_row_are_refused():
    with pytest.raises(Mistake, match=r"logits gives \(128, 256\) for a sample, .*: name an \.npy file"):
        Table(TensorInfo("logits", "FP32", (-1, 128, 256)))
