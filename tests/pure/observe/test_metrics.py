from __future__ import annotations

import json
import math
import re
import tracemalloc
from collections.abc import Callable
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from weft.runtime.errors import MachineError, Mistake
from weft.runtime.observe import history as reading
from weft.runtime.observe.history import read_metrics
from weft.runtime.observe.metrics import Metrics


def test_rows_come_back_by_kind(tmp_path: Path) -> None:
    with Metrics(tmp_path / "m.jsonl") as metrics:
        metrics.write(kind="step", step=1, loss=np.float32(0.5), rate=0.1, samples_per_s=100.0, time_s=0.1)
        metrics.write(kind="evaluation", step=1, split="validation", loss=0.4, accuracy=0.9)
        metrics.write(kind="evaluation", step=1, split="test", loss=0.4, accuracy=0.8)
        metrics.write(kind="end", step=1, reason="all epochs done")
    history = read_metrics(tmp_path / "m.jsonl")
    steps = history.steps
    assert (len(steps), steps.last, steps.loss[0], steps.rate[0], steps.speed) == (1, 1, 0.5, 0.1, 100.0)
    assert history.seconds == 0.1
    assert [row["accuracy"] for row in history.evaluated("test")] == [0.8]
    assert history.end == {"kind": "end", "step": 1, "reason": "all epochs done"}
    assert history.skipped == 0


def test_every_line_is_on_disk_at_once(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "m.jsonl")
    metrics.write(kind="step", step=1, loss=0.5)
    assert len(read_metrics(tmp_path / "m.jsonl").steps) == 1
    metrics.close()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_what_json_cannot_say_is_null_in_the_file_and_nan_when_read(tmp_path: Path, value: float) -> None:
    with Metrics(tmp_path / "m.jsonl") as metrics:
        metrics.write(kind="step", step=1, loss=value)

    def refuse(name: str) -> float:
        raise AssertionError(f"{name} is not JSON")

    row = json.loads((tmp_path / "m.jsonl").read_text(), parse_constant=refuse)
    assert row["loss"] is None
    assert math.isnan(read_metrics(tmp_path / "m.jsonl").steps.loss[0])


TORN = {
    "a last line cut by a crash": b'{"kind": "step", "step": 1}\n{"kind": "step", "st',
    "a line cut within a character": b'{"kind": "step", "step": 1}\n{"kind": "\xc3',
    "a block of zeros after a power cut": b'{"kind": "step", "step": 1}\n' + bytes(32),
    "a line that is no object": b'{"kind": "step", "step": 1}\n[1, 2]\n',
}


