"""Tasks that fail, that cannot be, or that a pool cannot count: who hears of it, and nothing hangs."""

from __future__ import annotations

import asyncio
import functools
import gc
import math
import os
import warnings
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI

from weft.runtime.errors import MachineError, Mistake, TaskError
from weft.runtime.message import World, run, window
from weft.runtime.work.pool import Pool
from weft.runtime.work.pool.demands import MOST_DEMANDS
from weft.runtime.work.pool.parcel import Result


@pytest.mark.mpi
def test_a_second_run_beside_the_first_is_refused():
    """On one rank: their threads met in one place, and what that said helped nobody."""

    async def main(world: World) -> None:
        async with await Pool.open(world, {"nothing": lambda pool, body: None}) as pool:

            async def ask() -> None:
                with pytest.raises(Mistake, match=rf"is run already on rank {world.rank}: await that run"):
                    await pool.run(asyncio.sleep(0))
                await pool.submit("nothing")

            with pytest.raises(
                Mistake, match=r"was given a function as its main; give .*: pool\.run\(main\(\)\)"
            ):
                await pool.run(ask)
            for _ in range(2):
                await asyncio.wait_for(pool.run(ask()), 30)

    run(main)


@pytest.mark.mpi
def test_a_pool_that_is_closed_says_so_keeps_its_results_and_is_closed_again():
    async def main(world: World) -> None:
        async with await Pool.open(world, {"one": lambda pool, body: 1}) as pool:
            one = pool.submit("one")
            await pool.run()
            await pool.close()
            assert (await one).body == 1
            for give in (pool.spawn, pool.submit):
                with pytest.raises(Mistake, match=r"this pool is closed, .*: open another"):
                    give("one")
            for given in (None, asyncio.sleep(0)):
                with pytest.raises(Mistake, match="this pool is closed"):
                    await pool.run(given)

    run(main)


@pytest.mark.mpi
@pytest.mark.parametrize("gives", [Pool.spawn, Pool.submit])
def test_a_pool_that_is_closed_before_its_tasks_were_run_says_so(gives):
    """They were dropped without a word, and the job ended as if all were well."""

    async def main(world: World) -> None:
        pool = await Pool.open(world, {"one": lambda pool, body: 1})
        gives(pool, "one")
        await pool.run()
        for _ in range(2 if world.rank == 0 else 0):
            gives(pool, "one")
        if world.rank == 0:
            with pytest.raises(Mistake, match=r"closed with 2 tasks that nobody has run, given on rank 0: "):
                await pool.close()
        await pool.close()

    run(main)


@pytest.mark.mpi
def test_a_pool_is_closed_behind_a_task_that_failed_where_it_was_submitted():
    """Nobody was to run it, and who had submitted it was told."""

    def fail(pool: Pool, body: None) -> None:
        raise ValueError

    async def main(world: World) -> None:
        async with await Pool.open(world, {"fail": fail, "after": lambda pool, body, needs: None}) as pool:
            failed = pool.submit("fail")

            async def see() -> None:
                with pytest.raises(TaskError):
                    await failed

            await pool.run(see())
            with pytest.raises(TaskError):
                await pool.submit("after", needs=[failed])

    run(main)


@pytest.mark.mpi
def test_a_pool_whose_close_is_cancelled_is_closed_all_the_same():
    """The others waited for this rank in what it did not close, and it for them in what it did next."""

    async def main(world: World) -> None:
        for _ in range(2):
            pool = await Pool.open(world, {"one": lambda pool, body: 1})
            await pool.run()
            if world.rank == 0:
                closing = asyncio.create_task(pool.close())
                for _ in range(3):
                    await asyncio.sleep(0)
                closing.cancel()
                await asyncio.wait([closing])
            else:
                await pool.close()

    run(main)


@pytest.mark.mpi(min_size=2)
def test_a_rank_that_no_longer_waits_for_a_pool_to_open_keeps_nobody_from_it():
    """Its next collective met theirs for the pool: what they were told by it was read as devices."""

    async def main(world: World) -> None:
        if world.rank == 0:
            opening = asyncio.create_task(Pool.open(world, {"one": lambda pool, body: 1}))
            for _ in range(3):
                await asyncio.sleep(0)
            opening.cancel()
            await asyncio.wait([opening])
            await world.barrier()
        else:
            await Pool.open(world, {"one": lambda pool, body: 1})
            await world.barrier()

    run(main)


