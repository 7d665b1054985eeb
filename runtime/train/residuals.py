"""What wire formats have left out (exchange/formats.py), kept in checkpoints and given back to who owes it.

    holders    the first rank of each node, for all its ranks; without memory in common every rank

A run that forgot it whenever it was resumed lost, where top_k sends 1% of the elements, what had gathered in
some hundred steps. On as many holders as before each has its own again, to the bit; on fewer or more the
first has all of it, which sends the same in sum.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ...kernels.kernel import ArraySpec
from ..graph import Layout
from ..message import Communicator

Flat = NDArray[np.float32]

PREFIX = "residual"  # what their names in a checkpoint begin with, then the holder's place among the holders


def holders(nodes: Sequence[Sequence[int]], *, shared: bool) -> list[int]:
    """The ranks that hold what was left out; `shared`: whether the ranks of a node have one copy."""
    return [ranks[0] for ranks in nodes] if shared else sorted(rank for ranks in nodes for rank in ranks)


async def gather(
    comm: Communicator, holding: Sequence[int], own: Flat | None, layout: Layout, model: str
) -> dict[str, Flat]:
    """On rank 0 what all holders hold, by name; empty on the others. Collective, with no step under way.

    `own` is this rank's; None on all where the format leaves nothing out.
    """
    if own is None:
        return {}
    what = f"{model}: what its wire format has left out"
    if comm.rank != 0:
        if comm.rank in holding:
            await comm.send(own, 0, what=what)
        return {}
    found = {}
    for place, rank in enumerate(holding):
        flat = own
        if rank != 0:
            flat = np.empty_like(own)
            await comm.recv(flat, rank, what=what)
        for p in layout.parameters:
            found[_name(place, p.name)] = flat[p.start : p.stop].reshape(p.spec.shape).copy()
    return found


def specs(names: Collection[str], layout: Layout) -> dict[str, ArraySpec]:
    """Names, shapes and dtypes of what `gather` gave, of as many holders as `names` tells of."""
    places = range(_count(names))
    return {_name(place, p.name): ArraySpec(p.spec.shape) for place in places for p in layout.parameters}


def owed(
    names: Collection[str],
    read: Callable[[Collection[str]], Mapping[str, NDArray[np.float32]]],
    layout: Layout,
    place: int,
    count: int,
) -> Flat:
    """What the holder at `place` of `count` owes, of what `gather` gave: of `names`, each got from `read`."""
    flat, before = np.zeros(layout.size, np.float32), _count(names)
    everything = range(before) if place == 0 else range(0)
    for theirs in (place,) if before == count else everything:
        for p in layout.parameters:
            flat[p.start : p.stop] += read([name := _name(theirs, p.name)])[name].reshape(-1)
    return flat


def is_residual(name: str) -> bool:
    """Whether an array of a checkpoint is one of those that `gather` gave."""
    title, slash, _ = name.partition("/")
    return bool(slash) and title.startswith(PREFIX) and title[len(PREFIX) :].isdecimal()


def _name(place: int, parameter: str) -> str:
    return f"{PREFIX}{place}/{parameter}"


def _count(names: Collection[str]) -> int:
    """How many holders they tell of."""
    return len({name.partition("/")[0] for name in names if is_residual(name)})
