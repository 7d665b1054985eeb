"""Time of a training step on hosts with a slow link, over the longer of compute and wire; beside DDP.

python -m bench overlap --rate 1gbit --batch 512
python -m bench overlap --rate 100mbit --hosts 3 --layers 6 --width 512

A network of dense layers without bias, ReLU between them, float32, SGD; `--batch` samples a rank, one rank a
core, one thread of BLAS. Weft's steps are made by the loop of `weft train`, which tunes itself in the first.
The hosts are network namespaces (python -m bench.hosts --help); a host that moved too few bytes over its link
in any turn makes the result wrong, and so do losses and sums that are not those of NumPy, and weights that
differ between ranks.

Over the limit, the longer of compute_ms and the wire of the same round, by the faster of wire_ms and
wire_blocking_ms:
    step_over_limit         Weft
    ddp_best_over_limit     DDP over gloo with the bucket size that is fastest here
    ddp_default_over_limit  DDP with its default buckets, 25 MB
    blocking_over_limit     the same kernels, the whole gradient, one blocking all-reduce, the update
    first_come_over_limit   Weft with portions in the order in which plain backward completes them
    clipped_over_limit      Weft with the gradient clipped by its global norm, which no update may precede
    ddp_best_over_own_limit DDP over the longer of its own compute and wire
    ddp_best_over_weft      time of a step with DDP's best bucket size over Weft's

Milliseconds a step, on the slowest rank:
    compute_ms              forward, backward and update one after the other, nothing sent
    wire_ms                 the gradient's portions, as many at once as Weft has under way, nothing computed
    wire_blocking_ms        as many bytes in one blocking MPI_Allreduce
    step_ms, first_come_ms, clipped_ms, blocking_ms, ddp_1mb_ms … ddp_25mb_ms
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

Candidates take turns, and ratios are of one round. A turn in which others used more than 5% of a rank's
core, or at whose ends it computed 10% slower than it can, is repeated when that is over; others_share and
slowed tell what is left of them. With `--skew 0.7` one layer in the middle holds 70% of as many weights. A
round takes 14 turns: a minute at 1 Gbit/s, three at 100 Mbit/s.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import sys
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial

import numpy as np

from bench import _ddp, _idle, _rig, _weft
from bench._fair import Candidate, Judge, at_once
from bench._steps import Sizes, Turn, check_losses, reference, widths
from bench._training import Trained, Training
from bench._weft import Fixed, Model
from bench.harness import (
    Figure,
    amount_or_none,
    installed,
    interleaved,
    portion_bytes,
    positive,
    ratio,
    several,
)
from weft.kernels.blas import limit_threads
from weft.runtime.errors import Mistake
from weft.runtime.exchange.plan import RULES
from weft.runtime.message import World, run

WARM = 2  # steps before the clock starts
NEVER = 1e9  # a norm that no gradient reaches: all is done that clipping takes, and the losses stay
TURN_S, LEAST, MOST = 2.5, 3, 8  # of a turn: seconds that it is to take, timed steps that it has


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _rig.add_arguments(parser)
    add = parser.add_argument
    add("--batch", type=positive, default=512, metavar="N", help="samples a rank (512)")
    add("--layers", type=positive, default=8, metavar="N", help="dense layers (8)")
    add("--width", type=positive, default=1024, metavar="N", help="features of each (1024)")
    add("--skew", type=float, metavar="SHARE", help="one layer in the middle holds this share of the weights")
    add("--repetitions", type=positive, default=5, metavar="N", help="rounds that count (5)")
    allowed = f"what {TURN_S:g} s allow, {LEAST} to {MOST}"
    add("--steps", type=positive, metavar="N", help=f"timed steps of a turn ({allowed})")
    add("--patience", type=amount_or_none, default=180.0, metavar="S", help="to repeat disturbed turns (180)")
    add("--portion", type=portion_bytes, metavar="BYTES", help="size of Weft's portions (tuned)")
    add("--credit", type=positive, metavar="N", help="Weft's portions in flight (tuned)")
    add("--rule", choices=RULES, help="which of Weft's portions goes first (tuned)")
    add(
        "--buckets",
        type=several(positive),
        default="1,2,4,8,25",
        metavar="MB[,MB...]",
        help="DDP's bucket sizes",
    )
    add("--no-ddp", action="store_true", help="leave PyTorch out, as where it is not installed")


def main(args: argparse.Namespace) -> dict[str, Figure]:
    if _rig.wanted(args):
        sizes = Sizes(widths(args.layers, args.width, args.skew), args.batch, 2)
        raise SystemExit(_rig.again(args, sizes.nbytes * args.repetitions))
    return run(lambda world: measure(world, args)) or {}


async def measure(world: World, args: argparse.Namespace) -> dict[str, Figure]:
    """One rank's part of the bench."""
    if world.size < 2:
        raise Mistake(
            "overlap needs two ranks: python -m bench overlap, or mpirun -n 2 python -m bench overlap"
        )
    limit_threads(1)
    sizes = Sizes(widths(args.layers, args.width, args.skew), args.batch, world.size)
    # First: PyTorch's process and the lane that was tuned had all cores of a launcher that binds no rank.
    judge = await Judge.open(world, args.patience)
    async with AsyncExitStack() as stack:
        peer = None
        if not args.no_ddp and installed("overlap", {"PyTorch": "torch"}):
            peer = stack.enter_context(await start_peer(world, sizes))
            judge.pids.append(peer.pid)
        fixed = Fixed(args.portion, args.credit, args.rule)
        model = Model(world, sizes, fixed)
        await model.open()
        weft = await stack.enter_async_context(await Training.open(model, fixed))
        bench = Bench(world, judge, model, weft, peer, args)
        await bench.prepare()
        others = {
            "first_come": Fixed.by(replace(weft.settings, rule="first_come")),
            "clipped": Fixed.by(weft.settings, clip_norm=NEVER),
        }
        return await bench.run(
            {
                name: await stack.enter_async_context(await Training.open(model, told))
                for name, told in others.items()
            }
        )


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
        judge: Judge,
        model: Model,
        weft: Training,
        peer: _ddp.Peer | None,
        args: argparse.Namespace,
    ) -> None:
        self._world, self._judge, self._model, self._weft, self._peer = world, judge, model, weft, peer
        self._args = args
        self._buckets = args.buckets if peer is not None else []
        self._expected: list[float] = []
        self._steps = LEAST
        self._samples: dict[str, list[float]] = defaultdict(list)
        self._spent: dict[str, list[float]] = defaultdict(list)

    async def prepare(self) -> None:
        """Have PyTorch start, let Weft find its settings, and compute what losses must be."""
        if self._peer is not None:
            self._peer.ready()
        first = await self._weft.first_turn()
        step_s = np.array([first.seconds])
        await self._world.allreduce(step_s, "max")
        self._steps = self._args.steps or min(max(round(TURN_S / float(step_s[0])), LEAST), MOST)
        # Of timed steps, too: three, as are checked elsewhere, let pass that every rank left out the update
        # of the first step that is timed. Each rank computes them, up to a second a step.
        self._expected = reference(self._model.sizes, WARM + min(self._steps, MOST))
        check_losses("the first steps", first.losses, self._expected)
        if self._world.rank == 0:
            print(f"overlap: {self._weft.settings}", file=sys.stderr)

    async def run(self, others: Mapping[str, Training]) -> dict[str, Figure]:
        """All rounds, with these trainings beside the tuned one."""
        for name, training in others.items():
            check_losses(f"the first steps of {name}", (await training.first_turn()).losses, self._expected)
        model, settings, steps = self._model, self._weft.settings, WARM + self._steps
        takes: dict[str, Callable[[], Awaitable[Turn]]] = {
            "step": partial(self._weft.turn, steps, WARM),
            "compute": at_once(partial(_weft.compute, model, steps, WARM)),
            "wire": partial(_weft.wire, model, settings, steps, WARM),
            "wire_blocking": at_once(partial(_weft.wire_blocking, model, settings, steps, WARM)),
            **{name: partial(training.turn, steps, WARM) for name, training in others.items()},
            "blocking": at_once(partial(_weft.blocking, model, steps, WARM)),
        }
        if self._peer is not None:
            for what in ("compute", "wire"):
                takes[f"ddp_{what}"] = at_once(partial(self._peer.turn, what, steps, WARM))
            for mb in self._buckets:
                takes[f"ddp_{mb}mb"] = at_once(partial(self._peer.turn, "ddp", steps, WARM, mb))
        for name, _ in interleaved(list(takes), self._args.repetitions, warmup=0):
            turn, seconds = await self._judge.turn(name, self._candidate(name, takes[name]))
            self._samples[name].append(seconds)
            if name == "step" and isinstance(turn, Trained):
                spent = {**_idle.causes(turn.spans, turn.window), "loop_cpu": turn.spent.loop}
                for what, seconds in {**spent, "lane_cpu": turn.spent.lane}.items():
                    self._spent[what].append(seconds / self._steps)
        return self._figures()

    def _candidate(self, name: str, take: Callable[[], Awaitable[Turn]]) -> Candidate:
        alone = name in ("compute", "ddp_compute")
        return Candidate(
            take,
            0 if alone else self._model.sizes.nbytes * self._steps,
            () if "wire" in name else self._expected,
            apart=alone or name.startswith("ddp"),
        )

    def _figures(self) -> dict[str, Figure]:
        samples, settings = self._samples, self._weft.settings
        wire = map(min, samples["wire"], samples["wire_blocking"])
        limit = list(map(max, samples["compute"], wire))
        ours = ("step", "first_come", "clipped", "blocking")
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
        found["others_share"] = Figure.of(self._judge.others, "cores")
        found["slowed"] = Figure.of(self._judge.slowed, "x")
        return found
