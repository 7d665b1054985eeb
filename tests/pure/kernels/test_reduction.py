"""Sums over ranks: their order, aliasing, sizes at the edges of blocks; and the fused step, to the bit."""

from __future__ import annotations

from functools import reduce

import numpy as np
import pytest

from tests.pure.kernels.checks import oracle_only
from tests.pure.kernels.test_optimizer import arrays, every_optimizer
from weft.kernels.optimizer import SGD, Optimizer
from weft.kernels.reduction import add_up, reduce_and_update

SIZES = {"nothing": 0, "one": 1, "less than a vector": 7, "a block and some": 16384 + 2048 + 5}
sizes = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])
counts = pytest.mark.parametrize("count", [1, 2, 3, 8, 9])


def parts(count: int, size: int, dtype: str) -> list[np.ndarray]:
    """Numbers of such different size that another order of addition gives another sum."""
    generator = np.random.default_rng((count, size))
    return [
        (generator.standard_normal(size) * 10.0 ** generator.integers(-4, 5, size)).astype(dtype)
        for _ in range(count)
    ]


def in_order(given: list[np.ndarray]) -> np.ndarray:
    return reduce(np.add, given)


@dtypes
@sizes
@counts
def test_parts_are_added_in_order(count, size, dtype):
    given = parts(count, size, dtype)
    into = np.full(size, np.nan, dtype)
    add_up(into, given)
    np.testing.assert_array_equal(into, in_order(given))
    with oracle_only():
        add_up(into, given)
    np.testing.assert_array_equal(into, in_order(given))


@pytest.mark.parametrize("count", [2, 3, 9])
def test_another_order_would_show(count):
    given = parts(count, 5000, "float32")
    assert (in_order(given) != in_order(given[::-1])).any() == (count > 2)


@dtypes
@counts
def test_the_sum_may_replace_any_part(count, dtype):
    for place in {0, count // 2, count - 1}:
        given = parts(count, 5000, dtype)
        wanted = in_order(given)
        others = [each.copy() for each in given]
        add_up(given[place], given)
        np.testing.assert_array_equal(given[place], wanted)
        for index in set(range(count)) - {place}:
            np.testing.assert_array_equal(given[index], others[index])
        with oracle_only():
            add_up(others[place], others)
        np.testing.assert_array_equal(others[place], wanted)


def test_a_part_that_is_no_number_stays_visible():
    given = parts(4, 100, "float32")
    given[2][17] = np.nan
    add_up(given[0], given)
    assert np.flatnonzero(np.isnan(given[0])).tolist() == [17]


@dtypes
@sizes
@pytest.mark.parametrize("count", [1, 2, 9])
@every_optimizer
def test_the_fused_step_equals_sum_and_update_to_the_bit(optimizer: Optimizer, count, size, dtype):
    given = parts(count, size, dtype)
    kept = [each.copy() for each in given]
    fused, apart = arrays(optimizer, size, dtype), arrays(optimizer, size, dtype)
    numbers = {"rate": 0.01, "scale": 0.3}
    for step in (1, 2):
        decay = step == 1
        reduce_and_update(optimizer, fused[0], given, tuple(fused[1:]), step=step, decay=decay, **numbers)
        total = np.empty(size, dtype)
        add_up(total, given)
        optimizer.update(apart[0], total, tuple(apart[1:]), step=step, decay=decay, **numbers)
    for one, other in zip([*fused, *given], [*apart, *kept], strict=True):
        np.testing.assert_array_equal(one, other)


@every_optimizer
def test_the_fused_step_equals_its_oracle(optimizer: Optimizer):
    given = [np.random.default_rng(k).standard_normal(1001).astype("float32") for k in range(3)]
    fused, plain = arrays(optimizer, 1001), arrays(optimizer, 1001)
    for step in (1, 2, 3):
        reduce_and_update(optimizer, fused[0], given, tuple(fused[1:]), rate=0.01, step=step, scale=0.5)
        with oracle_only():
            reduce_and_update(optimizer, plain[0], given, tuple(plain[1:]), rate=0.01, step=step, scale=0.5)
    for one, other in zip(fused, plain, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-7)


def zeros(size: int, dtype: str = "float32") -> np.ndarray:
    return np.zeros(size, dtype)


WRONG = {
    "no parts": (lambda: add_up(zeros(3), []), r"add_up: \[\] are to be added up for \(3,\) float32"),
    "a part of another size": (lambda: add_up(zeros(3), [zeros(3), zeros(4)]), r"'\(4,\) float32'"),
    "a part of another dtype": (lambda: add_up(zeros(3), [zeros(3, "float64")]), r"'\(3,\) float64'"),
    "gradients of another size": (
        lambda: reduce_and_update(SGD(), zeros(3), [zeros(4)], (), rate=0.1, step=1),
        r"reduce_and_update: \['\(4,\) float32'\]",
    ),
    "a state too few": (
        lambda: reduce_and_update(SGD(momentum=0.9), zeros(3), [zeros(3)], (), rate=0.1, step=1),
        "takes 1 state",
    ),
}


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG.keys())
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
