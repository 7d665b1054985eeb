"""float16 and bfloat16 codes: every tie, both oracles, what is lost kept, and what diverged shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.pure.kernels.checks import oracle_only
from weft.kernels import precision
from weft.kernels.precision import LARGEST_BFLOAT16, LARGEST_FLOAT16


@dataclass(frozen=True)
class Format:
    encode: Callable[..., None]
    add_up: Callable[..., None]
    largest: float
    digits: int  # of the significand that a code keeps, the leading one included
    tiniest: float


FLOAT16 = Format(precision.encode_float16, precision.add_up_float16, LARGEST_FLOAT16, 11, 2.0**-24)
BFLOAT16 = Format(precision.encode_bfloat16, precision.add_up_bfloat16, LARGEST_BFLOAT16, 8, 2.0**-133)
formats = pytest.mark.parametrize("form", [FLOAT16, BFLOAT16], ids=["float16", "bfloat16"])

ALL_CODES = np.arange(2**16, dtype="uint16")


@contextmanager
def plain() -> Iterator[None]:
    """The array-module bodies; infinity less infinity is meant there, and NumPy warns."""
    with oracle_only(), np.errstate(all="ignore"):
        yield


def encode(form: Format, values: np.ndarray, residual: np.ndarray | None = None) -> np.ndarray:
    out = np.full(values.shape, 0xDEAD, "uint16")
    nothing = np.full_like(values, -0.0)  # x + -0.0 is x, also where x is -0.0
    form.encode(values, nothing if residual is None else residual, out)
    return out


def decode(form: Format, code: np.ndarray) -> np.ndarray:
    into = np.full(code.shape, 12345, "float32")
    form.add_up(into, [code])
    return into


def theirs(form: Format, values: np.ndarray) -> np.ndarray:
    """Codes by NumPy's conversion, or by ml_dtypes'."""
    dtype = np.dtype("float16") if form is FLOAT16 else pytest.importorskip("ml_dtypes").bfloat16
    with np.errstate(all="ignore"):
        return values.astype(dtype).view("uint16")


def numbers_between_codes(form: Format) -> np.ndarray:
    """Every finite code's value, the middles between neighbours, and the float32 numbers beside all these."""
    finite = decode(form, ALL_CODES)
    finite = np.unique(finite[np.isfinite(finite)]).astype("float64")
    middles = (finite[1:] + finite[:-1]) / 2
    edge = form.largest * (1 + 2.0**-form.digits) * np.array([1, -1])  # from here on others have infinity
    exact = np.concatenate([finite, middles, edge]).astype("float32")
    with np.errstate(all="ignore"):
        return np.concatenate(
            [exact, np.nextafter(exact, np.float32(9)), np.nextafter(exact, np.float32(-9))]
        )


def random_bits(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2**32, count).astype("uint32").view("float32")


def test_every_float16_code_decodes_as_in_numpy():
    wanted = ALL_CODES.view("float16").astype("float32")
    np.testing.assert_array_equal(decode(FLOAT16, ALL_CODES).view("uint32"), wanted.view("uint32"))


def test_every_bfloat16_code_is_the_upper_half_of_a_float32():
    wanted = ALL_CODES.astype("uint32") << 16
    np.testing.assert_array_equal(decode(BFLOAT16, ALL_CODES).view("uint32"), wanted)


@formats
@pytest.mark.parametrize(
    "source", [numbers_between_codes, lambda form: random_bits(2**18)], ids=["ties", "random"]
)
def test_rounds_as_others_do(form, source):
    values = source(form)
    code, wanted = encode(form, values), theirs(form, values)
    beyond = np.isfinite(values) & ~np.isfinite(decode(form, wanted))
    assert beyond.any()
    np.testing.assert_array_equal(decode(form, code[beyond]), np.copysign(form.largest, values[beyond]))
    number = ~np.isnan(values) & ~beyond
    np.testing.assert_array_equal(code[number], wanted[number])
    assert np.isnan(decode(form, code[np.isnan(values)])).all()


any_float32 = st.floats(width=32, allow_subnormal=True)
pairs = st.integers(0, 70).flatmap(
    lambda size: st.tuples(*(arrays("float32", size, elements=any_float32) for _ in range(2)))
)


