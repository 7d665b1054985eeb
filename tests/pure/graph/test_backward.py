"""The backward graph: its order, its sums, and that what it computes is the gradient."""

import numpy as np
import pytest

from weft.kernels.kernel import ArraySpec
from weft.runtime.errors import GraphError
from weft.runtime.graph import Builder, Layout, Memory, Program, initialise, sequential, with_loss
from weft.runtime.graph.backward import Phase, differentiate


class Host:
    """The allocator of the tests."""

    def zeros(self, shape, dtype):
        return np.zeros(shape, dtype)


def chain():
    layers = [("dense", {"features": 7}), ("tanh", {}), ("dense", {"features": 3})]
    return with_loss(sequential((5,), layers), "softmax_cross_entropy", ArraySpec((), "int32"))


def residual():
    """Values read twice and thrice, views, adds of adds, an input added to itself."""
    b = Builder()
    x = b.input("x", (6,))
    h = b("dense", x, features=6, name="first")
    a = b("add", h, b("tanh", h))
    c = b("add", a, b("dense", a, features=6, name="inner"), h)
    d = b("add", c, c)
    e = b("concat", b("reshape", d, shape=(2, 3)), b("reshape", a, shape=(2, 3)), axis=1)
    return with_loss(
        b.build(b("dense", b("flatten", e), features=3, name="last")),
        "softmax_cross_entropy",
        ArraySpec((), "int32"),
    )


def convolutional():
    layers = [
        ("conv2d", {"channels": 4, "kernel_size": 3, "padding": 1}),
        ("batch_norm", {}),
        ("relu", {}),
        ("max_pool2d", {"kernel_size": 2}),
        ("conv2d", {"channels": 6, "kernel_size": 3}),
        ("gelu", {}),
        ("global_average_pool2d", {}),
        ("flatten", {}),
        ("dense", {"features": 3}),
    ]
    return with_loss(sequential((2, 8, 8), layers), "softmax_cross_entropy", ArraySpec((), "int32"))


def transformer():
    b = Builder()
    h = b("position_embedding", b("embedding", b.input("x", (6,), "int32"), entries=3, width=8))
    h = b("add", h, b("attention", b("dense", b("layer_norm", h), features=24), heads=2))
    h = b("add", h, b("dense", b("gelu", b("dense", b("layer_norm", h), features=16)), features=8))
    return with_loss(b.build(b("dense", h, features=3)), "softmax_cross_entropy", ArraySpec((6,), "int32"))


def learned_number():
    """A scale and a number that are trained, of no axes."""
    b = Builder()
    h = b("arithmetic_weight", b("dense", b.input("x", (5,)), features=3), operator="mul", shape=())
    h = b("arithmetic", h, b("constant", h, shape=()), operator="add")
    return with_loss(b.build(h), "softmax_cross_entropy", ArraySpec((), "int32"))


class Bound:
    """A graph with weights, samples and a program."""

    def __init__(self, graph, batch=4):
        self.layout = Layout.of(graph)
        self.weights = initialise(self.layout, seed=3)
        self.gradients = np.zeros_like(self.weights)
        self.memory = Memory(graph, self.layout, Host(), batch, training=True)
        self.program = Program(graph, self.layout, self.memory, batch, self.weights, self.gradients)
        random = np.random.default_rng(5)
        for name, array in self.program.inputs.items():
            array[...] = (
                random.integers(0, 3, array.shape)
                if np.dtype(array.dtype).kind == "i"
                else random.standard_normal(array.shape)
            )
            assert name in ("x", "target")
        self.program.loss_gradient[...] = 1 / batch

    def loss(self):
        for step in self.program.forward:
            step.run()
        return float(self.program.outputs[0].astype(np.float64).mean())

    def gradient(self):
        self.loss()
        for step in self.program.backward:
            step.run()
        return self.gradients.copy()


