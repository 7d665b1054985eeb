"""rnn, lstm and gru: against finite differences and PyTorch; directions, states, numbers of any size."""

from __future__ import annotations

import numpy as np
import pytest

from tests.pure.kernels.checks import allocate, check_against, check_gradients, check_oracle, normal, run
from weft.kernels.kernel import ArraySpec, Kernel, Mode
from weft.kernels.recurrence import Recurrent
from weft.kernels.recurrent import GRU, LSTM, RNN

KINDS = {
    "rnn": lambda *given: RNN(*given),
    "rnn, of rectified sums": lambda *given: RNN(*given, activation="relu"),
    "lstm": lambda *given: LSTM(*given),
    "lstm, with its last cells": lambda *given: LSTM(*given, cells=True),
    "gru": lambda *given: GRU(*given),
    "gru, first reset": lambda *given: GRU(*given, reset_after=False),
}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
directions = pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
biased = pytest.mark.parametrize("bias", [True, False], ids=["with biases", "without"])

GATES = {"rnn": (0,), "lstm": (0, 2, 3, 1), "gru": (1, 0, 2)}  # PyTorch's order, in ONNX's numbers


def states(kernel: Recurrent, *lead: int, dtype: str = "float64") -> list[np.ndarray]:
    """What sequences begin with."""
    width = kernel.directions * kernel.features
    return [normal(*lead, width, seed=seed, dtype=dtype) for seed in range(1, 1 + kernel.states)]


@kinds
@directions
@biased
def test_gradients_equal_finite_differences(kind, direction, bias):
    check_gradients(kind(4, direction, bias), normal(2, 5, 3))


@kinds
@directions
def test_equals_its_oracle(kind, direction):
    kernel = kind(4, direction)
    check_oracle(kernel, normal(2, 5, 3))
    check_oracle(kernel, normal(2, 3, 4, 3), *states(kernel, 2, 3), dtypes=("float32", "float64"))


@kinds
@directions
def test_gradients_reach_the_states_that_a_sequence_begins_with(kind, direction):
    kernel = kind(4, direction)
    check_gradients(kernel, normal(2, 5, 3), *states(kernel, 2))
    check_gradients(kernel, normal(2, 3, 1, 3), *states(kernel, 2, 3))


@kinds
@directions
def test_states_of_0_are_none(kind, direction):
    kernel, x = kind(4, direction), normal(2, 5, 3)
    zero = [0 * each for each in states(kernel, 2)]
    without, zeros = (run(kernel, allocate(kernel, x, *more)) for more in ([], zero))
    np.testing.assert_array_equal(without.output, zeros.output)
    for got, wanted in zip(zeros.weight_gradients, without.weight_gradients, strict=True):
        np.testing.assert_array_equal(got, wanted)


@kinds
def test_a_sequence_in_two_parts_is_the_whole(kind):
    """What the first part ends with is what the second begins with."""
    kernel, x = kind(4), normal(2, 6, 3)
    whole, first = (run(kernel, allocate(kernel, np.ascontiguousarray(x[:, :n]))) for n in (6, 4))
    ends = [first.output[:, 3], *first.output[:, 4:].swapaxes(0, 1)]
    if kernel.states > len(ends):
        ends.append(first.saved[1][:, 3])
    second = run(kernel, allocate(kernel, *map(np.ascontiguousarray, [x[:, 4:], *ends])))
    np.testing.assert_allclose(second.output, whole.output[:, 4:], rtol=1e-12)


@kinds
def test_a_gradient_is_made_of_what_is_wanted_alone(kind):
    kernel, x = kind(4, "bidirectional"), normal(2, 5, 3)
    begin = states(kernel, 2)
    wanted = run(kernel, allocate(kernel, x, *begin))
    for kept in range(1 + len(begin)):
        b = allocate(kernel, x, *begin)
        b.input_gradients = tuple(each if n == kept else None for n, each in enumerate(b.input_gradients))
        run(kernel, b)
        np.testing.assert_array_equal(b.input_gradients[kept], wanted.input_gradients[kept])


