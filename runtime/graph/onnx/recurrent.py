"""RNN, LSTM and GRU: the file has (places, N, …), or (N, places, …) with layout 1; Weft the latter.

    X         (T, N, in)                     Y         (T, directions, N, features)
    initial_h (directions, N, features)  ──> Y_h, Y_c  (directions, N, features): behind the last places
    initial_c (directions, N, features)

An LSTM whose Y_c is read has its last cells as a place behind its last.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....kernels.rearrange import Slice
from ....kernels.recurrence import REVERSED, Recurrent
from ....kernels.recurrent import GRU, LSTM, RNN
from ....kernels.shape import Concat, Reshape
from .move import turned
from .node import At, Dynamic, Operand, Static, show

STATES = {"initial_h": 5, "initial_c": 6}
"""Inputs by their places, in the order of a kernel's."""

FIXED = {
    "sequence_lens": (4, "sequences are as long as their axis: export the model without lengths"),
    "P": (7, "gates do not look at the cells: train the model without peepholes"),
}
"""Inputs by their places, and what they are to Weft."""


def rnn(at: At) -> tuple[Operand, ...]:
    """RNN, of tanh or of ReLU."""
    first, *_ = [each.lower() for each in at.attributes.get("activations") or ["tanh"]]
    activation = "relu" if first == "relu" else "tanh"
    return _recurrent(at, RNN, [activation.capitalize()], activation=activation)


def lstm(at: At) -> tuple[Operand, ...]:
    """LSTM; the cells at the end are made for whoever reads them."""
    return _recurrent(at, LSTM, ["Sigmoid", "Tanh", "Tanh"], cells=any(at.outputs[2:]))


def gru(at: At) -> tuple[Operand, ...]:
    """GRU, with its reset gate before or behind the product."""
    after = bool(at.attributes.get("linear_before_reset", 0))
    return _recurrent(at, GRU, ["Sigmoid", "Tanh"], reset_after=after)


def _recurrent(at: At, kind: type[Recurrent], curves: list[str], **attributes: Any) -> tuple[Operand, ...]:
    """`curves` are those of the gates, of the candidates, and of an LSTM's cells."""
    weight, recurrent = at.weight(1, "weights W"), at.weight(2, "weights R")
    if weight.ndim != 3 or recurrent.ndim != 3:
        at.refuse(f"its weights are {show(weight.shape)} and {show(recurrent.shape)}; they have 3 axes each")
    features = recurrent.shape[-1]
    direction = str(at.attributes.get("direction", "forward"))
    kernel = at.kernel(kind, features, direction, at.given(3), **attributes)
    assert isinstance(kernel, Recurrent)
    _require_defaults(at, features, curves * kernel.directions)
    weights = [weight, recurrent]
    if at.given(3):
        weights += np.split(at.weight(3, "bias"), 2, axis=1)

    first = bool(at.attributes.get("layout", 0))  # whether the batch is
    x = _by_sample(at, 0, (0, 1, 2) if first else (1, 0, 2))
    samples, places, _ = x.shape
    _require_neutral(at, places)
    begin = _begin(at, x, kernel, (0, 1, 2) if first else (1, 0, 2))
    y = at.along(x, at.add(kernel, x, *begin, weights=weights))
    ends = []
    if kernel.places_behind:
        axis = len(y.spec.shape) - 2
        behind = at.add(at.kernel(Slice, axis, places, places + 1), y, part="behind")
        y = at.along(x, at.add(at.kernel(Slice, axis, 0, places), y, part="places"))
        ends = [at.reshape(at.along(y, behind), (samples, kernel.directions, features), part="cells")]
    apart = at.reshape(y, (samples, places, kernel.directions, features), part="directions")
    ends = [_last(at, y, kernel), *ends]
    if first:
        return apart, *ends
    return turned(at, apart, (1, 2, 0, 3)), *(turned(at, each, (1, 0, 2)) for each in ends)


def _by_sample(at: At, index: int, order: tuple[int, int, int]) -> Dynamic:
    """An input as samples of places of features, or of directions of features."""
    x = at.anyhow(index)
    if x.spec.dtype != "float32" or len(x.shape) != 3:
        at.refuse(f"{x.name!r} is {show(x.shape)} {x.spec.dtype}; it has 3 axes here, and is float32")
    if not at.writing.batched:
        return turned(at, x, order)
    found = at.settled(at.transposed(x, order), "front")
    if found.layout or found.shape[1:] != found.spec.shape[-2:]:  # several sequences of a sample are in front
        at.refuse(
            f"{x.name!r} is {show(x.shape)} with the batch not along axis {order[0]}: states would go from "
            "sample to sample; export the model with batch_first, or for one sample, read with batched=False"
        )
    return found


