"""Activations: gradients, oracles, PyTorch; NaN stays; dropout's mask hangs on seed, node and element."""

from __future__ import annotations

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
from weft.kernels.activation import GELU, Dropout, ReLU, Sigmoid, Softplus, Tanh
from weft.kernels.kernel import ArraySpec, Mode
from weft.kernels.piecewise import ELU, Clip, LeakyReLU

SMOOTH = {
    "gelu": GELU(),
    "gelu by tanh": GELU("tanh"),
    "tanh": Tanh(),
    "sigmoid": Sigmoid(),
    "softplus": Softplus(),
}
CORNERS = {
    "relu": ReLU(),
    "leaky relu": LeakyReLU(0.1),
    "elu": ELU(1.3),
    "clip": Clip(-0.7, 1.2),
    "clip, from below": Clip(minimum=0.25),
}
ALL = {**CORNERS, **SMOOTH}
every = pytest.mark.parametrize("kernel", ALL.values(), ids=ALL.keys())


@every
@pytest.mark.parametrize("shape", [(3, 7), (2, 3, 4, 5)], ids=["vectors", "images"])
def test_gradients_equal_finite_differences(kernel, shape):
    check_gradients(kernel, distinct(*shape))


@every
def test_equals_its_oracle(kernel):
    check_oracle(kernel, normal(3, 1003) * 3, tolerance=2e-6)


@every
def test_equals_pytorch(kernel):
    functional = pytest.importorskip("torch").nn.functional
    reference = {
        "relu": functional.relu,
        "elu": lambda x: functional.elu(x, kernel.alpha),
        "leaky_relu": lambda x: functional.leaky_relu(x, kernel.slope),
        "clip": lambda x: x.clamp(kernel.minimum, kernel.maximum),
        "gelu": lambda x: functional.gelu(x, approximate=kernel.approximate),
        "tanh": functional.tanh,
        "sigmoid": functional.sigmoid,
        "softplus": functional.softplus,
    }[kernel.name]
    check_against(kernel, reference, normal(3, 1003) * 3, tolerance=2e-6)


@every
def test_a_nan_stays_so_that_it_shows(kernel):
    x = normal(2, 40, dtype="float32")
    x[1, 7] = np.nan
    output = run(kernel, allocate(kernel, x)).output
    assert np.isnan(output[1, 7])
    assert np.isnan(output).sum() == 1


@every
def test_large_inputs_saturate_without_overflow(kernel):
    x = np.array([[-1e38, -1e30, -1e4, -100, 100, 1e4, 1e30, 1e38]], "float32")
    b = run(kernel, allocate(kernel, x))
    limits = {"tanh": [-1, 1], "sigmoid": [0, 1]}.get(kernel.name)
    expected = np.repeat(limits, 4) if limits else np.maximum(x[0], 0)
    if isinstance(kernel, Clip):
        expected = np.clip(x[0], kernel.minimum, kernel.maximum)
    if isinstance(kernel, ELU):
        expected = np.where(x[0] > 0, x[0], -kernel.alpha)
    if isinstance(kernel, LeakyReLU):
        expected = np.where(x[0] > 0, x[0], kernel.slope * x[0])
    np.testing.assert_allclose(b.output[0], expected, rtol=1e-6, atol=1e-8)
    slopes = b.input_gradients[0][0] / b.output_gradient[0]
    assert np.isfinite(slopes).all()
    if kernel.name in ("gelu", "softplus", "tanh", "sigmoid"):
        np.testing.assert_allclose(slopes, (x[0] > 0) * (limits is None), atol=1e-8)


def test_relu_at_zero_has_no_slope():
    b = run(ReLU(), allocate(ReLU(), np.zeros((1, 3))))
    np.testing.assert_array_equal(b.input_gradients[0], 0)


def test_clip_has_no_slope_at_its_corners():
    b = run(Clip(0, 6), allocate(Clip(0, 6), np.array([[0.0, 3.0, 6.0]])))
    np.testing.assert_array_equal(b.input_gradients[0] != 0, [[False, True, False]])


@pytest.mark.parametrize("bounds", [(1, 0), (float("nan"), 1)])
def test_clip_has_bounds_in_their_order(bounds):
    with pytest.raises(ValueError, match="minimum must not be above maximum"):
        Clip(*bounds)


def test_an_unknown_form_of_gelu_is_refused():
    with pytest.raises(ValueError, match="approximate is 'fast'"):
        GELU("fast")


def dropped(kernel, x, mode, key=0):
    return run(kernel, allocate(kernel, x, key=key), mode)


def test_dropout_gradients_equal_finite_differences():
    check_gradients(Dropout(0.4), normal(3, 50), mode=Mode(seed=11))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_is_bit_identical_to_its_oracle(rate):
    x = normal(5, 1001, dtype="float32")
    fast = dropped(Dropout(rate), x, Mode(seed=2**63 + 5), key=3)
    with oracle_only():
        slow = dropped(Dropout(rate), x, Mode(seed=2**63 + 5), key=3)
    np.testing.assert_array_equal(fast.output, slow.output)
    np.testing.assert_array_equal(fast.input_gradients[0], slow.input_gradients[0])


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_drops_its_rate_and_keeps_the_mean(rate):
    output = dropped(Dropout(rate), np.ones((1, 200_000), "float32"), Mode(seed=1)).output
    assert (output == 0).mean() == pytest.approx(rate, abs=0.005)
    assert output.mean() == pytest.approx(1, abs=0.02)


def test_dropout_masks_of_neighbouring_seeds_nodes_and_elements_are_independent():
    x = np.ones((1, 100_000), "float32")
    masks = [
        dropped(Dropout(0.5), x, Mode(seed=seed), key=key).output[0] > 0
        for seed, key in [(1, 0), (2, 0), (1, 1), (2, 1)]
    ]
    masks.append(np.roll(masks[0], 1))
    agreement = [(one == other).mean() for i, one in enumerate(masks) for other in masks[:i]]
    np.testing.assert_allclose(agreement, 0.5, atol=0.01)


def test_dropout_recomputes_the_same_mask_for_the_gradient():
    b = dropped(Dropout(0.5), np.ones((4, 100)), Mode(seed=9))
    np.testing.assert_allclose(b.input_gradients[0], b.output * b.output_gradient)


@pytest.mark.parametrize(
    ("kernel", "mode"),
    [(Dropout(0.5), Mode(training=False)), (Dropout(0), Mode())],
    ids=["outside training", "at rate 0"],
)
def test_dropout_is_the_identity(kernel, mode):
    x = normal(2, 9)
    np.testing.assert_array_equal(dropped(kernel, x, mode).output, x)


def test_dropout_at_rate_1_is_refused():
    with pytest.raises(ValueError, match="dropout: rate is 1"):
        Dropout(1)


def test_neurons_split_along_every_axis_but_the_batch():
    assert [(each.axis, each.extent) for each in ReLU().split(ArraySpec((8, 3, 5)))] == [(1, 3), (2, 5)]
