"""RNN, LSTM and GRU as exporters write them: the batch in front or behind, directions, stacks, states."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests.pure.graph.onnx_files import Host, compute, expected, file, node, normal
from weft.kernels.kernel import ArraySpec
from weft.runtime.errors import GraphError
from weft.runtime.graph import Layout, Memory, Program, with_loss
from weft.runtime.graph.onnx import read

PLACES, WIDTH, FEATURES = 6, 5, 4
GATES = {"RNN": 1, "LSTM": 4, "GRU": 3}
KINDS = {
    "rnn": ("RNN", {}),
    "lstm": ("LSTM", {}),
    "gru": ("GRU", {"linear_before_reset": 1}),
    "gru, first reset": ("GRU", {}),
}
kinds = pytest.mark.parametrize(("op", "attributes"), KINDS.values(), ids=KINDS)
directions = pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])


def weights(op: str, directions: int, width: int, layer: str) -> dict[str, np.ndarray]:
    rows = GATES[op] * FEATURES
    shapes = {"w": (rows, width), "r": (rows, FEATURES), "b": (2 * rows,)}
    return {f"{n}{layer}": normal(directions, *s, seed=len(layer)) * 0.5 for n, s in shapes.items()}


def stack(op: str, direction: str, layers: int, *, batch_first: bool, **attributes) -> onnx.ModelProto:
    """y (N, places, …) and the last states (layers · directions, N, features), brought to (N, …)."""
    ways = 1 + (direction == "bidirectional")
    stored = {
        "directions": np.array([ways]), "features": np.array([FEATURES]), "axis": np.array([1]),
        "flat": np.array([0, 0, -1]),
    }  # fmt: skip
    place = 0 if batch_first else 1
    nodes = [
        node("Shape", "x", "samples", start=place, end=place + 1),
        node("Concat", "directions samples features", "size", axis=0),
        node("ConstantOfShape", "size", "zeros"),  # the states to begin with
        node("Transpose", "x", "x_0", perm=[1, 0, 2]) if batch_first else node("Identity", "x", "x_0"),
    ]
    for layer in map(str, range(layers)):
        stored |= weights(op, ways, WIDTH if layer == "0" else ways * FEATURES, layer)
        states = "zeros zeros" if op == "LSTM" else "zeros"
        made = f"y{layer} h{layer}" + f" c{layer}" * (op == "LSTM")
        one = node(
            op, f"x_{layer} w{layer} r{layer} b{layer} none {states}", made,
            hidden_size=FEATURES, direction=direction, **attributes,
        )  # fmt: skip
        one.input[4] = ""
        nodes.append(one)
        after = f"x_{int(layer) + 1}"
        if ways == 1:
            nodes.append(node("Squeeze", f"y{layer} axis", after))
        else:
            nodes.append(node("Transpose", f"y{layer}", f"beside{layer}", perm=[0, 2, 1, 3]))
            nodes.append(node("Reshape", f"beside{layer} flat", after))
    nodes.append(node("Concat", " ".join(f"h{layer}" for layer in range(layers)), "last", axis=0))
    nodes.append(node("Transpose", "last", "states", perm=[1, 0, 2]))
    nodes.append(node("Transpose", f"x_{layers}", "y", perm=[1, 0, 2]))
    shape = ("n", PLACES, WIDTH) if batch_first else (PLACES, 1, WIDTH)
    return file(nodes, {"x": shape}, ["y", "states"], stored, version=17)


@kinds
@directions
@pytest.mark.parametrize("layers", [1, 2])
def test_layers_as_pytorch_exports_them_give_what_the_evaluator_does(op, attributes, direction, layers):
    proto = stack(op, direction, layers, batch_first=True, **attributes)
    samples = {"x": normal(3, PLACES, WIDTH)}
    model = read(proto)
    for got, wanted in zip(compute(model, samples).values(), expected(proto, samples), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-6)
    kept = [each.kernel.name for each in model.graph.nodes]
    assert kept.count(op.lower()) == layers
    assert "transpose" not in kept, "the batch is where it was"


@kinds
def test_a_file_for_one_sample_with_the_places_in_front_is_read_without_a_batch(op, attributes):
    proto = stack(op, "bidirectional", 2, batch_first=False, **attributes)
    x = normal(3, PLACES, 1, WIDTH)
    found = compute(read(proto, batched=False), {"x": x})
    for number, sample in enumerate(x):
        for got, wanted in zip(found.values(), expected(proto, {"x": sample}), strict=True):
            np.testing.assert_allclose(got[number], wanted, rtol=1e-4, atol=1e-6)
    with pytest.raises(GraphError, match=r"\(6, 1, 5\) with the batch not along axis 1: .* batched=False"):
        read(proto)


@directions
def test_several_sequences_of_a_sample_follow_each_other_as_samples(direction):
    """As a model of paragraphs folds their sentences into the batch."""
    ways = 1 + (direction == "bidirectional")
    nodes = [
        node("Reshape", "x sentences", "s"), node("Transpose", "s", "t", perm=[1, 0, 2]),
        node("GRU", "t w0 r0 b0", "y0 h0", hidden_size=FEATURES, direction=direction),
        node("Transpose", "h0", "h1", perm=[1, 0, 2]), node("Reshape", "h1 states", "h"),
        node("Transpose", "y0", "y1", perm=[2, 0, 1, 3]), node("Reshape", "y1 paragraphs", "y"),
    ]  # fmt: skip
    stored = weights("GRU", ways, WIDTH, "0") | {
        "sentences": np.array([-1, PLACES, WIDTH]), "states": np.array([-1, 3, ways * FEATURES]),
        "paragraphs": np.array([-1, 3, PLACES, ways * FEATURES]),
    }  # fmt: skip
    proto = file(nodes, {"x": ("n", 3, PLACES, WIDTH)}, ["h", "y"], stored)
    samples = {"x": normal(2, 3, PLACES, WIDTH)}
    for got, wanted in zip(compute(read(proto), samples).values(), expected(proto, samples), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("op", GATES)
def test_weights_are_pytorchs_after_some_steps(op):
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    proto = stack(op, "bidirectional", 2, batch_first=True, **KINDS[op.lower()][1])
    model = read(proto, outputs=["y"])
    graph = with_loss(model.graph, "mean_squared_error", ArraySpec((PLACES, 2 * FEATURES)))
    layout = Layout.of(graph)
    flat = model.parameters(layout)
    gradients = np.zeros_like(flat)
    memory = Memory(graph, layout, Host(), 3, training=True)
    program = Program(graph, layout, memory, 3, flat, gradients)
    x, target = normal(3, PLACES, WIDTH), normal(3, PLACES, 2 * FEATURES, seed=1)

    order = {"RNN": (0,), "LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2)}[op]  # PyTorch's, in ONNX's numbers

    def turned(array):
        return np.concatenate([np.split(array, len(order))[gate] for gate in order])

    layer = getattr(torch.nn, op)(WIDTH, FEATURES, 2, batch_first=True, bidirectional=True)
    (first, second) = (node.name for node in graph.nodes if node.kernel.name == op.lower())
    names = {
        "weight_ih": "weight",
        "weight_hh": "recurrent_weight",
        "bias_ih": "bias",
        "bias_hh": "recurrent_bias",
    }

    def ours(name):
        kind, number = name.removesuffix("_reverse").rsplit("_l", 1)
        (own,) = (
            each for each in layout.parameters
            if each.name == f"{(first, second)[int(number)]}.{names[kind]}"
        )  # fmt: skip
        array = flat[own.start : own.stop].reshape(own.spec.shape)
        return turned(array[int(name.endswith("_reverse"))])

    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.copy_(torch.from_numpy(ours(name)))
    steps = torch.optim.SGD(layer.parameters(), lr=0.5)
    for _ in range(5):
        steps.zero_grad()
        y, _ = layer(torch.from_numpy(x))
        torch.nn.functional.mse_loss(y, torch.from_numpy(target)).backward()
        steps.step()
        program.inputs["x"][...], program.inputs["target"][...] = x, target
        program.loss_gradient[...] = 1 / 3
        for step in (*program.forward, *program.backward):
            step.run()
        flat -= np.float32(0.5) * gradients
    for name, parameter in layer.named_parameters():
        np.testing.assert_allclose(ours(name), parameter.detach().numpy(), rtol=1e-4, atol=1e-5, err_msg=name)


def reduced(op: str, axis: int, keep: int) -> onnx.ModelProto:
    """What a layer makes, with the batch behind the places, over one of the axes."""
    nodes = [
        node("Transpose", "x", "t", perm=[1, 0, 2]), node("GRU", "t w0 r0 b0", "y0", hidden_size=FEATURES),
        node("Squeeze", "y0 one", "s"), node(op, "s axis", "y", keepdims=keep),
    ]  # fmt: skip
    stored = weights("GRU", 1, WIDTH, "0") | {"one": np.array([1]), "axis": np.array([axis])}
    return file(nodes, {"x": ("n", PLACES, WIDTH)}, ["y"], stored)


SUMS = [f"Reduce{of}" for of in ("Mean", "Sum", "Max", "Min", "L1", "L2", "SumSquare", "LogSumExp")]


@pytest.mark.parametrize("op", SUMS)
@pytest.mark.parametrize("keep", [0, 1])
def test_places_are_summed_up_where_the_batch_is_behind_them(op, keep):
    """As models without batch_first take the mean over time."""
    proto, samples = reduced(op, 0, keep), {"x": normal(3, PLACES, WIDTH)}
    if keep:
        proto.graph.node.append(node("Transpose", "y", "z", perm=[1, 0, 2]))
        proto.graph.output[0].name = "z"
    (got,), (wanted,) = compute(read(proto), samples).values(), expected(proto, samples)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-6)


def test_a_sum_over_the_batch_is_refused_wherever_it_is():
    with pytest.raises(GraphError, match=r"node 'y_node' \(ReduceSum\): it works along axis 1, the batch"):
        read(reduced("ReduceSum", 1, 0))


def given(op: str, direction: str, begin: str, ends: str, more=None, **own) -> onnx.ModelProto:
    """x (N, places, …) by a layer that begins with `begin`; its outputs in the order of samples."""
    ways = 1 + (direction == "bidirectional")
    stored = weights(op, ways, WIDTH, "0") | (more or {})
    layer = node(op, f"t w0 r0 b0 none {begin}", ends, hidden_size=FEATURES, direction=direction, **own)
    layer.input[:] = [name.replace("none", "") for name in layer.input]
    nodes = [node("Transpose", "x", "t", perm=[1, 0, 2])]
    values = {"x": ("n", PLACES, WIDTH)}
    for name in begin.split():
        if name not in stored and name != "none":
            values[f"{name}_x"] = ("n", ways, FEATURES)
            nodes.append(node("Transpose", f"{name}_x", name, perm=[1, 0, 2]))
    nodes.append(layer)
    outputs = [name for name in ends.split() if name != "none"]
    layer.output[:] = [name.replace("none", "") for name in layer.output]
    for name in outputs:
        nodes.append(node("Transpose", name, f"{name}_n", perm=[2, 0, 1, 3] if name == "y" else [1, 0, 2]))
    return file(nodes, values, [f"{name}_n" for name in outputs], stored)


@kinds
@directions
def test_states_are_taken_and_given(op, attributes, direction):
    """As a decoder begins with what an encoder ends with."""
    names = "h c" if op == "LSTM" else "h"
    proto = given(op, direction, names, "y yh yc" if op == "LSTM" else "y yh", **attributes)
    ways = 1 + (direction == "bidirectional")
    samples = {"x": normal(3, PLACES, WIDTH)} | {
        f"{name}_x": normal(3, ways, FEATURES, seed=seed) for seed, name in enumerate(names.split())
    }
    model = read(proto)
    for got, wanted in zip(compute(model, samples).values(), expected(proto, samples), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("begin", "ends"),
    [("h none", "y"), ("none c", "y"), ("h c", "none none yc"), ("none none", "none yh yc")],
)
def test_states_that_are_stored_are_weights_the_same_for_each_sample(begin, ends):
    learned = {name: normal(1, 1, FEATURES, seed=seed) for seed, name in enumerate("hc") if name in begin}
    model = read(given("LSTM", "forward", begin, ends, learned))
    samples = {"x": normal(3, PLACES, WIDTH)}
    repeated = given("LSTM", "forward", begin, ends, {n: a.repeat(3, axis=1) for n, a in learned.items()})
    for got, wanted in zip(compute(model, samples).values(), expected(repeated, samples), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-6)
    starts = [each for each in model.graph.nodes if each.kernel.name == "constant" and each.kernel.trained]
    assert len(starts) == len(learned), "one that is left out is no weight"


def test_states_of_0_that_are_stored_as_weights_are_trained():
    """As nn.Parameter(torch.zeros(…)) is before its first step."""
    zero = np.zeros((1, 1, FEATURES), np.float32)
    model = read(given("GRU", "forward", "h", "y", {"h": zero}))
    (start,) = (name for name, array in model.weights.items() if array.shape == (FEATURES,))
    assert not model.weights[start].any()


def test_a_loop_over_places_that_is_written_out_begins_with_a_stored_state():
    """As PyTorch's newer exporter writes an RNN: (1, N, features) meets (N, features)."""
    proto = file(
        [
            node("MatMul", "h0 r", "hr"), node("Gather", "x first", "x0", axis=1),
            node("MatMul", "x0 w", "xw"), node("Add", "xw hr", "s1"),
            node("Tanh", "s1", "h1"), node("MatMul", "h1 r", "h1r"),
            node("Gather", "x second", "x1", axis=1), node("MatMul", "x1 w", "x1w"),
            node("Add", "x1w h1r", "s2"), node("Squeeze", "s2 axis", "y"),
        ],
        {"x": ("n", PLACES, WIDTH)}, ["y"],
        {"h0": normal(1, 1, FEATURES), "r": normal(FEATURES, FEATURES), "w": normal(WIDTH, FEATURES),
         "first": np.array(0), "second": np.array(1), "axis": np.array([0])},
    )  # fmt: skip
    samples = {"x": normal(3, PLACES, WIDTH)}
    (got,), (wanted,) = compute(read(proto), samples).values(), expected(proto, samples)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def one(op: str, inputs="x w0 r0 b0", outputs="y", more=None, places=("n", PLACES, WIDTH), **own):
    """A single operator, the batch in front (layout 1)."""
    stored = weights(op, 1, WIDTH, "0") | (more or {})
    made = node(op, inputs, outputs, **{"hidden_size": FEATURES, "layout": 1} | own)
    for index, name in enumerate(made.input):
        made.input[index] = name.replace("-", "")
    values = {name: places for name in made.input if name and name not in stored}
    return file([made], values, outputs.split()[-1:], stored)


