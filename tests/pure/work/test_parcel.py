"""Tasks and results as bytes: what goes in comes out, one behind the other."""

from __future__ import annotations

import numpy as np
import pytest

from weft.runtime.errors import Mistake
from weft.runtime.message.wire import EAGER_BYTES
from weft.runtime.work.pool.parcel import (
    HEAD,
    NOTHING,
    Head,
    Parts,
    Result,
    for_message,
    from_message,
    pack,
    packed,
    result_of,
    unpack,
    unpack_all,
)
from weft.runtime.work.pool.slots import joined, split

ARRAYS = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.asfortranarray(np.arange(6).reshape(2, 3)),
    np.array("größe"),
    np.zeros((0, 4)),
    np.array([(1, 2.5)], dtype=[("a", ">i2"), ("b", "f8")]),
    np.arange(10)[::3],
]


def test_arrays_of_every_kind_come_back_as_they_were_and_are_writable():
    (body, arrays), end = unpack(pack({"n": [1, None]}, ARRAYS))
    assert body == {"n": [1, None]}
    assert end == len(pack({"n": [1, None]}, ARRAYS))
    for got, given in zip(arrays, ARRAYS, strict=True):
        np.testing.assert_array_equal(got, given)
        assert got.dtype == given.dtype
        assert got.flags.writeable


def test_a_task_with_what_it_needs_is_read_piece_by_piece():
    head = HEAD.pack(3, 1, 2, 9, 5, 77, 0.25)
    task = head + pack("own", [ARRAYS[0]]) + pack(1) + pack(None, [ARRAYS[2]])
    assert Head.of(task) == Head(3, 1, 2, 9, 5, 77, 0.25)
    own, at = unpack(task, HEAD.size)
    assert own.body == "own"
    first, second = unpack_all(task, at, 2)
    assert first == Result(1, [])
    assert second.arrays[0].item() == "größe"


@pytest.mark.parametrize("parts", [[NOTHING], [pack(1), pack("two", ARRAYS)], []])
def test_a_result_is_split_as_it_was_joined(parts):
    assert split(joined(2**40, True, parts)) == (2**40, True, parts)


@pytest.mark.parametrize(
    ("sizes", "behind"),
    [([], 0), ([3, 0, 5], 0), ([EAGER_BYTES + 1], 1), ([0, EAGER_BYTES, 1, 0], 1)],
    ids=["none", "few bytes go in the body", "many behind it", "also of several, empty ones among them"],
)
def test_parcels_come_out_of_a_message_as_they_went_in(sizes, behind):
    parcels = [bytes([number]) * size for number, size in enumerate(sizes)]
    part, arrays = for_message(parcels)
    assert len(arrays) == behind
    assert from_message(part, arrays) == parcels


@pytest.mark.parametrize(
    ("value", "body", "arrays"),
    [
        (None, None, 0),
        ([1, 2], [1, 2], 0),
        (ARRAYS[0], None, 1),
        (("b", ARRAYS[0], ARRAYS[1]), "b", 2),
        ((ARRAYS[0], ARRAYS[1]), None, 2),
        ((1, 2), (1, 2), 0),
        (Result("r", [ARRAYS[0]]), "r", 1),
    ],
)
def test_what_a_function_returns_is_a_body_arrays_or_both(value, body, arrays):
    found = result_of(value)
    assert found.body == body
    assert len(found.arrays) == arrays
    assert len(packed(value)) == 1


def test_parts_are_a_result_each():
    assert packed(Parts([Result(1, []), Result(2, [])])) == [pack(1), pack(2)]


@pytest.mark.parametrize(
    "value",
    [(1, 2, ARRAYS[0]), [ARRAYS[0], ARRAYS[1]], {"weights": ARRAYS[0]}, Parts([Result([ARRAYS[0]], [])])],
    ids=["a tuple with two bodies", "a list of arrays", "a dict of arrays", "a part of several"],
)
def test_what_cannot_travel_is_refused_with_what_to_return_instead(value):
    with pytest.raises(
        Mistake, match=r"(?s)`return body, first, second` \(.* arrays go behind the body"
    ) as told:
        packed(value)
    assert told.value.__suppress_context__
