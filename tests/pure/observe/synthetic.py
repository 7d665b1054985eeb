"""A run that never happened: spans and metrics such as a small convolutional network leaves behind."""

from __future__ import annotations

import math
import random
from pathlib import Path

from weft.runtime.observe import Metrics, RankTrace, RunFolder, Trace, decode, write_chrome

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
