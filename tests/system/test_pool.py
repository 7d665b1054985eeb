"""A pool of tasks that goes wrong: the job ends, soon and with the traceback."""

from __future__ import annotations

import re

import pytest

from tests.launch import ROOT, VENDORS, mpiexec

PROGRAM = """
import time
from weft.runtime.message import World, run
from weft.runtime.work.pool import Pool

def work(pool, number):
    if number == 7:
        KIND
    time.sleep(0.01)

async def main(world: World) -> None:
    async with await Pool.open(world, {"work": work}) as pool:
        if world.rank == 0:
            for number in range(60):
                pool.spawn("work", number)
        await pool.run()

run(main)
"""


RAISED = {
    """raise ArithmeticError("the task's own words")""": "ArithmeticError: the task's own words",
    "next(iter(()))": "RuntimeError: a task raised StopIteration()\n(in task 'work' of the pool)",
    "raise SystemExit(0)": "RuntimeError: a task raised SystemExit(0)\n(in task 'work' of the pool)",
}


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize(
    "kind", RAISED, ids=["an error", "StopIteration, which no future takes", "an exit as if all were done"]
)
def test_a_task_that_raises_ends_the_job_with_its_traceback(kind, ranks, vendor):
    result = mpiexec(ranks, ["-c", PROGRAM.replace("KIND", kind)], vendor=vendor, cwd=ROOT, timeout=60)
    assert result.returncode != 0
    assert result.stderr.count(RAISED[kind]) == 1, result.stderr
    told = re.findall(r", in (\w+)\n", result.stderr)
    assert told == ["main", "run", "work"], result.stderr  # not what lies between a run and the task


CAUGHT = """
import asyncio
from weft.runtime.message import World, run
from weft.runtime.work.pool import Pool

def work(pool, body):
    raise ArithmeticError("the task's own words")

async def main(world: World) -> None:
    pool = await Pool.open(world, {"work": work})
    if world.rank == 0:
        pool.spawn("work", here=True)
    for _ in range(2):
        try:
            await pool.run()
        except ArithmeticError:
            await world.node.split(0, name="what the program does next")

run(main)
"""


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_task_that_raises_ends_the_job_whatever_its_rank_catches(ranks):
    """The others waited in the run for ever, and alone a rank did in its next."""
    result = mpiexec(ranks, ["-c", CAUGHT], cwd=ROOT, timeout=60)
    assert result.returncode != 0
    assert result.stderr.count("ArithmeticError: the task's own words\n(in task 'work'") == 1, result.stderr
    assert "failed in background task 'a task of a pool'" in result.stderr


UNDONE = """
from weft.runtime.message import World, run
from weft.runtime.work.pool import Pool

async def work(): ...

def each(): yield

async def main(world: World) -> None:
    async with await Pool.open(world, {"work": lambda pool, body: KIND()}) as pool:
        pool.spawn("work", here=True)
        await pool.run()

run(main)
"""


@pytest.mark.parametrize(("kind", "what"), [("work", "coroutine"), ("each", "generator")])
def test_a_spawned_task_that_leaves_its_work_to_whoever_called_it_ends_the_job(kind, what):
    """It counted as done; with a coroutine Python alone said a word."""
    result = mpiexec(2, ["-c", UNDONE.replace("KIND", kind)], cwd=ROOT, timeout=60)
    assert result.returncode == 2
    assert f"weft: the spawned task 'work' returned <{what} object" in result.stderr, result.stderr
    assert "never awaited" not in result.stderr


LEFT = """
from weft.runtime.message import World, run
from weft.runtime.work.pool import Pool

async def main(world: World) -> None:
    pool = await Pool.open(world, {"one": lambda pool, body: 1})
    try:
        async with pool:
            if world.rank == 0:
                pool.spawn("one")
            raise LookupError
    except LookupError:
        pass
    AGAIN

run(main)
"""


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    ("again", "status", "told"),
    [
        ('world.rank or pool.submit("one")', 2, "a pool open, with 1 task that nobody has run"),
        ("pass", 0, ""),
    ],
    ids=["tasks that nobody has run are told of", "but not those of a block that was left by an error"],
)
def test_a_pool_that_main_leaves_open_drops_no_task_without_a_word(again, status, told, ranks):
    result = mpiexec(ranks, ["-c", LEFT.replace("AGAIN", again)], cwd=ROOT, timeout=60)
    assert result.returncode == status, result.stderr
    assert told in result.stderr
    assert "Traceback" not in result.stderr


