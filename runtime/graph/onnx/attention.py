"""Attention of operator set 23 and later, as exporters spelt it out before.

softmax(cap(scale · Q Kᵀ), hidden where the masks say so) V        (N, heads, places, size)
"""

from __future__ import annotations

from math import inf, sqrt

import numpy as np
from numpy.typing import NDArray

from ....kernels.activation import Tanh
from ....kernels.arithmetic import Arithmetic, ArithmeticNumber
from ....kernels.choice import CompareNumber, Where
from ....kernels.matmul import MatMul
from ....kernels.probability import Softmax
from ....kernels.rearrange import Take
from .algebra import both, together
from .move import ordered
from .node import At, Dynamic, Operand, Static, show
from .products import transposed

HIDDEN = np.array(-np.inf, np.float32)
"""What hides a score. The least float would not: masks for padding add it, too, and of a row of nothing else
the softmax gives all places the same share, those that a window hides as well. Of a row of -inf alone it is
no number, of which the choice behind it makes 0."""

STATE = {4: "past_key", 5: "past_value", 6: "nonpad_kv_seqlen"}


def attention(at: At) -> Operand:
    """Attention, of values with heads apart (N, heads, places, size) or side by side (N, places, size)."""
    for place, name in STATE.items():
        if at.given(place):
            at.refuse(f"its {name} is a state that one request leaves to the next; Weft's graphs keep none")
    given = [at.value(index) for index in range(3)]
    rank = len(given[0].shape)
    if rank not in (3, 4) or any(len(each.shape) != rank for each in given):
        shown = ", ".join(show(each.shape) for each in given)
        at.refuse(f"queries, keys and values are {shown}; they have 3 axes each, or 4")
    q, k, v = given if rank == 4 else _apart(at, given)
    heads = q.shape[1]
    if heads % k.shape[1] or k.shape[1] != v.shape[1]:
        at.refuse(f"{heads} heads of queries cannot share {k.shape[1]} of keys and {v.shape[1]} of values")
    k, v = (_shared(at, each, heads, part) for each, part in ((k, "keys"), (v, "values")))

    scale = float(at.attributes.get("scale", 1 / sqrt(q.shape[-1])))
    q = at.add(at.kernel(ArithmeticNumber, "mul", scale), q, part="scaled")
    scores = at.add(MatMul(), q, transposed(at, k, "columns"), part="scores")
    if cap := float(at.attributes.get("softcap", 0.0)):
        scores = at.add(at.kernel(ArithmeticNumber, "div", cap), scores, part="over_cap")
        scores = at.add(Tanh(), scores, part="bent")
        scores = at.add(at.kernel(ArithmeticNumber, "mul", cap), scores, part="capped")
    shares = _shares(at, scores)
    if rank == 4:
        return at.add(MatMul(), shares, v)
    mixed = ordered(at, at.add(MatMul(), shares, v, part="mixed"), (0, 2, 1, 3), part="places")
    return at.reshape(mixed, (*mixed.shape[:2], mixed.shape[2] * mixed.shape[3]), part="")


def _apart(at: At, given: list[Dynamic]) -> list[Dynamic]:
    """Heads that lie side by side in the last axis, as an axis of their own."""
    counts = int(at.attributes["q_num_heads"]), *(int(at.attributes["kv_num_heads"]),) * 2
    found = []
    for x, heads, part in zip(given, counts, ("q", "k", "v"), strict=True):
        samples, places, features = x.shape
        if heads < 1 or features % heads:
            at.refuse(f"the {features} features of {show(x.shape)} are not {heads} heads of equal size")
        split = at.reshape(x, (samples, places, heads, features // heads), part=f"{part}_apart")
        found.append(ordered(at, split, (0, 2, 1, 3), part=f"{part}_heads"))
    return found


def _shared(at: At, x: Dynamic, heads: int, part: str) -> Dynamic:
    """Keys or values, of which several heads of queries in a row share one."""
    if x.shape[1] == heads:
        return x
    places = np.repeat(np.arange(x.shape[1]), heads // x.shape[1])
    return at.add(at.kernel(Take, at.axis(1, 4), tuple(places.tolist())), x, part=part)


def _shares(at: At, scores: Dynamic) -> Dynamic:
    """The softmax of scores, without those that are hidden: shares of 0, also where all of a row are."""
    window = _window(at, *scores.shape[-2:])
    seen: Operand | None = window
    if at.given(3):
        mask = at.operand(3)
        kind = mask.array.dtype.name if isinstance(mask, Static) else mask.spec.dtype
        if isinstance(mask, Static):
            mask = _padded(mask, scores.shape[-1])
        if kind != "bool":
            scores = both(at, "add", scores, mask, "masked")
        seen = _seen(at, mask if kind == "bool" else _shown(at, mask, window), window)
    if seen is None:
        return at.add(Softmax(), scores, part="shares")
    values, _ = together(at, seen, scores, Static(HIDDEN))
    shares = at.add(Softmax(), at.add(Where(), *values, part="hidden"), part="shares")
    if isinstance(seen, Static) and seen.array.any(axis=-1).all():
        return shares
    values, _ = together(at, seen, shares, Static(np.zeros((), np.float32)))
    return at.add(Where(), *values, part="seen_shares")


def _shown(at: At, mask: Operand, window: Static | None) -> Operand | None:
    """What a mask of numbers does not take down to minus infinity; None where that needs no further look.

    A row without anything else would be no number, or all that the window hides, which is finite there.
    """
    if isinstance(mask, Dynamic):
        return at.along(mask, at.add(at.kernel(CompareNumber, "not_equal", -inf), mask, part="shown"))
    shown = mask.array != -inf
    if mask.other is None and (shown & (True if window is None else window.array)).any(axis=-1).all():
        return None
    return Static(shown, other=None if mask.other is None else mask.other != -inf)


def _seen(at: At, shown: Operand | None, window: Static | None) -> Operand | None:
    """What both show."""
    if shown is None or window is None:
        return window if shown is None else shown
    if isinstance(shown, Static):
        at.check_fixed(shown)
        return Static(shown.array & window.array)
    values, _ = together(at, shown, window)
    return at.add(Arithmetic("mul"), *values, part="seen")


def _padded(mask: Static, places: int) -> Static:
    """A mask that ends early, which hides the rest."""
    short = places - mask.array.shape[-1]
    if short < 1:
        return mask
    pads = [(0, 0)] * (mask.array.ndim - 1) + [(0, short)]
    hidden = False if mask.array.dtype == bool else -np.inf
    return Static(np.pad(mask.array, pads, constant_values=hidden), mask.trained)


def _window(at: At, queries: int, keys: int) -> Static | None:
    """Which keys a query sees by where both stand: none that come later, or those not too far."""
    ahead: NDArray[np.intp] = np.arange(keys) - np.arange(queries)[:, None]
    left, right = (int(at.attributes.get(f"{side}_window_size", -1)) for side in ("left", "right"))
    if at.attributes.get("is_causal", 0):
        right = 0
    seen = (ahead >= -left if left >= 0 else True) & (ahead <= right if right >= 0 else ahead == ahead)
    return None if left < 0 and right < 0 else Static(seen)