def _begin(at: At, x: Dynamic, kernel: Recurrent, order: tuple[int, int, int]) -> list[Dynamic]:
    """The states that the sequences x begin with, directions side by side; none where all are 0."""
    places = list(STATES.values())[: kernel.states]
    if all(_is_zero(at, index) for index in places):
        return []
    return [_state(at, x, index, kernel, order) for index in places]


def _is_zero(at: At, index: int) -> bool:
    """Whether a state is left out, or 0 and no weight."""
    if not at.given(index):
        return True
    operand = at.operand(index)
    return isinstance(operand, Static) and not operand.trained and not operand.array.any()


def _state(at: At, x: Dynamic, index: int, kernel: Recurrent, order: tuple[int, int, int]) -> Dynamic:
    """A state (N, directions · features): 0, stored, or computed."""
    name = next(name for name, place in STATES.items() if place == index)
    wanted, width = (x.shape[0], kernel.directions, kernel.features), kernel.directions * kernel.features
    if not at.given(index):
        return _constant(at, x, Static(np.zeros(width, np.float32)))
    operand = at.operand(index)
    if isinstance(operand, Dynamic):
        found = _by_sample(at, index, order)
        if found.shape != wanted:
            at.refuse(
                f"its {name} is {show(found.shape)} by samples; for {show(x.shape)} it is {show(wanted)}"
            )
        own = (*x.spec.shape[1:-2], width)
        return found if found.spec.shape[1:] == own else at.add(at.kernel(Reshape, own), found, part=name)
    if operand.array.ndim != 3 or operand.array.transpose(order).shape[1:] != wanted[1:]:
        of = [(*wanted[1:2], "N", wanted[2]), ("N", *wanted[1:])][order == (0, 1, 2)]
        at.refuse(f"its {name} has shape {operand.array.shape}; here it is ({', '.join(map(str, of))})")

    of_sample = x.spec.shape[1:-2] if at.writing.batched else ()  # several sequences, perhaps

    def rows(array: NDArray[Any]) -> NDArray[Any]:
        found = array.transpose(order).reshape(-1, width)
        return found if len(found) % prod(of_sample) else found.reshape(-1, *of_sample, width)

    other = None if operand.other is None else rows(operand.other)
    return _constant(at, x, Static(rows(operand.array), operand.trained, other))


def _constant(at: At, x: Dynamic, rows: Static) -> Dynamic:
    """Rows that are known, the same for each sample of x."""
    array = at.per_sample(rows, max(2, rows.array.ndim))
    own = np.ascontiguousarray(np.broadcast_to(array, (*x.spec.shape[1:-2], array.shape[-1])))
    return at.constant(Static(own, rows.trained), own.ndim + 1)


def _last(at: At, y: Dynamic, kernel: Recurrent) -> Dynamic:
    """The states (N, directions, features) of the places that each direction computes last."""
    axis, behind = len(y.spec.shape) - 2, len(y.spec.shape) - 1
    found = []
    for number, back in enumerate(REVERSED[kernel.direction]):
        place = 0 if back else y.shape[1] - 1
        last = at.add(at.kernel(Slice, axis, place, place + 1), y, part=f"last{number}")
        if kernel.directions > 1:
            own = at.kernel(Slice, behind, number * kernel.features, (number + 1) * kernel.features)
            last = at.add(own, last, part=f"own{number}")
        found.append(last)
    last = at.add(at.kernel(Concat, axis), *found, part="last") if len(found) > 1 else found[0]
    return at.reshape(at.along(y, last), (y.shape[0], len(found), kernel.features), part="states")


def _require_defaults(at: At, features: int, curves: list[str]) -> None:
    """Refuse attributes that ask for another function."""
    given = at.attributes.get("activations")
    if given and [each.lower() for each in given] != [each.lower() for each in curves]:
        or_relu = ", or Relu in their place" if at.op == "RNN" else ""
        at.refuse(f"its activations are {given}; Weft's are {curves}{or_relu}")
    if clip := at.attributes.get("clip", 0):
        at.refuse(f"clip is {clip}, a bound of what goes into the curves; Weft has none")
    if at.attributes.get("input_forget", 0):
        at.refuse("input_forget is 1, which makes one gate of two; Weft has both")
    if (size := int(at.attributes.get("hidden_size", features))) != features:
        at.refuse(f"hidden_size is {size}, and its weights are of {features} features")


def _require_neutral(at: At, places: int) -> None:
    """Refuse lengths and peepholes, but for those that change nothing."""
    for name, (index, those_of_weft) in FIXED.items():
        if not at.given(index):
            continue
        found, neutral = at.operand(index), places if name == "sequence_lens" else 0
        if isinstance(found, Dynamic):
            at.refuse(f"its {name} is computed ({found.name!r}); Weft's {those_of_weft}")
        for array in (found.array, found.other):
            if array is not None and (others := array[array != neutral]).size:
                at.refuse(f"its {name} holds {others[0]}; Weft's {those_of_weft}")
