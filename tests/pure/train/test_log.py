from __future__ import annotations

import json
from dataclasses import replace

import pytest

from weft.runtime.errors import MachineError
from weft.runtime.exchange.tune import DEFAULT, Settings
from weft.runtime.observe import Metrics, RunFolder, Screen, read_metrics
from weft.runtime.observe.history import PLAIN_STEP
from weft.runtime.observe.report import exchange_lines
from weft.runtime.train.log import Log
from weft.runtime.train.loop import Planned


def test_a_run_goes_on_without_metrics_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    folder = RunFolder.create(tmp_path, "small")
    write = Metrics.write

    def until_full(metrics: Metrics, *, kind: str, **fields: object) -> None:
        if fields.get("step") == 2:
            raise MachineError("metrics.jsonl: cannot be written: No space left on device")
        write(metrics, kind=kind, **fields)

    monkeypatch.setattr(Metrics, "write", until_full)
    with Log(folder, "small", 0, 3, Screen(), ranks=2) as log:
        for step in (1, 2, 3):
            log.step(step, 1, 0.5, 0.1, 60)
        log.end(3, "all steps done")
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert [(row["kind"], row["step"]) for row in rows] == [("start", 0), ("step", 1)]
    out, err = capsys.readouterr()
    assert err == "weft: metrics.jsonl: cannot be written: No space left on device; the run goes on without\n"
    assert "step 3/3" in out


def test_what_tuning_has_found_is_said_once_and_every_plan_is_in_the_metrics(tmp_path, capsys):
    folder = RunFolder.create(tmp_path, "small")
    found = Planned(20, Settings(1 << 18, 4, "latest_first"), 20, "wire, at most 4 under way: dense_1 x3")
    with Log(folder, "small", 0, 90, Screen(), ranks=2) as log:
        log.exchange(found)
        log.exchange(replace(found, step=30, words="wire, at most 4 under way: dense_1 x2 | dense_2"))
    said = (
        "small: gradients travel in portions of 262,144 bytes, 4 at once, latest_first, as 20 steps on trial"
    )
    assert capsys.readouterr().out.count(said) == 1
    history = read_metrics(folder.metrics)
    assert history.skipped == 0
    assert history.exchange is not None
    lines = exchange_lines(history.exchange).splitlines()
    assert lines == [
        "  gradients travelled in portions of 262,144 bytes, 4 at once, latest_first",
        "  plan since step 30: wire, at most 4 under way: dense_1 x2 | dense_2",
    ]


def test_the_lines_of_steps_are_such_as_a_report_reads_at_once(tmp_path):
    """Other keys, or another order, would do; but a long run's report would take three times as long."""
    folder = RunFolder.create(tmp_path, "small")
    with Log(folder, "small", 0, 3, Screen(), ranks=2) as log:
        for step, loss in ((1, 0.5), (2, 1.5e-7), (3, -2e22)):
            log.step(step, 1, loss, 0.1, 60)
    _, *lines = folder.metrics.read_bytes().splitlines(keepends=True)
    assert len(PLAIN_STEP.findall(b"".join(lines))) == len(lines) == 3


def test_a_run_that_was_not_tuned_says_nothing_of_it(tmp_path, capsys):
    folder = RunFolder.create(tmp_path, "small")
    with Log(folder, "small", 0, 90, Screen(), ranks=2) as log:
        log.exchange(Planned(1, DEFAULT, 0, "wire, at most 2 under way: dense_1"))
    assert "portions" not in capsys.readouterr().out


def test_a_rank_that_is_silent_writes_nothing(tmp_path):
    folder = RunFolder.create(tmp_path, "small")
    with Log(folder, "small", 0, 1, None, ranks=2) as log:
        log.step(1, 1, 0.5, 0.1, 60)
        with log.dispensable():
            log.end(1, "all steps done")
        with pytest.raises(ValueError, match="another"), log.dispensable():
            raise ValueError("another")
    assert not folder.metrics.exists()


@pytest.mark.parametrize(
    ("several", "name"), [(False, ""), (True, "small: ")], ids=["alone", "beside others"]
)
def test_each_line_of_how_a_run_ended_begins_with_its_name_beside_others(tmp_path, capsys, several, name):
    folder = RunFolder.create(tmp_path, "small")
    with Log(folder, "small", 0, 1, Screen(), ranks=2, several=several) as log:
        log.conclude("all steps done after step 1\nstored in runs/small")
    assert capsys.readouterr().out == f"{name}all steps done after step 1\n{name}stored in runs/small\n"


def test_samples_a_second_count_all_of_a_step_and_nothing_of_an_evaluation(tmp_path, monkeypatch):
    folder = RunFolder.create(tmp_path, "small")
    now = 100.0

    def passes(seconds: float) -> None:
        nonlocal now
        now += seconds

    with Log(folder, "small", 0, 2, Screen(), ranks=2) as log:
        monkeypatch.setattr("weft.runtime.train.log.time.monotonic", lambda: now)
        log.step(1, 1, 0.5, 0.1, 60)
        passes(3)  # what is left of the step when its loss is known
        with log.pause():
            passes(10)
        passes(1)  # the next one's, until its loss is known
        log.step(2, 1, 0.5, 0.1, 60)
        monkeypatch.undo()
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert rows[-1]["samples_per_s"] == 15
