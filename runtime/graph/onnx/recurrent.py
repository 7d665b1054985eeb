"""LSTM and GRU: the file's values are (places, N, …), or (N, places, …) with layout 1; Weft's the latter.

X (T, N, in) ──> lstm or gru (N, T, directions · features) ──> Y   (T, directions, N, features)
                                                          └──> Y_h (directions, N, features): last places
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ....kernels.rearrange import Slice
from ....kernels.recurrent import GRU, LSTM, REVERSED, Recurrent
from ....kernels.shape import Concat
from .move import turned
from .node import At, Dynamic, Operand, show

CURVES = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"]}
"""Of the gates, of the candidates, and of an LSTM's cells."""

FIXED = {
    "sequence_lens": "sequences are as long as their axis: export the model without lengths",
    "initial_h": "states begin with 0: export the model without states to begin with",
    "initial_c": "cells begin with 0: export the model without cells to begin with",
    "P": "gates do not look at the cells: train the model without peepholes",
}
"""The inputs from the fifth on, and what they are to Weft."""


def lstm(at: At) -> tuple[Operand, ...]:
    """LSTM, without its third output: the cells that the next call would begin with."""
    return _recurrent(at, LSTM, {})


def gru(at: At) -> tuple[Operand, ...]:
    """GRU, with its reset gate before or behind the product."""
    return _recurrent(at, GRU, {"reset_after": bool(at.attributes.get("linear_before_reset", 0))})


def _recurrent(at: At, kind: type[Recurrent], attributes: dict[str, Any]) -> tuple[Operand, ...]:
    weight, recurrent = at.weight(1, "weights W"), at.weight(2, "weights R")
    if weight.ndim != 3 or recurrent.ndim != 3:
        at.refuse(f"its weights are {show(weight.shape)} and {show(recurrent.shape)}; they have 3 axes each")
    features = recurrent.shape[-1]
    direction = str(at.attributes.get("direction", "forward"))
    kernel = at.kernel(kind, features, direction, at.given(3), **attributes)
    directions = len(REVERSED[direction])
    _require_defaults(at, features, directions)
    weights = [weight, recurrent]
    if at.given(3):
        weights += np.split(at.weight(3, "bias"), 2, axis=1)

    first = bool(at.attributes.get("layout", 0))  # whether the batch is
    x = _by_sample(at, (0, 1, 2) if first else (1, 0, 2))
    samples, places, _ = x.shape
    _require_neutral(at, places)
    y = at.along(x, at.add(kernel, x, weights=weights))
    apart = at.reshape(y, (samples, places, directions, features), part="directions")
    last = _last(at, y, direction, features)
    if first:
        return apart, last
    return turned(at, apart, (1, 2, 0, 3)), turned(at, last, (1, 0, 2))


def _by_sample(at: At, order: tuple[int, int, int]) -> Dynamic:
    """The input as samples of places of features."""
    x = at.anyhow(0)
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


def _last(at: At, y: Dynamic, direction: str, features: int) -> Dynamic:
    """The states (N, directions, features) of the places that each direction computes last."""
    axis, behind = len(y.spec.shape) - 2, len(y.spec.shape) - 1
    found = []
    for number, back in enumerate(REVERSED[direction]):
        place = 0 if back else y.shape[1] - 1
        last = at.add(at.kernel(Slice, axis, place, place + 1), y, part=f"last{number}")
        if len(REVERSED[direction]) > 1:
            own = at.kernel(Slice, behind, number * features, (number + 1) * features)
            last = at.add(own, last, part=f"own{number}")
        found.append(last)
    last = at.add(at.kernel(Concat, axis), *found, part="last") if len(found) > 1 else found[0]
    return at.reshape(at.along(y, last), (y.shape[0], len(found), features), part="states")


def _require_defaults(at: At, features: int, directions: int) -> None:
    """Refuse attributes that ask for another function."""
    curves, wanted = at.attributes.get("activations"), CURVES[at.op] * directions
    if curves and [each.lower() for each in curves] != [each.lower() for each in wanted]:
        at.refuse(f"its activations are {curves}; Weft's are {wanted}")
    if clip := at.attributes.get("clip", 0):
        at.refuse(f"clip is {clip}, a bound of what goes into the gates; Weft has none")
    if at.attributes.get("input_forget", 0):
        at.refuse("input_forget is 1, which makes one gate of two; Weft has both")
    if (size := int(at.attributes.get("hidden_size", features))) != features:
        at.refuse(f"hidden_size is {size}, and its weights are of {features} features")


def _require_neutral(at: At, places: int) -> None:
    """Refuse lengths, states to begin with and peepholes, but for those that change nothing."""
    for index, (name, those_of_weft) in enumerate(FIXED.items(), 4):
        if not at.given(index):
            continue
        found, neutral = at.operand(index), places if name == "sequence_lens" else 0
        if isinstance(found, Dynamic):
            at.refuse(f"its {name} is computed ({found.name!r}); Weft's {those_of_weft}")
        for array in (found.array, found.other):
            if array is not None and (others := array[array != neutral]).size:
                at.refuse(f"its {name} holds {others[0]}; Weft's {those_of_weft}")
