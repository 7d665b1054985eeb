"""From gradients to new weights inside a node: all-reduce and every rank's own update; through shared memory.

mpirun -n 4 python -m bench exchange

flat_over_shared_sgd, ..._adam     all gradients are computed at once; time until every rank has all new
                                   weights, by the faster of the two flat ways below, over that through shared
                                   memory, in portions of the size that suits it best
best_flat_over_best_shared_...     Weft's flat way, in portions of the size that suits it best
blocking_over_shared_...           one blocking Allreduce and one update of everything
default_flat_over_shared_...       Weft's flat way; both in portions of the first size given, 1 MB by default
flat_sgd_1mb_ms, shared_..._ms     the times
flat_sgd_mib, shared_..._mib       memory of all ranks of the node together

Weft's ways are the trainer's own, with the same fused update; only the kernels that compute gradients are
left out. Every rank checks the result of every round against NumPy.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean, median

import numpy as np

from bench._rounds import MB, Floats, Network, communicating, difference
from bench._sums import gradient, total
from bench.harness import Figure, check, interleaved, positive, ratio, several
from weft.kernels.blas import limit_threads
from weft.kernels.device import Device
from weft.kernels.lane import Task
from weft.kernels.optimizer import SGD, Adam, Optimizer
from weft.runtime.errors import Mistake
from weft.runtime.exchange import Carrier, Exact, NodeMemory, Portion, Round
from weft.runtime.exchange.tune import DEFAULT
from weft.runtime.message import World, run
from weft.runtime.message.mpi import MPI  # not mpi4py's before: Weft has settings for it
from weft.runtime.train.chain import Share
from weft.runtime.train.node_updates import NodeUpdates
from weft.runtime.train.replica import Flats, Replica
from weft.runtime.train.updates import FlatUpdates, Updates
from weft.runtime.work import Compute

RATE = 2.0**-10  # as gradients are whole numbers, SGD's result is exact
OPTIMIZERS: dict[str, Optimizer] = {"sgd": SGD(), "adam": Adam()}
WAYS = ("flat", "shared")
SLOTS = max(optimizer.slots for optimizer in OPTIMIZERS.values())
CHUNK = 1 << 16  # elements that are checked at a time, in cache
CLOSE = 1e-6  # of Adam's results, relative: NumPy rounds elsewhere


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--repetitions", type=positive, default=5, metavar="N", help="rounds")
    add("--rounds", type=positive, default=2, metavar="N", help="of a repetition, which is their mean (2)")
    add("--megabytes", type=positive, default=64, metavar="N", help="of gradients (64)")
    add(
        "--portions",
        type=several(positive),
        default="1,4,16",
        metavar="N[,N...]",
        help="megabytes of a portion, in turn (1,4,16)",
    )


def main(args: argparse.Namespace) -> dict[str, Figure]:
    return run(lambda world: figures(world, args)) or {}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A way, an optimizer, and the megabytes of a portion (0: all in one blocking call)."""

    way: str
    optimizer: str
    megabytes: int

    @property
    def name(self) -> str:
        """As a figure is called."""
        portions = f"_{self.megabytes}mb" if self.megabytes else ""
        return f"{self.way}_{self.optimizer}{portions}"


async def figures(world: World, args: argparse.Namespace) -> dict[str, Figure]:
    if world.size < 2 or len(world.nodes) > 1:
        raise Mistake("exchange needs two or more ranks of one node: mpirun -n 4 python -m bench exchange")
    limit_threads(1)
    sizes = args.portions
    candidates = [
        Candidate(way, optimizer, megabytes)
        for optimizer in OPTIMIZERS
        for megabytes in (0, *sizes)
        for way in (WAYS if megabytes else ("blocking",))
    ]
    by_name = {candidate.name: candidate for candidate in candidates}
    samples: dict[str, list[float]] = defaultdict(list)
    async with Compute(Device()) as compute:
        bench = await Bench.make(world, compute, Network.of(args.megabytes * MB), sizes)
        world.selector.computing = lambda: compute.busy
        for name, counts in interleaved(list(by_name), args.repetitions):
            seconds = []
            for _ in range(args.rounds):
                seconds.append(await bench.round(by_name[name]))
                bench.check(by_name[name])
            if counts:
                samples[name].append(mean(seconds))
        world.selector.computing = lambda: False
        memory = await bench.memory()
    times = {f"{name}_ms": Figure.of(seconds, "ms", 1e3) for name, seconds in samples.items()}
    return {**ratios(samples, sizes), **times, **memory}


