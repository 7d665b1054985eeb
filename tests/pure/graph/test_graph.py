"""A graph says what is wrong with it where it is written."""

import pytest

from weft.kernels.kernel import ArraySpec
from weft.kernels.linear import Dense
from weft.runtime.errors import GraphError
from weft.runtime.graph import Builder, Graph, describe, sequential, with_loss


def test_shapes_follow_from_the_input_and_the_batch():
    graph = sequential(
        (1, 8, 8),
        [
            ("conv2d", {"channels": 4, "kernel_size": 3, "padding": 1}),
            ("flatten", {}),
            ("dense", {"features": 10}),
        ],
    )
    specs = graph.specs(5)
    assert specs["conv2d_1"].shape == (5, 4, 8, 8)
    assert specs["flatten_1"].shape == (5, 256)
    assert specs["dense_1"].shape == (5, 10)


def test_a_kernel_is_named_or_given():
    b = Builder()
    x = b.input("x", (4,))
    graph = b.build(b(Dense(features=2), b("dense", x, features=3)))
    assert [(node.name, node.kernel) for node in graph.nodes] == [
        ("dense_1", Dense(features=3)),
        ("dense_2", Dense(features=2)),
    ]


def build_with(change):
    builder = Builder()
    x = builder.input("x", (4,))
    return change(builder, x)


WRONG = {
    "an unknown kernel": (lambda b, x: b("dens", x, features=2), ["dens", "dense"]),
    "an unknown attribute": (lambda b, x: b("dense", x, feature=2), ["feature", "features"]),
    "a missing value": (lambda b, x: b.build(b("relu", "y")), ["reads 'y'", "known so far: x"]),
    "a doubled name": (lambda b, x: b.build(b("dense", x, features=2, name="x")), ["two values", "'x'"]),
    "a name with an apostrophe": (lambda b, x: b.build(b("relu", x, name="it's")), ['"it\'s"', "letters"]),
    "an input twice": (lambda b, x: b.input("x", (3,)), ["two inputs", "'x'"]),
    "too many inputs": (lambda b, x: b.build(b("relu", x, b("tanh", x))), ["takes 1 inputs, got 2"]),
    "attributes of a kernel that is made": (
        lambda b, x: b(Dense(features=2), x, features=3),
        ["'dense_1'", "features cannot be set any more"],
    ),
    "shapes that do not fit": (
        lambda b, x: b.build(b("conv2d", x, channels=2, kernel_size=3, name="c")),
        ["'c'", "(1, 4)"],
    ),
}


