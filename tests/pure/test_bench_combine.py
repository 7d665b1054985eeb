"""The combine bench: its jobs, its figures, and that a wrong execution gives none."""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import replace

import pytest

from bench._jobs import SHAPES, WAYS, Job, Ways
from bench.combine import figures, seconds
from bench.harness import WrongResultError
from weft.kernels.device import Device
from weft.runtime.graph.candidates import Thresholds
from weft.runtime.work import Compute

SMALL = argparse.Namespace(repetitions=1, tasks=120, words=4, passes=1, neighbours=8, workers=1)
GENEROUS = Thresholds(small_s=1.0)  # whatever the tasks took on a busy machine


def test_s4_4_the_bench_tells_tasks_messages_and_times_before_and_after():
    found = {name: figure.value for name, figure in asyncio.run(figures(SMALL)).items()}
    for shape in ("", "chains_", "fans_", "hub_"):
        assert 0 < found[f"{shape}tasks_after"] < found[f"{shape}tasks_before"]
        assert 0 <= found[f"{shape}messages_after"] < found[f"{shape}messages_before"]
        assert found[f"{shape}time_over_uncombined"] > 0


@pytest.mark.parametrize("shape", SHAPES)
def test_s4_4_every_way_gives_the_results_of_plain_python(shape):
    async def main() -> None:
        ways = Ways.of(Job(SHAPES[shape](60), words=4), GENEROUS)
        assert len(ways.combined.tasks.tasks) < len(ways.job.tasks.tasks)
        async with Compute(Device()) as compute:
            for way in WAYS:
                await seconds(ways, way, compute)

    asyncio.run(main())


@pytest.mark.parametrize("broken", ["a member is left out", "members run backwards"])
def test_s4_4_a_wrong_execution_is_found_out(broken):
    async def main() -> None:
        ways = Ways.of(Job(SHAPES["chains"](60), words=4), GENEROUS)
        members = {
            name: own[1:] if broken == "a member is left out" else own[::-1]
            for name, own in ways.combined.members.items()
        }
        wrong = replace(ways, combined=replace(ways.combined, members=members))
        async with Compute(Device()) as compute:
            await seconds(wrong, "combined", compute)

    with pytest.raises(WrongResultError, match="combined: the outputs of"):
        asyncio.run(main())
