"""Training on two ranks of which one is held to half speed: what of their joint speed is left.

    mpirun -n 2 python -m bench straggler        two ranks on a core each: they take work from each other
    python -m bench.hosts --hosts 2 --rate 1gbit -- python -m bench straggler
                                                 on two hosts: faster ranks are dealt more

    limited       the last rank is stopped for half of every 10 ms (SIGSTOP, SIGCONT), as by a CPU limit
    competing     a process that computes without end shares the last rank's core

    efficiency    micro-batches a second of both ranks, over the sum of what each does alone (a plain loop of
                  the same kernels, both at once, in the same condition): balanced so, and with static
                  division (deterministic = true)
    ..._got       the share of its core that the last rank gets while ranks are balanced, over that of the
                  plain loop, which is one thread where training has two
    equal_loss    what balancing costs two equal ranks: 1 - its speed over that of static division

What a rank does alone counts for more by as much as it gets more of its core in training, and never for less.
A dense network, many micro-batches a step. The first losses must be plain NumPy's, and losses and weights the
same after every turn, within what float32 sums in another order can differ.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from bench._fair import Candidate, Judge
from bench._steps import CHECKED_STEPS, RATE, Floats, Sizes, Turn, check_losses, reference
from bench.harness import Figure, amount_or_none, check, interleaved, positive, ratio
from weft.kernels.blas import limit_threads
from weft.kernels.device import Device
from weft.runtime.errors import Mistake
from weft.runtime.exchange import NodeMemory
from weft.runtime.message import Communicator, World, run
from weft.runtime.train.chain import Share
from weft.runtime.train.data import Affine, Data
from weft.runtime.train.data.samples import Rows
from weft.runtime.train.dealer import Dealer
from weft.runtime.train.loop import TrainingLoop
from weft.runtime.train.model import build
from weft.runtime.train.order import batch_indices, micro_batches
from weft.runtime.train.prepare import make_replica, share_memory
from weft.runtime.train.replica import Replica
from weft.runtime.train.schema import Job
from weft.runtime.train.tally import Tally
from weft.runtime.train.tally import measure as measure_loss
from weft.runtime.work import Compute

WARM, WARM_DEALT = 2, 6
"""Steps that a turn makes before it is timed: ranks get to know their pace, and caches are filled. Between
hosts it takes four steps until paces decide what is dealt."""

PERIOD_S = 10e-3
STOP_AND_GO = """
import os, select, signal, sys, time
pid, half_s = int(sys.argv[1]), float(sys.argv[2]) / 2
due = time.monotonic()
while not select.select([sys.stdin], [], [], max(0.0, due + half_s - time.monotonic()))[0]:
    os.kill(pid, signal.SIGSTOP)
    time.sleep(half_s)
    os.kill(pid, signal.SIGCONT)
    due += 2 * half_s
"""
SPIN = """
import os, sys, threading
threading.Thread(target=lambda: os._exit(len(sys.stdin.read()))).start()
while True:
    pass
"""
# Both end when their stdin does, with this process or before, and leave it running.
CONDITIONS = ("equal", "limited", "competing")
WAYS = ("stealing", "static")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--micro-batches", type=positive, default=64, metavar="N", help="of a step, over both ranks (64)")
    add("--samples", type=positive, default=32, metavar="N", help="of a micro-batch (32)")
    add("--width", type=positive, default=1024, metavar="N", help="features of a layer (1024)")
    add("--layers", type=positive, default=3, metavar="N", help="dense layers (3)")
    add("--steps", type=positive, default=4, metavar="N", help="timed of a turn (4)")
    add("--repetitions", type=positive, default=3, metavar="N", help="rounds that count (3)")
    add("--patience", type=amount_or_none, default=180.0, metavar="S", help="to repeat disturbed turns (180)")


def main(args: argparse.Namespace) -> dict[str, Figure]:
    return run(lambda world: measure(world, args)) or {}


async def measure(world: World, args: argparse.Namespace) -> dict[str, Figure]:
    """One rank's part of the bench."""
    if world.size < 2:
        raise Mistake("straggler needs two ranks or more: run it under mpirun -n 2")
    limit_threads(1)
    judge = await Judge.open(world, args.patience)
    bench = Bench(world, args, judge)
    await bench.open()
    return await bench.run(args.repetitions)


@dataclass(slots=True)
class Trained(Turn):
    """A turn: also micro-batches a second of all ranks, what share of its core each got, and the weights."""

    speed: float = 0.0
    shares: Floats = field(default_factory=lambda: np.zeros(0, np.float32))
    speeds: Floats = field(default_factory=lambda: np.zeros(0, np.float32))  # each rank's, alone
    weights: Floats = field(default_factory=lambda: np.zeros(0, np.float32))


