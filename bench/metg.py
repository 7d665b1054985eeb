"""METG(50%): the smallest task for which half of the peak rate is kept, on the pool and on its peers.

python -m bench metg                      # trivial_us on one rank
mpirun -n 2 python -m bench metg          # stencil_us on two
mpirun -n 2 python -m bench metg --peers dask,ray,charm4py

trivial_us, stencil_us   METG: the length of a task's kernel where half of the peak rate is kept; the peak is
                         a plain loop of the same kernels on every rank, just before. (Wall time times cores
                         over tasks, as Task Bench plots it, is twice that.)
overhead_us              what a trivial task costs beyond its kernel, at the smallest kernel
dask_, ray_, charm4py_   the same of a peer, where it is installed: processes as many as ranks (one more for
                         charm4py's pool, which only schedules), on the same cores, with --peer-steps
short_trivial_us, short_stencil_us      the same of Weft with as few steps as peers take
charm4py_chares_us       the stencil without a pool: chares that are placed by hand, and channels
..._over_weft            the peer's METG over that of Weft with as few steps

`--steps` times as many tasks as ranks; of the trivial graph none needs another, in the stencil each needs its
neighbours (and itself) one step before. A kernel is a loop of so many turns. Every output carries (step,
point), every input is checked by the task that gets it, every output at the end; a wrong one gives no
figures. After Slaughter et al., "Task Bench: A Parameterized Benchmark for Evaluating Parallel Runtime
Performance", SC 2020.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import numpy as np

from bench import _core
from bench.harness import Figure, check, installed, launched_rank, positive, unlaunched
from weft.runtime.message import World, run
from weft.runtime.work.pool import Pool
from weft.runtime.work.pool.parcel import Result

KERNELS_S = tuple(1e-6 * 2**n for n in range(12))  # 1 us to 2 ms
GRAPHS = ("trivial", "stencil")
PEERS = {"dask": "distributed", "ray": "ray", "charm4py": "charm4py"}
"""Names and modules."""

PEER_S = 300.0  # after which a peer is taken to hang


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--steps", type=positive, default=1000, metavar="N", help="(1000)")
    add("--repetitions", type=positive, default=3, metavar="N", help="rounds")
    add("--peers", type=known, default=(), metavar="NAME[,NAME]", help=f"of {', '.join(PEERS)}")
    add("--peer-steps", type=positive, default=100, metavar="N", help="for peers, which are slower (100)")


def known(text: str) -> tuple[str, ...]:
    """The peers named."""
    names = tuple(text.split(","))
    if unknown := [name for name in names if name not in PEERS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(PEERS)}")
    return names


def main(args: argparse.Namespace) -> dict[str, Figure]:
    args.peers = installed("metg", {name: PEERS[name] for name in args.peers})
    cores: set[int] = set()
    found = run(partial(measure, args, cores)) or {}
    if launched_rank() == 0:  # the other ranks have ended: the cores are the peers'
        for peer in args.peers:
            found |= peer_figures(peer, found, args, cores)
    return found


def spin(turns: int) -> None:
    """The kernel."""
    for _ in range(turns):
        pass


def turn_s() -> float:
    """What a turn of the kernel takes: its fastest, which is the peak."""
    turns, best = 20_000, math.inf
    for _ in range(30):
        start = time.perf_counter()
        spin(turns)
        best = min(best, (time.perf_counter() - start) / turns)
    return best


def point(pool: Pool, body: list[int], needs: Sequence[Result] = ()) -> list[int]:
    """A task of either graph."""
    turns, step, place, width = body
    if needs:
        expected = [[step - 1, each] for each in neighbours(place, width)]
        got = [need.body for need in needs]
        check(got == expected, f"point {place} of step {step} got {got}, not {expected}")
    spin(turns)
    return [step, place]


def neighbours(place: int, width: int) -> list[int]:
    return [each for each in (place - 1, place, place + 1) if 0 <= each < width]


async def alone(world: World, turns: int, steps: int) -> float:
    """Seconds for as many kernels as a rank has tasks, in a plain loop on every rank at once."""
    await world.barrier()
    wall = np.array([plain(turns, steps)])
    await world.allreduce(wall, "max")
    return float(wall[0])


def plain(turns: int, steps: int) -> float:
    start = time.perf_counter()
    for _ in range(steps):
        spin(turns)
    return time.perf_counter() - start


async def measure(args: argparse.Namespace, cores: set[int], world: World) -> dict[str, Figure]:
    """One rank's part of the bench; `cores` gets those of all ranks of this machine."""
    cores.update(*await _core.allowed_cores(_core.neighbours(world)))
    turn = np.array([turn_s()])
    await world.allreduce(turn, "min")
    width = world.size
    graphs = {graph: (graph, args.steps) for graph in GRAPHS}
    if args.peers:
        graphs |= {f"short_{graph}": (graph, args.peer_steps) for graph in GRAPHS}
    found: dict[str, list[float]] = {name: [] for name in graphs}
    overheads: list[float] = []
    async with await Pool.open(world, {"point": point}) as pool:

        async def seconds(graph: str, steps: int, turns: int, kernel_s: float) -> float:
            walls: list[float] = []

            async def ask() -> None:
                start = time.perf_counter()
                rows = [
                    [
                        pool.submit("point", [turns, step, place, width], needs=(), seconds=kernel_s)
                        for place in range(width)
                    ]
                    for step in range(steps if graph == "trivial" else 1)
                ]
                for step in range(len(rows), steps):
                    rows.append(
                        [
                            pool.submit(
                                "point",
                                [turns, step, place, width],
                                needs=[rows[-1][each] for each in neighbours(place, width)],
                                seconds=kernel_s,
                            )
                            for place in range(width)
                        ]
                    )
                for row in rows if graph == "trivial" else rows[-1:]:
                    for submission in row:
                        if not submission.done:
                            await submission
                walls.append(time.perf_counter() - start)
                for step, row in enumerate(rows):
                    got = [submission.result().body for submission in row]
                    check(got == [[step, place] for place in range(width)], f"step {step} gave {got}")

            await pool.run(ask() if world.rank == 0 else None)
            wall = np.array([walls[0] if walls else 0.0])
            await world.allreduce(wall, "max")
            return float(wall[0])

        for number in range(args.repetitions + 1):
            for name, (graph, steps) in graphs.items():
                rates: list[tuple[float, float]] = []
                for kernel_s in KERNELS_S:
                    turns = max(1, round(kernel_s / turn[0]))
                    plain_s = await alone(world, turns, steps)
                    efficiency = plain_s / await seconds(graph, steps, turns, kernel_s)
                    rates.append((efficiency, kernel_s))
                    if efficiency > 0.6:
                        break
                if number:  # the first warms up
                    found[name].append(metg(rates))
                    if name == "trivial":
                        overheads.append(rates[0][1] / rates[0][0] - rates[0][1])
    return {
        **{f"{name}_us": Figure.of(each, "us", 1e6) for name, each in found.items()},
        "overhead_us": Figure.of(overheads, "us", 1e6),
    }