def ratios(samples: dict[str, list[float]], sizes: Sequence[int]) -> dict[str, Figure]:
    """Of the ways' times, by candidate."""
    found = {}
    for optimizer in OPTIMIZERS:
        times = {way: {mb: samples[Candidate(way, optimizer, mb).name] for mb in sizes} for way in WAYS}
        flat, shared = (min(times[way].values(), key=median) for way in WAYS)
        blocking = samples[Candidate("blocking", optimizer, 0).name]
        found[f"flat_over_shared_{optimizer}"] = ratio(min(flat, blocking, key=median), shared)
        found[f"best_flat_over_best_shared_{optimizer}"] = ratio(flat, shared)
        found[f"blocking_over_shared_{optimizer}"] = ratio(blocking, shared)
        first = [times[way][sizes[0]] for way in WAYS]
        found[f"default_flat_over_shared_{optimizer}"] = ratio(*first)
    return found


class Bench:
    """One rank: both ways' memory, what is expected of it, and a round of each candidate."""

    def __init__(self, world: World, compute: Compute, network: Network, node: NodeMemory) -> None:
        self._world, self._compute, self._network, self._node = world, compute, network, node
        size = network.layout.size
        own = Flats.of(Device(), size, SLOTS)
        shared = Flats(node.parameters, node.gradients, node.states, node.parts, node.writes)
        self._flats = {"flat": own, "blocking": own, "shared": shared}
        self._replicas = {
            (way, name): self._replica(self._flats[way], optimizer)
            for way in WAYS
            for name, optimizer in OPTIMIZERS.items()
        }
        self._gradient = gradient(world.rank, size)
        self._total = total(world.size, size)
        self._before = np.random.default_rng(1).integers(-64, 64, size, np.int8) * np.float32(1 / 64)

    def _replica(self, flats: Flats, optimizer: Optimizer) -> Replica:
        flats = replace(flats, states=flats.states[: optimizer.slots])
        replica = Replica(self._network.graph, optimizer, Device(), 1, 0, flats=flats)
        replica.warm_up(1)
        return replica

    @classmethod
    async def make(cls, world: World, compute: Compute, network: Network, sizes: Sequence[int]) -> Bench:
        """Collective."""
        most = max(len(network.portions(size * MB)) for size in sizes)
        node = await NodeMemory.allocate(world, network.layout.size, SLOTS, most)
        return cls(world, compute, network, node)

    async def round(self, candidate: Candidate) -> float:
        """Seconds from when the last rank has its gradients to when the last has all new weights."""
        await self._reset(candidate)
        if candidate.way == "blocking":
            moments = await self._block(self._replicas["flat", candidate.optimizer])
        else:
            moments = await self._exchange(candidate, self._replicas[candidate.way, candidate.optimizer])
        latest = np.array(moments)
        await self._world.allreduce(latest, "max")  # (the ranks of a node share a clock)
        return float(latest[1] - latest[0])

    async def _reset(self, candidate: Candidate) -> None:
        """Weights, states and gradients as they are before the first step."""
        await self._node.fence()  # every rank of the node has checked what it sees
        flats = self._flats[candidate.way]
        part = slice(None)
        if candidate.way == "shared":
            each = -(-self._network.layout.size // self._world.size)
            part = slice(self._world.rank * each, (self._world.rank + 1) * each)
        flats.parameters[part] = self._before[part]
        for state in flats.states[: OPTIMIZERS[candidate.optimizer].slots]:
            state[part] = 0
        flats.gradients[:] = self._gradient
        await self._node.fence()

    async def _block(self, replica: Replica) -> tuple[float, float]:
        await self._world.barrier()
        start = time.perf_counter()
        self._world.mpi.Allreduce(MPI.IN_PLACE, replica.travelling)
        replica.update(0, replica.layout.size, rate=RATE, step=1, scale=1.0)
        return start, time.perf_counter()

    async def _exchange(self, candidate: Candidate, replica: Replica) -> tuple[float, float]:
        portions = self._network.portions(candidate.megabytes * MB)
        carrier, updates = self._way(candidate.way, replica, portions)
        made = self._network.exchange(self._world, carrier, portions, DEFAULT.rule, DEFAULT.credit)
        async with communicating(made) as exchange:
            round_ = Round(0, len(portions), np.zeros(2))
            share = Share(0, 1, [], [], RATE)
            tasks, updated = updates.make(share, round_, {portion.index: [] for portion in portions}, 0)
            exchange.begin(round_)
            # Losses travel while backward runs.
            round_.counted.set()
            await round_.totals
            ended: list[float] = []
            done = asyncio.Event()
            forward = Task("next forward", lambda: ended.append(time.perf_counter()), updated)
            forward.notify = self._compute.tell(done.set)
            self._compute.submit([*tasks, forward])
            await self._world.barrier()

            def computed() -> None:
                for portion in portions:
                    updates.computed(round_, portion)
                    updates.released(round_, portion)

            start = time.perf_counter()
            self._compute.submit(
                [Task("last kernel of backward", lambda: None, notify=self._compute.tell(computed))]
            )
            await self._compute.wait(done)
        return start, ended[0]

    def _way(self, way: str, replica: Replica, portions: Sequence[Portion]) -> tuple[Carrier | None, Updates]:
        if way == "shared":
            return None, NodeUpdates(
                replica, self._node, portions, self._compute, None, clip_norm=None, model="bench"
            )
        carrier = Exact(self._world, replica.travelling)
        carrier.cut([slice(portion.start, portion.stop) for portion in portions])
        return carrier, FlatUpdates(replica, portions, self._compute, carrier, clip_norm=None, model="bench")

    def check(self, candidate: Candidate) -> None:
        """This rank sees the sums and the weights that NumPy computes."""
        flats = self._flats[candidate.way]
        for start in range(0, self._total.size, CHUNK):
            part = slice(start, start + CHUNK)
            sums, before = self._total[part], self._before[part]
            got = {"weight": flats.parameters[part]}
            if candidate.way != "shared":  # there sums are not kept: weights and means tell
                got["sum"] = flats.gradients[part]
            if candidate.optimizer == "sgd":
                wanted, close = {"weight": before - RATE * sums, "sum": sums}, 0.0
            else:
                got |= {"mean": flats.states[0][part], "mean square": flats.states[1][part]}
                wanted, close = adam_step(before, sums), CLOSE
            for name, array in got.items():
                worst = difference(array, wanted[name])
                check(worst <= close, f"{candidate.name}: a {name} is wrong by {worst} of its size")

    async def memory(self) -> dict[str, Figure]:
        """MiB of the node by way and optimizer, and what they are made of."""
        found = {}
        for way in WAYS:
            flats = self._flats[way]
            whole = way == "flat" or flats.writes
            held = np.array(
                [flats.gradients.nbytes, *(whole * a.nbytes for a in (flats.parameters, *flats.states))]
            )
            await self._world.allreduce(held)
            gradients, parameters, *states = (float(nbytes) / MB for nbytes in held)
            found[f"{way}_gradients_mib"] = gradients
            found[f"{way}_parameters_mib"] = parameters
            for name, optimizer in OPTIMIZERS.items():
                found[f"{way}_{name}_states_mib"] = sum(states[: optimizer.slots])
                found[f"{way}_{name}_mib"] = gradients + parameters + sum(states[: optimizer.slots])
        return {name: Figure.of([mib], "MiB") for name, mib in found.items()}


def adam_step(weights: Floats, gradients: Floats) -> dict[str, Floats]:
    """The first step of Adam, as its authors write it down."""
    adam = Adam()
    m, v = (1 - adam.beta1) * gradients, (1 - adam.beta2) * gradients**2
    unbiased = m / (1 - adam.beta1), v / (1 - adam.beta2)
    step = RATE * unbiased[0] / (np.sqrt(unbiased[1]) + adam.epsilon)
    return {"weight": weights - step, "mean": m, "mean square": v, "sum": gradients}