@kinds
def test_a_sequence_of_one_place_and_sequences_of_a_sample(kind):
    check_gradients(kind(4, "bidirectional"), normal(2, 1, 3))
    check_gradients(kind(2, "bidirectional"), normal(2, 3, 4, 3))


@pytest.mark.parametrize("name", GATES)
@directions
@biased
def test_equals_pytorch(name, direction, bias):
    torch = pytest.importorskip("torch")
    kernel: Kernel = {"rnn": RNN, "lstm": LSTM, "gru": GRU}[name](6, direction, bias)
    layer = getattr(torch.nn, name.upper())(
        4, 6, bias=bias, batch_first=True, bidirectional=direction == "bidirectional"
    )

    def reference(x, *parameters):
        def reordered(parameter):
            gates = parameter.reshape(len(GATES[name]), -1, *parameter.shape[1:])
            return gates[list(GATES[name])].reshape(parameter.shape)

        flat = [reordered(each[way]) for way in range(len(parameters[0])) for each in parameters]
        names = dict(zip((each for each, _ in layer.named_parameters()), flat, strict=True))
        back = direction == "reverse"
        y, *_ = torch.func.functional_call(layer, names, (x.flip(1) if back else x,))
        return y.flip(1) if back else y

    check_against(kernel, reference, normal(3, 7, 4))


@kinds
def test_a_place_does_not_see_the_places_that_come_later(kind):
    for direction, later in (("forward", slice(4, None)), ("reverse", slice(0, 2))):
        kernel, x = kind(3, direction), normal(2, 6, 5, dtype="float32")
        before = run(kernel, allocate(kernel, x)).output.copy()
        x[:, later] += 1
        after = run(kernel, allocate(kernel, x)).output
        before, after = before[:, :6], after[:, :6]  # without cells, which have seen all
        seen = np.ones(6, bool)
        seen[later] = False
        np.testing.assert_array_equal(after[:, seen], before[:, seen])
        assert (after[:, later] != before[:, later]).any()


@pytest.mark.parametrize("kind", [kind for name, kind in KINDS.items() if "rectified" not in name])
def test_sums_of_any_size_do_not_overflow(kind):
    kernel = kind(3)
    b = run(kernel, allocate(kernel, 1e30 * normal(2, 6, 5, dtype="float32")))
    assert np.isfinite(b.output).all()
    assert np.isfinite(b.input_gradients[0]).all()


@kinds
def test_a_gradient_needs_nothing_that_another_left_in_the_workspace(kind):
    """A weight gradient is computed by another rank, or later than others."""
    kernel, x = kind(3, "bidirectional"), normal(2, 6, 5, dtype="float32")
    wanted = run(kernel, allocate(kernel, x))
    b = allocate(kernel, x)
    kernel.forward(b, Mode())
    for call in (kernel.input_gradient, kernel.weight_gradient, kernel.weight_gradient):
        for each in b.scratch:
            each.fill(np.nan)
        call(b, Mode())
    np.testing.assert_array_equal(b.input_gradients[0], wanted.input_gradients[0])
    for got, other in zip(b.weight_gradients, wanted.weight_gradients, strict=True):
        np.testing.assert_array_equal(got, other)


@kinds
def test_what_does_not_fit_is_named(kind):
    with pytest.raises(ValueError, match=r"shape \(2, 8\); it needs axes"):
        kind(3).output(ArraySpec((2, 8)))
    with pytest.raises(ValueError, match="features is 0"):
        kind(0)
    with pytest.raises(ValueError, match="direction is 'both'; give forward, reverse, bidirectional"):
        kind(3, "both")
    kernel, x = kind(3), ArraySpec((2, 5, 8))
    one = ArraySpec((2, 3))
    with pytest.raises(ValueError, match=f"5 inputs; give 1, or {1 + kernel.states} with states"):
        kernel.output(x, one, one, one, one)
    with pytest.raises(ValueError, match=r"has shape \(2, 8\); for sequences \(2, 5, 8\) it is \(2, 3\)"):
        kernel.output(x, *[ArraySpec((2, 8))] * kernel.states)


def test_an_activation_that_is_none_is_named():
    with pytest.raises(ValueError, match="activation is 'sin'; give tanh or relu"):
        RNN(3, activation="sin")