@pytest.mark.parametrize(("change", "words"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named(change, words):
    with pytest.raises(GraphError) as caught:
        build_with(change)
    for word in words:
        assert word in str(caught.value)


def test_an_output_must_exist():
    with pytest.raises(GraphError, match="'y' is no value"):
        Graph({"x": ArraySpec((3,))}, (), ("y",))


def test_a_loss_needs_one_prediction():
    builder = Builder()
    x = builder.input("x", (4,))
    two = builder.build(builder("relu", x), builder("tanh", x))
    with pytest.raises(GraphError, match="one prediction"):
        with_loss(two, "mean_squared_error", ArraySpec((4,)))


@pytest.mark.parametrize("shape", [(0,), (3, 0, 4), (-2,), (2.5,)], ids=str)
def test_an_input_without_elements_is_refused(shape):
    """Of no features dense made a ZeroDivisionError, of a negative number relu made an empty answer."""
    with pytest.raises(GraphError, match=r"input 'x' has the shape \(.*\) a sample; extents are 1 or more"):
        sequential(shape, [("relu", {})])


TOKENS = ArraySpec((6,), "int32")
CUT_OFF = {
    "what an embedding takes for tokens": lambda b, h: b(
        "embedding", b("cast", h, dtype="int32"), entries=9, width=2
    ),
    "what a constant counts the samples of": lambda b, h: b("constant", h, shape=[6, 2]),
    "the place of the largest": lambda b, h: b("cast", b("arg_max", h), dtype="float32"),
}


@pytest.mark.parametrize("read", CUT_OFF.values(), ids=CUT_OFF)
def test_weights_that_no_gradient_reaches_are_refused(read):
    builder = Builder()
    h = builder("dense", builder.input("x", (4,)), features=6, name="before")
    graph = builder.build(builder("dense", read(builder, h), features=3, name="behind"))
    reached = r"reaches the weights of before: it ends at (embedding|constant|arg_max)_1 \(\w+\); remove"
    with pytest.raises(GraphError, match=reached):
        with_loss(graph, "mean_squared_error", ArraySpec((6, 3)))


def test_where_a_gradient_ends_is_told_without_what_reads_the_inputs_alone():
    """Each embedding of tokens and each learned constant was named with it."""
    builder = Builder()
    x = builder.input("x", (4,))
    words = builder("embedding", builder.input("tokens", (), "int32"), entries=9, width=4, name="words")
    best = builder("arg_max", builder("dense", x, features=6, name="before"), keepdims=False)
    choice = builder("embedding", builder("cast", best, dtype="int32"), entries=6, width=4, name="choice")
    both = builder("add", words, choice, builder("constant", x, shape=[4]))
    graph = builder.build(builder("dense", both, features=3))
    with pytest.raises(GraphError, match=r"of before: it ends at choice \(embedding\); remove"):
        with_loss(graph, "mean_squared_error", ArraySpec((3,)))


def test_weights_that_a_gradient_reaches_on_another_way_are_not():
    builder = Builder()
    h = builder("dense", builder.input("x", (4,)), features=6)
    graph = builder.build(builder("add", h, builder("constant", h, shape=[6])))
    assert with_loss(graph, "mean_squared_error", ArraySpec((6,))).outputs[1] == "add_1"


NO_FLOATS = {
    "a norm, whose output would be whole numbers": [("layer_norm", {})],
    "a layer that numpy would refuse in the first step": [("dense", {"features": 3})],
    "a half of every token": [("arithmetic_number", {"operator": "mul", "value": 0.5})],
    "a cast to what nothing is compiled for": [("cast", {"dtype": "float16"}), ("relu", {})],
}


@pytest.mark.parametrize("layers", NO_FLOATS.values(), ids=NO_FLOATS)
def test_numbers_that_a_kernel_does_not_compute_with_are_refused_where_the_model_is_written(layers):
    with pytest.raises(GraphError, match=r"an input is \(1, 6\) (int32|float16); it computes with float32"):
        sequential(TOKENS.shape, layers, dtype=TOKENS.dtype)


def test_tokens_plus_one_are_tokens():
    graph = sequential((6,), [("arithmetic_number", {"operator": "add", "value": 1})], dtype="int32")
    assert graph.specs(2)["arithmetic_number_1"] == ArraySpec((2, 6), "int32")


def test_s1_2_a_given_cost_overrides_the_determined_one():
    builder = Builder()
    x = builder.input("x", (4,))
    free = builder("dense", x, features=8, name="free")
    given = builder("dense", free, features=8, name="given", tags={"cost": 1e9, "priority": 3, "room": "a"})
    found = describe(builder.build(given), batch=2)
    assert found["free"].cost_source == "determined"
    assert found["free"].cost.forward_flops >= 2 * 2 * 4 * 8
    assert found["given"].cost_source == "given"
    assert found["given"].cost.forward_flops == 1e9
    assert found["given"].cost.weight_gradient_flops > 1e8
    assert (found["given"].priority, found["given"].tags["room"]) == (3, "a")


def test_s1_1_every_node_carries_its_metadata():
    graph = sequential(
        (3, 8, 8), [("conv2d", {"channels": 4, "kernel_size": 3}), ("relu", {}), ("dropout", {"rate": 0.5})]
    )
    found = describe(graph, batch=2)
    conv = found["conv2d_1"]
    assert (conv.kernel, conv.neurons, conv.parameters) == ("conv2d", 4 * 6 * 6, 4 * 3 * 9 + 4)
    assert conv.attributes["channels"] == 4
    assert conv.splits
    assert found["dropout_1"].attributes["rate"] == 0.5
