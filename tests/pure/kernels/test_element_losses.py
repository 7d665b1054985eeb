"""binary_cross_entropy and the losses of values: each element's loss, averaged over the sample."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest

from tests.pure.kernels.checks import (
    allocate,
    check_against,
    check_gradients,
    check_oracle,
    distinct,
    normal,
    oracle_only,
    run,
)
from weft.kernels.kernel import ArraySpec, Mode
from weft.kernels.label_loss import BinaryCrossEntropy
from weft.kernels.loss import ElementLoss
from weft.kernels.value_loss import AbsoluteError, Huber, MeanSquaredError

SHAPES = {"one each": (4, 1), "several": (5, 7), "one sample": (1, 3), "a picture": (2, 3, 2, 5)}
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())

LOSSES = {  # and PyTorch's
    "binary_cross_entropy": (BinaryCrossEntropy(), "binary_cross_entropy_with_logits", {}),
    "mean_squared_error": (MeanSquaredError(), "mse_loss", {}),
    "absolute_error": (AbsoluteError(), "l1_loss", {}),
    "huber": (Huber(), "huber_loss", {}),
    "huber, near": (Huber(0.3), "huber_loss", {"delta": 0.3}),
    "huber, far": (Huber(50), "huber_loss", {"delta": 50.0}),
}
losses = pytest.mark.parametrize("loss", [row[0] for row in LOSSES.values()], ids=LOSSES)
bodies = pytest.mark.parametrize("bodies", [oracle_only, nullcontext], ids=["arrays", "compiled"])


def targets_for(loss: ElementLoss, shape: tuple[int, ...], dtype: str = "float64") -> np.ndarray:
    """Probabilities, of which some are 0 and 1, or numbers nowhere near a difference of 0 or of 0.3."""
    if loss.predicts == "labels":
        return np.clip(normal(*shape, seed=1) + 0.5, 0, 1).astype(dtype)
    return np.round(distinct(*shape) * 4) / 4 + 0.127


def predictions(shape: tuple[int, ...]) -> np.ndarray:
    return np.round(3 * normal(*shape)) / 4


@shapes
@losses
def test_gradients_equal_finite_differences(loss, shape):
    check_gradients(loss, predictions(shape), targets_for(loss, shape))


@shapes
@pytest.mark.parametrize(("loss", "function", "attributes"), LOSSES.values(), ids=LOSSES)
def test_a_loss_equals_pytorchs(loss, function, attributes, shape):
    torch = pytest.importorskip("torch")

    def reference(x, targets):
        each = getattr(torch.nn.functional, function)(x, targets, reduction="none", **attributes)
        return each.reshape(len(each), -1).mean(axis=1)

    wanted = targets_for(loss, shape).astype("float32")
    check_against(loss, reference, predictions(shape), wanted)


@losses
def test_a_loss_equals_its_oracle(loss):
    check_oracle(loss, 3 * normal(6, 90), targets_for(loss, (6, 90)))


@losses
def test_a_difference_of_nothing_pulls_nowhere_and_labels_alone_have_right_answers(loss):
    x = np.zeros((2, 3), "float32")
    b = run(loss, allocate(loss, x, x + 0.5 * (loss.predicts == "labels")))
    assert (b.input_gradients[0] == 0).all()
    assert loss.count_right(x, x) == (6 if loss.predicts == "labels" else 0)


@bodies
@losses
def test_no_number_stays_visible(loss, bodies):
    x = normal(3, 40, dtype="float32")
    x[1, 3] = np.nan
    b = allocate(loss, x, targets_for(loss, x.shape).astype("float32"))
    with bodies():
        loss.forward(b, Mode())
    assert np.isnan(b.output).tolist() == [False, True, False]


@bodies
@pytest.mark.parametrize("size", [1e2, 1e8, 3e38])
def test_logits_of_any_size_give_the_losses_that_they_have(size, bodies):
    x = np.array([[size, -size, 0], [size, -size, 0]], "float32")
    with bodies():
        b = allocate(BinaryCrossEntropy(), x, np.array([[1, 0, 1], [0, 0, 0]], "float32"))
        b.output_gradient[...] = 3
        run(BinaryCrossEntropy(), b)
    third = np.log(2.0) / 3
    np.testing.assert_allclose(b.output, [third, np.float32(size) / np.float32(3) + third], rtol=1e-6)
    np.testing.assert_allclose(b.input_gradients[0], [[0, 0, -0.5], [1, 0, 0.5]], atol=1e-6)


@bodies
def test_far_outliers_have_a_huber_loss(bodies):
    with bodies():
        b = allocate(Huber(2), np.array([[1e30, -1.0]], "float32"), np.zeros((1, 2), "float32"))
        b.output_gradient[...] = 1
        run(Huber(2), b)
    np.testing.assert_allclose(b.output, [1e30], rtol=1e-6)
    np.testing.assert_allclose(b.input_gradients[0], [[1.0, -0.5]])


@bodies
@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float64"])
def test_labels_may_be_of_any_type(dtype, bodies):
    x, targets = normal(5, 4, dtype="float32"), normal(5, 4, seed=2) > 0
    with bodies():
        wanted = run(BinaryCrossEntropy(), allocate(BinaryCrossEntropy(), x, targets.astype("float32")))
        got = run(BinaryCrossEntropy(), allocate(BinaryCrossEntropy(), x, targets.astype(dtype)))
        np.testing.assert_allclose(got.output, wanted.output, rtol=1e-6)
        np.testing.assert_allclose(got.input_gradients[0], wanted.input_gradients[0], rtol=1e-5)
        right = BinaryCrossEntropy().count_right(x, targets.astype(dtype))
    assert right == ((x > 0) == targets).sum()


@bodies
def test_labels_are_right_on_their_side_of_a_half_and_no_number_never_is(bodies):
    x = np.array([[2, -2, 0, 0.1], [np.nan, np.nan, -0.1, 5]], "float32")
    targets = np.array([[1, 1, 0, 0.6], [1, 0, 0.4, 0.4]], "float32")
    with bodies():
        assert BinaryCrossEntropy().count_right(x, targets) == 4


@losses
def test_shapes_that_would_broadcast_are_refused(loss):
    with pytest.raises(ValueError, match=rf"{loss.name}: predictions \(4, 3\) and targets \(4, 1\) differ"):
        loss.output(ArraySpec((4, 3)), ArraySpec((4, 1)))
