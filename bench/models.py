"""Makespan of two models that train at once on hosts with a slow link, beside one after the other.

python -m bench models --rate 1gbit --batch 512 --hosts 2

Two networks like that of bench overlap: 8 layers of 1024 with SGD, and 6 of 896 with momentum. Steps are
made by the loops of `weft train a.toml b.toml`, in its order and with equal shares of the lane: the smaller
model makes so many more steps that both end at about the same time.

The limit is the longer of two sums over both models, of the same round: what their steps take to compute with
nothing sent, and what their gradients take to travel with nothing computed, in portions or in one blocking
all-reduce, whichever is faster.
    makespan_over_limit     both at once, from rest to rest: until the last weight of the last step is updated
    sequential_over_limit   one after the other, each alone, with settings tuned for it
    sequential_over_makespan

Seconds, on the slowest rank:
    makespan_s, sequential_s
    compute_s, wire_s, wire_blocking_s      the sums

Where the makespan goes, on rank 0:
    lane_busy_s             a kernel runs; while none does:
    lane_arrival_s          the next one waits for a portion that travels
    lane_wake_s             its portion has arrived
    lane_between_s, lane_other_s    gaps of under 20 us, and others
    wire_busy_s             a portion is on its way; while none is:
    wire_unready_s          none is ready
    wire_late_s             one is ready, and not sent
    lane_cpu_s, loop_cpu_s  CPU time of both threads

The weights of each model are the same on all ranks, and to the bit those of the model trained alone with the
same settings; losses and sums are those of NumPy; every host's link has moved the gradients' bytes: or there
are no figures. Turns that others disturbed are repeated, as in bench overlap.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from contextlib import AsyncExitStack
from functools import partial

from bench import _idle, _rig, _weft
from bench._fair import Candidate, Judge, at_once
from bench._several import Together
from bench._steps import CHECKED_STEPS, Sizes, reference, widths
from bench._training import Trained, Training
from bench._weft import Fixed, Model
from bench.harness import Figure, amount_or_none, check, interleaved, portion_bytes, positive, ratio
from weft.kernels.blas import limit_threads
from weft.runtime.errors import Mistake
from weft.runtime.exchange.plan import RULES
from weft.runtime.message import World, run
from weft.runtime.train.fleet import claim

NAMES = ("large", "small")
MOMENTA = (0.0, 0.9)
MOST_CHECKED = 24  # steps
WARM = 2  # steps, of parts of a step alone, before the clock starts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _rig.add_arguments(parser)
    add = parser.add_argument
    add("--batch", type=both, default=(512, 512), metavar="A[,B]", help="samples a rank (512)")
    add("--layers", type=both, default=(8, 6), metavar="A[,B]", help="dense layers (8,6)")
    add("--width", type=both, default=(1024, 896), metavar="A[,B]", help="features of each (1024,896)")
    add("--steps", type=positive, default=12, metavar="N", help="of the first; of the other for as long (12)")
    add("--repetitions", type=positive, default=5, metavar="N", help="rounds that count (5)")
    add("--patience", type=amount_or_none, default=180.0, metavar="S", help="to repeat disturbed turns (180)")
    add(
        "--portion",
        type=portion_bytes,
        metavar="BYTES",
        help="size of portions (as a job file without [exchange])",
    )
    add("--credit", type=positive, metavar="N", help="portions of a model in flight")
    add("--rule", choices=RULES, help="which portion of a model goes first")


def both(text: str) -> tuple[int, int]:
    """A number for either model, or the same for both."""
    first, _, second = text.partition(",")
    return positive(first), positive(second or first)


def main(args: argparse.Namespace) -> dict[str, Figure]:
    if args.steps < CHECKED_STEPS:
        raise Mistake(f"--steps is {args.steps}; give {CHECKED_STEPS} or more, whose losses are checked")
    if _rig.wanted(args):
        least = sum(sizes.nbytes for sizes in networks(args, 2)) * args.steps * args.repetitions
        raise SystemExit(_rig.again(args, least))
    return run(lambda world: measure(world, args)) or {}


def networks(args: argparse.Namespace, ranks: int) -> list[Sizes]:
    """Both."""
    each = zip(args.layers, args.width, args.batch, strict=True)
    return [Sizes(widths(layers, width), batch, ranks) for layers, width, batch in each]


async def measure(world: World, args: argparse.Namespace) -> dict[str, Figure]:
    """One rank's part of the bench."""
    if world.size < 2:
        raise Mistake("models needs two ranks: python -m bench models, or mpirun -n 2 python -m bench models")
    limit_threads(1)
    judge = await Judge.open(world, args.patience)
    fixed = Fixed(args.portion, args.credit, args.rule)
    models = []
    for sizes, name, momentum in zip(networks(args, world.size), NAMES, MOMENTA, strict=True):
        models.append(Model(world, sizes, fixed, name=name, momentum=momentum))
        await models[-1].open()
    jobs = [model.job(fixed) for model in models]
    claims = [
        claim(model.graph, job, job.train.batch, world.size) for model, job in zip(models, jobs, strict=True)
    ]
    counts = [max(CHECKED_STEPS, round(args.steps * claims[0].cost / each.cost)) for each in claims]
    async with AsyncExitStack() as stack:
        together = await stack.enter_async_context(Together(models, claims, fixed))
        alone = [await stack.enter_async_context(await Training.open(model, fixed)) for model in models]
        bench = Bench(world, judge, models, counts, together, alone)
        await bench.prepare()
        return await bench.run(args.repetitions)


