"""Programs that fail, stop or wait in every way; run by test_faults.py as `python faulty.py CASE FOLDER`.

In FOLDER every rank leaves `segments-RANK` (the named shared memory it had mapped), writes a line to the pipe
`events` when it is ready or about to fail ("WHAT RANK PID TIME"), and a file `clean-RANK` from its `finally`.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NoReturn

import numpy as np

from weft.runtime.errors import JobError, MachineError, PeerFailure
from weft.runtime.message import World, failure, mpi, run, stall

CASE, FOLDER = sys.argv[1], Path(sys.argv[2])
TOLD = FOLDER / "told"
LONG_S = 60.0
Case = Callable[[World], Awaitable[None]]
CASES: dict[str, Case] = {}


def case(function: Case) -> Case:
    CASES[function.__name__] = function  # type: ignore[attr-defined]
    return function


def event(what: str, rank: int) -> None:
    """One line to the test; lines this short are written in one piece."""
    with open(FOLDER / "events", "w") as pipe:
        pipe.write(f"{what} {rank} {os.getpid()} {time.monotonic()}\n")


def fail(world: World) -> NoReturn:
    event("fails", world.rank)
    raise ZeroDivisionError("the test's own")


async def wait(world: World) -> None:
    """For a message that never comes."""
    try:
        await world.recv(np.zeros(1), source=(world.rank + 1) % world.size)
    except PeerFailure as failure:
        print(f"rank {world.rank} hears of rank {failure.rank}")
        raise
    finally:
        await asyncio.sleep(0)
        (FOLDER / f"clean-{world.rank}").touch()


def last(world: World) -> bool:
    return world.rank == world.size - 1


# -- ways to fail ---------------------------------------------------------------------------------------


@case
async def main_raises(world: World) -> None:
    if last(world):
        fail(world)
    await wait(world)


@case
async def background_task_raises(world: World) -> None:
    async def work() -> None:
        fail(world)

    if last(world):
        world.background(work(), "worker")
    await wait(world)


@case
async def forgotten_task_raises(world: World) -> None:
    async def work() -> None:
        fail(world)

    if last(world):
        asyncio.get_running_loop().create_task(work(), name="forgotten")
    await wait(world)


@case
async def callback_raises(world: World) -> None:
    if last(world):
        asyncio.get_running_loop().call_soon(fail, world)
    await wait(world)


@case
async def thread_raises(world: World) -> None:
    if last(world):
        await asyncio.to_thread(fail, world)
    await wait(world)


@case
async def message_handler_raises(world: World) -> None:
    channel = await world.channel("errors")
    channel.serve(lambda _: fail(world))
    if world.rank == 0:
        await channel.send(world.size - 1)  # no request: nobody to tell but everybody
    await wait(world)


@case
async def all_raise(world: World) -> None:
    event("fails", world.rank)
    raise ValueError(f"of rank {world.rank}")


@case
async def all_make_the_same_mistake(world: World) -> None:
    event("fails", world.rank)
    raise JobError("job.toml, line 3: unknown key 'epoch'")


@case
async def one_makes_a_mistake(world: World) -> None:
    if last(world):
        event("fails", world.rank)
        raise JobError("job.toml, line 3: unknown key 'epoch'")
    await wait(world)


@case
async def machine_lacks_something(world: World) -> None:
    if last(world):
        event("fails", world.rank)
        raise MachineError("no GPU")
    await wait(world)


@case
async def task_exits_as_if_all_were_done(world: World) -> None:
    async def leave() -> None:
        event("fails", world.rank)
        sys.exit(0)

    leaving = asyncio.create_task(leave()) if last(world) else None
    await wait(world)
    assert leaving is None


@case
async def one_exits(world: World) -> None:
    if last(world):
        event("fails", world.rank)
        sys.exit(7)
    await wait(world)


@case
async def peer_is_blocked(world: World) -> None:
    await world.barrier()
    if last(world):
        fail(world)
    time.sleep(100)


@case
async def peer_holds_the_interpreter(world: World) -> None:
    await world.barrier()
    if last(world):
        fail(world)
    re.match(r"(a+)+b", "a" * 60)  # takes years, in C


@case
async def failed_one_holds_the_interpreter(world: World) -> None:
    async def work() -> None:
        fail(world)

    await world.barrier()
    if last(world):
        world.background(work(), "worker")
        await asyncio.sleep(0.1)  # (its report is on its way)
        re.match(r"(a+)+b", "a" * 60)
    await asyncio.Event().wait()


@case
async def peer_does_not_finish_cleaning_up(world: World) -> None:
    if last(world):
        fail(world)
    try:
        await wait(world)
    finally:
        await asyncio.Event().wait()


@case
async def peers_are_in_task_groups(world: World) -> None:
    if last(world):
        fail(world)
    async with asyncio.TaskGroup() as group:
        group.create_task(wait_in_task(world))
    raise AssertionError("a group whose task never ends has ended")


async def wait_in_task(world: World) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        print(f"rank {world.rank} hears of rank {world.size - 1}")
        (FOLDER / f"clean-{world.rank}").touch()


@case
async def last_one_raises_late(world: World) -> None:
    if last(world):
        await asyncio.sleep(0.2)  # the others' mains are over then, or not: both must end
        fail(world)


@case
async def main_leaves_a_send(world: World) -> None:
    if last(world):
        event("fails", world.rank)
        world.send(np.zeros(1 << 20), 0)


@case
async def task_resists(world: World) -> None:
    async def stubborn() -> None:
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                continue

    if last(world):
        event("fails", world.rank)
        world.background(stubborn(), "stubborn")


@case
async def one_is_killed(world: World) -> None:
    await world.barrier()
    if last(world):
        event("fails", world.rank)
        os.kill(os.getpid(), signal.SIGKILL)
    await wait(world)


# -- ways to stop ---------------------------------------------------------------------------------------


@case
async def main_knows_no_stop(world: World) -> None:
    event("ready", world.rank)
    await wait(world)


@case
async def stop_breaks_a_collective(world: World) -> None:
    event("ready", world.rank)
    if not last(world):
        await world.allreduce(np.zeros(1))
    await asyncio.Event().wait()


@case
async def main_stops_by_itself(world: World) -> None:
    asked = asyncio.Event()
    world.on_stop(asked.set)
    event("ready", world.rank)
    await asked.wait()
    assert world.stopping
    await world.barrier()  # a last step together
    (FOLDER / f"clean-{world.rank}").touch()


@case
async def main_ignores_stops(world: World) -> None:
    world.on_stop(lambda: event("asked", world.rank))
    event("ready", world.rank)
    await asyncio.Event().wait()


# -- and others -----------------------------------------------------------------------------------------


@case
async def all_is_well(world: World) -> None:
    (FOLDER / f"nodes-{world.rank}").write_text(repr(world.nodes))


@case
async def one_is_late(world: World) -> None:
    world.position("step 41: evaluating")
    if last(world):
        block_until_told()
    await world.allreduce(np.zeros(1), what="all-reduce of portion 3")


def block_until_told() -> None:
    """Keep the loop from anything else for as long as no rank has told of a wait."""
    end_s = time.monotonic() + LONG_S
    while not TOLD.exists() and time.monotonic() < end_s:
        time.sleep(0.01)


PORTION = "m: step 3, portion 2 (dense_1 rows 0-255)"


@case
async def one_is_late_for_a_portion(world: World) -> None:
    gradients = await world.duplicate("m")
    await gradients.barrier()
    if last(world):
        block_until_told()
    await gradients.allreduce(np.zeros(1), what=PORTION, patience_s=0.5)


# In these rank 0 alone is impatient, and not before all others are where the test wants them: the first
# report is the only one for a minute.


@case
async def a_portion_never_comes(world: World) -> None:
    gradients, channel = await world.duplicate("m"), await world.channel("called")
    await gradients.allreduce(np.zeros(1), what=PORTION.replace("2", "1", 1))
    if last(world):
        await channel.send(0)
        return
    for _ in range(world.size - 1 if world.rank == 0 else 0):
        await channel.receive()
    impatient_s = 0.5 if world.rank == 0 else None
    waiting = gradients.allreduce(np.zeros(1), what=PORTION, patience_s=impatient_s)
    if world.rank:
        await channel.send(0)
    await waiting


@case
async def a_counter_never_comes(world: World) -> None:
    board, others = await world.board(2), range(world.node_size - 1)
    if last(world):
        world.position("step 3: reading data")
        board.publish(1, 1)
        await asyncio.Event().wait()
    board.publish(0, 1)
    if world.rank == 0:
        await board.reached(0, 1, ranks=others)
        await board.reached(1, 1, ranks=range(others.stop, world.node_size))
    impatient_s = 0.5 if world.rank == 0 else None
    await board.reached(0, 1, what=PORTION, patience_s=impatient_s)


@case
async def the_order_differs(world: World) -> None:
    gradients = await world.duplicate("m")
    portions = ["m: step 3, portion 3 (dense_0)", PORTION]
    if last(world):
        portions.reverse()
    event("fails", world.rank)
    await asyncio.gather(*[gradients.allreduce(np.zeros(9), what=portion) for portion in portions])
    await asyncio.Event().wait()


@case
async def pools_are_opened_in_two_orders(world: World) -> None:
    from weft.runtime.work.pool import Pool  # here: all other cases start sooner without it

    names = ["one", "other"]
    if last(world):
        names.reverse()
    event("fails", world.rank)
    opening = [Pool.open(world, {"f": lambda pool, body: 1}, name=name) for name in names]
    await asyncio.gather(*opening, return_exceptions=True)  # who catches it does not free the others
    await asyncio.Event().wait()


@case
async def the_sizes_differ(world: World) -> None:
    event("fails", world.rank)
    await world.allreduce(np.zeros(9 + last(world)), what=PORTION)


@case
async def the_types_differ(world: World) -> None:
    event("fails", world.rank)
    await world.allreduce(np.zeros(9, np.int64 if last(world) else np.float64), what=PORTION)


@case
async def the_orders_of_arrays_differ(world: World) -> None:
    event("fails", world.rank)
    await world.allreduce(np.zeros((3, 2), order="F" if last(world) else "C"), what=PORTION)


async def main(world: World) -> None:
    def tell(text: str) -> None:
        failure.say(text)
        TOLD.touch()
        event("told", world.rank)

    stall.say = tell
    if CASE.endswith("_never_comes"):  # all ranks answer, however slow they are
        stall.ANSWER_S = stall.ANSWER_SHARE = LONG_S
    await world.window(4096)
    maps = Path("/proc/self/maps").read_text()
    names = sorted(set(re.findall(r"(/dev/shm/\S+)$", maps, re.MULTILINE)))
    (FOLDER / f"segments-{world.rank}").write_text("\n".join(names))
    await CASES[CASE](world)


if CASE == "one_has_not_started_mpi" and (launched := mpi.launched_as()) is not None:
    number, ranks = launched
    event("ready", number)
    if number == ranks - 1:
        try:
            time.sleep(600)
        except KeyboardInterrupt:  # as the commands end then
            sys.exit(130)

run(main, stall_s=0.5 if CASE == "one_is_late" else 10.0)
