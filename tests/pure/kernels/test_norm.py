"""layer_norm, batch_norm and instance_norm: gradients, statistics of a micro-batch and running ones."""

from __future__ import annotations

import numpy as np
import pytest

from tests.pure.kernels.checks import allocate, check_against, check_gradients, check_oracle, normal, run
from weft.kernels.batch_norm import BatchNorm, InstanceNorm
from weft.kernels.kernel import ArraySpec, Mode
from weft.kernels.layer_norm import LayerNorm
from weft.kernels.optimizer import move_statistic

TRAINING, INFERENCE = Mode(training=True), Mode(training=False)

ROWS = {"vectors": (5, 7), "one sample": (1, 4), "a sequence": (2, 3, 6), "two inner axes": (2, 2, 3, 5)}
rows = pytest.mark.parametrize("shape", ROWS.values(), ids=ROWS.keys())
CHANNELS = {
    "a dense layer's output": (6, 5),
    "pictures": (3, 4, 2, 3),
    "a sequence": (4, 3, 5),
    "one sample": (1, 3, 4, 4),
    "one pixel": (5, 3, 1, 1),
}
channels = pytest.mark.parametrize("shape", CHANNELS.values(), ids=CHANNELS.keys())
modes = pytest.mark.parametrize("mode", [TRAINING, INFERENCE], ids=["training", "inference"])


@rows
def test_layer_norm_gradients_equal_finite_differences(shape):
    check_gradients(LayerNorm(), normal(*shape))


@rows
def test_layer_norm_equals_pytorch(shape):
    torch = pytest.importorskip("torch")

    def reference(x, weight, bias):
        return torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias, eps=1e-3)

    check_against(LayerNorm(epsilon=1e-3), reference, normal(*shape))


def test_layer_norm_equals_its_oracle():
    check_oracle(LayerNorm(), normal(40, 7, 100))


def test_layer_norm_of_a_large_mean_keeps_its_digits():
    x = normal(4, 256, dtype="float32")
    near = run(LayerNorm(), allocate(LayerNorm(), x)).output.copy()
    far = run(LayerNorm(), allocate(LayerNorm(), x + 1000)).output
    np.testing.assert_allclose(far, near, atol=1e-3)


@channels
@modes
def test_batch_norm_gradients_equal_finite_differences(shape, mode):
    check_gradients(BatchNorm(), normal(*shape), mode=mode, tolerance=1e-5)


@channels
@modes
def test_batch_norm_equals_pytorch(shape, mode):
    torch = pytest.importorskip("torch")
    if mode.training and np.prod(shape) == shape[1]:
        pytest.skip("PyTorch refuses a single value a channel")

    def reference(x, weight, bias, mean, variance):
        return torch.nn.functional.batch_norm(
            x, mean.detach().clone(), variance.detach().clone(), weight, bias, mode.training, eps=1e-3
        )

    check_against(BatchNorm(epsilon=1e-3), reference, normal(*shape), mode=mode)


@pytest.mark.parametrize("shape", [(40, 33), (3, 5, 8, 9)], ids=["a dense layer's output", "pictures"])
@modes
def test_batch_norm_equals_its_oracle(shape, mode):
    check_oracle(BatchNorm(), normal(*shape), mode=mode)


@channels
def test_running_statistics_move_as_pytorchs_do(shape):
    torch = pytest.importorskip("torch")
    theirs = {2: torch.nn.BatchNorm1d, 3: torch.nn.BatchNorm1d, 4: torch.nn.BatchNorm2d}[len(shape)](shape[1])
    mean, variance = np.zeros(shape[1], "float32"), np.ones(shape[1], "float32")
    kernel = BatchNorm()
    for step in range(4):
        x = 3 * normal(*shape, dtype="float32", seed=step) + 1
        theirs(torch.from_numpy(x))
        b = run(kernel, allocate(kernel, x), TRAINING)
        move_statistic(mean, b.weight_gradients[2], kernel.momentum)
        move_statistic(variance, b.weight_gradients[3], kernel.momentum)
    np.testing.assert_allclose(mean, theirs.running_mean.numpy(), rtol=1e-5)
    np.testing.assert_allclose(variance, theirs.running_var.numpy(), rtol=1e-5)


def test_statistics_are_weighted_by_the_micro_batchs_share():
    kernel = BatchNorm()
    x = normal(6, 3, 2, 2)
    whole = run(kernel, allocate(kernel, x)).weight_gradients[2:]
    fourth = run(kernel, allocate(kernel, x), Mode(share=0.25)).weight_gradients[2:]
    for one, other in zip(whole, fourth, strict=True):
        np.testing.assert_allclose(other, 0.25 * one, rtol=1e-15)