@pytest.mark.mpi
def test_a_pool_that_is_left_open_leaves_no_socket_behind():
    async def main(world: World) -> None:
        await (await Pool.open(world, {"one": lambda pool, body: 1})).run()

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        run(main)
        gc.collect()
    assert not [str(each.message) for each in told if each.category is ResourceWarning]


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("settings", "error"),
    [
        pytest.param({"places": 0}, Mistake, id="a mistake before there is any memory"),
        pytest.param({"places": 4, "place_bytes": 1000}, MachineError, id="no room for its results"),
    ],
)
def test_a_pool_that_cannot_be_opened_leaves_no_communicator_and_no_memory(monkeypatch, settings, error):
    """They stayed to the end of the job, for every time that it was tried."""

    async def main(world: World) -> None:
        if error is MachineError and (world.node_size == 1 or len(world.nodes) > 1):
            return  # alone nobody's results come through memory; of several nodes one may have room
        before, rooms = list(world.selector.communicators), iter([1 << 30, 100])
        monkeypatch.setattr(window, "room_bytes", lambda: next(rooms))
        with pytest.raises(error, match=r"places=0 a lane|shared memory is too small"):
            await Pool.open(world, {"one": lambda pool, body: 1}, **settings)
        while world.closings:
            await asyncio.wait(world.closings)
        assert world.selector.communicators == before
        assert all(each.closed for each in world._windows)

    run(main)


@pytest.mark.mpi
def test_arrays_come_home_in_a_tuple_and_a_list_of_them_is_told_so():
    async def main(world: World) -> None:
        def split(pool: Pool, kind: str) -> Any:
            arrays = np.ones(2), np.ones(3)
            return {"tuple": arrays, "body": (kind, *arrays), "list": [*arrays]}[kind]

        async with await Pool.open(world, {"split": split}) as pool:

            async def ask() -> None:
                for kind, body in (("tuple", None), ("body", "body")):
                    result = await pool.submit("split", kind)
                    assert result.body == body
                    assert [array.size for array in result.arrays] == [2, 3]
                with pytest.raises(TaskError, match=r"array.* is of type ndarray") as raised:
                    await pool.submit("split", "list")
                told = str(raised.value)
                assert "as in `return first, second` or `return body, first, second`" in told
                assert told.count("Traceback") == 1
                assert "msgpack" not in told

            await pool.run(ask() if world.rank == 0 else None)

    run(main)


@pytest.mark.mpi
def test_what_a_submitted_task_raises_is_raised_where_it_is_awaited():
    async def main(world: World) -> None:
        def fail(pool: Pool, n: int) -> None:
            raise ArithmeticError(f"the words of task {n}")

        def set_of(pool: Pool, n: int) -> Any:
            return {n}

        def use(pool: Pool, body: None, needs: list[Result]) -> None: ...

        functions = {"fail": fail, "set": set_of, "use": use}
        async with await Pool.open(world, functions) as pool:

            async def ask() -> None:
                bad = pool.submit("fail", world.rank)
                after = pool.submit("use", needs=[pool.submit("use", needs=[bad])])
                message = (
                    rf"task 'fail' failed on rank \d+ on host .*(.|\n)*in fail\n(.|\n)*task {world.rank}$"
                )
                with pytest.raises(TaskError, match=message) as raised:
                    await after  # a task that needs it fails as it did, and does not run
                assert 0 <= raised.value.rank < world.size
                with pytest.raises(TaskError, match="the words of task"):
                    await bad
                with pytest.raises(TaskError, match=r"\{1\} is of type set"):
                    await pool.submit("set", 1)
                with pytest.raises(TaskError, match="the words of task"):
                    await pool.submit("use", needs=[bad])

            tally = await pool.run(ask())
            assert "use" not in tally.functions
            unseen = pool.submit("fail", 7)
            with pytest.raises(TaskError, match="the words of task 7"):
                await pool.run()
            with pytest.raises(TaskError):
                unseen.result()

    run(main)


