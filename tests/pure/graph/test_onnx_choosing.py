"""Operators that compare and choose: Where by conditions of all kinds, truths, masks on scores."""

from __future__ import annotations

import numpy as np
import pytest

from tests.pure.graph.onnx_files import compute, expected, file, node, normal, softmax
from weft.runtime.graph.onnx import read

X, Z = normal(2, 3, 4), normal(2, 1, 4, seed=1)
HIDDEN = np.tri(3, 4, dtype=bool)  # False above the diagonal, as a causal mask is


def softplus(*, beta: bool = False, least: float = 20.0, large: str = "x"):
    """As PyTorch's newer exporter writes it, here with PyTorch's threshold."""
    weights = {"least": np.float32(least), "beta": np.float32(2)}
    u = "u" if beta else "x"
    nodes = [node("Softplus", u, "s"), node("Greater", f"{u} least", "c")]
    if beta:
        nodes = [node("Mul", "x beta", "u"), *nodes, node("Div", "s beta", "d")]
    nodes.append(node("Where", f"c {large} {'d' if beta else 's'}", "y"))
    return file(nodes, {"x": ("n", 3, 4)}, ["y"], weights)


@pytest.mark.parametrize("beta", [False, True])
def test_what_guards_a_softplus_is_not_needed(beta):
    x = np.linspace(-40, 90, 24, dtype=np.float32).reshape(2, 3, 4)
    wanted = np.logaddexp(2 * x, 0) / 2 if beta else np.logaddexp(x, 0)
    model = read(softplus(beta=beta))
    (y,) = compute(model, {"x": x}).values()
    np.testing.assert_allclose(y, wanted, rtol=1e-6)
    assert "softplus" in [each.kernel.name for each in model.graph.nodes]


@pytest.mark.parametrize(
    "proto",
    [softplus(least=5), softplus(large="s"), softplus(beta=True, large="u")],
    ids=["that makes a step", "that chooses another value", "that chooses what is scaled"],
)
def test_another_condition_of_a_softplus_is_computed(proto):
    x = np.linspace(-40, 40, 24, dtype=np.float32).reshape(2, 3, 4)
    model = read(proto)
    (y,) = compute(model, {"x": x}).values()
    np.testing.assert_allclose(y, expected(proto, {"x": x})[0], rtol=1e-6, atol=1e-6)
    assert "where" in [each.kernel.name for each in model.graph.nodes]


