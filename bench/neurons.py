"""Latency of one image through a real graph: on one rank, with a barrier after each layer, opportunistically.

mpirun -n 2 python -m bench neurons --model squeezenet

speedup             one rank's time over that of all ranks when blocks run as soon as their inputs exist
barrier_speedup     the same when every layer waits for the one before
speedup_over_serial
                    the time of the serial program, which serving uses, over that of all ranks: it keeps no
                    activation longer than it must, and so is faster than one rank that could have had help
over_onnxruntime    the serial program's time over onnxruntime's with one thread, where it is installed
onnxruntime_speedup its own with one thread over that with as many threads as ranks
ahead               of the blocks, those that began before an earlier layer had ended
..._ms              the times; plan_ms: what measuring costs, cutting and placing took, once

The models are those of the onnx package, with random weights, for images of 224 x 224. One rank computes
every layer whole while the others sleep. Every output of every run is compared with the serial program's, and
so are onnxruntime's. Of two runs in a row, of different images, the second counts. Every rank has a core of
its own, and onnxruntime's threads the same cores. A round counts if all cores were as fast as they can be
before and behind it, as long as there is patience; slowed tells how far off those were that count.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench._core import SLOWED, Cores, take_cores
from bench.harness import Figure, amount_or_none, check, installed, positive, ratio, require
from weft.kernels.device import Device
from weft.runtime.errors import Mistake
from weft.runtime.graph import Graph, Layout, Memory, Program
from weft.runtime.graph.neurons.blocks import Blocks
from weft.runtime.message import World, run
from weft.runtime.observe.ahead import draw_ahead
from weft.runtime.observe.trace import COMPUTE, RankTrace, Span, Trace, decode
from weft.runtime.work.neurons import Neurons

Array = NDArray[np.float32]
Arrays = dict[str, Array]
BlockSpan = tuple[str, int, int, int]  # name, request, start and end in ns

PEERS = {"onnxruntime": "onnxruntime"}
SETTLE_S = 0.02
TOLERANCE = 1e-4  # of the largest output: the sums of a hundred layers in another order


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", default="squeezenet", metavar="NAME", help="light_NAME of the onnx package (squeezenet)")
    add(
        "--pixels",
        type=positive,
        default=224,
        metavar="N",
        help="the image's sides, where the model allows (224)",
    )
    add("--repetitions", type=positive, default=15, metavar="N", help="rounds")
    add("--patience", type=amount_or_none, default=60.0, metavar="S", help="to repeat disturbed rounds (60)")
    add("--picture", type=Path, metavar="FILE", help="draw where blocks of two later layers run ahead")
    add("--tuned", type=int, default=2, metavar="N", help="times to plan anew by what runs took (2)")


def main(args: argparse.Namespace) -> dict[str, Figure]:
    require("neurons", {"onnx": "weft[onnx]"})
    return run(partial(measure, args)) or {}


async def measure(args: argparse.Namespace, world: World) -> dict[str, Figure]:
    """One rank's part of the bench."""
    from bench._light import names

    if args.model not in names():
        raise Mistake(f"no model is called {args.model!r}; there are {', '.join(names())}")
    # onnxruntime's threads have the cores of all ranks: of those that a launcher had left rank 0 there was
    # one where it binds ranks, as Open MPI and Slurm do, and two threads shared it.
    bench = Bench(world, args.model, args.pixels, set(await take_cores(world.node)))
    await bench.open(args.tuned)
    if world.node_rank == 0:
        await Rounds(bench).run(args.repetitions, args.patience)
    await world.barrier(what="the rounds, which rank 0 begins", patience_s=args.patience + 120)
    traces = await gathered(world, bench.blocks, bench.spans)
    await bench.close()
    if world.node_rank:
        return {}
    if args.picture:
        heads = {number: stage.head for number, stage in enumerate(bench.blocks.stages)}
        if not draw_ahead(args.picture, traces, heads, args.model):
            print("no block of two later layers began before the first ended: no picture", file=sys.stderr)
    return bench.figures(share_ahead([span for trace in traces for span in trace.spans]))