@pytest.mark.mpi
@pytest.mark.parametrize(
    "raised",
    [SystemExit(0), KeyboardInterrupt(), asyncio.CancelledError()],
    ids=["a library's main exits", "an interrupt", "a loop of its own was cancelled"],
)
def test_what_would_end_the_loop_is_the_failure_of_the_task_that_raised_it(raised):
    async def main(world: World) -> None:
        def fail(pool: Pool, body: None) -> None:
            raise raised

        async with await Pool.open(world, {"fail": fail}) as pool:

            async def ask() -> None:
                with pytest.raises(TaskError, match=type(raised).__name__):
                    await pool.submit("fail")

            await asyncio.wait_for(pool.run(ask()), 30)

    run(main)


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("name", "body", "array", "tags", "message"),
    [
        ("other", None, np.zeros(1), {}, r"no task is called 'other'; this pool knows add, work"),
        ("work", {1, 2}, np.zeros(1), {}, r"a message's body can't be sent: .* set"),
        ("work", None, np.array([{}]), {}, r"an array of dtype object can't be sent"),
        (
            "work",
            None,
            np.zeros(1),
            {"priority": 1},
            r"priority class 1; this pool has classes 0 \(first\) to 0",
        ),
        (
            "work",
            None,
            np.zeros(1),
            {"priority": 0.5},
            r"priority class 0\.5; .*: give one of these, or open",
        ),
        ("work", None, np.zeros(1), {"seconds": math.inf}, r"'work' is given with seconds=inf; give .* 0 or"),
        ("work", None, np.zeros(1), {"seconds": math.nan}, "seconds=nan"),
        ("work", None, np.zeros(1), {"seconds": -1}, "seconds=-1"),
        ("work", None, np.zeros(1), {"seconds": "3"}, "'work' is given with seconds='3'; give what it takes"),
        (
            "work",
            None,
            np.zeros(1),
            {"memory_bytes": "8"},
            "'work' is given with memory_bytes='8'; give what",
        ),
        ("work", None, np.zeros(1), {"priority": "0"}, "priority class '0'; .*: give one of these"),
        ("work", None, np.zeros(1), {"device": "gpu"}, r"no rank can run .* on gpu: the ranks offer cpu"),
        (
            "work",
            None,
            np.zeros(1),
            {"memory_bytes": 2000},
            r"wants 2000 bytes on any device: .* is 1000 bytes",
        ),
        (["work"], None, np.zeros(1), {}, r"no task is called \['work'\]; this pool knows add, work"),
        ("work", None, np.zeros(1), {"priority": [0]}, r"priority class \[0\]; .*: give one of these"),
        ("work", None, np.zeros(1), {"device": ["cpu"]}, r"device=\['cpu'\]; give the name of one, or None"),
        (
            "work",
            None,
            np.zeros(1),
            {"memory_bytes": np.zeros(1)},
            r"memory_bytes=array.*; give what it holds",
        ),
    ],
    ids=[
        "unknown",
        "a body",
        "an array",
        "class",
        "half a class",
        "endless",
        "no number of seconds",
        "before it begins",
        "seconds as text",
        "memory as text",
        "a class as text",
        "device",
        "memory",
        "a list of names",
        "a list of classes",
        "a list of devices",
        "memory as an array",
    ],
)
def test_a_task_that_cannot_be_is_refused_where_it_is_given(name, body, array, tags, message):
    async def main(world: World) -> None:
        async with await Pool.open(world, {"work": print, "add": print}, memory_bytes=1000) as pool:
            with pytest.raises(Mistake, match=message):
                pool.spawn(name, body, array, **tags)
            with pytest.raises(Mistake, match=message):
                pool.submit(name, body, array, **tags)
            assert (await pool.run()).ran == 0

    run(main)


@pytest.mark.mpi
def test_what_numbers_of_16_bits_cannot_count_is_refused_before_it_is_counted():
    async def main(world: World) -> None:
        with pytest.raises(Mistake, match=r"'pool' is to have places=65536 a lane; give .* to 65535"):
            await Pool.open(world, {}, places=65536)
        with pytest.raises(Mistake, match=r"'pool' is to have place_bytes=0; give .*: what does not fit"):
            await Pool.open(world, {}, place_bytes=0)

        def count(pool: Pool, body: None, needs: list[Result]) -> int:
            return len(needs)

        async with await Pool.open(world, {"one": lambda pool, body: 1, "count": count}) as pool:

            async def ask() -> None:
                one = pool.submit("one")
                with pytest.raises(Mistake, match=r"'count' is submitted with 65535 needs; .* 65534 at most"):
                    pool.submit("count", needs=[one] * 65535)
                assert (await pool.submit("count", needs=[one] * 65534)).body == 65534

            await pool.run(ask() if world.rank == 0 else None)

    run(main)


