"""Portions on the wire: what cutting costs, and how fast one of the lowest layer passes those before it.

python -m bench portions --rate 1gbit        two hosts of its own, joined by a link (bench/hosts.py)
mpirun -n 2 python -m bench portions         the ranks of a launcher

goodput_over_blocking    64 MB in portions of 1 MB, with the default credit, over one blocking Allreduce
goodput_credit_4_...     the same with 4 portions in flight
overtake_over_fifo       a portion of layer 0 that is ready behind 64 MB of higher layers: time until it is
                         summed, lower layers first, over first come first served
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict

import numpy as np

from bench import _rig
from bench._rig import link_bytes
from bench._rounds import MB, Floats, Network, communicating
from bench._sums import gradient, total
from bench.harness import Figure, check, interleaved, positive, ratio
from weft.kernels.blas import limit_threads
from weft.runtime.errors import Mistake
from weft.runtime.exchange import Exact, Round, Rule
from weft.runtime.exchange.tune import DEFAULT
from weft.runtime.message import World, run
from weft.runtime.message.mpi import MPI  # not mpi4py's before: Weft has settings for it

PORTION_BYTES = MB
CREDIT = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _rig.add_arguments(parser)
    parser.add_argument("--repetitions", type=positive, default=5, metavar="N", help="rounds")
    parser.add_argument("--megabytes", type=positive, default=64, metavar="N", help="of gradients (64)")


def main(args: argparse.Namespace) -> dict[str, Figure]:
    if _rig.wanted(args):
        raise SystemExit(_rig.again(args, args.megabytes * MB * args.repetitions))
    return run(lambda world: figures(world, args)) or {}


async def figures(world: World, args: argparse.Namespace) -> dict[str, Figure]:
    if world.size < 2:
        raise Mistake(
            "portions needs two ranks: python -m bench portions, or mpirun -n 2 python -m bench portions"
        )
    limit_threads(1)
    nbytes = args.megabytes * MB
    bench = Bench(world, nbytes)
    credit = f"credit_{CREDIT}"
    samples: dict[str, list[float]] = defaultdict(list)
    for name, counts in interleaved(["blocking", "default", credit, "overtake", "fifo"], args.repetitions):
        before = link_bytes()  # behind the barrier others of this host may have sent before this rank looks
        await world.barrier()
        match name:
            case "blocking":
                seconds = bench.block()
            case "default":
                seconds = await bench.portions(DEFAULT.credit)
            case "overtake":
                seconds = await bench.lowest("lower_layer_first")
            case "fifo":
                seconds = await bench.lowest("first_come")
            case _:
                seconds = await bench.portions(CREDIT)
        slowest = np.array([seconds])
        await world.allreduce(slowest, "max")
        moved = link_bytes() - before  # of all ranks of this host, each of which has ended its turn
        check(moved > nbytes or len(world.nodes) == 1, f"{name}: only {moved} bytes went over the link")
        if counts:
            samples[name].append(float(slowest[0]))
    return {
        "goodput_over_blocking": ratio(samples["blocking"], samples["default"]),
        f"goodput_{credit}_over_blocking": ratio(samples["blocking"], samples[credit]),
        "overtake_over_fifo": ratio(samples["overtake"], samples["fifo"]),
        **{
            f"{name}_mb_per_s": Figure.of([nbytes / s for s in samples[name]], "MB/s", 1e-6)
            for name in ("blocking", "default", credit)
        },
        **{f"{name}_ms": Figure.of(seconds, "ms", 1e3) for name, seconds in samples.items()},
    }


class Bench:
    """One rank, whose gradient is exchanged flat over all ranks. Every result is checked."""

    def __init__(self, world: World, nbytes: int) -> None:
        self._world = world
        self._higher = Network.of(nbytes)
        self._all = Network.of(nbytes, first=PORTION_BYTES)
        size = self._all.layout.size
        self._gradient, self._total = gradient(world.rank, size), total(world.size, size)
        self._flat = np.zeros(size, np.float32)

    def block(self) -> float:
        """Seconds of one blocking all-reduce of what `portions` exchanges."""
        flat = self._reset(self._higher)
        start = time.perf_counter()
        self._world.mpi.Allreduce(MPI.IN_PLACE, flat)
        seconds = time.perf_counter() - start
        self._check("a blocking all-reduce", flat)
        return seconds

    async def portions(self, credit: int) -> float:
        """Seconds until all portions, ready at once, are summed."""
        round_ = await self._exchange(self._higher, DEFAULT.rule, credit)
        return float(round_.done_ns.max() - round_.ready_ns.min()) / 1e9

    async def lowest(self, rule: Rule) -> float:
        """Seconds from ready to summed of the lowest layer's portion, which is ready last."""
        round_ = await self._exchange(self._all, rule, DEFAULT.credit)
        return float(round_.done_ns[-1] - round_.ready_ns[-1]) / 1e9

    async def _exchange(self, network: Network, rule: Rule, credit: int) -> Round:
        portions = network.portions(PORTION_BYTES)
        flat = self._reset(network)
        carrier = Exact(self._world, flat)
        carrier.cut([slice(portion.start, portion.stop) for portion in portions])
        round_ = Round(0, len(portions), np.zeros(2))
        async with communicating(network.exchange(self._world, carrier, portions, rule, credit)) as exchange:
            exchange.begin(round_)
            round_.counted.set()
            await round_.totals
            await self._world.barrier()
            for portion in portions:
                round_.mark_ready(portion.index)
        self._check(f"{rule}, credit {credit}", flat)
        return round_

    def _reset(self, network: Network) -> Floats:
        size = network.layout.size
        self._flat[:size] = self._gradient[:size]
        return self._flat[:size]

    def _check(self, what: str, flat: Floats) -> None:
        check(np.array_equal(flat, self._total[: flat.size]), f"{what}: a sum is wrong")
