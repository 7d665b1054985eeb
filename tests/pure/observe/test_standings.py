"""Several runs in one table, the best first."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from weft.runtime.errors import Mistake
from weft.runtime.observe import Metrics, RunFolder
from weft.runtime.observe.report import rank
from weft.runtime.observe.standings import keys_apart, standings
from weft.runtime.observe.standings_picture import short


def run(
    parent: Path, name: str, job: str, *validation: tuple[float, float], test: float = math.nan,
    end: str = "all steps done",
) -> Path:  # fmt: skip
    """A run's folder that was evaluated so often: losses and accuracies."""
    folder = RunFolder(parent / name)
    folder.checkpoints.mkdir(parents=True)
    folder.job.write_text(job)
    with Metrics(folder.metrics) as metrics:
        for number, (loss, accuracy) in enumerate(validation, 1):
            metrics.write(kind="step", step=10 * number, epoch=1, loss=2 * loss, rate=0.1)
            metrics.write(
                kind="evaluation", step=10 * number, split="validation", loss=loss, accuracy=accuracy
            )
        if not math.isnan(test):
            metrics.write(kind="evaluation", step=10, split="test", loss=test, accuracy=0.5)
        if end:
            metrics.write(kind="end", step=10, reason=end)
    return folder.path


def job(rate: float, *, seed: int = 1, name: str = "x", more: str = "") -> str:
    return f'name = "{name}"\nseed = {seed}\n[train]\noptimizer = {{ name = "sgd", rate = {rate} }}\n{more}'


def test_the_best_comes_first_with_what_sets_its_job_apart(tmp_path: Path) -> None:
    paths = [
        run(tmp_path, "a-20260314-150926", job(0.5, name="a"), (0.3, 0.9), (0.4, 0.8), test=0.45),
        run(tmp_path, "b-20260314-150926", job(0.1, name="b"), (0.5, 0.7), (0.35, 0.85)),
        run(tmp_path, "c-20260314-150926", job(0.1, name="c", seed=2)),
    ]
    assert standings(paths).replace(str(tmp_path), "runs").splitlines() == [
        "     seed  rate  steps  validation loss  validation accuracy  test loss  test accuracy",
        "  b     1   0.1     20           0.3500               0.8500          –              –",
        "  a     1   0.5     20           0.4000               0.8000     0.4500         0.5000",
        "  c     2   0.1      0                –                    –          –              –",
        "  best by validation loss: runs/b-20260314-150926",
    ]


@pytest.mark.parametrize(
    ("metric", "first", "loss"), [("loss", "a", "0.3000"), ("accuracy", "a", "0.4000"), ("", "b", "0.3500")]
)
def test_a_run_that_keeps_its_best_counts_by_it(metric: str, first: str, loss: str, tmp_path: Path) -> None:
    more = f'best = {{ metric = "{metric}" }}\n' if metric else ""
    paths = [
        run(tmp_path, "a", job(0.5, more=more), (0.3, 0.7), (0.32, 0.6), (0.4, 0.8), (0.6, 0.75)),
        run(tmp_path, "b", job(0.1, more=more), (0.35 + 0.2 * bool(metric), 0.7)),
    ]
    line = standings(paths).splitlines()[1].split()
    assert (line[0], line[3]) == (first, loss)


def test_without_validation_the_loss_of_training_decides(tmp_path: Path) -> None:
    paths = [run(tmp_path, name, job(0.1, name=name)) for name in ("a", "b")]
    assert "best" not in standings(paths)
    for path, loss in zip(paths, (0.5, 0.25), strict=True):
        with Metrics(path / "metrics.jsonl") as metrics:
            metrics.write(kind="step", step=1, epoch=1, loss=loss, rate=0.1)
    assert standings(paths).splitlines()[-1] == f"  best by the loss of its last step: {paths[1]}"


def test_runs_that_ended_otherwise_than_they_should_are_told(tmp_path: Path) -> None:
    reasons = ["all steps done", "failed: its loss is nan: step 3", "stopped by a signal", ""]
    paths = [
        run(tmp_path, f"a{n}", job(0.1 * n), (0.1 * n, 0.5), end=reason)
        for n, reason in enumerate(reasons, 1)
    ]
    head, *lines = standings(paths).splitlines()
    assert head.split()[-1] == "end"
    ends = ("all steps done", "failed", "stopped by a signal", "not yet")
    assert [line.endswith(f" {end}") for line, end in zip(lines, ends, strict=False)] == [True] * 4
    assert "end" not in standings(paths[:1]).split()


