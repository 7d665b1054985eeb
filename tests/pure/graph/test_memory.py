"""Buffers that are needed together never share memory; buffers that are not, do."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.runtime.graph import Builder, Layout, Memory, Program, initialise
from weft.runtime.graph.memory import ALIGNMENT, Lifetime, place, scratch_nbytes

from .test_backward import Bound, Host, convolutional, transformer


@st.composite
def many_lifetimes(draw):
    found = []
    for number in range(draw(st.integers(0, 25))):
        first = draw(st.integers(0, 20))
        found.append(
            Lifetime(f"a{number}", draw(st.integers(1, 1000)), first, first + draw(st.integers(0, 10)))
        )
    return found


@given(many_lifetimes())
def test_arrays_that_live_together_never_overlap(arrays):
    placement = place(arrays)
    for array in arrays:
        start = placement.offsets[array.name]
        assert start % ALIGNMENT == 0
        assert start + array.nbytes <= placement.nbytes
        for other in arrays:
            if other is not array and other.meets(array):
                begin = placement.offsets[other.name]
                assert start + array.nbytes <= begin or begin + other.nbytes <= start


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn"])
def test_inference_has_no_workspace_for_gradients(name):
    b = Builder()
    x = b.input("x", (50, 8))
    graph = b.build(b(name, x, features=16))
    (gates, *_) = graph.nodes[0].kernel.saved(*graph.input_specs(graph.nodes[0], graph.specs(4)))
    assert scratch_nbytes(graph, 4, training=False) == 0
    assert scratch_nbytes(graph, 4, training=True) > gates.nbytes


def test_a_chain_needs_two_buffers_however_long_it_is():
    arrays = [Lifetime(f"a{number}", 640, number, number + 1) for number in range(50)]
    assert place(arrays).nbytes == 2 * 640


# NumPy's ufuncs work through a buffer of 8,192 elements where operands are broadcast: 32 KiB for any size.
UFUNC_BUFFER_BYTES = 8192 * 4 + 4096


@pytest.mark.parametrize("model", [convolutional, transformer])
def test_a_step_allocates_no_large_array(model):
    batch = 1024
    bound = Bound(model(), batch=batch)
    program = bound.program
    assert max(output.nbytes for output in program.inputs.values()) > UFUNC_BUFFER_BYTES / 2
    assert bound.memory.arena.nbytes > 20 * UFUNC_BUFFER_BYTES
    steps = (*program.forward, *program.backward, *program.backward_more)
    for step in steps:
        step.run()  # compiles
    tracemalloc.start()
    try:
        for step in steps:
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            step.run()
            peak = tracemalloc.get_traced_memory()[1] - before
            assert peak < UFUNC_BUFFER_BYTES, f"{step.name} allocated {peak} bytes"
    finally:
        tracemalloc.stop()


def test_an_output_is_kept_to_the_end_whoever_reads_it():
    b = Builder()
    x = b.input("x", (64,))
    graph = b.build(b("relu", x), b("tanh", b("tanh", b("tanh", x))))
    layout = Layout.of(graph)
    memory = Memory(graph, layout, Host(), 1, training=False)
    program = Program(graph, layout, memory, 1, initialise(layout, seed=0))
    program.inputs["x"][...] = np.linspace(-1, 1, 64)
    for step in program.forward:
        step.run()
    np.testing.assert_array_equal(program.outputs[0][0], np.maximum(np.linspace(-1, 1, 64, dtype="f4"), 0))


def branches(b, x):
    return b("conv2d", x, channels=2, kernel_size=1), b("conv2d", x, channels=3, kernel_size=3, padding=1)


def nested(b, x):
    first = b("concat", *branches(b, x), name="within")
    return b("concat", b("relu", first), first, b("conv2d", first, channels=1, kernel_size=1), name="whole")


def also_read_alone(b, x):
    one, other = branches(b, x)
    together = b("concat", one, other, name="whole")
    return b("concat", together, b("relu", one), b("relu", b("reshape", other, shape=(3, 4, 4))), name="last")


GATHERED = {
    "branches": (lambda b, x: b("relu", b("concat", *branches(b, x))), 0),
    "a concat within a concat": (nested, 0),
    "parts that others read, and a view of one": (also_read_alone, 0),
    "an input of the graph": (lambda b, x: b("concat", x, *branches(b, x)), 1),
    "one part twice": (lambda b, x: b("concat", *2 * branches(b, x)), 1),
    "a view of a part": (
        lambda b, x: b("concat", b("reshape", b("relu", x), shape=(2, 4, 4)), b("tanh", x)), 1
    ),
    "another axis": (lambda b, x: b("concat", b("relu", x), b("tanh", x), axis=2), 1),
    "the only axis": (lambda b, x: b("concat", *(b("flatten", b("relu", x)), b("flatten", b("tanh", x)))), 1),
    "the last axis, which is the first": (
        lambda b, x: b("concat", *(b("dense", b("flatten", x), features=n) for n in (3, 5)), axis=-1), 0
    ),
}  # fmt: skip


@pytest.mark.parametrize(("build", "copies"), GATHERED.values(), ids=GATHERED)
def test_parts_of_one_sample_are_written_where_they_are_concatenated(build, copies):
    b = Builder()
    graph = b.build(build(b, b.input("x", (2, 4, 4))))
    layout = Layout.of(graph)
    parameters = initialise(layout, seed=0)
    found = {}
    for batch in (1, 2):
        program = Program(
            graph, layout, Memory(graph, layout, Host(), batch, training=False), batch, parameters
        )
        program.inputs["x"][...] = np.random.default_rng(0).standard_normal((1, 2, 4, 4))
        for step in program.forward:
            step.run()
        found[batch] = program.outputs[0][0]
        concats = [step for step in program.forward if graph.by_name[step.node].kernel.name == "concat"]
        if batch == 1:
            assert len(concats) == copies
    np.testing.assert_allclose(found[1], found[2], rtol=1e-5, atol=1e-6)