def metg(rates: Sequence[tuple[float, float]]) -> float:
    """The length at which efficiency comes to one half, between the (efficiency, length) around it."""
    for (below, g0), (above, g1) in pairwise(rates):
        if below < 0.5 <= above:
            share = (0.5 - below) / (above - below)
            return math.exp(math.log(g0) + share * (math.log(g1) - math.log(g0)))
    check(rates[0][0] >= 0.5, f"efficiency never came to one half: {rates}")
    return rates[0][1]


def peer_figures(
    peer: str, ours: dict[str, Figure], args: argparse.Namespace, cores: set[int]
) -> dict[str, Figure]:
    """A peer's figures, from processes of its own, on `cores`: a launcher may have bound rank 0 to one."""
    width = int(os.environ.get("PMI_SIZE", os.environ.get("OMPI_COMM_WORLD_SIZE", "1")))
    numbers = [str(number) for number in (width, args.peer_steps, args.repetitions)]
    with subprocess.Popen(
        [sys.executable, "-m", "bench._metg_peers", peer, *numbers],
        env=unlaunched(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    ) as process:
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        try:
            output, errors = process.communicate(timeout=PEER_S)
        finally:
            signal.signal(signal.SIGTERM, before)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # with all that it has started
    check(process.returncode == 0, f"{peer}: {errors[-2000:]}")
    figures: dict[str, Figure] = {}
    for graph, lengths in json.loads(output.splitlines()[-1]).items():
        weft = ours[f"short_{'stencil' if graph == 'chares' else graph}_us"]
        over_weft = [length / (weft.value * 1e-6) for length in lengths]
        figures[f"{peer}_{graph}_us"] = Figure.of(lengths, "us", 1e6)
        figures[f"{peer}_{graph}_over_weft"] = Figure.of(over_weft, "x")
    return figures
