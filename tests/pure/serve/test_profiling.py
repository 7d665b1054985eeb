"""The first look at a model: enough to predict by, and no longer than those who are served can wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from weft.runtime.serve import profiling
from weft.runtime.serve.catalog import Served
from weft.runtime.serve.profile import Profiles
from weft.runtime.serve.profiling import ALONE_S, BESIDE_S, Profiler
from weft.runtime.serve.repository import Platform, Version
from weft.runtime.serve.settings import ModelSettings
from weft.runtime.serve.worker import Batch, Done

TOLD = {"inputs": [["x", "FP32", [-1, 1]]], "outputs": [["y", "FP32", [-1, 1]]], "labels": []}


class Clock:
    """A link on which a batch takes a millisecond and its samples' time, and the time that it is there."""

    resource = "rank 0 cpu"

    def __init__(self, sample_s: float, hiccups: tuple[int, ...] = ()) -> None:
        self.sample_s, self.hiccups, self.now_s = sample_s, hiccups, 1000.0
        self.batches: list[int] = []

    def monotonic(self) -> float:
        return self.now_s

    def run(self, batch: Batch, answer: Callable[[Done], object]) -> None:
        hiccup_s = 0.3 if len(self.batches) in self.hiccups else 0.0
        self.now_s += 1e-3 + self.sample_s * batch.count + hiccup_s
        self.batches.append(batch.count)
        answer(Done(batch.number, (), self.sample_s * batch.count))


@pytest.mark.parametrize(
    ("sample_ms", "largest", "within_s", "hiccups", "batches"),
    [
        pytest.param(1, 32, ALONE_S, (), [1, 1, 1, 32, 32], id="a full batch where that is soon done"),
        pytest.param(40, 32, ALONE_S, (), [1, 1, 1, 12, 12], id="as large a batch as is soon done"),
        pytest.param(600, 32, ALONE_S, (), [1, 1, 1], id="none where even two samples take long"),
        pytest.param(9, 32, BESIDE_S, (), [1, 1, 1, 5, 5], id="a small one where others wait for it"),
        pytest.param(1, 1, ALONE_S, (), [1, 1, 1], id="none where there are only single samples"),
        pytest.param(1, 32, ALONE_S, (0, 2), [1, 1, 1, 32, 32], id="a full one, though two were hiccups"),
    ],
)
def test_a_look_at_a_model(sample_ms, largest, within_s, hiccups, batches, monkeypatch: pytest.MonkeyPatch):
    link = Clock(sample_ms / 1e3, hiccups)
    monkeypatch.setattr(profiling, "time", link)
    version = Version("m", 1, Path(), Platform.ONNX)
    served, profiles, links = Served.of(version, ModelSettings(), "m", TOLD, largest), Profiles(), [link]
    given: Any = links
    asyncio.run(Profiler(given, profiles).first_look(served, within_s))
    assert link.batches == batches
    if not hiccups:
        profile = profiles.of(link.resource, "m/1", largest)
        assert profile.expected_s(batches[-1]) == pytest.approx(1e-3 + sample_ms / 1e3 * batches[-1])
    asyncio.run(Profiler(given, profiles).first_look(served, within_s))
    assert link.batches == batches  # once
