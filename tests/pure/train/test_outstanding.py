"""Portions that wait for kernels which other ranks may have taken."""

from __future__ import annotations

import pytest

from weft.runtime.train.outstanding import Outstanding


@pytest.mark.parametrize(
    ("events", "told"),
    [
        pytest.param([("when", 0)], [0], id="a portion of which nothing is put out is told at once"),
        pytest.param([("put", 7, 0), ("when", 0)], [], id="one of which a kernel is out waits"),
        pytest.param([("put", 7, 0), ("when", 0), ("done", 7)], [0], id="until that is done"),
        pytest.param([("put", 7, 0), ("done", 7), ("when", 0)], [0], id="or was done before"),
        pytest.param(
            [("put", 7, 0), ("put", 8, 0), ("when", 0), ("done", 8)], [], id="until the last of several is"
        ),
        pytest.param(
            [("put", 7, 0, 1), ("when", 1), ("when", 0), ("done", 7)], [0, 1], id="a kernel of two portions"
        ),
        pytest.param([("put", 7, 0), ("when", 1)], [1], id="others do not wait"),
        pytest.param(
            [("put", 7, 0), ("when", 0), ("when", 0), ("done", 7), ("done", 7)],
            [0, 0],
            id="each callback is told once",
        ),
    ],
)
def test_a_portion_is_told_when_nothing_of_it_is_missing(events, told):
    outstanding, found = Outstanding(), []
    for what, number, *portions in events:
        if what == "put":
            outstanding.put_out(number, portions)
        elif what == "done":
            outstanding.done(number)
        else:
            outstanding.when(number, lambda number=number: found.append(number))
    assert found == told