class Bench:
    """The candidates on one rank, their turns and figures."""

    def __init__(
        self,
        world: World,
        judge: Judge,
        models: list[Model],
        counts: list[int],
        together: Together,
        alone: list[Training],
    ) -> None:
        self._world, self._judge, self._models, self._counts = world, judge, models, counts
        self._together, self._alone = together, alone
        self._weights = ""  # of both models, each trained alone
        self._samples: dict[str, list[float]] = defaultdict(list)
        self._spent: dict[str, list[float]] = defaultdict(list)

    async def prepare(self) -> None:
        """Let loops find settings and plans, and train each model alone with the settings of both at once."""
        digests = []
        for model, training, count in zip(self._models, self._alone, self._counts, strict=True):
            await training.first_turn()
            given = model.job(model.fixed).exchange.settings()
            async with await Training.open(model, Fixed.by(given)) as untuned:
                await untuned.first_turn()
                digests.append((await untuned.turn(count, 1)).digest)
            if self._world.rank == 0:
                print(f"models: {count} steps of {model.name}; alone {training.settings}", file=sys.stderr)
        self._weights = " ".join(digests)
        await self._together.first_turn()

    async def run(self, repetitions: int) -> dict[str, Figure]:
        """All rounds."""
        candidates = self._candidates()
        for name, _ in interleaved(list(candidates), repetitions, warmup=0):
            turn, seconds = await self._judge.turn(name, candidates[name])
            self._samples[name].append(seconds)
            if name == "makespan":
                assert isinstance(turn, Trained)
                check(turn.digest == self._weights, "weights are not those of the models trained alone")
                self._keep(turn)
        return self._figures()

    def _candidates(self) -> dict[str, Candidate]:
        found: dict[str, Candidate] = {}
        all_losses: list[float] = []
        for model, training, count in zip(self._models, self._alone, self._counts, strict=True):
            # Of all steps, or all that may be waited for: weights are held to those of other steps of Weft's.
            # Each rank computes them, up to a second a step.
            expected = reference(model.sizes, min(count, MOST_CHECKED), model.momentum)
            all_losses += expected[:CHECKED_STEPS]
            steps, nbytes = WARM + count, model.sizes.nbytes * count
            found |= {
                f"alone {model.name}": Candidate(partial(whole, training, count), nbytes, expected),
                f"compute {model.name}": Candidate(
                    at_once(partial(_weft.compute, model, steps, WARM)), losses=expected, apart=True
                ),
                f"wire {model.name}": Candidate(
                    partial(_weft.wire, model, training.settings, steps, WARM), nbytes
                ),
                f"wire_blocking {model.name}": Candidate(
                    at_once(partial(_weft.wire_blocking, model, training.settings, steps, WARM)), nbytes
                ),
            }
        nbytes = sum(m.sizes.nbytes * count for m, count in zip(self._models, self._counts, strict=True))
        both = Candidate(partial(self._together.turn, self._counts), nbytes, all_losses)
        return {"makespan": both, **found}

    def _keep(self, turn: Trained) -> None:
        spent = {**_idle.causes(turn.spans, turn.window), "loop_cpu": turn.spent.loop}
        for what, seconds in {**spent, "lane_cpu": turn.spent.lane}.items():
            self._spent[what].append(seconds)

    def _figures(self) -> dict[str, Figure]:
        def total(part: str, steps: list[int]) -> list[float]:
            each = [self._samples[f"{part} {model.name}"] for model in self._models]
            return [sum(s * n for s, n in zip(row, steps, strict=True)) for row in zip(*each, strict=True)]

        makespan = self._samples["makespan"]
        sequential = total("alone", [1] * len(self._models))
        compute, wire, blocking = (total(part, self._counts) for part in ("compute", "wire", "wire_blocking"))
        limit = list(map(max, compute, map(min, wire, blocking)))
        found = {
            "makespan_over_limit": ratio(makespan, limit),
            "sequential_over_limit": ratio(sequential, limit),
            "sequential_over_makespan": ratio(sequential, makespan),
        }
        sums = {"makespan": makespan, "sequential": sequential, "compute": compute}
        sums |= {"wire": wire, "wire_blocking": blocking, **self._spent}
        found |= {f"{name}_s": Figure.of(times, "s") for name, times in sums.items()}
        for name, times in self._samples.items():
            if name.startswith(("compute", "wire")):
                found[f"{name.replace(' ', '_')}_ms"] = Figure.of(times, "ms", 1e3)
        found["others_share"] = Figure.of(self._judge.others, "cores")
        found["slowed"] = Figure.of(self._judge.slowed, "x")
        return found


async def whole(training: Training, steps: int) -> Trained:
    """A turn of a model alone, from rest to rest."""
    turn = await training.turn(steps, 1)
    turn.seconds = turn.whole.time
    return turn
