"""What went wrong with a model that fails alone: told to all ranks, and printed once."""

from __future__ import annotations

import numpy as np

from ..message import Communicator, World
from ..message.failure import render, report_of
from ..work import Compute
from .log import Log

TOLD_BYTES = 1 << 16  # from one rank to the others; a report is at most half as long


async def explain(world: World, comm: Communicator, name: str, compute: Compute, wrong: str, log: Log) -> str:
    """Print what the first rank whose part of the lane failed has to tell; returns the heart of it.

    Collective. Where none has, `wrong` is what all ranks have found.
    """
    group = compute.group
    assert group is not None
    own = world.size if group.error is None else world.rank
    first = np.array([own], np.int64)
    await comm.allreduce(first, "min", what=f"{name}: which rank failed")
    if (rank := int(first[0])) == world.size:
        log.error(f"weft: {wrong}")
        return wrong
    told = np.zeros(TOLD_BYTES, np.uint8)
    if rank == world.rank and group.error is not None:
        report = report_of(group.error, rank, world.size, world.host, f"the model {name}")
        encoded = render([report]).encode(errors="backslashreplace")
        told[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    await comm.broadcast(told, rank, what=f"{name}: what went wrong on rank {rank}")
    text = told.tobytes().rstrip(b"\0").decode(errors="replace")
    log.error(text)
    host = world.hosts[rank]
    told_by = f" (rank {rank} of {world.size} on {host})"  # at the end of what is nobody's fault
    heart = text.splitlines()[-1].removeprefix("weft: ").removesuffix(told_by)
    return f"{heart} (rank {rank} on host {host})"
