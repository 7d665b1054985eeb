"""Graphs to be cut into blocks of neurons, their inputs, and what a serial program makes of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from weft.kernels.device import Device
from weft.runtime.graph import Builder, Graph, Layout, Memory, Program, initialise

SHAPE = (6, 21, 17)


def chain() -> Graph:
    """Convolutions with and without strides, pools, and dense layers behind them."""
    b = Builder()
    h = b.input("x", SHAPE)
    for i, stride in enumerate((1, 2, 1)):
        h = b("conv2d", h, channels=16, kernel_size=3, padding=1, stride=stride, name=f"conv{i}")
        h = b("relu", h, name=f"relu{i}")
    h = b("max_pool2d", h, kernel_size=3, stride=2, padding=1, name="pool")
    h = b("response_norm", h, size=5, name="norm")
    h = b("dense", b("flatten", h), features=100, name="dense0")
    return b.build(b("softmax", b("dense", b("relu", h), features=10, name="dense1")))


def inception() -> Graph:
    """Two modules of four branches each that are joined."""
    b = Builder()
    h = b.input("x", SHAPE)
    for i in range(2):

        def conv(x, channels, size, name, i=i):
            return b(
                "relu",
                b("conv2d", x, channels=channels, kernel_size=size, padding=size // 2, name=f"{name}{i}"),
            )

        pool = b("max_pool2d", h, kernel_size=3, stride=1, padding=1)
        branches = (
            conv(h, 16, 1, "one"),
            conv(conv(h, 8, 1, "reduce3_"), 24, 3, "three"),
            conv(conv(h, 8, 1, "reduce5_"), 16, 5, "five"),
            conv(pool, 8, 1, "pooled"),
        )  # fmt: skip
        h = b("concat", *branches, name=f"joined{i}")
    return b.build(b("global_average_pool2d", h))


def residual() -> Graph:
    """Norms, a shortcut with a convolution of its own, one without, and two outputs."""
    b = Builder()
    x = b.input("x", SHAPE)
    h = b(
        "relu",
        b("batch_norm", b("conv2d", x, channels=16, kernel_size=3, padding=1, bias=False, name="first")),
    )
    short = b("conv2d", h, channels=32, kernel_size=1, stride=2, name="short")
    long = b("conv2d", h, channels=32, kernel_size=3, padding=1, stride=2, name="long")
    h = b("relu", b("add", b("batch_norm", long), short, name="sum0"), name="out0")
    deep = b("conv2d", h, channels=32, kernel_size=3, padding=1, groups=2, name="deep")
    return b.build(b("relu", b("add", h, deep, name="sum1"), name="out1"), h)


def dense_net() -> Graph:
    """Everything so far is joined again and again, and read by norms."""
    b = Builder()
    h = b("conv2d", b.input("x", SHAPE), channels=8, kernel_size=3, padding=1, name="stem")
    for i in range(3):
        grown = b(
            "conv2d", b("relu", b("batch_norm", h)), channels=8, kernel_size=3, padding=1, name=f"grow{i}"
        )
        h = b("concat", h, grown, name=f"all{i}")
    return b.build(b("average_pool2d", h, kernel_size=2))


def transformer() -> Graph:
    """Attention and its residuals over places, where neurons are the last axis."""
    b = Builder()
    x = b.input("x", (12, 16))
    h = b(
        "add",
        x,
        b("dense", b("attention", b("dense", b("layer_norm", x), features=48), heads=2), features=16),
    )
    up = b("gelu", b("dense", b("layer_norm", h), features=64, name="up"))
    return b.build(b("add", h, b("dense", up, features=16, name="down")))


GRAPHS: dict[str, Callable[[], Graph]] = {
    each.__name__: each for each in (chain, inception, residual, dense_net, transformer)
}


def parameters(graph: Graph, seed: int = 3) -> np.ndarray:
    """Weights, biases and statistics none of which is zero or one."""
    layout = Layout.of(graph)
    flat = initialise(layout, seed)
    random = np.random.default_rng(seed)
    for each in layout.parameters:
        if each.spec.initial in ("zeros", "ones"):
            flat[each.start : each.stop] += random.uniform(0.05, 0.3, each.spec.size).astype(np.float32)
    return flat


def samples(graph: Graph, batch: int, seed: int = 5) -> dict[str, np.ndarray]:
    """Random inputs."""
    random = np.random.default_rng(seed)
    return {
        name: random.standard_normal((batch, *spec.shape), np.float32) for name, spec in graph.inputs.items()
    }


def serial(
    graph: Graph, batch: int, flat: np.ndarray, inputs: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The oracle: node after node."""
    layout = Layout.of(graph)
    memory = Memory(graph, layout, Device(), batch, training=False)
    program = Program(graph, layout, memory, batch, flat)
    for name, array in inputs.items():
        program.inputs[name][...] = array
    for step in program.forward:
        step.run()
    return {name: np.array(array) for name, array in zip(graph.outputs, program.outputs, strict=True)}
