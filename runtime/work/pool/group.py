"""Several tasks as one: what the pool runs for a combined task, its members in turn.

Members hand each other their results directly, as copies, so each function sees what it would see had its
needs travelled. The result has a part for each member that others wait for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from .parcel import Array, Parts, Result, packed, result_of, unpack

PLAIN = frozenset({type(None), bool, int, float, str, bytes})
"""Bodies that arrive as they were sent, and that nobody can change."""

GROUP = "weft.group"
"""The name of the function; the pool knows it beside the user's."""


class Functions(Protocol):
    """A pool, as far as a group needs it."""

    def function(self, name: str) -> Callable[..., object]:
        """The function of that name."""


def run_group(
    pool: Functions, body: tuple[Sequence[Any], Sequence[int]], *arrays: Array, needs: Sequence[Result] = ()
) -> Parts:
    """Run the members; `body` lists them, and the places of those whose results are wanted.

    A member is the name of its function, its body, how many of `arrays` are its, and what it needs: the
    place of a member before it, or one of the group's needs as -1, -2, ...
    """
    members, wanted = body
    uses = [0] * len(members)
    for place in [*wanted, *(need for *_, own in members for need in own if need >= 0)]:
        uses[place] += 1
    done: list[Result] = []
    at = 0
    for name, own_body, count, own_needs in members:
        own_arrays = arrays[at : at + count]
        at += count
        call = pool.function(name)
        if own_needs:
            given = [
                (copied(done[need]) if uses[need] > 1 else done[need])
                if need >= 0
                else copied(needs[-1 - need])
                for need in own_needs
            ]
            value = call(pool, own_body, *own_arrays, needs=given)
        else:
            value = call(pool, own_body, *own_arrays)
        done.append(copied(value))
    return Parts(done[place] for place in wanted)


def copied(value: object) -> Result:
    """What a function has returned as it would arrive, which is the reader's alone.

    At once: the function may keep what it returned, a table or a buffer that it fills again in the next call.
    Plain bodies and arrays are copied (2 us for 16 numbers; to pack and unpack them takes 12 to 30), what
    else may travel does, to itself: a tuple arrives as a list, np.float32(0.1) as a float.
    """
    result = result_of(value)
    if type(result.body) in PLAIN and all(map(_is_plain, result.arrays)):
        return Result(result.body, [array.copy(order="A") for array in result.arrays])
    return unpack(packed(value)[0])[0]


def _is_plain(array: Array) -> bool:
    return type(array) is np.ndarray and array.dtype.kind in "biufc"
