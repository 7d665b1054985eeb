"""Several tasks as one: what the pool runs for a combined task, its members in turn.

Members hand each other their results directly, as copies where more than one reads them, so each function
sees what it would see had its needs travelled. The result has a part for each member that others wait for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from .parcel import Array, Parts, Result, result_of

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
                _given(done[need], uses[need]) if need >= 0 else _given(needs[-1 - need], 2)
                for need in own_needs
            ]
            value = call(pool, own_body, *own_arrays, needs=given)
        else:
            value = call(pool, own_body, *own_arrays)
        done.append(result_of(value))
    return Parts(done[place] for place in wanted)


def _given(result: Result, uses: int) -> Result:
    """A result for one of so many that use it."""
    return Result(result.body, [array.copy() for array in result.arrays]) if uses > 1 else result