@pytest.mark.parametrize("content", TORN.values(), ids=TORN.keys())
def test_torn_lines_are_skipped_and_counted(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(content)
    assert read_metrics(path).skipped == 1
    with Metrics(path) as metrics:  # what a resumed run adds stays readable
        metrics.write(kind="step", step=2)
    history = read_metrics(path)
    assert history.steps.step.tolist() == [1, 2]
    assert history.skipped == 1


def test_a_resumed_run_replaces_the_steps_it_repeats(tmp_path: Path) -> None:
    with Metrics(tmp_path / "m.jsonl") as metrics:
        for step in (1, 2, 3, 4):
            metrics.write(kind="step", step=step, loss=float(step))
            metrics.write(kind="evaluation", step=step, split="validation", loss=float(step))
    with Metrics(tmp_path / "m.jsonl") as metrics:
        metrics.write(kind="step", step=3, loss=0.25)
    history = read_metrics(tmp_path / "m.jsonl")
    assert list(zip(history.steps.step, history.steps.loss, strict=True)) == [(1, 1), (2, 2), (3, 0.25)]
    assert [row["step"] for row in history.evaluations] == [1, 2]


def test_what_was_trained_before_a_start_ended_and_took_its_time_then(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    with Metrics(path) as metrics:
        metrics.write(kind="start", step=0, ranks=3)
        for step in (1, 2, 3):
            metrics.write(kind="step", step=step, loss=1.0, time_s=10.0 * step)
        metrics.write(kind="work", rank=2, attempts=7)
        metrics.write(kind="end", step=3, reason="stopped by a signal")
    with Metrics(path) as metrics:
        metrics.write(kind="start", step=2, ranks=2)  # the checkpoint was a step older
    resumed = read_metrics(path)
    assert (len(resumed.steps), resumed.end, list(resumed.work), resumed.seconds) == (2, None, [], 20.0)
    with Metrics(path) as metrics:
        metrics.write(kind="step", step=3, loss=0.5, time_s=35.0)  # later than any before: it compiled
    resumed = read_metrics(path)
    assert (resumed.steps.loss.tolist(), resumed.seconds) == ([1.0, 1.0, 0.5], 55.0)


STRANGE = {
    "a loss that is no number": {"kind": "step", "step": 2, "loss": "a"},
    "a step that is none": {"kind": "step", "step": 2.5},
    "a step without its number": {"kind": "step", "loss": 1.0},
    "a rank that is none": {"kind": "work", "rank": [0]},
    "a rank that is endless": {"kind": "work", "rank": math.inf},
    "a rank that is not known": {"kind": "work", "rank": None},
    "attempts in halves": {"kind": "work", "rank": 0, "attempts": 1.5},
    "a start that is none": {"kind": "start", "step": None},
    "a kind that is none": {"kind": []},
}


@pytest.mark.parametrize("row", STRANGE.values(), ids=STRANGE.keys())
def test_rows_with_other_things_for_numbers_are_skipped(tmp_path: Path, row: dict[str, Any]) -> None:
    (tmp_path / "m.jsonl").write_text(json.dumps({"kind": "step", "step": 1}) + "\n" + json.dumps(row) + "\n")
    history = read_metrics(tmp_path / "m.jsonl")
    assert (len(history.steps), list(history.work), history.skipped) == (1, [], 1)


def test_one_process_at_a_time_writes(tmp_path: Path) -> None:
    with Metrics(tmp_path / "m.jsonl"), pytest.raises(Mistake, match="another process trains this run"):
        Metrics(tmp_path / "m.jsonl")
    Metrics(tmp_path / "m.jsonl").close()


def test_a_full_disk_is_the_machines_fault() -> None:
    with Metrics(Path("/dev/full")) as metrics, pytest.raises(MachineError, match="No space left on device"):
        metrics.write(kind="step", step=1)


def test_a_folder_that_is_not_there_is_the_machines_fault(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"x.m\.jsonl: cannot be written: No such file"):
        Metrics(tmp_path / "x" / "m.jsonl")


def test_a_missing_file_is_an_empty_history(tmp_path: Path) -> None:
    history = read_metrics(tmp_path / "nothing.jsonl")
    assert (len(history.steps), history.evaluations, history.end, history.skipped) == (0, [], None, 0)


def test_of_the_steps_of_a_long_run_only_columns_are_kept(tmp_path: Path) -> None:
    """A dictionary for each of a million steps took 600 MB."""
    with Metrics(tmp_path / "m.jsonl") as metrics:
        for step in range(1, 20_001):
            metrics.write(kind="step", step=step, epoch=1, loss=0.5, rate=0.1, samples_per_s=9.5, time_s=0.1)
    read_metrics(tmp_path / "m.jsonl")
    tracemalloc.start()
    history = read_metrics(tmp_path / "m.jsonl")
    kept_bytes, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(history.steps) == 20_000
    assert kept_bytes / 20_000 < 60
    assert (peak_bytes - kept_bytes) < 4 << 20  # a piece of the file


def lines_of_a_run() -> list[str]:
    rows: list[dict[str, Any]] = [{"kind": "start", "step": 0, "ranks": 2}]
    for step in range(1, 40):
        rows.append(
            {"kind": "step", "step": step, "epoch": 1, "loss": 2.5e-3 / step, "rate": 1e-05,
             "samples_per_s": 10.0 + step, "time_s": step / 8}
        )  # fmt: skip
        if step % 10 == 0:
            rows.append({"kind": "evaluation", "step": step, "split": "validation", "loss": 0.5})
    return [json.dumps(row) for row in rows]


def with_line(number: int, pattern: str, text: str) -> Callable[[list[str]], list[str]]:
    """Has the first match in a line replaced, in a list of lines."""
    return lambda lines: [
        re.sub(pattern, text, line) if i == number else line for i, line in enumerate(lines)
    ]


MIXED: dict[str, Callable[[list[str]], list[str]]] = {
    "plain lines": lambda lines: lines,
    "a line cut by a crash": lambda lines: [*lines[:9], lines[9][:40], *lines[10:]],
    "a line cut by a crash that another follows": with_line(9, '"loss.*', '{"kind": "step", "step": 9}'),
    "a number that is none": with_line(7, "17.0", "1-0.0"),
    "a loss that was no number": with_line(7, '(?<="loss": )[^,]+', "null"),
    "an integer of many digits": with_line(8, "1e-05", "1" * 400),
    "steps that were repeated without a start": lambda lines: [*lines[:20], *lines[9:12], *lines[14:]],
    "steps that were repeated behind a start": lambda lines: [
        *lines, '{"kind": "start", "step": 12, "ranks": 2}', *lines[14:30]
    ],
    "blank lines": lambda lines: [*lines[:5], "", *lines[5:]],
}  # fmt: skip


@pytest.mark.parametrize("change", MIXED.values(), ids=MIXED.keys())
def test_lines_that_are_read_at_once_are_what_they_are_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[list[str]], list[str]]
) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text("\n".join(change(lines_of_a_run())) + "\n")
    histories = [read_metrics(path)]
    monkeypatch.setattr(reading, "STEP", b"no line begins so")
    histories.append(read_metrics(path))
    first, second = ([each.tolist() for each in astuple(found.steps)] for found in histories)
    assert str(first) == str(second)  # (a NaN is not equal to itself)
    first, second = (replace(found, steps=histories[0].steps) for found in histories)
    assert first == second
