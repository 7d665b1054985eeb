"""Time of a training step on hosts with a slow link, over the longer of compute and wire; beside DDP.

python -m bench overlap --rate 1gbit --batch 512 --layers 8 --width 1024 --hosts 2

A network of dense layers without bias, ReLU between them, float32, SGD; `--batch` samples a rank, one rank a
core, one thread of BLAS. Weft's steps are made by the loop of `weft train`, which tunes itself in the first.
The hosts are network namespaces (python -m bench.hosts --help); a host that moved too few bytes over its link
in any turn makes the result wrong, and so do losses that are not those of NumPy, and weights that differ
between ranks.

Over the limit, the longer of compute_ms and wire_ms of the same round:
    step_over_limit         Weft
    ddp_best_over_limit     DDP over gloo with the bucket size that is fastest here
    ddp_default_over_limit  DDP with its default buckets, 25 MB
    blocking_over_limit     the same kernels, the whole gradient, one blocking all-reduce, the update
    first_come_over_limit   Weft with portions in the order in which plain backward completes them
    ddp_best_over_own_limit DDP over the longer of its own compute and wire
    ddp_best_over_weft      time of a step with DDP's best bucket size over Weft's

Milliseconds a step, on the slowest rank:
    compute_ms              forward, backward and update one after the other, nothing sent
    wire_ms                 the gradient's portions, as many at once as Weft has under way, nothing computed
    wire_blocking_ms        as many bytes in one blocking MPI_Allreduce
    step_ms, first_come_ms, blocking_ms, ddp_1mb_ms … ddp_25mb_ms
    ddp_compute_ms          the same network in PyTorch, nothing sent
    ddp_wire_ms             as many bytes in one all-reduce of gloo

Where a step of Weft goes, on rank 0:
    lane_busy_ms            a kernel runs; while none does:
    lane_arrival_ms         the next one waits for a portion that travels
    lane_wake_ms            its portion has arrived
    lane_between_ms, lane_other_ms  gaps of under 20 us, and others
    wire_busy_ms            a portion is on its way; while none is:
    wire_unready_ms         none is ready
    wire_late_ms            one is ready, and not sent
    lane_cpu_ms, loop_cpu_ms        CPU time of both threads; the network's interrupts are in either
    portion_mb, credit      what tuning chose (the rule is told on stderr)

Candidates take turns, and ratios are of one round. A turn in which others used more than 5% of a rank's core
is repeated once it is quiet; others_share tells what is left of them. With `--skew 0.7` one layer in the
middle holds 70% of as many weights. A round takes 13 turns: a minute at 1 Gbit/s, three at
100 Mbit/s.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from bench import _ddp, _idle, _weft
from bench._core import take_core, use
from bench._steps import CHECKED_STEPS, Sizes, Turn, check_losses, reference, widths
from bench._weft import Fixed, Model, Trained, Training
from bench.harness import Figure, check, interleaved, ratio
from bench.hosts import Hosts
from bench.network import HostsError
from weft.kernels.blas import limit_threads
from weft.runtime.errors import Mistake
from weft.runtime.exchange.plan import RULES
from weft.runtime.message import World, run

WARM = 2  # steps before the clock starts
TURN_S, LEAST, MOST = 2.5, 3, 8  # of a turn: seconds that it is to take, timed steps that it has
DISTURBED = 0.05  # of a core, used by others: such a turn is repeated
JUDGED_S = 0.5  # use of a core is counted in ticks of 10 ms: of shorter turns it tells nothing

Candidate = Callable[[], Awaitable[Turn]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--rate", default="1gbit", help="of every link, each way: 100mbit, 2.5gbit, unlimited (1gbit)")
    add("--hosts", type=int, default=2, metavar="N", help="how many (2)")
    add("--ranks-per-host", default="1", metavar="N[,N...]", help="on every host, or on each (1)")
    add("--batch", type=int, default=512, metavar="N", help="samples a rank (512)")
    add("--layers", type=int, default=8, metavar="N", help="dense layers (8)")
    add("--width", type=int, default=1024, metavar="N", help="features of each (1024)")
    add("--skew", type=float, metavar="SHARE", help="one layer in the middle holds this share of the weights")
    add("--repetitions", type=int, default=5, metavar="N", help="rounds that count (5)")
    allowed = f"what {TURN_S:g} s allow, {LEAST} to {MOST}"
    add("--steps", type=int, metavar="N", help=f"timed steps of a turn ({allowed})")
    add(
        "--patience", type=float, default=60.0, metavar="S", help="to repeat turns that others disturbed (60)"
    )
    add("--portion", type=int, metavar="BYTES", help="size of Weft's portions (tuned)")
    add("--credit", type=int, metavar="N", help="Weft's portions in flight (tuned)")
    add("--rule", choices=RULES, help="which of Weft's portions goes first (tuned)")
    add("--buckets", default="1,2,4,8,25", metavar="MB[,MB...]", help="DDP's bucket sizes")
    add("--no-ddp", action="store_true", help="leave PyTorch out, as where it is not installed")
    add("--no-rig", action="store_true", help="on the ranks of the launcher that runs this")


def main(args: argparse.Namespace) -> dict[str, Figure]:
    if not args.no_rig:
        raise SystemExit(on_hosts(args))
    return run(lambda world: measure(world, args)) or {}


def on_hosts(args: argparse.Namespace) -> int:
    """Run this bench on emulated hosts, where its first rank reports; returns its status."""
    ppn = [int(number) for number in args.ranks_per_host.split(",")]
    rate = None if args.rate == "unlimited" else args.rate
    least = Sizes(widths(args.layers, args.width, args.skew), args.batch, 2).nbytes * args.repetitions
    command = [sys.executable, "-m", "bench", *sys.argv[1:], "--no-rig"]
    try:
        with Hosts(args.hosts, rate) as hosts:
            job = hosts.run(command, ppn=ppn[0] if len(ppn) == 1 else ppn, expect_bytes=least)
    except HostsError as error:
        print(
            f"overlap: {error}\n(mpirun -n 2 python -m bench overlap --no-rig needs no hosts)",
            file=sys.stderr,
        )
        return 1
    print(f"overlap: {job.moved()} (link {args.rate})", file=sys.stderr)
    return job.returncode


async def measure(world: World, args: argparse.Namespace) -> dict[str, Figure]:
    """One rank's part of the bench."""
    if world.size < 2:
        raise Mistake("overlap needs two ranks: leave --no-rig out, or run it under mpirun -n 2")
    core = take_core(world.node_rank)
    limit_threads(1)
    sizes = Sizes(widths(args.layers, args.width, args.skew), args.batch, world.size)
    async with AsyncExitStack() as stack:
        peer = None
        if find_spec("torch") is not None and not args.no_ddp:
            peer = stack.enter_context(await start_peer(world, sizes))
        fixed = Fixed(args.portion, args.credit, args.rule)
        model = Model(world, sizes, fixed)
        await model.open()
        weft = await stack.enter_async_context(await Training.open(model, fixed))
        bench = Bench(world, model, weft, peer, core, args)
        await bench.prepare()
        by_rule = Fixed.by(replace(weft.settings, rule="first_come"))
        first_come = await stack.enter_async_context(await Training.open(model, by_rule))
        return await bench.run(first_come)


