"""The traces of all ranks on rank 0, and from them the timeline of a pool's run: who ran and who took what.

    trace = Trace(world.rank, world.host)
    async with await Pool.open(world, functions, trace=trace) as pool:
        await pool.run(...)
    await write_timeline(world, trace, Path("tasks.json"))    # opens in Perfetto (ui.perfetto.dev)

    track      name               args
    compute    the task's name    lane, home (the rank that waits for its result, or that ran it)
    steal      "near", "far"      near: tasks, lane, from (a node's rank); far: asked (a rank of the world)

A theft's span begins with the look, or the question, that found something, and ends when the thief has it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..message import World
from .chrome import write_chrome
from .trace import RankTrace, Trace, decode


async def gather(world: World, trace: Trace) -> list[RankTrace]:
    """Every rank's spans on rank 0's clock, by rank, on rank 0; nothing on the others. Collective."""
    channel = await world.channel("weft traces")
    mine = trace.encode(world.clock_offset_ns)
    if world.rank != 0:
        await channel.send(0, None, np.frombuffer(mine, np.uint8))
        return []
    traces = [decode(mine)]
    for rank in range(1, world.size):
        message = await channel.receive(rank)
        traces.append(decode(message.arrays[0].tobytes()))
    return traces


async def write_timeline(world: World, trace: Trace, path: Path) -> None:
    """Write the spans of all ranks to `path` on rank 0, for Perfetto. Collective."""
    traces = await gather(world, trace)
    if traces:
        write_chrome(path, traces)