@formats
@given(pair=pairs)
@settings(deadline=None)
def test_encoding_equals_its_oracle(form, pair):
    with np.errstate(all="ignore"):
        values, residual = pair
        kept, other = residual.copy(), residual.copy()
        code = encode(form, values.copy(), kept)
        with plain():
            wanted = encode(form, values.copy(), other)
    numbers = ~np.isnan(decode(form, wanted))
    np.testing.assert_array_equal(code[numbers], wanted[numbers])
    assert np.isnan(decode(form, code[~numbers])).all()
    np.testing.assert_array_equal(kept, other)


@formats
@given(pair=pairs)
@settings(deadline=None)
def test_code_and_residual_are_the_total_to_the_bit(form, pair):
    values, residual = pair
    with np.errstate(all="ignore"):
        total = values + residual
    before = values.copy()
    code = encode(form, values, residual)
    np.testing.assert_array_equal(values, before)
    inside, beyond = np.abs(total) <= form.largest, np.isfinite(total) & (np.abs(total) > form.largest)
    sent = decode(form, code).astype("float64")
    np.testing.assert_array_equal((sent + residual)[inside], total[inside])
    bound = np.maximum(np.abs(total) * 2.0**-form.digits, form.tiniest / 2)
    assert (np.abs(residual) <= bound)[inside].all()
    np.testing.assert_array_equal(np.abs(sent[beyond]), form.largest)
    np.testing.assert_array_equal(residual[beyond], (total[beyond] - sent[beyond]).astype("float32"))


@formats
def test_what_is_too_small_for_a_code_is_sent_when_it_has_grown(form):
    values = np.array([form.tiniest / 5, -form.tiniest / 5], "float32")
    residual = np.zeros_like(values)
    sent = np.zeros(2)
    for _ in range(100):
        sent += decode(form, encode(form, values, residual))
    assert not decode(form, encode(form, values)).any()
    np.testing.assert_array_equal(sent, [20 * form.tiniest, -20 * form.tiniest])


def test_what_is_too_large_for_float16_follows_in_the_next_steps():
    values, residual = np.array([2e5, -2e5], "float32"), np.zeros(2, "float32")
    sent = [decode(FLOAT16, encode(FLOAT16, values, residual))]
    sent += [decode(FLOAT16, encode(FLOAT16, np.zeros_like(values), residual)) for _ in range(4)]
    assert [step[0] for step in sent] == [65504, 65504, 65504, 3488, 0]
    assert [step[1] for step in sent] == [-65504, -65504, -65504, -3488, 0]


@formats
def test_what_diverged_shows(form):
    values = np.array([np.inf, -np.inf, np.nan, -np.nan, 1], "float32")
    found = decode(form, encode(form, values))
    np.testing.assert_array_equal(found, values)


@formats
@pytest.mark.parametrize("count", [1, 2, 5])
def test_parts_are_added_in_order(form, count):
    generator = np.random.default_rng(count)
    size = 1003
    numbers = generator.standard_normal((count, size)) * 10.0 ** generator.integers(-4, 4, (count, size))
    parts = [encode(form, each.astype("float32")) for each in numbers]
    wanted = decode(form, parts[0])
    for part in parts[1:]:
        wanted += decode(form, part)
    found, other = np.full((2, size), np.nan, "float32")
    form.add_up(found, parts)
    with plain():
        form.add_up(other, parts)
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(other, wanted)


def zeros(size: int, dtype: str = "float32") -> np.ndarray:
    return np.zeros(size, dtype)


WRONG = {
    "a residual of another size": (
        lambda form: form.encode(zeros(3), zeros(4), zeros(3, "uint16")),
        r"\(3,\) float32, \(4,\) float32, \(3,\) uint16; give",
    ),
    "values of double precision": (
        lambda form: form.encode(zeros(3, "float64"), zeros(3), zeros(3, "uint16")),
        r"\(3,\) float64, \(3,\) float32",
    ),
    "codes that are no codes": (
        lambda form: form.encode(zeros(3), zeros(3), zeros(3)),
        r"\(3,\) float32; give",
    ),
    "no parts": (lambda form: form.add_up(zeros(3), []), "0 parts into float32"),
    "a sum of double precision": (
        lambda form: form.add_up(zeros(3, "float64"), [zeros(3, "uint16")]),
        "into float64",
    ),
    "a part of another size": (
        lambda form: form.add_up(zeros(3), [zeros(3, "uint16"), zeros(2, "uint16")]),
        r"a part is \(2,\) uint16; it should be \(3,\)",
    ),
}


@formats
@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG.keys())
def test_mistakes_are_named(form, call, message):
    with pytest.raises(ValueError, match=message):
        call(form)
