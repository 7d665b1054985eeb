"""Buffers that are needed together never share memory; buffers that are not, do."""

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.runtime.graph.memory import ALIGNMENT, Lifetime, place

from .test_backward import Bound, convolutional, transformer


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