LEAST = np.finfo(np.float32).min
TWO = {"x": ("n", 3, 4), "z": ("n", 1, 4)}
CHOICES = {
    "a mask of places on scores": (
        [node("Cast", "z", "b", to=9), node("Not", "b", "c"), node("Where", "c least x", "y")],
        {"least": np.float32(LEAST)},
    ),
    "numbers chosen of numbers": (
        [node("Greater", "x z", "c"), node("Where", "c one two", "y")],
        {"one": np.float32(1), "two": np.float32([2])},
    ),
    "values chosen by a stored array": (
        [node("Less", "w x", "c"), node("Where", "c x z", "y")], {"w": normal(3, 4, seed=3)}
    ),
    "a number that is greater": (
        [node("Greater", "half x", "c"), node("Where", "c z x", "y")], {"half": np.float32(0.5)}
    ),
    "truths of which several hold": (
        [node("GreaterOrEqual", "x z", "a"), node("LessOrEqual", "x half", "b"), node("And", "a b", "c"),
         node("Or", "c known", "d"), node("Xor", "d a", "e"), node("Cast", "e", "y", to=1)],
        {"half": np.float32(0.5), "known": HIDDEN},
    ),
    "truths of every sample": (
        [node("Equal", "x x", "a"), node("And", "known a", "c"), node("Cast", "c", "y", to=1)],
        {"known": np.stack([HIDDEN] * 2)},
    ),
    "the larger of values and a weight, but no more than 1": (
        [node("Max", "x z w", "h"), node("Min", "h one z", "y")],
        {"w": normal(4), "one": np.float32(1)},
    ),
    "no number": ([node("Div", "x zero", "h"), node("IsInf", "h", "c"), node("Cast", "c", "y", to=1)],
                  {"zero": np.float32(0)}),
    "a softmax of nothing is 0": (
        [node("Sub", "x z", "n"), node("IsNaN", "n", "c"), node("Where", "c zero x", "y")],
        {"zero": np.zeros(1, np.float32)},
    ),
    "whole numbers counted from a mask": (
        [node("Cast", "x", "i", to=7), node("Mul", "i i", "s"), node("Add", "s one", "a"),
         node("Sub", "far a", "b"), node("Max", "b i", "m"), node("Cast", "m", "y", to=1)],
        {"one": np.array(1), "far": np.array([9, 8, 7, 6])},
    ),
    "a choice of whole numbers": (
        [node("Cast", "x", "i", to=7), node("Equal", "i zero", "c"), node("Where", "c one i", "y")],
        {"zero": np.array(0), "one": np.array([1, 2, 3, 4])},
    ),
    "values that come several times": ([node("Tile", "x r", "y")], {"r": np.array([1, 2, 3])}),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:(divide by zero|invalid value)")
@pytest.mark.parametrize("batch", ["n", 2])
@pytest.mark.parametrize(("nodes", "weights"), CHOICES.values(), ids=CHOICES)
def test_what_is_chosen_is_what_the_evaluator_chooses(nodes, weights, batch):
    made = {name for each in nodes for name in each.input}
    inputs = {name: (batch, *shape[1:]) for name, shape in TWO.items() if name in made}
    samples = {name: np.round({"x": X * 2, "z": Z * 2}[name]) for name in inputs}
    if "z" in inputs:
        samples["z"][0, 0, 0] = samples["x"][0, 1, 0]  # one that is equal
    proto = file(nodes, inputs, ["y"], weights)
    (y,) = compute(read(proto), samples).values()
    (wanted,) = expected(proto, samples)
    assert y.dtype == wanted.dtype
    np.testing.assert_array_equal(y, wanted)


@pytest.mark.parametrize("hidden_first", [False, True], ids=["kept first", "hidden first"])
def test_scores_may_be_hidden_by_two_masks(hidden_first):
    """Infinity that the first left behind was multiplied with the second's 0, which is no number."""
    window = np.triu(np.ones((3, 4), bool), -1) & np.tri(3, 4, 1, dtype=bool)
    masks = {"causal": HIDDEN, "window": window, "none": np.float32(-np.inf)}
    if hidden_first:
        masks |= {"causal": ~HIDDEN, "window": ~window}
    order = "{0} none {1}" if hidden_first else "{0} {1} none"
    nodes = [
        node("Where", order.format("causal", "x"), "h"), node("Where", order.format("window", "h"), "g"),
        node("Softmax", "g", "y"),
    ]  # fmt: skip
    (y,) = compute(read(file(nodes, {"x": ("n", 3, 4)}, ["y"], masks)), {"x": X}).values()
    wanted = softmax(np.where(HIDDEN & window, X, -np.inf), -1)
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-6)


NOWHERE = np.array([[1, np.nan, np.inf, -2]], np.float32)
HIDING = {  # nodes of x, what is stored, what is to come of NOWHERE
    "a number, of what is no number": (
        [node("Where", "seen x five", "y")], {"five": np.float32(5)}, [1, 5, 5, -2]
    ),
    "another value, of what is no number": (
        [node("Relu", "zero", "r"), node("Where", "seen x r", "y")], {}, [1, 0, 0, -2]
    ),
    "minus infinity, of infinity": (
        [node("Where", "seen x none", "y")], {"none": np.float32(-np.inf)}, [1, -np.inf, -np.inf, -2]
    ),
    "the sign of what is no number": ([node("Sign", "x", "y")], {}, [1, np.nan, 1, -1]),
}  # fmt: skip


@pytest.mark.parametrize(("nodes", "weights", "wanted"), HIDING.values(), ids=HIDING)
def test_what_is_hidden_does_not_show(nodes, weights, wanted):
    """A stored condition was a mask, times which infinity is no number; and no number had the sign 0."""
    weights = {"seen": np.array([True, False, False, True]), **weights}
    inputs = {"x": ("n", 4)} | ({"zero": ("n", 4)} if nodes[0].op_type == "Relu" else {})
    samples = {"x": NOWHERE, "zero": np.zeros_like(NOWHERE)}
    proto = file(nodes, inputs, ["y"], weights)
    (y,) = compute(read(proto), {name: samples[name] for name in inputs}).values()
    np.testing.assert_array_equal(y, [wanted])


@pytest.mark.parametrize(
    ("x", "wanted"),
    [
        ([-np.inf] * 4, -np.inf),
        ([np.inf, 1, 2, 3], np.inf),
        ([-np.inf, 1, 2, 3], np.logaddexp.reduce([1, 2, 3])),
    ],
    ids=["nothing", "one infinite", "one nothing"],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_a_sum_of_powers_may_be_0_or_infinite(x, wanted):
    proto = file([node("ReduceLogSumExp", "x axes", "y")], {"x": ("n", 4)}, ["y"], {"axes": np.array([1])})
    (y,) = compute(read(proto), {"x": np.array([x], np.float32)}).values()
    np.testing.assert_allclose(y, [[wanted]], rtol=1e-6)
