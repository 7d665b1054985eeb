"""embedding and position_embedding: look-ups, repeated tokens, and tokens without a row."""

from __future__ import annotations

import numpy as np
import pytest

from tests.pure.kernels.checks import (
    allocate,
    check_against,
    check_gradients,
    check_oracle,
    check_rows,
    normal,
    oracle_only,
    run,
)
from weft.kernels.embedding import Embedding, PositionEmbedding
from weft.kernels.kernel import ArraySpec, Mode


def tokens(*shape: int, dtype: str = "int64") -> np.ndarray:
    return np.random.default_rng(2).integers(0, 6, shape).astype(dtype)


@pytest.mark.parametrize("shape", [(4,), (3, 5), (2, 2, 3)], ids=["a token each", "a sequence", "a picture"])
def test_embedding_gradients_equal_finite_differences(shape):
    check_gradients(Embedding(6, 3, dtype="float64"), tokens(*shape))


def test_embedding_equals_pytorch():
    torch = pytest.importorskip("torch")
    check_against(Embedding(6, 3, dtype="float64"), torch.nn.functional.embedding, tokens(3, 5))


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64"])
def test_embedding_equals_its_oracle(dtype):
    check_oracle(Embedding(6, 33), tokens(4, 50, dtype=dtype))


def test_a_row_that_no_token_names_has_gradient_zero():
    b = run(Embedding(9, 4), allocate(Embedding(9, 4), np.array([[1, 1, 8]])))
    assert np.flatnonzero(b.weight_gradients[0].any(axis=1)).tolist() == [1, 8]


@pytest.mark.parametrize(("token", "dtype"), [(6, "int64"), (-1, "int32"), (200, "uint8")])
def test_a_token_without_a_row_is_named(token, dtype):
    wrong = tokens(3, 4, dtype=dtype)
    wrong[2, 1] = token
    b = allocate(Embedding(6, 3), wrong)
    with pytest.raises(ValueError, match=rf"token {token} at \(2, 1\) has no row; the 6 entries are 0 … 5"):
        Embedding(6, 3).forward(b, Mode())
    with oracle_only():  # on a GPU
        Embedding(6, 3).forward(b, Mode())
    assert np.argwhere(np.isnan(b.output).all(axis=2)).tolist() == [[2, 1]]


@pytest.mark.parametrize("token", [-7, 6])
def test_tokens_from_the_end(token):
    kernel, given = Embedding(6, 3, "float64", from_end=True), np.array([[0, -1, 5, -6]])
    b = run(kernel, allocate(kernel, given))
    np.testing.assert_array_equal(b.output, b.parameters[0][given])
    np.testing.assert_array_equal(b.weight_gradients[0][5], b.output_gradient[0, 1] + b.output_gradient[0, 2])
    check_oracle(kernel, given)
    with pytest.raises(ValueError, match=rf"token {token} at \(0,\) has no row; the 6 entries are -6 … 5"):
        kernel.forward(allocate(kernel, np.array([token])), Mode())


def test_position_gradients_equal_finite_differences():
    check_gradients(PositionEmbedding(), normal(3, 4, 5))


def test_positions_equal_pytorch():
    check_against(PositionEmbedding(), lambda x, table: x + table, normal(3, 4, 5))


def test_blocks_of_places_equal_the_whole_to_the_bit():
    check_rows(PositionEmbedding(), [2, 5], normal(3, 7, 5))


WRONG = [
    ("tokens that are no integers", lambda: Embedding(6, 3).output(ArraySpec((4,))), "tokens are float32"),
    ("a table without rows", lambda: Embedding(0, 3), "entries 0"),
    ("places without a width", lambda: PositionEmbedding().output(ArraySpec((4, 3))), r"shape \(4, 3\)"),
]


@pytest.mark.parametrize(("call", "message"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