def test_weight_gradients_come_before_input_gradients_from_the_last_layer_down():
    calls = differentiate(chain())
    assert [call.name for call in calls.backward] == [
        "loss.input_gradient",
        "dense_2.weight_gradient",
        "dense_2.input_gradient",
        "tanh_1.input_gradient",
        "dense_1.weight_gradient",
    ]


def test_the_gradient_of_the_input_is_not_computed():
    calls = differentiate(chain())
    assert calls.input_gradients["dense_1"] == (None,)


def test_a_value_that_several_nodes_read_gets_the_sum_of_their_gradients():
    calls = differentiate(residual())
    sums = [call.node.name for call in calls.backward if call.phase is Phase.SUM]
    assert "first" in sums  # read by tanh and two adds


@pytest.mark.parametrize("model", [chain, residual, convolutional, transformer])
def test_the_program_computes_the_gradient(model):
    """Directional derivatives along random directions, and along every parameter alone."""
    bound = Bound(model())
    gradient = bound.gradient()
    weights = bound.weights.copy()
    random = np.random.default_rng(7)
    trained = [p for p in bound.layout.parameters if p.spec.role == "weight"]
    for parameter in trained:
        direction = np.zeros_like(weights)
        part = slice(parameter.start, parameter.stop)
        direction[part] = random.standard_normal(parameter.spec.size)
        direction /= np.linalg.norm(direction)
        losses = []
        for sign in (1, -1):
            bound.weights[...] = weights + sign * 4e-3 * direction
            losses.append(bound.loss())
        bound.weights[...] = weights
        measured = (losses[0] - losses[1]) / 8e-3
        computed = float(gradient.astype(np.float64) @ direction)
        assert computed == pytest.approx(measured, rel=0.03, abs=2e-4), parameter.name


@pytest.mark.parametrize("model", [residual, convolutional, transformer, learned_number])
def test_a_later_micro_batch_adds_its_gradient(model):
    bound = Bound(model())
    once = bound.gradient()
    for step in (*bound.program.forward, *bound.program.backward_more):
        step.run()
    np.testing.assert_allclose(bound.gradients, 2 * once, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("model", [residual, convolutional, transformer])
def test_a_smaller_micro_batch_uses_the_same_memory(model):
    bound = Bound(model(), batch=4)
    graph = model()
    small = Program(graph, bound.layout, bound.memory, 3, bound.weights, bound.gradients)
    small.loss_gradient[...] = 1 / 3
    for step in (*small.forward, *small.backward):
        step.run()
    own = Bound(model(), batch=3)
    own.weights[...] = bound.weights
    for name in own.program.inputs:
        own.program.inputs[name][...] = bound.program.inputs[name][:3]
    expected = own.gradient()
    np.testing.assert_allclose(bound.gradients, expected, rtol=1e-5, atol=1e-6)


def test_every_smaller_batch_fits_into_the_memory_of_the_largest():
    layers = [
        ("conv2d", {"channels": 8, "kernel_size": 1, "padding": 1}),
        ("gelu", {}),
        ("conv2d", {"channels": 8, "kernel_size": 2, "padding": 1}),
        ("dropout", {"rate": 0.1}),
        ("conv2d", {"channels": 4, "kernel_size": 3, "padding": 1}),
        ("dropout", {"rate": 0.1}),
        ("conv2d", {"channels": 2, "kernel_size": 2, "padding": 1, "stride": 2}),
        ("flatten", {}),
        ("dense", {"features": 3}),
    ]
    graph = with_loss(sequential((3, 3, 4), layers), "softmax_cross_entropy", ArraySpec((), "int32"))
    bound = Bound(graph, batch=8)
    for batch in range(1, 8):
        Program(graph, bound.layout, bound.memory, batch, bound.weights, bound.gradients)


def test_a_node_that_does_not_reach_the_loss_is_refused():
    b = Builder()
    x = b.input("x", (5,))
    b("dense", x, features=2, name="unused")
    graph = b.build(b("dense", x, features=3))
    with pytest.raises(GraphError, match="does not depend on unused"):
        with_loss(graph, "softmax_cross_entropy", ArraySpec((), "int32"))
