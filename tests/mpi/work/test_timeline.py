"""A pool's run in pictures: every task that ran and every theft is a span, of the rank that did it."""

from __future__ import annotations

import time

import numpy as np
import pytest

from weft.runtime.message import World, run
from weft.runtime.observe import Trace, read_chrome
from weft.runtime.observe.gather import gather, write_timeline
from weft.runtime.work.pool import Pool


@pytest.mark.mpi
def test_who_ran_what_stands_in_the_timeline(tmp_path):
    async def main(world: World) -> None:
        def work(pool: Pool, number: int) -> None:
            time.sleep(1e-3)

        trace = Trace(world.rank, world.host)
        async with await Pool.open(world, {"work": work}, trace=trace) as pool:
            if world.rank == 0:
                for number in range(40):
                    pool.spawn("work", number)
            tally = await pool.run()
        counts = np.zeros((world.size, 2), np.int64)
        counts[world.rank] = tally.ran, tally.steals
        await world.allreduce(counts)
        traces = await gather(world, trace)
        assert len(traces) == (world.size if world.rank == 0 else 0)
        await write_timeline(world, trace, tmp_path / "tasks.json")
        for each in read_chrome(tmp_path / "tasks.json") if world.rank == 0 else ():
            ran = [span for span in each.spans if span.track == "compute"]
            stolen = [span for span in each.spans if span.track == "steal"]
            assert {span.name for span in ran} <= {"work"}
            assert [len(ran), len(stolen)] == counts[each.rank].tolist()
            assert all(span.end_ns - span.start_ns >= 1e6 for span in ran)
            assert all(span.args["home"] == each.rank for span in ran)

    run(main)