@dataclass(slots=True)
class Way:
    """How a turn trains: the job, its memory on the node, and its communicator."""

    job: Job
    comm: Communicator
    memory: NodeMemory | None
    replica: Replica


class Bench:
    """The candidates on one rank, their turns and figures."""

    def __init__(self, world: World, args: argparse.Namespace, judge: Judge) -> None:
        self._world, self._args, self._judge = world, args, judge
        self._dealt = len(world.nodes) > 1
        self._warm = WARM_DEALT if self._dealt else WARM
        sizes = Sizes((args.width,) * (args.layers + 1), args.micro_batches * args.samples, 1)
        inputs, targets = sizes.samples()
        none = Rows(inputs, targets, np.arange(0), None, Affine())
        self._data = Data(Rows(inputs, targets, np.arange(sizes.batch), None, Affine()), none, none)
        self._first = {f"weight/dense_{i}.weight": w for i, w in enumerate(sizes.weights(), 1)}
        self._losses = reference(sizes, CHECKED_STEPS)
        self._ways: dict[str, Way] = {}
        self._expected: Trained | None = None
        self._turns: dict[str, list[Trained]] = defaultdict(list)

    async def open(self) -> None:
        """Make what the candidates train."""
        world, device = self._world, Device()
        for name in WAYS:
            job = self._job(name, self._args.steps + self._warm)
            graph = build(job.model, self._data)
            memory = await share_memory(world, job, graph, device)
            replica = make_replica(job, graph, device, memory, world.size)
            comm = await world.duplicate(name)
            self._ways[name] = Way(job, comm, memory, replica)
            replica.warm_up(self._args.samples)
        self._own = make_replica(job, graph, device, None, 1)

    def _job(self, way: str, steps: int) -> Job:
        args = self._args
        layers: list[dict[str, object]] = []
        for _ in range(args.layers):
            layers += [{"kernel": "dense", "features": args.width, "bias": False}, {"kernel": "relu"}]
        return Job.model_validate(
            {
                "name": way,
                "data": {"source": "npz", "path": "held in memory", "validation": 0.0, "test": 0.0},
                "model": {"layers": layers[:-1], "loss": "mean_squared_error"},
                "train": {
                    "batch": args.micro_batches * args.samples,
                    "micro_batch": args.samples,
                    "steps": steps,
                    "optimizer": {"name": "sgd", "rate": RATE},
                    "deterministic": way != "stealing",
                },
            }
        )

    async def run(self, repetitions: int) -> dict[str, Figure]:
        """All rounds."""
        candidates = [f"{way} {condition}" for condition in CONDITIONS for way in (*WAYS, "alone")]
        for name, _ in interleaved(candidates, repetitions, warmup=0):
            way, condition = name.split()
            async with self._condition(condition):
                take = self._alone if way == "alone" else partial(self._turn, self._ways[way])
                turn, _ = await self._judge.turn(name, Candidate(take))
            assert isinstance(turn, Trained)
            self._check(name, turn)
            self._turns[name].append(replace(turn, weights=turn.weights[:0].copy()))  # 12 MB each
            if self._world.rank == 0:
                others = self._judge.others[-1]
                print(f"{name}: {turn.speed:.1f}/s; others used {others:.0%} of a core", file=sys.stderr)
        return self._figures()

    @asynccontextmanager
    async def _condition(self, name: str) -> AsyncIterator[None]:
        """Hold the last rank up, or nobody, meanwhile."""
        programs = {"limited": [STOP_AND_GO, str(os.getpid()), str(PERIOD_S)], "competing": [SPIN]}
        await self._world.barrier()
        if self._world.rank < self._world.size - 1 or name not in programs:
            yield
            return
        # A rank takes a SIGCONT for that with which Open MPI's launcher begins a stop: the job ended here.
        continued = signal.signal(signal.SIGCONT, signal.SIG_DFL)
        try:
            # On this rank's core, as it is.
            with subprocess.Popen([sys.executable, "-c", *programs[name]], stdin=subprocess.PIPE) as process:
                self._judge.pids.append(process.pid)
                yield
                self._judge.pids.remove(process.pid)
        finally:
            signal.signal(signal.SIGCONT, continued)

    async def _turn(self, way: Way) -> Trained:
        """Train from the first weights; the speed is taken from one step's losses to another's."""
        way.replica.restore(self._first)
        if way.memory is not None:
            await way.memory.fence()
        losses: list[float] = []
        marks: list[tuple[float, float]] = []

        def on_step(share: Share, tally: Tally) -> None:
            losses.append(tally.loss)
            marks.append((time.perf_counter(), time.process_time()))

        async def boundary(done: int) -> bool:
            return False

        balanced = self._dealt and not way.job.train.deterministic
        dealer = Dealer(self._world.size) if balanced else None
        async with Compute(way.replica.device) as compute:
            self._world.selector.computing = lambda: compute.busy
            try:
                loop = TrainingLoop(
                    self._world, way.comm, way.job, self._data, way.replica, compute,
                    on_step=on_step, memory=way.memory, dealer=dealer,
                )  # fmt: skip
                await loop.run(0, boundary, set())
            finally:
                self._world.selector.computing = lambda: False
        wall_s, cpu_s = (end - start for start, end in zip(marks[self._warm - 1], marks[-1], strict=True))
        seconds = wall_s / self._args.steps
        return Trained(
            seconds,
            losses,
            speed=self._args.micro_batches / seconds,
            shares=await self._of_all(cpu_s / wall_s),
            weights=way.replica.parameters.copy(),
        )

    async def _alone(self) -> Trained:
        """Train on this rank alone, one kernel after the other and nothing else: what it can do at best."""
        args, replica = self._args, self._own
        replica.restore(self._first)
        samples = args.micro_batches * args.samples
        program = replica.training(args.samples)
        program.loss_gradient[...] = 1 / samples
        losses, start, cpu = list[float](), 0.0, 0.0
        steps = max(1, args.steps // self._world.size)
        for step in range(WARM + steps):
            if step == WARM:
                start, cpu = time.perf_counter(), time.process_time()
            loss = 0.0
            parts = micro_batches(batch_indices(0, step, samples, samples), args.samples)
            for number, indices in enumerate(parts):
                replica.load(program, self._data.train, indices)
                for call in (*program.forward, *(program.backward_more if number else program.backward)):
                    call.run()
                loss += measure_loss(program)[0]
            replica.update(0, replica.layout.size, rate=RATE, step=step + 1, scale=1.0)
            losses.append(loss / samples)
        wall_s, cpu_s = time.perf_counter() - start, time.process_time() - cpu
        speeds = await self._of_all(args.micro_batches * steps / wall_s)
        shares = await self._of_all(cpu_s / wall_s)
        return Trained(wall_s / steps, losses, speed=float(speeds.sum()), shares=shares, speeds=speeds)

    async def _of_all(self, value: float) -> Floats:
        """All ranks' values."""
        found = np.zeros(self._world.size, np.float32)
        found[self._world.rank] = value
        await self._world.allreduce(found)
        return found

    def _check(self, name: str, turn: Trained) -> None:
        check_losses(name, turn.losses, self._losses)
        expected = self._expected = self._expected or turn
        same = np.allclose(turn.losses, expected.losses[: len(turn.losses)], rtol=1e-5)
        check(same, f"{name}: losses are {turn.losses}, and were {expected.losses}")
        if not turn.weights.size:
            return
        off = float(np.abs(turn.weights - expected.weights).max() / np.abs(expected.weights).max())
        check(off < 1e-5, f"{name}: weights differ by {off:.1e} of the largest")

    def _figures(self) -> dict[str, Figure]:
        speeds = {name: [turn.speed for turn in turns] for name, turns in self._turns.items()}
        found: dict[str, Figure] = {}
        for condition in CONDITIONS:
            alone = self._turns[f"alone {condition}"]
            for way, title in (("stealing", "efficiency"), ("static", "static_efficiency")):
                turns = self._turns[f"{way} {condition}"]
                ceilings = [ceiling(*pair) for pair in zip(turns, alone, strict=True)]
                found[f"{condition}_{title}"] = ratio(speeds[f"{way} {condition}"], ceilings)
            pairs = zip(self._turns[f"stealing {condition}"], alone, strict=True)
            got = [float(turn.shares[-1] / plain.shares[-1]) for turn, plain in pairs]
            found[f"{condition}_got"] = Figure.of(got, "x")
        held = [found["limited_efficiency"], found["competing_efficiency"]]
        static = [found["limited_static_efficiency"], found["competing_static_efficiency"]]
        lost = [1 - a / b for a, b in zip(speeds["stealing equal"], speeds["static equal"], strict=True)]
        return {
            "efficiency": min(held, key=lambda figure: figure.value),
            "static_efficiency": max(static, key=lambda figure: figure.value),
            "equal_loss": Figure.of(lost, "x"),
            **found,
            "alone_per_s": Figure.of(speeds["alone equal"], "1/s"),
            "others_share": Figure.of(self._judge.others, "cores"),
            "slowed": Figure.of(self._judge.slowed, "x"),
        }


def ceiling(turn: Trained, alone: Trained) -> float:
    """Micro-batches a second that the ranks could do with what they got of their cores in a turn.

    Training has two threads where the plain loop has one, and may win more of a core from a process that
    competes for it: over the plain loops alone ranks came to 1.07 of all they can do.
    """
    return float((alone.speeds * np.maximum(1, turn.shares / alone.shares)).sum())