LATE = """
import asyncio, threading
from weft.runtime.message import World, run
from weft.runtime.work.pool import Pool

begun, given_up = threading.Event(), threading.Event()

def work(pool, body):
    begun.set()
    assert given_up.wait(20)
    try:
        raise KeyError("the cause")
    except KeyError as error:
        raise ArithmeticError("the task's own words") from error

async def main(world: World) -> None:
    pool = await Pool.open(world, {"work": work})
    if world.rank == 0:
        pool.spawn("work", here=True)
    running = asyncio.create_task(pool.run(asyncio.sleep(300)))
    if world.rank == 0:
        await asyncio.to_thread(begun.wait)
    await world.barrier()
    running.cancel()
    await asyncio.wait([running])
    given_up.set()
    await pool.run()

run(main)
"""


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_task_that_raises_when_its_run_has_been_given_up_ends_the_job_too(ranks):
    """The next run waited for it for ever, without a word of what it had raised."""
    result = mpiexec(ranks, ["-c", LATE], cwd=ROOT, timeout=60)
    assert result.returncode != 0
    assert result.stderr.count("ArithmeticError: the task's own words\n(in task 'work'") == 1, result.stderr
    assert result.stderr.count("KeyError: 'the cause'") == 1, result.stderr
    assert "a task that outlived its pool's run" in result.stderr


NODES = {"one node": {}, "two nodes": {"MPIR_CVAR_NUM_CLIQUES": "2"}}

RAISING = """
import asyncio, threading, time
from weft.runtime.message import World, run
from weft.runtime.work.pool import Pool

begun = threading.Event()

def work(pool, number):
    begun.set()
    time.sleep(300)

async def main(world: World) -> None:
    async with await Pool.open(world, {"work": work}) as pool:
        async def ask():
            pool.spawn("work", 0, here=True)
            await asyncio.to_thread(begun.wait)
            await world.barrier()
            if world.rank == 0:
                raise ArithmeticError("main's own words")
            await asyncio.sleep(300)
        await pool.run(ask())

run(main)
"""


@pytest.mark.parametrize(
    ("vendor", "nodes"), [("mpich", "one node"), ("mpich", "two nodes"), ("openmpi", "one node")]
)
def test_what_a_main_raises_ends_the_job_before_the_tasks_of_others_end(vendor, nodes):
    result = mpiexec(3, ["-c", RAISING], vendor=vendor, cwd=ROOT, timeout=60, env=NODES[nodes])
    assert result.returncode == 1
    assert result.stderr.count("ArithmeticError: main's own words") == 1, result.stderr


DYING = """
import os, signal, time
from weft.runtime.message import World, run
from weft.runtime.work.pool import Pool

async def main(world: World) -> None:
    def work(pool, number):
        if world.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)  # with what it has claimed in its queue
        time.sleep(300)  # nobody else takes all

    async with await Pool.open(world, {"work": work}) as pool:
        async def ask():
            for each in [pool.submit("work", number) for number in range(40)]:
                await each
            print("nobody was missed")
        await pool.run(ask() if world.rank == 0 else None)

run(main)
"""


@pytest.mark.parametrize(
    ("vendor", "nodes"), [("mpich", "one node"), ("mpich", "two nodes"), ("openmpi", "one node")]
)
def test_a_rank_that_dies_with_tasks_in_its_hands_ends_the_job(vendor, nodes):
    result = mpiexec(3, ["-c", DYING], vendor=vendor, cwd=ROOT, timeout=60, env=NODES[nodes])
    assert result.returncode != 0
    assert "nobody was missed" not in result.stdout
    told = result.stdout + result.stderr  # MPICH's launcher tells on stdout
    assert re.search(r"(?i)signal[: ]+9|signal 9|killed", told), told


STOPPED = """
import os, signal, time
from weft.runtime.message import World, run
from weft.runtime.work.pool import Pool

async def main(world: World) -> None:
    def work(pool, number):
        if world.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        end_s = time.monotonic() + 0.3
        while time.monotonic() < end_s:
            sum(range(1000))

    async with await Pool.open(world, {"work": work}) as pool:
        async def ask():
            for each in [pool.submit("work", number) for number in range(100)]:
                await each
        await pool.run(ask() if world.rank == 0 else None)

run(main)
"""


@pytest.mark.parametrize(
    ("vendor", "nodes"), [("mpich", "one node"), ("mpich", "two nodes"), ("openmpi", "one node")]
)
def test_a_stop_ends_ranks_that_are_at_tasks(vendor, nodes):
    result = mpiexec(3, ["-c", STOPPED], vendor=vendor, cwd=ROOT, timeout=60, env=NODES[nodes])
    assert result.returncode == 143, result.stderr
    assert "Fatal" not in result.stderr
    assert "Traceback" not in result.stderr