async def start_peer(world: World, sizes: Sizes) -> _ddp.Peer:
    """PyTorch's process beside this rank."""
    port = np.zeros(1, np.int64)
    if world.rank == 0:
        with socket.socket() as free:
            free.bind(("", 0))
            port[0] = free.getsockname()[1]
    await world.broadcast(port, 0)
    if len(world.nodes) == 1:
        return _ddp.Peer(sizes, world.rank, "127.0.0.1", int(port[0]), "lo")
    return _ddp.Peer(sizes, world.rank, world.hosts[0], int(port[0]), os.environ.get("GLOO_SOCKET_IFNAME"))


class Bench:
    """The candidates on one rank, their turns and figures."""

    def __init__(
        self,
        world: World,
        model: Model,
        weft: Training,
        peer: _ddp.Peer | None,
        core: int,
        args: argparse.Namespace,
    ) -> None:
        self._world, self._model, self._weft, self._peer, self._core = world, model, weft, peer, core
        self._args = args
        # What is left of it, the same on all ranks. Ranks that share a core disturb each other in any case.
        neighbours = world.size if "WEFT_BENCH_HOSTS" in os.environ else world.node_size
        self._patience_s = args.patience if neighbours <= (os.cpu_count() or 1) else 0.0
        self._pids = (os.getpid(), *([peer.pid] if peer is not None else []))
        self._buckets = [int(mb) for mb in args.buckets.split(",")] if peer is not None else []
        self._expected: list[float] = []
        self._steps = LEAST
        self._samples: dict[str, list[float]] = defaultdict(list)
        self._others: list[float] = []
        self._spent: dict[str, list[float]] = defaultdict(list)

    async def prepare(self) -> None:
        """Compute what losses must be, have PyTorch start, and let Weft find its settings."""
        expected = np.zeros(CHECKED_STEPS)
        if self._world.rank == 0:
            expected[:] = reference(self._model.sizes, CHECKED_STEPS)
        await self._world.broadcast(expected, 0)
        self._expected = list(expected)
        if self._peer is not None:
            self._peer.ready()
        first = await self._weft.first_turn()
        check_losses("the first steps", first.losses, self._expected)
        step_s = np.array([first.seconds])
        await self._world.allreduce(step_s, "max")
        self._steps = self._args.steps or min(max(round(TURN_S / float(step_s[0])), LEAST), MOST)
        if self._world.rank == 0:
            print(f"overlap: {self._weft.settings}", file=sys.stderr)

    async def run(self, first_come: Training) -> dict[str, Figure]:
        """All rounds."""
        check_losses("the first steps", (await first_come.first_turn()).losses, self._expected)
        model, settings, steps = self._model, self._weft.settings, WARM + self._steps
        candidates: dict[str, Candidate] = {
            "step": partial(self._weft.turn, steps, WARM),
            "compute": at_once(partial(_weft.compute, model, steps, WARM)),
            "wire": partial(_weft.wire, model, settings, steps, WARM),
            "wire_blocking": at_once(partial(_weft.wire_blocking, model, settings, steps, WARM)),
            "first_come": partial(first_come.turn, steps, WARM),
            "blocking": at_once(partial(_weft.blocking, model, steps, WARM)),
        }
        if self._peer is not None:
            for what in ("compute", "wire"):
                candidates[f"ddp_{what}"] = at_once(partial(self._peer.turn, what, steps, WARM))
            for mb in self._buckets:
                candidates[f"ddp_{mb}mb"] = at_once(partial(self._peer.turn, "ddp", steps, WARM, mb))
        for name, _ in interleaved(list(candidates), self._args.repetitions, warmup=0):
            await self._measure(name, candidates[name])
        return self._figures()

    async def _measure(self, name: str, candidate: Candidate) -> None:
        """Let a candidate take its turn, again if others disturbed it, and keep what it gave."""
        while True:
            turn, slowest_s, others = await self._turn(name, candidate)
            if others <= DISTURBED or self._patience_s <= 0.0:
                break
            self._patience_s -= slowest_s * (WARM + self._steps)
            await self._quiet()
        self._samples[name].append(slowest_s)
        self._others.append(others)
        if name == "step" and isinstance(turn, Trained):
            spent = {**_idle.causes(turn.spans, turn.window), "loop_cpu": turn.spent.loop}
            for what, seconds in {**spent, "lane_cpu": turn.spent.lane}.items():
                self._spent[what].append(seconds / self._steps)

    async def _quiet(self) -> None:
        """Wait until nobody else uses the ranks' cores, or for as long as patience lasts."""
        while self._patience_s > 0.0:
            before = use(self._core, self._pids)
            await asyncio.sleep(JUDGED_S)
            self._patience_s -= JUDGED_S
            others = np.array([use(self._core, self._pids).since(before).others / JUDGED_S])
            await self._world.allreduce(others, "max")
            if others[0] <= DISTURBED:
                break

    async def _turn(self, name: str, candidate: Candidate) -> tuple[Turn, float, float]:
        """One turn, checked: what it gave here, seconds a step on the slowest rank, share of a core lost."""
        await self._world.barrier()
        before, link, start = use(self._core, self._pids), link_bytes(), time.monotonic()
        turn = await candidate()
        whole_s = time.monotonic() - start
        await self._world.barrier()  # another rank of this host may still be sending
        moved, spent = link_bytes() - link, use(self._core, self._pids).since(before)
        alone = name in ("compute", "ddp_compute")
        if len(self._world.nodes) > 1 and not alone:
            least = self._model.sizes.nbytes * self._steps
            check(moved >= least, f"{name}: {moved} bytes went over this host's link, {least} or more should")
        losses = np.array(turn.losses)
        if name.startswith("ddp") or alone:  # each rank knows those of its own samples
            await self._world.allreduce(losses)
        if len(losses):  # without the others' gradients only the first is right
            check_losses(name, list(losses)[: 1 if alone else None], self._expected)
        if turn.digest and not alone:
            await self._world.agree(f"weights after a turn of {name}", turn.digest)
        slowest = np.array([turn.seconds, spent.others / whole_s if whole_s > JUDGED_S else 0.0])
        await self._world.allreduce(slowest, "max")
        return turn, float(slowest[0]), float(slowest[1])

    def _figures(self) -> dict[str, Figure]:
        samples, settings = self._samples, self._weft.settings
        limit = [max(pair) for pair in zip(samples["compute"], samples["wire"], strict=True)]
        ours = ("step", "first_come", "blocking")
        found = {f"{name}_over_limit": ratio(samples[name], limit) for name in ours}
        if self._buckets:
            best = min(
                (samples[f"ddp_{mb}mb"] for mb in self._buckets), key=lambda times: statistics.median(times)
            )
            own = [max(pair) for pair in zip(samples["ddp_compute"], samples["ddp_wire"], strict=True)]
            found["ddp_best_over_limit"] = ratio(best, limit)
            if (default := f"ddp_{_ddp.DEFAULT_MB}mb") in samples:
                found["ddp_default_over_limit"] = ratio(samples[default], limit)
            found["ddp_best_over_own_limit"] = ratio(best, own)
            found["ddp_best_over_weft"] = ratio(best, samples["step"])
        found |= {f"{name}_ms": Figure.of(times, "ms", 1e3) for name, times in samples.items()}
        found |= {f"{name}_ms": Figure.of(times, "ms", 1e3) for name, times in self._spent.items()}
        found["portion_mb"] = Figure.of([settings.portion_bytes / 2**20], "MB")
        found["credit"] = Figure.of([settings.credit], "")
        found["others_share"] = Figure.of(self._others, "cores")
        return found


def at_once(make: Callable[[], Turn]) -> Candidate:
    """A candidate that blocks, the loop with it: nothing may look at MPI meanwhile."""

    async def candidate() -> Turn:
        return make()

    return candidate


def link_bytes() -> int:
    """Sent and received by this host's interface on the rig so far."""
    for line in Path("/proc/self/net/dev").read_text().splitlines():
        name, _, counts = line.partition(":")
        if name.strip() == "eth0":
            numbers = counts.split()
            return int(numbers[0]) + int(numbers[8])
    return 0
