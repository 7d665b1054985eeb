"""What a pool's trace file tells: a row for each rank, a line for each function, and a picture."""

from __future__ import annotations

import pytest

from weft.runtime.errors import Mistake
from weft.runtime.observe.chrome import write_chrome
from weft.runtime.observe.folder import RunFolder
from weft.runtime.observe.tasks import _bars, report_tasks
from weft.runtime.observe.trace import RankTrace, Span

MS = 1_000_000


def task(name: str, start_ms: int, end_ms: int, home: int) -> Span:
    return Span("compute", name, start_ms * MS, end_ms * MS, {"lane": 0, "home": home})


def theft(start_ms: int, end_ms: int) -> Span:
    return Span("steal", "near", start_ms * MS, end_ms * MS, {})


@pytest.fixture
def file(tmp_path):
    first = task("strip", 0, 60, 0), task("strip", 60, 70, 0), task("total", 90, 100, 0)
    second = theft(1, 2), task("strip", 2, 40, 0), theft(40, 41), task("own", 41, 52, 1)
    write_chrome(tmp_path / "tasks.json", [RankTrace(0, "n0", first), RankTrace(1, "n1", second, dropped=7)])
    return tmp_path / "tasks.json"


def test_who_ran_what_for_whom_and_took_it_how_often(file):
    lines = report_tasks(file).splitlines()
    assert lines[0] == "tasks.json: 5 tasks on 2 ranks in 0.1000 s"
    rows = [line.split() for line in lines[3:5]]
    assert rows == [["0", "80%", "3", "0", "0", "n0"], ["1", "49%", "2", "1", "2", "n1"]]
    assert [line.split() for line in lines[6:9]] == [
        ["strip", "0.1080", "s"], ["own", "0.0110", "s"], ["total", "0.0100", "s"]
    ]  # fmt: skip
    assert "the oldest 7 spans were dropped" in lines[9]
    picture = file.with_suffix(".png")
    assert lines[-1] == f"picture: {picture}"
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_bars_of_a_function_that_nearly_touch_are_one():
    spans = [task("a", 10, 20, 0), task("b", 20, 22, 0), task("a", 23, 30, 0), task("a", 40, 41, 0)]
    assert _bars(spans, 10 * MS, 5 * MS) == {
        "a": [(0, 20 * MS), (30 * MS, 31 * MS)], "b": [(10 * MS, 12 * MS)]
    }  # fmt: skip


def test_a_run_in_which_nothing_ran(tmp_path):
    write_chrome(tmp_path / "tasks.json", [RankTrace(0, "n0", ())])
    assert report_tasks(tmp_path / "tasks.json").endswith("tasks.json: no task ran")


def test_the_trace_of_a_training_run_is_not_a_pools(tmp_path):
    kernel = Span("compute", "dense_1.forward", 0, 5, {"phase": "forward", "step": 0})
    write_chrome(tmp_path / "trace.json", [RankTrace(0, "n0", (kernel,))])
    with pytest.raises(Mistake, match=rf"of a training run; give its folder: weft report {tmp_path}$"):
        report_tasks(tmp_path / "trace.json")
    assert not (tmp_path / "trace.png").exists()


@pytest.mark.parametrize("name", ["job.toml", "metrics.jsonl", "checkpoints/step-00000001.safetensors"])
def test_another_file_of_a_run_is_answered_with_the_run(tmp_path, name):
    run = RunFolder.create(tmp_path, "small")
    run.metrics.write_text('{"kind": "start", "step": 0, "ranks": 1}\n{"kind": "end", "step": 0}\n')
    (run.path / name).touch()
    with pytest.raises(Mistake, match=rf"{name} is of a training run; .*: weft report {run.path}$"):
        report_tasks(run.path / name)


def test_a_file_that_is_no_trace(tmp_path):
    (tmp_path / "tasks.json").write_text("{}")
    with pytest.raises(Mistake, match=r"tasks\.json is not a trace that Weft wrote"):
        report_tasks(tmp_path / "tasks.json")