class Bench:
    """The model and its engines on the ranks of a node, two images, and what rounds have found."""

    def __init__(self, world: World, name: str, pixels: int, cores: set[int]) -> None:
        from bench._light import load
        from weft.runtime.graph.onnx import read

        self.world, self.cores = world, cores
        self.proto = load(name, pixels)
        self.model = read(self.proto, inference=True)
        self.parameters = self.model.parameters(Layout.of(self.model.graph))
        random = np.random.default_rng(1)
        # Two, in turn: with one, a block that began before its inputs were there, or that nobody ran, found
        # the right numbers left by the run before.
        self.images: list[Arrays] = [
            {n: random.standard_normal((1, *s.shape), np.float32) for n, s in self.model.graph.inputs.items()}
            for _ in range(2)
        ]
        self.engines: dict[str, Neurons] = {}
        self.spans: list[BlockSpan] = []  # of the blocks of the opportunistic engine
        self.times: dict[str, list[float]] = {}
        self.slowed: list[float] = []
        self._plan_s = 0.0

    async def open(self, tuned: int) -> None:
        """Open the engines, and plan each so many times anew by what runs took. Collective, as `close` is."""
        for name in ("one", "barrier", "opportunistic"):
            start = time.perf_counter()
            self.engines[name] = engine = await Neurons.open(
                self.world,
                self.model.graph,
                self.parameters,
                ranks=1 if name == "one" else None,
                barrier=name == "barrier",
                spans=(lambda *span: self.spans.append(span)) if name == "opportunistic" else None,
            )
            self._plan_s = time.perf_counter() - start
            for _ in range(tuned):
                for _ in range(3 if self.world.node_rank == 0 else 0):
                    await engine.infer(self.images[0])
                await self.world.node.barrier()
                await engine.replan()

    async def close(self) -> None:
        """Give the engines' memory back."""
        for engine in self.engines.values():
            await engine.close()

    @property
    def blocks(self) -> Blocks:
        """Those that run as soon as their inputs exist."""
        return self.engines["opportunistic"].blocks

    def figures(self, ahead: float) -> dict[str, Figure]:
        """Of all rounds."""
        times, threads = self.times, self.world.node_size
        figures = {
            "speedup": ratio(times["one"], times["opportunistic"]),
            "barrier_speedup": ratio(times["one"], times["barrier"]),
            "speedup_over_serial": ratio(times["serial"], times["opportunistic"]),
        }
        if "onnxruntime_1" in times:
            figures["over_onnxruntime"] = ratio(times["serial"], times["onnxruntime_1"])
        if f"onnxruntime_{threads}" in times and threads > 1:
            figures["onnxruntime_speedup"] = ratio(times["onnxruntime_1"], times[f"onnxruntime_{threads}"])
        return figures | {
            **{f"{name}_ms": Figure.of(taken, "ms", 1e3) for name, taken in times.items()},
            "slowed": Figure.of(self.slowed, "x"),
            "ahead": Figure.of([ahead], ""),
            "layers": Figure.of([len(self.blocks.stages)], ""),
            "blocks": Figure.of([len(self.blocks.blocks)], ""),
            "plan_ms": Figure.of([self._plan_s], "ms", 1e3),
        }


@dataclass(frozen=True, slots=True)
class Candidate:
    """What computes an image, by its number, and for each image the outputs that it is to have."""

    compute: Callable[[int], Awaitable[list[Array]]]
    expected: list[list[Array]]


