"""Whatever is encoded is decoded to the same."""

from __future__ import annotations

import datetime
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from weft.runtime.errors import Mistake
from weft.runtime.message.wire import as_bytes, decode, encode


def through(body: Any, *arrays: NDArray[Any]) -> tuple[Any, list[NDArray[Any]]]:
    header, frames = encode(body, arrays)
    body, received = decode(header, len(arrays))
    for array, frame in zip(received, frames, strict=True):
        as_bytes(array)[:] = frame
    return body, received


def same(a: NDArray[Any], b: NDArray[Any]) -> None:
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    assert a.tobytes("A" if not b.flags.c_contiguous else "C") == b.tobytes(
        "A" if not b.flags.c_contiguous else "C"
    )
    assert b.flags.writeable
    assert b.flags.owndata


bodies = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(0, 9), inner),
    max_leaves=20,
)

dtypes = st.one_of(
    npst.scalar_dtypes(),
    npst.byte_string_dtypes(min_len=1),
    npst.unicode_string_dtypes(min_len=1),
    npst.array_dtypes(allow_subarrays=True),
    npst.nested_dtypes(),
).filter(lambda d: d.itemsize > 0 and d.subdtype is None)


@given(body=bodies)
def test_a_body_arrives_as_it_was(body: Any) -> None:
    assert through(body)[0] == body


def test_tuples_stay_tuples_where_they_are_keys() -> None:
    body = {(0, 1): 2.5, "inner": [{("a", (1, b"b")): {(): 1}}]}
    assert through(body)[0] == body
    assert through(body, np.zeros(3))[0] == body


def test_names_of_files_that_are_no_text_travel() -> None:
    body = {"path": os.fsdecode(b"caf\xe9.txt"), "more": ["é", (1, 2)]}
    assert through(body)[0] == {**body, "more": ["é", [1, 2]]}
    assert through("plain again")[0] == "plain again"


def test_threads_pack_at_the_same_time() -> None:
    """NumPy's scalars are packed by Python code, during which another thread may run."""
    bodies = [[{"of": thread, "n": list(np.arange(200))} for _ in range(100)] for thread in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(len(bodies)) as threads:
            packed = list(threads.map(lambda own: [encode(body, ())[0] for body in own], bodies))
    finally:
        sys.setswitchinterval(interval)
    for thread, headers in enumerate(packed):
        for header in headers:
            assert decode(header, 0)[0] == {"of": thread, "n": list(range(200))}


@settings(deadline=None)
@given(data=st.data(), dtype=dtypes, layout=st.sampled_from(["C", "F", "strided", "reversed", "broadcast"]))
def test_an_array_keeps_dtype_shape_order_and_contents(data: Any, dtype: Any, layout: str) -> None:
    shape = data.draw(npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    content = data.draw(st.binary(min_size=0, max_size=64))
    size = int(np.prod(shape)) * dtype.itemsize
    memory = np.frombuffer((content + b"\0") * (size // (len(content) + 1) + 1), np.uint8)[:size].copy()
    if dtype.kind == "b":
        memory &= 1
    array: NDArray[Any] = np.ndarray(shape, dtype, memory if size else None)
    if layout == "F":
        array = np.asarray(array, order="F")
    elif layout == "strided" and array.ndim:
        array = array[..., ::2]
    elif layout == "reversed" and array.ndim:
        array = array[::-1]
    elif layout == "broadcast":
        array = np.broadcast_to(array, (2, *array.shape))
    _, (received,) = through(None, array)
    assert received.dtype == array.dtype
    assert received.shape == array.shape
    assert received.tobytes() == array.tobytes()
    assert (
        received.flags.f_contiguous == (array.flags.f_contiguous or (received.ndim < 2 or received.size <= 1))
        or not array.flags.c_contiguous
    )


@pytest.mark.parametrize(
    "array",
    [
        pytest.param(np.float32(3.5).reshape(()), id="a zero-dimensional array stays one"),
        pytest.param(np.empty((0, 3)), id="an empty array keeps its shape"),
        pytest.param(np.asfortranarray(np.arange(6.0).reshape(2, 3)), id="Fortran order is kept"),
        pytest.param(np.array(["2026-01-01", "NaT"], "M8[D]"), id="dates keep their unit"),
        pytest.param(np.array([1 + 2j], ">c16"), id="the byte order is kept"),
        pytest.param(np.array([True, False]), id="truth values travel"),
        pytest.param(np.array([b"ab", b""]), id="bytes of fixed width travel"),
        pytest.param(np.array(["weft", "å"]), id="text of fixed width travels"),
        pytest.param(np.zeros(2, np.dtype([("a", "i1"), ("b", "f8")], align=True)), id="padding is kept"),
        pytest.param(np.zeros(2, np.dtype("V7")), id="raw bytes travel"),
        pytest.param(
            np.zeros(2, np.dtype([("x", [("y", ">i2", (2, 3))]), ("t", "U3")])), id="nested records travel"
        ),
    ],
)
def test_array(array: NDArray[Any]) -> None:
    same(array, through("body", array)[1][0])


def test_several_arrays_share_a_message() -> None:
    body, arrays = through({"n": 3}, np.arange(3), np.arange(4.0), np.empty(0))
    assert body == {"n": 3}
    assert [a.size for a in arrays] == [3, 4, 0]


def test_a_contiguous_array_is_not_copied() -> None:
    array = np.asfortranarray(np.zeros((64, 64)))
    _, (frame,) = encode(None, [array])
    assert np.shares_memory(frame, array)


def test_numbers_taken_out_of_an_array_become_plain() -> None:
    assert through({"loss": np.float32(0.5), "at": np.int64(7)})[0] == {"loss": 0.5, "at": 7}


@pytest.mark.parametrize(
    ("body", "arrays", "says"),
    [
        pytest.param(2**70, [], "64 bits", id="an integer that is too big"),
        pytest.param(object(), [], "type object", id="an arbitrary object"),
        pytest.param({"when": datetime.date(2026, 1, 1)}, [], "type date", id="a date inside"),
        pytest.param(np.zeros(3), [], "arrays go behind the body", id="an array in the body"),
        pytest.param(
            {"at": np.datetime64(0, "ns")}, [], "type datetime64", id="a time, which became a bare number"
        ),
        pytest.param(
            {"in": memoryview(b"abcdef")[::2]}, [], "can't be sent: .*contiguous", id="memory with gaps in it"
        ),
        pytest.param(None, [np.array([object()])], "Python objects", id="an array of objects"),
        pytest.param(
            None,
            [np.ones(2, ml_dtypes.bfloat16)],
            r"dtype bfloat16 .*astype\('float32'\), or send its bytes",
            id="another library's dtype, which became raw bytes",
        ),
        pytest.param(
            None,
            [np.ones(2, [("x", ml_dtypes.bfloat16)])],
            "NumPy alone does not know it",
            id="another library's dtype in a record",
        ),
        pytest.param(
            None,
            [np.ma.masked_less(np.arange(3), 1)],
            r"with a mask .*int64 of shape \(3,\).*array\.filled\(value\), or array\.data and",
            id="an array with a mask, which was lost",
        ),
        pytest.param(
            None,
            [np.zeros(2, np.dtype({"names": ["a", "b"], "formats": ["i4", "i2"], "offsets": [0, 2]}))],
            "repack_fields",
            id="records with fields that overlap",
        ),
    ],
)
def test_what_cannot_travel_is_refused(body: Any, arrays: list[NDArray[Any]], says: str) -> None:
    with pytest.raises(Mistake, match=says):
        encode(body, arrays)
    assert through([1])[0] == [1]  # and leaves nothing behind