REFUSED = {
    "a state of other features": (
        {"op": "GRU", "inputs": "x w0 r0 b0 - h"},
        "its initial_h is (N, 6, 5) by samples; for (N, 6, 5) it is (N, 1, 4)",
    ),
    "cells of other features": (
        {"op": "LSTM", "inputs": "x w0 r0 b0 - - c", "more": {"c": np.full((1, 1, 7), 0.5, "f4")}},
        "its initial_c has shape (1, 1, 7); here it is (N, 1, 4)",
    ),
    "cells that differ from sample to sample": (
        {"op": "LSTM", "inputs": "x w0 r0 b0 - - c", "more": {"c": normal(3, 1, FEATURES)}},
        "differs from sample to sample",
    ),
    "curves that RNN has not": (
        {"op": "RNN", "activations": ["Sigmoid"]},
        "its activations are ['Sigmoid']; Weft's are ['Tanh'], or Relu in their place",
    ),
    "directions of different curves": (
        {"op": "RNN", "direction": "bidirectional", "activations": ["Relu", "Tanh"]},
        "its activations are ['Relu', 'Tanh']; Weft's are ['Relu', 'Relu']",
    ),
    "lengths": (
        {"op": "GRU", "inputs": "x w0 r0 b0 l", "more": {"l": np.array([PLACES, 3], np.int32)}},
        "its sequence_lens holds 3; Weft's sequences are as long as their axis",
    ),
    "peepholes": (
        {"op": "LSTM", "inputs": "x w0 r0 b0 - - - p", "more": {"p": np.ones((1, 3 * FEATURES), "f4")}},
        "its P holds 1.0; Weft's gates do not look at the cells",
    ),
    "other curves": (
        {"op": "GRU", "activations": ["Sigmoid", "Relu"]},
        "its activations are ['Sigmoid', 'Relu']; Weft's are ['Sigmoid', 'Tanh']",
    ),
    "a bound": ({"op": "LSTM", "clip": 3.0}, "clip is 3.0, a bound of what goes into the curves"),
    "one gate of two": ({"op": "LSTM", "input_forget": 1}, "input_forget is 1, which makes one gate of two"),
    "another size": ({"op": "GRU", "hidden_size": 7}, "hidden_size is 7, and its weights are of 4 features"),
    "another direction": ({"op": "GRU", "direction": "both"}, "direction is 'both'; give forward, reverse"),
    "two directions with weights of one": (
        {"op": "GRU", "direction": "bidirectional"},
        "its weight has shape (1, 12, 5); it takes (2, 12, 5) here",
    ),
    "more than it has": (
        {"op": "GRU", "outputs": "y h c"}, "its output 'c' is needed, and Weft makes only 'y', 'h'; export"
    ),
    "the batch among the places": ({"op": "GRU", "layout": 0}, "(N, 6, 5) with the batch not along axis 1"),
    "features that are tokens": (
        {"op": "GRU", "places": ("n", PLACES)}, "'x' is (N, 6) float32; it has 3 axes here, and is float32"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("given", "words"), REFUSED.values(), ids=REFUSED)
def test_what_weft_does_not_compute_is_refused(given, words):
    with pytest.raises(GraphError) as caught:
        read(one(**given))
    assert words in str(caught.value)
    assert "node 'y_node'" in str(caught.value)


@pytest.mark.parametrize(
    ("given", "words"), [("- h", "makes only 'h';"), ("- -", "makes only those before it;")]
)
def test_of_the_outputs_that_are_made_those_with_names_are_told(given, words):
    """Exporters leave out names of what nobody reads."""
    proto = one("GRU", outputs="c")
    (gru,) = proto.graph.node
    gru.output[:] = [name.replace("-", "") for name in given.split()] + ["c"]
    with pytest.raises(GraphError) as caught:
        read(proto)
    assert f"its output 'c' is needed, and Weft {words}" in str(caught.value)


def test_what_changes_nothing_is_read():
    more = {
        "l": np.full(3, PLACES, np.int32), "h": np.zeros((3, 1, FEATURES), "f4"),
        "c": np.zeros((3, 1, FEATURES), "f4"), "p": np.zeros((1, 3 * FEATURES), "f4"),
    }  # fmt: skip
    full = one("LSTM", "x w0 r0 b0 l h c p", more=more, activations=["Sigmoid", "tanh", "Tanh"], clip=0.0)
    samples = {"x": normal(3, PLACES, WIDTH)}
    (got,), (wanted,) = (compute(read(each), samples).values() for each in (full, one("LSTM")))
    np.testing.assert_array_equal(got, wanted)
