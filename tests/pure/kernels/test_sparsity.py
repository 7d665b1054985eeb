"""The largest elements: against sorting, ties and all; what is not sent is kept; sums in the ranks' order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.pure.kernels.checks import oracle_only
from weft.kernels.sparsity import add_up_largest, encode_largest


def take(values: np.ndarray, residual: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    indices, kept = np.full(count, 77, "uint32"), np.full(count, np.nan, "float32")
    encode_largest(values, residual, indices, kept)
    return indices, kept


def floats(*numbers: float) -> np.ndarray:
    return np.array(numbers, "float32")


# Few values, so that ties are common; or any at all.
elements = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, -3.0, 1e-40, 1e30]) | st.floats(width=32)


@st.composite
def selections(draw):
    size = draw(st.integers(1, 80))
    pair = [draw(arrays("float32", size, elements=elements)) for _ in range(2)]
    return *pair, draw(st.integers(1, size))


@given(selection=selections())
@settings(deadline=None)
def test_equals_its_oracle_to_the_bit(selection):
    values, residual, count = selection
    with np.errstate(all="ignore"):
        other = residual.copy()
        found = take(values, residual, count)
        with oracle_only():
            wanted = take(values, other, count)
    for one, two in [*zip(found, wanted, strict=True), (residual, other)]:
        np.testing.assert_array_equal(one, two)


@given(selection=selections())
@settings(deadline=None)
def test_what_is_sent_and_what_is_kept_are_the_total(selection):
    values, residual, count = selection
    with np.errstate(all="ignore"):
        total = values + residual
    before = values.copy()
    indices, kept = take(values, residual, count)
    np.testing.assert_array_equal(values, before)
    assert (np.diff(indices.astype(int)) > 0).all()
    np.testing.assert_array_equal(kept, total[indices])
    np.testing.assert_array_equal(residual[indices], 0)
    rest = np.setdiff1d(np.arange(len(total)), indices)
    np.testing.assert_array_equal(residual[rest], total[rest])
    if not np.isnan(total).any():
        assert np.abs(kept).min() >= np.abs(total[rest]).max(initial=0)


@pytest.mark.parametrize("count", [1, 10, 1000, 9999, 10000])
def test_many_elements_equal_the_oracle_too(count):
    values = np.random.default_rng(0).standard_normal(10000).astype("float32")
    found = take(values, np.zeros_like(values), count)
    with oracle_only():
        wanted = take(values, np.zeros_like(values), count)
    np.testing.assert_array_equal(found, wanted)


def test_of_equal_magnitudes_the_first_are_sent():
    indices, kept = take(floats(1, -2, 2, 3, -2, 2), floats(0, 0, 0, 0, 0, 0), 3)
    assert (indices.tolist(), kept.tolist()) == ([1, 2, 3], [-2, 2, 3])


def test_a_small_element_is_sent_when_it_has_grown():
    values, residual = floats(1, 0.25, 0), floats(0, 0, 0)
    sent = [take(values, residual, 1)[0][0] for _ in range(10)]
    assert sent == [0, 0, 0, 0, 1, 0, 0, 0, 0, 1]


def test_a_value_that_is_no_number_is_sent_first():
    indices, kept = take(floats(9, np.nan, np.inf, 1), floats(0, 0, 0, 0), 2)
    assert indices.tolist() == [1, 2]
    assert np.isnan(kept[0])


@pytest.mark.parametrize("oracle", [False, True], ids=["compiled", "array module"])
def test_parts_are_added_in_order(oracle):
    generator = np.random.default_rng(0)
    values = generator.standard_normal((5, 300)) * 10.0 ** generator.integers(-4, 5, (5, 300))
    parts = [take(each.astype("float32"), np.zeros(300, "float32"), 100) for each in values]
    wanted = np.zeros(300, "float32")
    for indices, kept in parts:
        wanted[indices] += kept
    into = np.full(300, np.nan, "float32")
    if oracle:
        with oracle_only():
            add_up_largest(into, parts)
    else:
        add_up_largest(into, parts)
    np.testing.assert_array_equal(into, wanted)
    backwards = np.zeros(300, "float32")
    add_up_largest(backwards, parts[::-1])
    assert (backwards != wanted).any()


def test_descent_by_one_element_in_twenty_reaches_the_optimum():
    goal = np.random.default_rng(0).standard_normal(20).astype("float32")
    weights, residual, gradient = np.zeros((3, 20), "float32")
    for _ in range(2000):
        add_up_largest(gradient, [take(weights - goal, residual, 1)])
        weights -= np.float32(0.02) * gradient
    np.testing.assert_allclose(weights, goal, atol=1e-4)


def zeros(size: int, dtype: str = "float32") -> np.ndarray:
    return np.zeros(size, dtype)


WRONG = {
    "a residual of another size": (
        lambda: encode_largest(zeros(3), zeros(4), zeros(1, "uint32"), zeros(1)),
        r"values are \(3,\) float32, the residual \(4,\) float32",
    ),
    "values of double precision": (
        lambda: encode_largest(zeros(3, "float64"), zeros(3), zeros(1, "uint32"), zeros(1)),
        r"values are \(3,\) float64",
    ),
    "signed indices": (
        lambda: encode_largest(zeros(3), zeros(3), zeros(1, "int32"), zeros(1)),
        r"indices are \(1,\) int32",
    ),
    "nothing to send": (
        lambda: encode_largest(zeros(3), zeros(3), zeros(0, "uint32"), zeros(0)),
        r"kept \(0,\); give uint32, both of one size from 1 to the residual's 3",
    ),
    "more to send than there is": (
        lambda: encode_largest(zeros(3), zeros(3), zeros(4, "uint32"), zeros(4)),
        r"from 1 to the residual's 3",
    ),
    "an index that is out of range": (
        lambda: add_up_largest(zeros(3), [(np.array([1, 3], "uint32"), zeros(2))]),
        "part 0 has an element at 3; the sum has 3",
    ),
}


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG.keys())
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
