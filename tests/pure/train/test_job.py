"""Job files: what is read, and what is said about one that is wrong."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.pure.train.job_files import GOOD, load, problems
from weft.runtime.errors import JobError
from weft.runtime.train.course import Pauses
from weft.runtime.train.data.section import NpyData, NpzData
from weft.runtime.train.job import load_job, load_jobs, packaged_jobs


@pytest.mark.parametrize("name", packaged_jobs())
def test_a_packaged_job_is_good_and_written_out_is_the_same_job(name: str, tmp_path: Path) -> None:
    job = load_job(name)
    assert job.name == name
    again = load(tmp_path, job.dump())
    assert again == job
    assert again.digest() == job.digest()


OWN_TEST = {
    "arrays": 'source = "npz"\npath = "a.npz"\ntest_inputs = "xt"\ntest_targets = "yt"\nvalidation = 0.85',
    "a table": 'source = "csv"\npath = "t"\nheader = true\ntarget = 0\ntest_path = "u"\nvalidation = 0.85',
}


@pytest.mark.parametrize("data", OWN_TEST.values(), ids=OWN_TEST)
def test_a_fraction_that_is_not_used_does_not_keep_a_stored_job_from_being_read(
    data: str, tmp_path: Path
) -> None:
    job = load(tmp_path, GOOD.replace('source = "digits"', data))
    assert load(tmp_path, job.dump()) == job


def test_a_fraction_that_nobody_gave_counts_too(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, GOOD, "data.validation=0.85")
    assert "[data] test: leaves nothing to train on: its sum with validation (0.85)" in problem


def test_defaults_follow_from_what_is_given(tmp_path: Path) -> None:
    job = load(tmp_path, GOOD)
    assert (job.name, job.train.micro_batch, job.train.evaluate_every) == ("my", 32, 1)
    assert load(tmp_path, f"\ufeff{GOOD}") == job  # as editors on Windows write it
    job = load(tmp_path, GOOD, "train.steps=250", "train.batch=20")
    assert (job.train.epochs, job.train.micro_batch, job.train.evaluate_every) == (None, 20, 25)
    assert (job.train.total_steps(1000), load(tmp_path, GOOD).train.total_steps(1000)) == (250, 32)


def test_lists_in_a_layer_become_the_tuples_that_kernels_take(tmp_path: Path) -> None:
    job = load(tmp_path, GOOD.replace('"flatten"', '"conv2d", channels = 2, kernel_size = [3, 1]'))
    assert job.model.layers is not None
    assert job.model.layers[0].attributes == {"channels": 2, "kernel_size": (3, 1)}


@pytest.mark.parametrize("given", ["inputs", "targets"])
def test_a_test_set_has_inputs_and_targets(given: str, tmp_path: Path) -> None:
    """Inputs alone were passed over, and another test set was made in their place."""
    data = f'source = "npz"\npath = "a.npz"\ntest_{given} = "x"'
    (problem,) = problems(tmp_path, GOOD.replace('source = "digits"', data))
    assert "test_inputs and test_targets go together: give both or neither" in problem


WRONG = {
    "a number out of its range": (
        ("batch = 64", "batch = 0"),
        "my.toml:10: [train] batch = 0: must be at least 1",
    ),
    "a string for a number": (
        ("batch = 64", 'batch = "64"'),
        'my.toml:10: [train] batch = "64": must be a whole number, without quotes',
    ),
    "a name for a table": (
        ('optimizer = { name = "sgd", rate = 0.1 }', 'optimizer = "sgd"'),
        'my.toml:12: [train] optimizer = "sgd": must be a table of keys, { KEY = …, … }',
    ),
    "a fraction for a whole number": (
        ("batch = 64", "batch = 64.5"),
        "my.toml:10: [train] batch = 64.5: must be a whole number",
    ),
    "a number for a string": (
        ("source = ", "source = 3 # "),
        "must be one of digits, npz, npy, hdf5, idx, csv, text",
    ),
    "an unknown key": (
        ("epochs = 2", "epochs = 2\nbach = 3"),
        "my.toml:12: [train] bach = 3: unknown key; did you mean batch?; allowed: batch, micro_batch, ",
    ),
    "an unknown section": (
        ("[data]", "[dat]\n[data]"),
        "my.toml:2: dat: unknown key; did you mean data?; allowed: name, seed, ",
    ),
    "a key of another source": (
        ('"digits"', '"digits"\ncontext = 3'),
        "my.toml:4: [data] context = 3: unknown key; allowed: validation, test, source",
    ),
    "a key of another optimizer": (
        ("rate = 0.1", "rate = 0.1, beta1 = 0.9"),
        "optimizer.beta1 = 0.9: unknown key; allowed: rate, name, momentum, nesterov, weight_decay",
    ),
    "columns between quotation marks": (
        ('"digits"', '"csv"\npath = "a.csv"\ntarget = 0\nheader = true\ndelimiter = "\\""'),
        'my.toml:7: [data] delimiter = "\\"": must be a character that neither quotes nor ends a line',
    ),
    "a missing key": (("batch = 64\n", ""), "my.toml:9: [train] batch: is missing"),
    "a missing section": (("[data]\n", ""), "my.toml: [data]: is missing"),
    "a missing source": (('source = "digits"', ""), "my.toml:2: [data] source: is missing"),
    "an unknown choice": (
        ('"sgd"', '"sdg"'),
        'my.toml:12: [train] optimizer.name = "sdg": must be one of sgd, adam, adamw; did you mean sgd?',
    ),
    "no length": (("epochs = 2\n", ""), "my.toml:9: [train]: one of epochs, steps must be given"),
    "two lengths": (
        ("epochs = 2", "epochs = 2\nsteps = 3"),
        "my.toml:12: [train] steps = 3: epochs and steps exclude each other: give one of them",
    ),
    "two models": (
        ("[model]", '[model]\npython = "a:b"'),
        'my.toml:5: [model] python = "a:b": layers and python exclude each other: give one of them',
    ),
    "a micro-batch larger than the batch": (
        ("batch = 64", "batch = 64\nmicro_batch = 65"),
        "my.toml:11: [train] micro_batch = 65: must be at most batch (64)",
    ),
    "nothing left to train on": (
        ('"digits"', '"digits"\nvalidation = 0.5\ntest = 0.5'),
        "my.toml:5: [data] test = 0.5: leaves nothing to train on: its sum with validation (0.5) must be ",
    ),
    "a layer without its kernel": (
        ('kernel = "flatten"', ""),
        "my.toml:6: [model] layers[0].kernel: is missing",
    ),
    "an unknown kernel": (
        ('"flatten"', '"flaten"'),
        'my.toml:6: [model] layers[0].kernel = "flaten": ',
    ),
    "an unknown attribute of a kernel": (("features", "feature"), "my.toml:7: [model] layers[1]: "),
    "a gpt on images": (
        (
            'layers = [\n    { kernel = "flatten" },\n    { kernel = "dense", features = 10 },\n]',
            "gpt = {layers=1, width=8, heads=2}",
        ),
        'my.toml:5: [model] gpt: reads bytes, and so needs [data] source = "text"',
    ),
    "a sample of images": (
        ("[data]", "[sample]\n[data]"),
        'my.toml:2: [sample]: only a model of text writes samples; [data] source is "digits"',
    ),
    "nesterov without momentum": (
        ("rate = 0.1", "rate = 0.1, nesterov = true"),
        "my.toml:12: [train] optimizer.nesterov = true: needs a momentum above 0",
    ),
    "a name that is no folder": (("seed = 1", 'name = "a/b"'), 'my.toml:1: name = "a/b": names the run'),
    "a function without its module": (("[model]", '[model]\npython = "f"'), "exclude each other"),
    "a schedule that ends above the rate": (
        ("rate = 0.1 }", 'rate = 0.1 }\nschedule = { name = "cosine", floor = 0.2 }'),
        "my.toml:13: [train] schedule.floor = 0.2: must be at most optimizer.rate (0.1)",
    ),
    "a warm-up longer than the run": (
        ("epochs = 2", 'steps = 20\nschedule = { name = "cosine", warmup = 20 }'),
        "my.toml:12: [train] schedule.warmup = 20: must be less than steps (20)",
    ),
    "a number for a layer's name": (
        ('"flatten"', '"flatten", name = 3'),
        'my.toml:6: [model] layers[0]: name = 3: must be a string, in "quotes"',
    ),
    "an accuracy that no model has": (
        ("epochs = 2", 'epochs = 2\ntarget = { metric = "accuracy", value = 95 }'),
        "my.toml:12: [train] target.value = 95: must be at most 1: an accuracy is the share of right answers",
    ),
    "infinity": (("rate = 0.1", "rate = inf"), "my.toml:12: [train] optimizer.rate = inf: must be a number"),
    "text that is no TOML": (
        ("batch = 64", "batch 64"),
        "my.toml:10: not TOML: Expected '=' after a key in a key/value pair",
    ),
}


@pytest.mark.parametrize(("change", "expected"), WRONG.values(), ids=WRONG)
def test_wrong(change: tuple[str, str], expected: str, tmp_path: Path) -> None:
    assert change[0] in GOOD
    found = problems(tmp_path, GOOD.replace(*change, 1))
    assert any(expected in line for line in found), found


def test_a_file_whose_own_name_will_not_do(tmp_path: Path) -> None:
    (tmp_path / "my job.toml").write_text(GOOD)
    with pytest.raises(JobError, match=r'gives no name, and its own will not do: name = "my job": names the'):
        load_job(str(tmp_path / "my job.toml"))
    assert load_job(str(tmp_path / "my job.toml"), ["name=mine"]).name == "mine"


@pytest.mark.parametrize(
    ("changes", "evaluations", "checkpoints"),
    [
        (["train.epochs=3"], [16, 32, 48], []),
        (["train.epochs=3", "train.evaluate_every=2", "checkpoint.every=10"], [32, 48], [10, 20, 30, 40]),
        (["train.steps=50", "train.evaluate_every=20", "checkpoint.every=25"], [20, 40, 50], [25]),
    ],
)
def test_when_a_run_pauses(
    changes: list[str], evaluations: list[int], checkpoints: list[int], tmp_path: Path
) -> None:
    pauses = Pauses.of(load(tmp_path, GOOD, *changes), 1000)
    steps = range(1, pauses.total + 1)
    assert [done for done in steps if pauses.evaluates(done)] == evaluations
    assert [done for done in steps if pauses.saves(done)] == checkpoints
    assert [done for done in steps if done in pauses] == sorted({*evaluations, *checkpoints})


def test_all_problems_are_reported_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = (
        GOOD.replace("seed = 1", "seed = -1")
        .replace("64", "0")
        .replace("epochs", "epoch")
        .replace("0.1", "true")
    )
    found = problems(tmp_path, text, "data.test=2.0")
    assert [line.partition(" = ")[0] for line in found] == [
        "my.toml:1: seed",
        "my.toml:9: [train]: one of epochs, steps must be given",
        "my.toml:10: [train] batch",
        "my.toml:11: [train] epoch",
        "my.toml:12: [train] optimizer.rate",
        "--set data.test=2.0: [data] test",
    ]


@pytest.mark.parametrize(
    ("key", "value"),
    [("target", '{ metric = "accuracy", value = 0.9 }'), ("best", '{ metric = "accuracy" }')],
)
def test_what_is_measured_on_the_validation_set_needs_one(key: str, value: str, tmp_path: Path) -> None:
    text = GOOD + f"{key} = {value}\n"
    assert getattr(load(tmp_path, text).train, key) is not None
    assert problems(tmp_path, text, "data.validation=0.0") == [
        f"my.toml:13: [train] {key}: is measured on the validation set: [data] validation must be above 0"
    ]
    for loss in ("mean_squared_error", "absolute_error", "huber"):
        assert problems(tmp_path, text, f"model.loss={loss}") == [
            f'my.toml:13: [train] {key}.metric = "accuracy": {loss} has no accuracy: use "loss"'
        ]
    assert load(tmp_path, text, "model.loss=binary_cross_entropy").model.loss.predicts == "labels"


def test_a_name_without_its_ending_is_told_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.toml").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(JobError, match=r"called 'mine'; for the file here give mine\.toml"):
        load_job("mine")


def test_an_unknown_name_lists_the_packaged_jobs() -> None:
    with pytest.raises(
        JobError, match=r"'digit'; did you mean digits\?\nThere are\n    digits\n    digits-mlp\n"
    ):
        load_job("digit")


def test_a_missing_file_is_named() -> None:
    with pytest.raises(JobError, match=r"none/such.toml: cannot be read: No such file"):
        load_job("none/such.toml")


def test_a_pipe_is_no_job_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "job.toml")
    with pytest.raises(JobError, match=r"job.toml: is a device or a pipe, .*; store the job as a file$"):
        load_jobs([str(tmp_path / "job.toml")])


def test_a_run_given_as_a_job_is_told_how_it_goes_on(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"cannot be read: Is a directory; to go on .* give --resume /"):
        load_job(str(tmp_path))


def test_data_paths_start_at_the_job_files_folder(tmp_path: Path) -> None:
    text = GOOD.replace('"digits"', '"npy"\ninputs = "x.npy"\ntargets = "$HOME/y.npy"')
    data = load(tmp_path, text).data
    assert isinstance(data, NpyData)
    assert (data.inputs, data.targets) == (str(tmp_path / "x.npy"), "$HOME/y.npy")


def test_names_of_arrays_in_an_npz_are_no_paths(tmp_path: Path) -> None:
    data = load(tmp_path, GOOD.replace('"digits"', '"npz"\npath = "a.npz"\ninputs = "x_train"')).data
    assert isinstance(data, NpzData)
    assert (data.path, data.inputs) == (str(tmp_path / "a.npz"), "x_train")


def test_the_digest_tells_jobs_apart(tmp_path: Path) -> None:
    digests = {
        load(tmp_path, GOOD, *change).digest() for change in ((), ("seed=2",), ("model.layers.1.features=9",))
    }
    assert len(digests) == 3


def test_lineage_leaves_the_length_of_a_run_free(tmp_path: Path) -> None:
    job = load(tmp_path, GOOD)
    assert load(tmp_path, GOOD, "train.epochs=9", "run.folder=elsewhere").lineage() == job.lineage()
    assert load(tmp_path, GOOD, "train.batch=65").lineage() != job.lineage()


def test_lineage_leaves_free_where_data_lies(tmp_path: Path) -> None:
    def of(data: str) -> dict[str, Any]:
        return load(tmp_path, GOOD.replace('"digits"', data)).lineage()

    npz = '"npz"\npath = "{}.npz"\ninputs = "{}"'
    assert of(npz.format("a", "x")) == of(npz.format("elsewhere/a", "x"))
    assert of(npz.format("a", "x")) != of(npz.format("a", "z"))  # a name inside the file
    assert of('"idx"\ninputs = "x.idx"\ntargets = "y.idx"') == of('"idx"\ninputs = "d/x"\ntargets = "d/y"')
