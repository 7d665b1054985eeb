"""Training that goes wrong in the middle: `python -m tests.system.exchange_faulty CASE INSIDE FOLDER`.

In FOLDER every rank leaves `segments-RANK` (the named shared memory that it had mapped) and, when all ended
well, `left-RANK`: what MPI and the event loop still held.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import weft.runtime.message  # noqa: F401  (before mpi4py, which else starts MPI without its settings)
from tests.mpi.exchange.test_delays import tiny
from tests.mpi.training import Bench, disturb, until
from weft.runtime.exchange import Plan
from weft.runtime.graph.backward import Phase
from weft.runtime.message import World, run
from weft.runtime.train.replica import Replica
from weft.runtime.work import offers

offers.WORTH_S = 0.0
CASE, INSIDE, FOLDER = sys.argv[1], sys.argv[2], Path(sys.argv[3])
STEPS = 6 if CASE == "all_is_well" else 1_000_000
FAILS_IN = 4  # from 1


def arrange(training, replica: Replica, world: World) -> None:
    maps = Path("/proc/self/maps").read_text()
    names = sorted(set(re.findall(r"(/dev/shm/\S+)$", maps, re.MULTILINE)))
    (FOLDER / f"segments-{world.rank}").write_text("\n".join(names))
    print(f"rank {world.rank} shares memory: {training._memory is not None}", flush=True)
    if CASE == "a_stolen_kernel_raises":
        fail_in_a_stolen_kernel(training._stealing, replica, world)
    elif world.rank == world.size - 1:
        if CASE == "the_order_differs":
            training.exchange.plan = swapped(training.exchange.plan)
            # So that what is looked at once a second is among the last thousand collectives still.
            disturb(replica, lambda step, rows: time.sleep(0.005))
        elif CASE != "all_is_well":
            fail_in_a_kernel(replica)


def swapped(plan: Plan) -> Plan:
    """With the last two portions, the blocks of layer "one", one for the other.

    Of one size: where they differ, Open MPI ends in a crash before anybody could tell.
    """
    return Plan((*plan.order[:-2], plan.order[-1], plan.order[-2]), plan.backward, plan.credit)


def fail_in_a_kernel(replica: Replica) -> None:
    steps = 0

    def before(step, rows) -> None:
        nonlocal steps
        steps += (step.node, step.phase) == ("two", Phase.INPUT_GRADIENT)
        if steps == FAILS_IN:
            if CASE == "a_rank_is_killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ZeroDivisionError("the test's own")

    disturb(replica, before)


def fail_in_a_stolen_kernel(stealing, replica: Replica, world: World) -> None:
    """The last rank goes on when the others are idle, and behind what it puts out when that is claimed."""
    last = world.size - 1

    def before(step, rows) -> None:
        if world.rank != last:
            return
        if step.phase is Phase.FORWARD:
            until(lambda: stealing.offers.over(1))
        elif int(stealing.offers._out[last][0]) > offers.COUNT:
            until(lambda: stealing.offers._claims[last][0].peek() == 1)

    disturb(replica, before)
    other = replica.other

    def raises(**rows: slice) -> None:
        raise ZeroDivisionError("the test's own")

    def broken(rank: int, batch: int):
        program = other(rank, batch)
        program.backward = tuple(replace(step, run=raises) for step in program.backward)
        return program

    replica.other = broken  # type: ignore[method-assign]


async def main(world: World) -> list[object]:
    job = tiny(STEPS, inside=INSIDE, rule="first_come", credit=1)
    trained = await Bench(job).train_in(world, arrange=arrange)
    assert trained.steps == STEPS
    return world.selector.communicators


left = run(main)
assert left is not None
(FOLDER / f"left-{os.getpid()}").write_text(repr(left))
