"""A run that never happened: spans and metrics such as a small convolutional network leaves behind."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from weft.runtime.observe import Metrics, RankTrace, RunFolder, Trace, decode, write_chrome
from weft.runtime.observe.history import Steps

NODES = (("conv1", 1.0), ("relu1", 0.1), ("conv2", 2.4), ("relu2", 0.1), ("dense1", 1.6), ("dense2", 0.4))
WEIGHTED = [node for node, _ in NODES if not node.startswith("relu")]
MS = 1_000_000


def rank_trace(
    rank: int, host: str, steps: int = 12, micro_batches: int = 2, jitter: float = 0.15
) -> RankTrace:
    """Spans of one rank: the lane computes, four portions a step travel, the next forward waits for them."""
    trace = Trace(rank, host)
    draw = random.Random(rank)
    now, arrived, wire_free = 0.0, dict.fromkeys(WEIGHTED, 0.0), 0.0

    def compute(name: str, phase: str, ms: float, step: int, micro_batch: int) -> None:
        nonlocal now
        end = now + ms * MS * draw.uniform(0.85, 1.15)
        trace.span("compute", name, int(now), int(end), phase=phase, step=step, micro_batch=micro_batch)
        now = end + 4_000

    for step in range(steps):
        for micro_batch in range(micro_batches):
            compute("load", "load", 0.15, step, micro_batch)
            for node, ms in NODES:
                if micro_batch == 0 and step and node in WEIGHTED:
                    now = max(now, arrived[node])
                    compute(f"{node}.update", "update", 0.12, step - 1, -1)
                compute(f"{node}.forward", "forward", ms, step, micro_batch)
            for node, ms in reversed(NODES):
                if node in WEIGHTED:
                    compute(f"{node}.weight_gradient", "weight_gradient", ms * 1.1, step, micro_batch)
                    if micro_batch == micro_batches - 1:
                        start = max(now, wire_free - 0.6 * MS)
                        wire_free = start + draw.uniform(2.0, 3.2) * MS
                        number = WEIGHTED.index(node)
                        facts = {"bytes": 1 << 20, "step": step, "portion": number}
                        trace.span("wire", f"portion {number} {node}", int(start), int(wire_free), **facts)
                        arrived[node] = wire_free
                if node != "conv1":
                    compute(f"{node}.input_gradient", "input_gradient", ms, step, micro_batch)
    return decode(trace.encode())


@dataclass(frozen=True)
class Model:
    """A chain of layers: milliseconds of forward, and of either gradient, and the portions of each."""

    name: str
    ms: tuple[float, ...]
    portions: tuple[int, ...]
    portion_ms: float  # on the wire


def exchange_trace(
    rank: int,
    host: str,
    models: Sequence[Model],
    *,
    steps: int = 8,
    credit: int = 2,
    lower_first: bool = True,
    reduce_ms: float = 0.0,
    sends: bool = True,
    jitter: float = 0.05,
) -> RankTrace:
    """One rank that exchanges portions by a rule, with credit, its models in turn; spans say all there is."""
    trace = Trace(rank, host)
    draw = random.Random(rank)
    now, wire_free = 0.0, 0.0
    arrived: dict[tuple[str, int], float] = {}  # of the last step, by model and portion
    done_before: list[float] = []

    def compute(name: str, phase: str, ms: float, **args: object) -> None:
        nonlocal now
        end = now + ms * MS * draw.uniform(1 - jitter, 1 + jitter)
        trace.span("compute", name, int(now), int(end), phase=phase, **args)
        now = end + 4_000

    for step, model in ((step, model) for step in range(steps) for model in models):
        facts = {"step": step, "micro_batch": 0, "model": model.name}
        layers = range(len(model.ms))
        first = {layer: sum(model.portions[layer + 1 :]) for layer in layers}  # numbered as backward goes

        def name(layer: int, part: int, model: Model = model, first: dict[int, int] = first) -> str:
            row = 64 * (model.portions[layer] - part)  # the highest rows come first
            rows = f" rows {row - 64}-{row - 1}" if model.portions[layer] > 1 else ""
            return f"portion {first[layer] + part} (dense_{layer + 1}{rows})"

        compute("load", "load", 0.1, **facts)
        for layer in layers:
            for part in range(model.portions[layer]):
                portion = first[layer] + part
                if step:
                    now = max(now, arrived[model.name, portion])
                    done = {**facts, "step": step - 1, "micro_batch": -1, "portion": portion}
                    compute(f"{name(layer, part)}.update", "update", 0.15, **done)
            compute(f"dense_{layer + 1}.forward", "forward", model.ms[layer], **facts)
        ready: list[tuple[float, int, int]] = []
        for layer in reversed(layers):
            for part in range(model.portions[layer]):
                ms = model.ms[layer] / model.portions[layer]
                compute(f"dense_{layer + 1}.weight_gradient", "weight_gradient", ms, **facts)
                if reduce_ms:
                    about = {**facts, "portion": first[layer] + part}
                    compute(f"{name(layer, part)}.reduce", "reduce", reduce_ms, **about)
                ready.append((now, layer, part))
            if layer:
                compute(f"dense_{layer + 1}.input_gradient", "input_gradient", model.ms[layer], **facts)
        clock = ready[0][0]
        while ready:
            may = done_before[-credit] if len(done_before) >= credit else 0.0
            clock = max(clock, may, min(at for at, _, _ in ready))
            there = [entry for entry in ready if entry[0] <= clock]
            at, layer, part = min(there, key=lambda e: (e[1], e[2])) if lower_first else there[0]
            ready.remove((at, layer, part))
            wire_free = max(wire_free, clock) + model.portion_ms * MS * draw.uniform(1 - jitter, 1 + jitter)
            portion = first[layer] + part
            if sends:
                about = {"bytes": 1 << 20, "step": step, "portion": portion, "model": model.name}
                about["waited_us"] = (clock - at) / 1000
                trace.span("wire", name(layer, part), int(clock), int(wire_free), **about)
            arrived[model.name, portion] = wire_free if sends else at
            done_before.append(wire_free if sends else at)
    return decode(trace.encode())


ONE = [Model("wide", (2.0, 3.0, 3.0, 3.0, 1.0), (2, 2, 2, 2, 1), 1.9)]
TWO = [
    Model("mlp", (3.0, 3.0, 3.0), (2, 2, 2), 2.0),
    Model("cnn", (4.0, 4.0, 3.0, 2.0), (1, 1, 2, 1), 2.2),
]


def write_run(parent: Path, ranks: int = 4, steps: int = 400) -> RunFolder:
    """A whole run's folder: job, metrics, trace."""
    folder = RunFolder.create(parent, "digits")
    folder.job.write_text('name = "digits"\n')
    draw = random.Random(1)
    with Metrics(folder.metrics) as metrics:
        for step in range(1, steps + 1):
            rate = 0.002 * (0.5 + 0.5 * math.cos(math.pi * step / steps)) * min(1, step / 20)
            loss = (2.3 * math.exp(-step / (0.08 * steps)) + 0.03) * draw.lognormvariate(0, 0.35)
            metrics.write(
                kind="step", step=step, epoch=step // 23, loss=loss, rate=rate,
                samples_per_s=5000 * draw.uniform(0.9, 1.1), time_s=step * 0.0128,
            )  # fmt: skip
            if step % (steps // 16) == 0:
                loss = 2.2 * math.exp(-step / (0.08 * steps)) + 0.06 * draw.uniform(0.9, 1.2)
                accuracy = 0.985 - 0.9 * math.exp(-step / (0.06 * steps)) + draw.uniform(-0.004, 0.004)
                metrics.write(kind="evaluation", step=step, split="validation", loss=loss, accuracy=accuracy)
        metrics.write(kind="evaluation", step=steps, split="test", loss=0.071, accuracy=0.9806)
        metrics.write(kind="end", step=steps, reason="all steps done")
    write_chrome(folder.trace, [rank_trace(rank, f"n{rank * 2 // ranks + 1}") for rank in range(ranks)])
    return folder


def steps_of(rows: Sequence[Mapping[str, float]]) -> Steps:
    """Steps with what each of them is to have."""
    names = ("step", "loss", "rate", "samples_per_s")
    return Steps(*(np.array([row.get(name, math.nan) for row in rows], np.float64) for name in names))