def test_a_single_value_a_channel_has_variance_zero():
    kernel = BatchNorm()
    b = run(kernel, allocate(kernel, normal(1, 3)))
    np.testing.assert_array_equal(b.output[0], b.parameters[1])
    np.testing.assert_array_equal(b.weight_gradients[3], 0)
    np.testing.assert_array_equal(b.input_gradients[0], 0)


@pytest.mark.parametrize("shape", [(8, 5), (8, 5, 4, 4)], ids=["a dense layer's output", "pictures"])
def test_statistics_of_a_large_mean_keep_their_digits(shape):
    kernel = BatchNorm()
    x = normal(*shape, dtype="float32")
    near = run(kernel, allocate(kernel, x)).output.copy()
    far = run(kernel, allocate(kernel, x + 1000)).output
    np.testing.assert_allclose(far, near, atol=2e-3)


INSTANCES = {
    "pictures": (3, 4, 2, 3),
    "a sequence": (4, 3, 5),
    "one sample of one channel": (1, 1, 4, 4),
    "volumes": (2, 2, 2, 3, 2),
}
instances = pytest.mark.parametrize("shape", INSTANCES.values(), ids=INSTANCES)
affine = pytest.mark.parametrize("affine", [True, False], ids=["with weights", "without weights"])


@instances
@affine
@modes
def test_instance_norm_gradients_equal_finite_differences(shape, affine, mode):
    check_gradients(InstanceNorm(affine=affine), normal(*shape), mode=mode, tolerance=1e-5)


@instances
@affine
def test_instance_norm_equals_pytorch(shape, affine):
    torch = pytest.importorskip("torch")

    def reference(x, *weights):
        return torch.nn.functional.instance_norm(
            x, **dict(zip(("weight", "bias"), weights, strict=False)), eps=1e-3
        )

    check_against(InstanceNorm(1e-3, affine), reference, normal(*shape))


@affine
def test_instance_norm_equals_its_oracle(affine):
    check_oracle(InstanceNorm(affine=affine), normal(3, 5, 8, 9))


@pytest.mark.parametrize("kernel", [BatchNorm(), InstanceNorm()], ids=["batch_norm", "instance_norm"])
@pytest.mark.parametrize("shape", [(3, 2, 2, 2), (3, 2, 1, 1)], ids=["images", "pixels"])
def test_a_channel_that_is_the_same_everywhere_is_its_bias_however_large(kernel, shape):
    """The square of the way from 0 to 1e30 is infinite, and that of no channel's deviation."""
    b = run(kernel, allocate(kernel, np.full(shape, 1e30, np.float32)))
    np.testing.assert_array_equal(b.output, np.broadcast_to(b.parameters[1][:, None, None], shape))


def test_instance_norm_of_one_pixel_is_the_bias():
    b = run(InstanceNorm(), allocate(InstanceNorm(), normal(2, 3, 1, 1)))
    np.testing.assert_array_equal(b.output[..., 0, 0], [b.parameters[1]] * 2)
    np.testing.assert_array_equal(b.input_gradients[0], 0)


@pytest.mark.parametrize("kernel", [LayerNorm(), BatchNorm()], ids=["layer_norm", "batch_norm"])
def test_a_value_that_is_no_number_stays_visible(kernel):
    x = normal(3, 40, dtype="float32")
    x[1, 35] = np.nan
    b = allocate(kernel, x)
    kernel.forward(b, TRAINING)
    assert np.isnan(b.output[:, 35] if kernel == BatchNorm() else b.output[1]).all()


WRONG = [
    ("layer_norm of plain numbers", lambda: LayerNorm().output(ArraySpec((5,))), r"shape \(5,\)"),
    ("batch_norm of plain numbers", lambda: BatchNorm().output(ArraySpec((5,))), r"shape \(5,\)"),
    ("instance_norm of rows", lambda: InstanceNorm().output(ArraySpec((5, 4))), r"shape \(5, 4\)"),
    ("instance_norm without epsilon", lambda: InstanceNorm(0.0), "instance_norm: epsilon is 0.0"),
    ("layer_norm without epsilon", lambda: LayerNorm(epsilon=0.0), "layer_norm: epsilon is 0.0"),
    ("batch_norm with a negative epsilon", lambda: BatchNorm(epsilon=-1.0), "batch_norm: epsilon is -1.0"),
    ("a momentum above one", lambda: BatchNorm(momentum=1.5), "momentum is 1.5"),
]


@pytest.mark.parametrize(("call", "message"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