@pytest.mark.mpi
def test_a_pool_keeps_no_more_of_its_tasks_demands_than_so_many():
    """By a number of bytes of its own for every task it grew for ever."""

    async def main(world: World) -> None:
        async with await Pool.open(world, {"nothing": lambda pool, body: None}) as pool:
            for nbytes in range(3 * MOST_DEMANDS if world.rank == 0 else 0):
                pool.spawn("nothing", memory_bytes=nbytes)
                assert len(pool._demands._places) <= MOST_DEMANDS
            await pool.run()

    run(main)


@pytest.mark.mpi
def test_functions_that_begin_nothing_when_they_are_called_are_refused():
    async def wait(pool: Pool, body: None) -> None: ...

    def each(pool: Pool, body: None) -> Any:
        yield body

    async def stream(pool: Pool, body: None) -> Any:
        yield body

    async def main(world: World) -> None:
        for function in (wait, each, stream, functools.partial(wait), functools.partial(each)):
            with pytest.raises(Mistake, match="the function 'f' of the pool 'pool' is `async def`, or has a"):
                await Pool.open(world, {"f": function, "print": print})

    run(main)


@pytest.mark.mpi
def test_a_need_that_is_no_submission_of_the_pool_is_refused_before_it_is_counted():
    async def main(world: World) -> None:
        def count(pool: Pool, body: None, needs: list[Result]) -> int:
            return len(needs)

        functions = {"one": lambda pool, body: 1, "count": count}
        one_pool, other_pool = [await Pool.open(world, functions, name=name) for name in ("a", "b")]
        async with one_pool as pool, other_pool as other:
            foreign = other.submit("one")

            async def ask() -> None:
                one = pool.submit("one")
                for need, message in (
                    (await one, r"'count' .* a need of type Result; needs are .* not awaited: needs=\["),
                    (3, "'count' is submitted with a need of type int"),
                    ((None, 0), "'count' is submitted with a need of type tuple"),
                    (foreign, "'count' is submitted with a need of another pool, task 'one': await that"),
                    ((foreign, 0), "with a need of another pool"),
                    ((one, 1), "'count' is submitted with a need of part 1 of task 'one', which returns one"),
                    ((one, -1), "of part -1 of task 'one', which returns one part: give what `submit`"),
                    ((one,), "'count' is submitted with a need of type tuple"),
                ):
                    with pytest.raises(Mistake, match=message):
                        pool.submit("count", needs=[one, need])
                for needs in (one, 3):  # a TypeError of Python's own, that named neither
                    with pytest.raises(
                        Mistake, match=r"'count' .* needs of type (Sub|int).*; give a list, also"
                    ):
                        pool.submit("count", needs=needs)
                assert (await pool.submit("count", needs=[one, (one, 0)])).body == 2
                with pytest.raises(Mistake, match=r"part 1 of the result of task 'one' is asked for, .* 1$"):
                    one.result(1)

            await pool.run(ask())
            await other.run()
            assert foreign.result().body == 1

    run(main)


@pytest.mark.mpi
@pytest.mark.skipif(MPI.COMM_WORLD.size > 2, reason="two ranks are enough: one gives a task, one takes it")
def test_a_task_takes_and_returns_more_arrays_than_16_bits_count():
    def back(pool: Pool, body: None, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(array + 1 for array in arrays)

    async def main(world: World) -> None:
        async with await Pool.open(world, {"back": back}) as pool:

            async def ask() -> None:
                result = await pool.submit("back", None, *np.arange(1 << 16).reshape(-1, 1))
                assert [int(array[0]) for array in result.arrays] == list(range(1, (1 << 16) + 1))
                for seconds in ("soon", [1.0]):
                    with pytest.raises(Mistake, match="give what it takes, 0 or more"):
                        pool.submit("back", seconds=seconds)
                    with pytest.raises(Mistake, match="give what it takes, 0 or more"):
                        pool.spawn("back", seconds=seconds)

            await pool.run(ask() if world.rank == 0 else None)

    run(main)


@pytest.mark.mpi
def test_a_failure_whose_message_is_no_utf8_comes_home():
    async def main(world: World) -> None:
        def missing(pool: Pool, _: None) -> None:
            raise FileNotFoundError(os.fsdecode(b"caf\xe9.txt"))

        async with await Pool.open(world, {"missing": missing}) as pool:

            async def ask() -> None:
                with pytest.raises(TaskError, match=r"FileNotFoundError: caf\\udce9\.txt$"):
                    await pool.submit("missing")

            await pool.run(ask())

    run(main)
