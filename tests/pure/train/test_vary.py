"""`--vary section.key=value,value`: one job, several models."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pure.train.job_files import GOOD, job_file
from weft.runtime.errors import JobError
from weft.runtime.train.job import load_job, load_jobs
from weft.runtime.train.vary import variants


def test_no_variation_leaves_a_job_alone() -> None:
    assert variants([]) == [("", ())]


def test_s2_4_every_value_is_a_model_with_its_name(tmp_path: Path) -> None:
    mine = job_file(tmp_path, "mine")
    jobs = load_jobs([mine], ["seed=3"], ["train.optimizer.rate=0.1,1e-05,2"])
    assert [job.name for job in jobs] == ["mine-rate-0.1", "mine-rate-1e-05", "mine-rate-2"]
    assert [job.train.optimizer.rate for job in jobs] == [0.1, 1e-5, 2]
    alone = load_job(mine, ["seed=3", "train.optimizer.rate=2"])
    assert jobs[2] == alone.model_copy(update={"name": "mine-rate-2"})


def test_several_variations_give_every_combination(tmp_path: Path) -> None:
    jobs = load_jobs([job_file(tmp_path, "mine")], (), ["train.batch=32,64", "seed=1,2,3"])
    assert [(job.train.batch, job.seed) for job in jobs] == [(b, s) for b in (32, 64) for s in (1, 2, 3)]
    assert [job.name for job in jobs][-1] == "mine-batch-64-seed-3"


def test_a_variation_is_for_all_jobs_or_for_the_one_it_names(tmp_path: Path) -> None:
    files = [job_file(tmp_path, "a"), job_file(tmp_path, "b")]
    jobs = load_jobs(files, (), ["b:seed=1,2", "train.batch=32,64"])
    assert [(job.name, job.seed, job.train.batch) for job in jobs] == [
        ("a-batch-32", 1, 32), ("a-batch-64", 1, 64),
        ("b-seed-1-batch-32", 1, 32), ("b-seed-1-batch-64", 1, 64),
        ("b-seed-2-batch-32", 2, 32), ("b-seed-2-batch-64", 2, 64),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("listed", "suffixes"),
    [
        ("adamw,sgd", ["-key-adamw", "-key-sgd"]),
        ('"a b", "c"', ["-key-a-b", "-key-c"]),
        ("true,false", ["-key-true", "-key-false"]),
        ("1e20,1e-20", ["-key-1e20", "-key-1e-20"]),
        ("-1,1", ["-key-1", "-key-1"]),  # which load_jobs numbers, as all names that are alike
        ('{name = "sgd", rate = 1},[1, 2],[]', ["-key-1", "-key-2", "-key-3"]),
        (f"{'x' * 30},y", ["-key-1", "-key-y"]),
    ],
)
def test_a_name_holds_the_value_or_its_number(listed: str, suffixes: list[str]) -> None:
    found = variants([f"section.key={listed}"])
    assert [variant.suffix for variant in found] == suffixes
    assert all(len(variant.overrides) == 1 for variant in found)


def test_models_of_values_that_read_alike_have_names_of_their_own(tmp_path: Path) -> None:
    jobs = load_jobs([job_file(tmp_path, "mine")], (), ["run.priority=-1,1"])
    assert [job.name for job in jobs] == ["mine-priority-1", "mine-priority-1-2"]


@pytest.mark.parametrize("wrong", ["train.batch", "train.batch=", "train.batch=1,,2", "=1,2", "b:=1"])
def test_what_is_no_variation_is_told_with_an_example(wrong: str) -> None:
    with pytest.raises(JobError) as caught:
        variants([wrong])
    assert str(caught.value) == (
        f"--vary {wrong}: must be section.key=value,value, as in --vary train.optimizer.rate=0.1,0.01"
    )


def test_a_value_or_a_key_that_is_given_twice_is_told() -> None:
    with pytest.raises(JobError, match=r"^--vary seed=1,2,1: gives 1 twice"):
        variants(["seed=1,2,1"])
    with pytest.raises(JobError, match=r"^--vary seed is given twice: give all its values at once"):
        variants(["seed=1", "train.batch=2,3", "mine:seed=2"])


def test_the_problems_of_all_variants_are_told_together(tmp_path: Path) -> None:
    with pytest.raises(JobError) as caught:
        load_jobs([job_file(tmp_path, "mine", GOOD.replace("epochs = 2", "epochs = 0"))], (),
                  ["train.batch=0,8,x", "other:seed=1,2", "seed="])  # fmt: skip
    assert str(caught.value).replace(f"{tmp_path}/", "").splitlines() == [
        "--vary other:seed=1,2: no job here is called other; there are mine",
        "--vary seed=: must be section.key=value,value, as in --vary train.optimizer.rate=0.1,0.01",
    ]
    with pytest.raises(JobError) as caught:
        load_jobs([job_file(tmp_path, "mine", GOOD.replace("epochs = 2", "epochs = 0"))], (),
                  ["train.batch=0,8,x"])  # fmt: skip
    assert str(caught.value).replace(f"{tmp_path}/", "").splitlines() == [
        "mine.toml:11: [train] epochs = 0: must be at least 1",
        "--vary train.batch=0: [train] batch = 0: must be at least 1",
        '--vary train.batch=x: [train] batch = "x": must be a whole number, without quotes',
    ]


def test_names_that_would_be_too_long_for_a_folder_are_numbers(tmp_path: Path) -> None:
    keys = ["seed", "train.batch", "train.epochs", "train.micro_batch", "train.optimizer.rate", "run.share"]
    variations = [f"{key}={'9' * 15},{'8' * 15}" for key in keys]
    assert [variant.suffix for variant in variants(variations)] == [f"-{n}" for n in range(1, 65)]
    assert len({variant.overrides for variant in variants(variations)}) == 64
    assert all(len(variant.suffix) <= 100 for variant in variants(variations[:4]))
    assert variants(variations[:4])[0].suffix.startswith("-seed-9")


@pytest.mark.parametrize(
    ("given", "varied"),
    [
        ("seed=3", "seed=1,2"),
        ("mine:seed=3", "seed=1,2"),
        ("mine:seed=3", "mine:seed=1,2"),
        ("train.steps=3", "train.epochs=1,2"),
        (
            "train.optimizer.rate=0.1",
            'train.optimizer={ name = "sgd", rate = 1 },{ name = "adam", rate = 1 }',
        ),
    ],
)
def test_a_key_is_not_both_set_and_varied(given: str, varied: str, tmp_path: Path) -> None:
    """What was set came to nothing, without a word."""
    with pytest.raises(JobError) as caught:
        load_jobs([job_file(tmp_path, "mine")], [given], [varied])
    why = f"--vary {varied} gives each model its own"
    assert str(caught.value) == f"--set {given}: comes to nothing, as {why}; leave one of the two out"


def test_what_is_set_for_all_jobs_or_around_a_key_leaves_it_to_be_varied(tmp_path: Path) -> None:
    files = [job_file(tmp_path, "a"), job_file(tmp_path, "b")]
    optimizer = 'train.optimizer={ name = "sgd", rate = 1 }'
    jobs = load_jobs(files, ["seed=9", optimizer], ["a:seed=1,2", "b:train.optimizer.rate=3"])
    assert [(job.seed, job.train.optimizer.rate) for job in jobs] == [(1, 1), (2, 1), (9, 3)]
