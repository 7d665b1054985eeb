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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    add("--repetitions", type=positive, default=15, metavar="N")
    add("--patience", type=amount_or_none, default=60.0, metavar="S", help="to repeat disturbed rounds (60)")
    add("--picture", type=Path, metavar="FILE", help="draw where blocks of two later layers run ahead")
    add("--tuned", type=int, default=2, metavar="N", help="times to plan anew by what runs took (2)")


def main(args: argparse.Namespace) -> dict[str, Figure]:
    require("neurons", {"onnx": "weft[onnx]"})
    return run(partial(measure, args)) or {}


async def measure(args: argparse.Namespace, world: World) -> dict[str, Figure]:
    """One rank's part of the bench."""
    from bench._light import load, names
    from weft.runtime.graph.onnx import read

    if args.model not in names():
        raise Mistake(f"no model is called {args.model!r}; there are {', '.join(names())}")
    # onnxruntime's threads have the cores of all ranks: of those that a launcher had left rank 0 there was
    # one where it binds ranks, as Open MPI and Slurm do, and two threads shared it.
    cores = set(await take_cores(world.node))
    proto = load(args.model, args.pixels)
    model = read(proto, inference=True)
    graph, parameters = model.graph, model.parameters(Layout.of(model.graph))
    random = np.random.default_rng(1)
    # Two, in turn: with one, a block that began before its inputs were there, or that nobody ran, found the
    # right numbers left by the run before.
    images = [
        {n: random.standard_normal((1, *s.shape), np.float32) for n, s in graph.inputs.items()}
        for _ in range(2)
    ]
    spans: list[BlockSpan] = []
    engines, plan_s = {}, 0.0
    for name in ("one", "barrier", "opportunistic"):
        start = time.perf_counter()
        engines[name] = await Neurons.open(
            world,
            graph,
            parameters,
            ranks=1 if name == "one" else None,
            barrier=name == "barrier",
            spans=(lambda *span: spans.append(span)) if name == "opportunistic" else None,
        )
        plan_s = time.perf_counter() - start
        for _ in range(args.tuned):
            for _ in range(3 if world.node_rank == 0 else 0):
                await engines[name].infer(images[0])
            await world.node.barrier()
            await engines[name].replan()
    peers: dict[str, Callable[[Arrays], list[Array]]] = {}
    times: dict[str, list[float]] = {name: [] for name in engines}
    slowed: list[float] = []
    if world.node_rank == 0:
        peers["serial"] = serial = Serial(graph, parameters)
        expected = [dict(zip(graph.outputs, serial(image), strict=True)) for image in images]
        for threads in sorted({1, world.node_size}) if installed("neurons", PEERS) else ():
            peers[f"onnxruntime_{threads}"] = session(proto.SerializeToString(), threads, cores)
        times |= {name: [] for name in peers}
        entries = [{name: image[own] for name, own in model.inputs.items()} for image in images]
        wanted = [[each[model.outputs[entry.name]] for entry in proto.graph.output] for each in expected]

        async def run(name: str, number: int) -> float:
            image, entry = images[number], entries[number]
            start = time.perf_counter()
            if name in engines:
                outputs = list((await engines[name].infer(image)).values())
                took, right = time.perf_counter() - start, list(expected[number].values())
            else:
                alone = name in ("serial", "onnxruntime_1")
                with on_cores(os.sched_getaffinity(0) if alone else cores):
                    outputs = peers[name](image if name == "serial" else entry)
                took = time.perf_counter() - start
                right = list(expected[number].values()) if name == "serial" else wanted[number]
            for got, target in zip(outputs, right, strict=True):
                error = np.abs(got - target).max() / np.abs(target).max()
                check(error < TOLERANCE, f"{name}: an output differs by {error:.1e} of the largest")
            return took

        speeds = Cores(sorted(cores))
        end_s = time.monotonic() + args.patience
        while len(slowed) < args.repetitions:
            before, found = speeds.slowdown(), {}
            if before > SLOWED and time.monotonic() < end_s:
                await asyncio.sleep(SETTLE_S)
                continue
            for name in times:
                await asyncio.sleep(SETTLE_S)  # the others' helpers sleep then
                await run(name, 0)  # brings weights and threads back
                found[name] = await run(name, 1)
            worst = max(before, speeds.slowdown())
            if worst <= SLOWED or time.monotonic() >= end_s:
                slowed.append(worst)
                for name, took in found.items():
                    times[name].append(took)
    await world.barrier()
    blocks = engines["opportunistic"].blocks
    traces = await gathered(world, blocks, spans)
    if world.node_rank == 0 and args.picture:
        heads = {number: stage.head for number, stage in enumerate(blocks.stages)}
        if not draw_ahead(args.picture, traces, heads, args.model):
            print("no block of two later layers began before the first ended: no picture", file=sys.stderr)
    ahead = share_ahead([span for trace in traces for span in trace.spans])
    for engine in engines.values():
        await engine.close()
    if world.node_rank:
        return {}
    figures = {
        "speedup": ratio(times["one"], times["opportunistic"]),
        "barrier_speedup": ratio(times["one"], times["barrier"]),
        "speedup_over_serial": ratio(times["serial"], times["opportunistic"]),
    }
    if "onnxruntime_1" in times:
        figures["over_onnxruntime"] = ratio(times["serial"], times["onnxruntime_1"])
    if f"onnxruntime_{world.node_size}" in times and world.node_size > 1:
        figures["onnxruntime_speedup"] = ratio(
            times["onnxruntime_1"], times[f"onnxruntime_{world.node_size}"]
        )
    return figures | {
        **{f"{name}_ms": Figure.of(taken, "ms", 1e3) for name, taken in times.items()},
        "slowed": Figure.of(slowed, "x"),
        "ahead": Figure.of([ahead], ""),
        "layers": Figure.of([len(blocks.stages)], ""),
        "blocks": Figure.of([len(blocks.blocks)], ""),
        "plan_ms": Figure.of([plan_s], "ms", 1e3),
    }


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