class Rounds:
    """The turns of engines and peers, on the first rank of the node; the others help when they are rung."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        model = bench.model
        serial = Serial(model.graph, bench.parameters)
        expected = [serial(image) for image in bench.images]
        self._candidates = {
            name: Candidate(partial(self._infer, engine), expected) for name, engine in bench.engines.items()
        }
        own = os.sched_getaffinity(0)
        self._candidates["serial"] = Candidate(self._alone(serial, bench.images, own), expected)
        # onnxruntime knows inputs and outputs under the file's names.
        entries = [{name: image[ours] for name, ours in model.inputs.items()} for image in bench.images]
        by_name = [dict(zip(model.graph.outputs, arrays, strict=True)) for arrays in expected]
        wanted = [[found[model.outputs[each.name]] for each in bench.proto.graph.output] for found in by_name]
        for threads in sorted({1, bench.world.node_size}) if installed("neurons", PEERS) else ():
            peer = session(bench.proto.SerializeToString(), threads, bench.cores)
            cores = own if threads == 1 else bench.cores
            self._candidates[f"onnxruntime_{threads}"] = Candidate(self._alone(peer, entries, cores), wanted)

    async def run(self, repetitions: int, patience_s: float) -> None:
        """So many rounds that count: of cores that are as fast as they can be, while there is patience."""
        bench, speeds = self._bench, Cores(sorted(self._bench.cores))
        bench.times = {name: [] for name in self._candidates}
        end_s = time.monotonic() + patience_s
        while len(bench.slowed) < repetitions:
            before, found = speeds.slowdown(), {}
            if before > SLOWED and time.monotonic() < end_s:
                await asyncio.sleep(SETTLE_S)
                continue
            for name in self._candidates:
                await asyncio.sleep(SETTLE_S)  # the others' helpers sleep then
                await self._turn(name, 0)  # brings weights and threads back
                found[name] = await self._turn(name, 1)
            worst = max(before, speeds.slowdown())
            if worst <= SLOWED or time.monotonic() >= end_s:
                bench.slowed.append(worst)
                for name, took in found.items():
                    bench.times[name].append(took)

    async def _turn(self, name: str, number: int) -> float:
        """Seconds of a candidate with an image."""
        candidate = self._candidates[name]
        start = time.perf_counter()
        outputs = await candidate.compute(number)
        took = time.perf_counter() - start
        for got, target in zip(outputs, candidate.expected[number], strict=True):
            error = np.abs(got - target).max() / np.abs(target).max()
            check(error < TOLERANCE, f"{name}: an output differs by {error:.1e} of the largest")
        return took

    async def _infer(self, engine: Neurons, number: int) -> list[Array]:
        return list((await engine.infer(self._bench.images[number])).values())

    @staticmethod
    def _alone(
        function: Callable[[Arrays], list[Array]], images: list[Arrays], cores: set[int]
    ) -> Callable[[int], Awaitable[list[Array]]]:
        """What blocks the loop, on these cores."""

        async def compute(number: int) -> list[Array]:
            with on_cores(cores):
                return function(images[number])

        return compute


class Serial:
    """The serial program: one node after the other, on one core."""

    def __init__(self, graph: Graph, parameters: Array) -> None:
        layout = Layout.of(graph)
        memory = Memory(graph, layout, Device(), 1, training=False)
        self._program = Program(graph, layout, memory, 1, parameters)

    def __call__(self, image: Arrays) -> list[Array]:
        """The outputs, in the graph's order."""
        for name, array in image.items():
            self._program.inputs[name][...] = array
        for step in self._program.forward:
            step.run()
        return [np.array(array) for array in self._program.outputs]


async def gathered(world: World, blocks: Blocks, spans: list[BlockSpan]) -> list[RankTrace]:
    """The last request's spans of the node's ranks, on each of them."""
    last = np.array([max((request for _, request, _, _ in spans), default=0)], np.int64)
    await world.node.allreduce(last, "max")
    stages = {block.name: block.stage for block in blocks.blocks}
    trace = Trace(world.node_rank, world.host)
    for name, request, start_ns, end_ns in spans:
        if request == last[0] and name in stages:
            trace.span(COMPUTE, name, start_ns, end_ns, layer=stages[name], request=request)
    encoded = np.frombuffer(trace.encode(), np.uint8)
    longest = np.array([encoded.size], np.int64)
    await world.node.allreduce(longest, "max")
    everyone = np.zeros((world.node_size, 8 + int(longest[0])), np.uint8)
    mine = np.zeros(8 + int(longest[0]), np.uint8)
    mine[:8].view(np.int64)[0] = encoded.size
    mine[8 : 8 + encoded.size] = encoded
    await world.node.allgather(mine, everyone)
    return [decode(row[8 : 8 + int(row[:8].view(np.int64)[0])].tobytes()) for row in everyone]


def share_ahead(spans: list[Span]) -> float:
    """Of one request's blocks, those that began before a layer earlier in the graph had ended."""
    ends: dict[int, int] = {}
    for span in spans:
        ends[span.args["layer"]] = max(ends.get(span.args["layer"], 0), span.end_ns)
    early = [any(end > s.start_ns for layer, end in ends.items() if layer < s.args["layer"]) for s in spans]
    return sum(early) / len(early)


def session(model: bytes, threads: int, cores: set[int]) -> Callable[[Arrays], list[Array]]:
    """The model in onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    with on_cores(cores):  # its threads begin where this one is
        made = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda inputs: [np.asarray(each) for each in made.run(None, inputs)]


@contextmanager
def on_cores(cores: set[int]) -> Iterator[None]:
    """This thread, and those that it starts, may run on these cores meanwhile."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
