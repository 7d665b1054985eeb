"""softmax_cross_entropy and the count of right answers."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest

from tests.pure.kernels.checks import (
    allocate,
    check_against,
    check_gradients,
    check_oracle,
    normal,
    oracle_only,
    run,
)
from weft.kernels.kernel import ArraySpec, Mode
from weft.kernels.loss import SoftmaxCrossEntropy, count_correct

SHAPES = {"classes": (5, 7), "one sample": (1, 3), "a sequence": (3, 4, 6), "a picture": (2, 3, 2, 5)}
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())


def classes(shape: tuple[int, ...], dtype: str = "int64") -> np.ndarray:
    return np.random.default_rng(5).integers(0, shape[-1], shape[:-1]).astype(dtype)


@shapes
def test_cross_entropy_gradients_equal_finite_differences(shape):
    check_gradients(SoftmaxCrossEntropy(), normal(*shape), classes(shape))


@shapes
def test_cross_entropy_equals_pytorch(shape):
    torch = pytest.importorskip("torch")

    def reference(logits, targets):
        losses = torch.nn.functional.cross_entropy(logits.movedim(-1, 1), targets, reduction="none")
        return losses.reshape(len(losses), -1).mean(axis=1)

    check_against(SoftmaxCrossEntropy(), reference, normal(*shape), classes(shape))


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64"])
def test_cross_entropy_equals_its_oracle(dtype):
    check_oracle(SoftmaxCrossEntropy(), normal(6, 9, 50), classes((6, 9, 50), dtype))


def test_logits_of_any_size_give_finite_losses_and_gradients():
    logits = np.array([[1e4, -1e4, 0.0], [-3e38, 3e38, 0.0], [500.0, 500.0, 500.0]], "float32")
    b = run(SoftmaxCrossEntropy(), allocate(SoftmaxCrossEntropy(), logits, np.array([0, 1, 2])))
    np.testing.assert_allclose(b.output, [0.0, 0.0, np.log(3.0)], rtol=1e-6)
    assert np.isfinite(b.input_gradients[0]).all()


@pytest.mark.parametrize("bodies", [oracle_only, nullcontext], ids=["arrays", "compiled"])
@pytest.mark.parametrize("size", [0.0, 1e3, 1e5, 1e8, 1e30, -1e8])
def test_large_logits_that_differ_little_are_told_apart(size, bodies):
    logits = np.array([[size, size, size - 1000 - abs(size) / 100]], "float32")
    with bodies():
        b = allocate(SoftmaxCrossEntropy(), logits, np.array([1]))
        b.output_gradient[...] = 1
        run(SoftmaxCrossEntropy(), b)
    np.testing.assert_allclose(b.output, [np.log(2.0)], rtol=1e-6)
    np.testing.assert_allclose(b.input_gradients[0], [[0.5, -0.5, 0.0]], atol=1e-6)


@pytest.mark.parametrize("column", [0, 3, 39])
def test_a_logit_that_is_no_number_stays_visible(column):
    logits = normal(3, 40, dtype="float32")
    logits[1, column] = np.nan
    b = allocate(SoftmaxCrossEntropy(), logits, np.array([0, 1, 2]))
    SoftmaxCrossEntropy().forward(b, Mode())
    assert np.isnan(b.output).tolist() == [False, True, False]


@pytest.mark.parametrize(("target", "dtype"), [(7, "int64"), (-1, "int32"), (200, "uint8")])
def test_a_target_that_is_no_class_is_named(target, dtype):
    targets = np.zeros((3, 4), dtype)
    targets[2, 1] = target
    b = allocate(SoftmaxCrossEntropy(), normal(3, 4, 7, dtype="float32"), targets)
    with pytest.raises(
        ValueError, match=rf"target {target} at \(2, 1\) is no class; the 7 classes are 0 … 6"
    ):
        SoftmaxCrossEntropy().forward(b, Mode())
    with oracle_only():  # on a GPU
        SoftmaxCrossEntropy().forward(b, Mode())
    assert np.isnan(b.output).tolist() == [False, False, True]


def test_weights_of_samples_scale_their_gradients():
    logits, targets = normal(4, 3), classes((4, 3))
    b = run(SoftmaxCrossEntropy(), allocate(SoftmaxCrossEntropy(), logits, targets))
    whole = b.input_gradients[0] / b.output_gradient[:, None]
    b.output_gradient[...] = 1 / 8
    SoftmaxCrossEntropy().input_gradient(b, Mode())
    np.testing.assert_allclose(b.input_gradients[0], whole / 8, rtol=1e-12)


def test_the_first_largest_logit_is_the_answer():
    logits = np.array([[1, 3, 3], [0, 0, 0], [2, 1, 0], [0, 1, 2]], "float32")
    targets = np.array([1, 0, 2, 2])
    assert count_correct(logits, targets) == 3
    with oracle_only():
        assert count_correct(logits, targets) == 3
    assert count_correct(logits.reshape(2, 2, 3), targets.reshape(2, 2).astype("uint8")) == 3


WRONG = [
    (
        "targets that keep the class axis",
        SoftmaxCrossEntropy(),
        ((4, 3), "float32"),
        ((4, 3), "int64"),
        r"targets \(4, 3\)",
    ),
    (
        "targets of another batch",
        SoftmaxCrossEntropy(),
        ((4, 3), "float32"),
        ((5,), "int64"),
        r"logits \(4, 3\)",
    ),
    (
        "targets that are no integers",
        SoftmaxCrossEntropy(),
        ((4, 3), "float32"),
        ((4,), "float32"),
        "are float32",
    ),
    ("no class axis", SoftmaxCrossEntropy(), ((4,), "float32"), ((), "int64"), r"logits \(4,\)"),
]


@pytest.mark.parametrize(
    ("kernel", "first", "second", "message"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG]
)
def test_shapes_that_do_not_fit_are_named(kernel, first, second, message):
    with pytest.raises(ValueError, match=message):
        kernel.output(ArraySpec(*first), ArraySpec(*second))