def test_a_loss_that_is_no_number_is_the_worst(tmp_path: Path) -> None:
    paths = [run(tmp_path, "a", job(0.5), (math.nan, 0.1)), run(tmp_path, "b", job(0.1), (9.0, 0.1))]
    assert [line.split()[0] for line in standings(paths).splitlines()[1:3]] == ["b", "a"]


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    paths = [run(tmp_path, f"a-20260314-15092{n}", job(0.1), (0.1 + n, 0.5)) for n in range(2)]
    assert [line.split()[0] for line in standings(paths).splitlines()[1:3]] == [path.name for path in paths]


def test_keys_that_end_alike_are_shown_whole_and_too_many_are_named(tmp_path: Path) -> None:
    jobs = [
        'seed = 1\n[model]\nlayers = [{ kernel = "dense", features = 3 }]\n'
        '[train]\nbatch = 8\noptimizer = { name = "sgd", rate = 1 }\nschedule = { name = "cosine" }\n',
        'seed = 2\n[model]\nlayers = [{ kernel = "dense", features = 4 }]\n'
        '[train]\nbatch = 9\noptimizer = { name = "adam", rate = 1 }\n',
    ]
    paths = [run(tmp_path, str(n), text, (n, 0.5)) for n, text in enumerate(jobs)]
    lines = standings(paths).splitlines()
    assert lines[0].split()[:4] == ["seed", "features", "batch", "optimizer"]
    assert lines[-2] == "  they differ in train.schedule.name, too"


def test_no_run_is_the_best_of_those_with_different_losses(tmp_path: Path) -> None:
    losses = ['"mean_squared_error"', '{ name = "huber", delta = 1.0 }', '{ name = "huber", delta = 0.5 }']
    paths = [run(tmp_path, str(n), f"[model]\nloss = {loss}\n", (n, 0)) for n, loss in enumerate(losses)]
    head, *lines = (line.split() for line in standings(paths).splitlines())
    assert head[:2] == ["loss", "delta"]
    assert [line[1:3] for line in lines[:3]] == [
        ["mean_squared_error", "–"],
        ["huber", "1.0"],
        ["huber", "0.5"],
    ]
    for some in (paths, paths[1:]):
        assert standings(some).splitlines()[-1].startswith("  none is the best: they have different losses")


def test_what_is_missing_of_a_job_differs_and_a_lost_job_does_not(tmp_path: Path) -> None:
    assert keys_apart([{"a": 1, "b": 2}, {"a": 1}, {}]) == ["b"]
    paths = [run(tmp_path, "a", job(0.5), (1, 0.1)), run(tmp_path, "b", job(0.1), (2, 0.1))]
    (paths[1] / "job.toml").unlink()
    assert standings(paths).splitlines()[0].split()[0] == "steps"


def test_a_folder_that_is_no_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(Mistake, match="there is no run"):
        standings([run(tmp_path, "a", job(0.5)), tmp_path / "b", tmp_path / "c"])


def test_the_report_has_a_picture_of_losses_where_there_are_lines_to_draw(tmp_path: Path) -> None:
    paths = [
        run(tmp_path, f"a-{n}", job(0.1 * n), *((1 / (k + n), 0.5) for k in range(9))) for n in range(1, 8)
    ]
    paths.append(run(tmp_path, "once", job(0.3), (0.2, 0.5)))
    text = rank(paths)
    picture = paths[0] / "losses.png"
    assert text == f"{standings(paths)}\n\npicture: {picture}"
    assert picture.stat().st_size > 20_000
    points = [run(tmp_path, f"b-{n}", job(0.1), (0.1, 0.5)) for n in range(3)]
    assert rank(points) == standings(points)
    assert not (points[0] / "losses.png").exists()


def test_runs_that_never_evaluated_show_what_they_trained(tmp_path: Path) -> None:
    paths = [run(tmp_path, f"a-{n}", job(0.1)) for n in range(3)]
    for n, path in enumerate(paths):
        with Metrics(path / "metrics.jsonl") as metrics:
            for step in range(1, 50):
                metrics.write(kind="step", step=step, epoch=1, loss=(n + 1) / step, rate=0.1)
    paths.append(run(tmp_path, "ended-at-once", job(0.1)))
    assert rank(paths).endswith(f"picture: {paths[0]}/losses.png")


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["mine-rate-0.1", "mine-rate-0.3"], ["rate-0.1", "rate-0.3"]),
        (["mine-name-sgd", "mine-name-adamw"], ["sgd", "adamw"]),
        (["mine", "mine-2"], ["mine", "mine-2"]),
        (["a", "b"], ["a", "b"]),
        (["mine-1", "mine-1"], ["mine-1", "mine-1"]),
    ],
)
def test_names_are_as_short_as_tells_them_apart(names: list[str], shown: list[str]) -> None:
    assert short(names) == shown
