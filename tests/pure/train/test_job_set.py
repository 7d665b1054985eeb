"""`--set section.key=value`: for one job, and for several that train together."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pure.train.job_files import GOOD, job_file, load, problems
from weft.runtime.errors import JobError
from weft.runtime.train import optimizers
from weft.runtime.train.data.section import NpyData
from weft.runtime.train.job import load_job, load_jobs


class TestSet:
    """--set section.key=value"""

    def test_takes_numbers_strings_and_tables(self, tmp_path: Path) -> None:
        job = load(
            tmp_path,
            GOOD,
            "train.batch=32",
            "name=other",
            "model.layers.1.features=11",
            'train.schedule={name="cosine", warmup=3}',
            "checkpoint.every=5",
            "train.optimizer.rate=1",
        )
        assert (job.train.batch, job.name, job.checkpoint.every, job.train.optimizer.rate) == (
            32,
            "other",
            5,
            1.0,
        )
        assert job.model.layers is not None
        assert job.model.layers[1].attributes == {"features": 11}
        assert job.train.schedule == optimizers.CosineSchedule(name="cosine", warmup=3)

    def test_of_one_alternative_displaces_the_other(self, tmp_path: Path) -> None:
        job = load(tmp_path, GOOD, "train.steps=7")
        assert (job.train.steps, job.train.epochs) == (7, None)

    def test_of_another_unit_of_length_leaves_no_number_of_the_old_one(self, tmp_path: Path) -> None:
        stored = load(tmp_path, GOOD).dump()
        assert "evaluate_every = 1" in stored
        assert load(tmp_path, stored, "train.steps=70").train.evaluate_every == 7
        assert load(tmp_path, stored, "train.epochs=70").train.evaluate_every == 1
        often = stored.replace("evaluate_every = 1", "evaluate_every = 4")
        assert load(tmp_path, often, "train.epochs=70").train.evaluate_every == 4
        assert load(tmp_path, often, "train.steps=70").train.evaluate_every == 7
        both = ("train.evaluate_every=3", "train.steps=70")
        for order in (both, both[::-1]):
            assert load(tmp_path, stored, *order).train.evaluate_every == 3
        steps = load(tmp_path, GOOD, "train.steps=70").dump()
        assert load(tmp_path, steps, "train.evaluate_every=9", "train.steps=80").train.evaluate_every == 9
        assert load(tmp_path, steps, "train.epochs=5").train.evaluate_every == 1
        assert load(tmp_path, steps, "train.steps=800").train.evaluate_every == 80
        asked = steps.replace("evaluate_every = 7", "evaluate_every = 20")
        assert load(tmp_path, asked, "train.steps=800").train.evaluate_every == 20

    def test_of_another_wire_format_leaves_no_setting_of_the_old_one(self, tmp_path: Path) -> None:
        stored = load(tmp_path, GOOD, "exchange.wire=top_k", "exchange.keep=0.1").dump()
        assert load(tmp_path, stored, "exchange.wire=top_k").exchange.keep == 0.1
        assert load(tmp_path, stored, "exchange.wire=float16").exchange.keep is None
        assert load(tmp_path, stored, "exchange.wire=top_k", "exchange.keep=0.2").exchange.keep == 0.2

    @pytest.mark.parametrize(
        ("override", "expected"),
        [
            ("train.batch=0", "--set train.batch=0: [train] batch = 0: must be at least 1"),
            (
                "train.deterministic=1",
                "--set train.deterministic=1: [train] deterministic = 1: must be true or false",
            ),
            ("train.bach=1", "--set train.bach=1: [train] bach = 1: unknown key; did you mean batch?"),
            (
                "epochs=3",
                "--set epochs=3: epochs = 3: unknown key; did you mean train.epochs?",
            ),
            ("data.batch=3", "--set data.batch=3: [data] batch = 3: unknown key; did you mean train.batch?"),
            ("train.batch", "--set train.batch: must be section.key=value, as in --set train.epochs=3"),
            ("seed.x=1", "--set seed.x=1: seed is a value, not a table"),
            ("model.layers.9.a=1", "--set model.layers.9.a=1: [model] layers has elements 0 to 1, not 9"),
        ],
    )
    def test_is_checked_like_the_file(self, override: str, expected: str, tmp_path: Path) -> None:
        assert problems(tmp_path, GOOD, override)[0].startswith(expected)


def test_data_paths_of_overrides_start_where_the_command_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    text = GOOD.replace('"digits"', '"npy"\ninputs = "x.npy"\ntargets = "y.npy"')
    data = load(tmp_path, text, "data.targets=z.npy").data
    assert isinstance(data, NpyData)
    assert (data.inputs, data.targets) == (str(tmp_path / "x.npy"), str(tmp_path / "elsewhere" / "z.npy"))


def test_s2_4_several_jobs_have_different_names(tmp_path: Path) -> None:
    a, b = job_file(tmp_path, "a"), job_file(tmp_path, "b", f'name = "a-2"\n{GOOD}')
    assert [job.name for job in load_jobs([a, b, a, a])] == ["a", "a-2", "a-3", "a-4"]
    assert [job.name for job in load_jobs([a, a], ["name=same"])] == ["same", "same-2"]
    assert load_jobs([a]) == [load_job(a)]


def test_an_override_is_for_all_jobs_or_for_the_one_it_names(tmp_path: Path) -> None:
    a, b = job_file(tmp_path, "a"), job_file(tmp_path, "b")
    jobs = load_jobs([a, b, a], ["seed=7", "b:train.batch=32", "a-2:seed=8", "b: train.epochs=5"])
    assert [job.seed for job in jobs] == [7, 7, 8]
    assert [job.train.batch for job in jobs] == [64, 32, 64]
    assert [job.train.epochs for job in jobs] == [2, 5, 2]


def test_a_colon_in_a_value_names_no_job(tmp_path: Path) -> None:
    changes = ["data.source=npz", "data.path='/x:y.npz'"]
    assert load_jobs([job_file(tmp_path, "a")], changes)[0].data.path == "/x:y.npz"  # type: ignore[union-attr]


def test_the_problems_of_all_jobs_are_told_together(tmp_path: Path) -> None:
    a, b = job_file(tmp_path, "a", "[[["), job_file(tmp_path, "b", GOOD.replace("batch = 64", "batch = 0"))
    with pytest.raises(JobError) as caught:
        load_jobs([a, b, f"{tmp_path}/c.toml", a], ["seed=-1", "d:seed=3", "b:train.epochs=x"])
    said = str(caught.value).replace(f"{tmp_path}/", "").splitlines()
    assert said[0] == "--set d:seed=3: no job here is called d; there are a, b, c, a-2"
    assert said[1].startswith("a.toml:1: not TOML: ")
    assert said[2:5] == [
        "b.toml:10: [train] batch = 0: must be at least 1",
        "--set seed=-1: seed = -1: must be at least 0",
        '--set b:train.epochs=x: [train] epochs = "x": must be a whole number, without quotes',
    ]
    assert said[5].startswith("c.toml: cannot be read: No such file")
    assert len(said) == 6


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("run.share=0", "[run] share = 0: must be at least 1e-06"),
        ("run.share=1e300", "[run] share = 1e+300: must be at most 1e+06"),
        ("run.priority=0.5", "[run] priority = 0.5: must be a whole number"),
    ],
)
def test_shares_and_priorities_are_checked(change: str, problem: str, tmp_path: Path) -> None:
    assert problems(tmp_path, GOOD, change) == [f"--set {change}: {problem}"]
