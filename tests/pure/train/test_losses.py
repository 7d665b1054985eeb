"""[model] loss: the keys of the losses' kernels, how they are written, and what targets each takes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from tests.pure.train.job_files import GOOD, load, problems
from tests.pure.train.loaded import gathered
from tests.pure.train.loaded import load as data_of
from weft.kernels.registry import LOSSES
from weft.runtime.errors import DataError
from weft.runtime.train.job import load_job
from weft.runtime.train.losses import HuberLoss, PlainLoss

SECTIONS = (PlainLoss, HuberLoss)


def test_every_loss_has_a_section_with_its_attributes_and_defaults():
    told = {name: kind for kind in SECTIONS for name in get_args(kind.model_fields["name"].annotation)}
    assert told.keys() == LOSSES.keys()
    for name, section in told.items():
        attributes = {field.name: field.default for field in dataclasses.fields(LOSSES[name])}
        assert {
            key: field.default for key, field in section.model_fields.items() if key != "name"
        } == attributes


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("absolute_error", '"absolute_error"'),
        ('{ name = "absolute_error" }', '"absolute_error"'),
        ("huber", '{ name = "huber", delta = 1.0 }'),
        ('{ name = "huber", delta = 0.5 }', '{ name = "huber", delta = 0.5 }'),
    ],
)
def test_a_loss_is_its_name_or_a_table_and_stays_what_it_is(given: str, shown: str, tmp_path: Path):
    job = load(tmp_path, GOOD, f"model.loss={given}")
    assert f"loss = {shown}\n" in job.dump()
    (tmp_path / "again.toml").write_text(job.dump())
    again = load_job(str(tmp_path / "again.toml"))
    assert (again, again.digest()) == (job, job.digest())


def test_runs_of_before_had_a_name_in_their_lineage(tmp_path: Path):
    assert load(tmp_path, GOOD).lineage()["model"]["loss"] == "softmax_cross_entropy"
    huber = load(tmp_path, GOOD, "model.loss=huber").lineage()["model"]["loss"]
    assert huber == {"name": "huber", "delta": 1.0}


def test_an_attribute_is_set_of_a_loss_that_the_file_gives_by_name(tmp_path: Path):
    job = load(tmp_path, GOOD, "model.loss=huber", "model.loss.delta=0.25")
    assert job.model.loss == HuberLoss(name="huber", delta=0.25)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            "hubr",
            'loss = "hubr": must be one of softmax_cross_entropy, binary_cross_entropy, mean_squared_error',
        ),
        ('{ name = "hubr" }', 'loss.name = "hubr": must be one of softmax_cross_entropy'),
        ('{ name = "huber", delta = 0 }', "loss.delta = 0: must be more than 0"),
        ('{ name = "huber", delt = 2 }', "loss.delt = 2: unknown key; did you mean delta?"),
        ('{ name = "absolute_error", delta = 2 }', "loss.delta = 2: unknown key; allowed: name"),
        ("{ delta = 2 }", "loss.name: is missing"),
        ("3", 'loss = 3: must be a loss\'s name, in "quotes", or a table, { name = … }'),
    ],
)
def test_what_is_wrong_with_a_loss_is_told(given: str, told: str, tmp_path: Path):
    (problem,) = problems(tmp_path, GOOD, f"model.loss={given}")
    assert f"--set model.loss={given}: [model] {told}" in problem


@pytest.fixture
def npz(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Data of these targets."""
    monkeypatch.chdir(tmp_path)

    def loaded(targets: np.ndarray, loss: str = "binary_cross_entropy"):
        np.savez("d.npz", x=np.arange(3.0 * len(targets)).reshape(-1, 3), y=targets)
        return data_of("npz", loss, path="d.npz", test=0.0, validation=0.0)

    return loaded


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int64", "float16", "float64"])
def test_labels_are_learnt_as_numbers_one_or_several_a_sample(npz: Any, dtype: str):
    targets = np.array([[0, 1], [1, 1], [0, 0], [1, 0]]).astype(dtype)
    data = npz(targets)
    assert (data.classes, data.target_spec.shape, data.target_spec.dtype) == (None, (2,), "float32")
    np.testing.assert_array_equal(gathered(data.train)[1], targets.astype("float32"))
    assert npz(targets[:, 0]).target_spec.shape == (1,)  # as the output of a dense layer of one feature


def test_labels_may_be_probabilities(npz: Any):
    np.testing.assert_allclose(gathered(npz(np.array([0.25, 0.5, 1.0])).train)[1][:, 0], [0.25, 0.5, 1.0])


@pytest.mark.parametrize(
    ("targets", "told"),
    [
        (
            [1, -1, 1],
            r"target -1 of sample 1 is no label; .* Of -1 and 1 store targets > 0; for numbers of cl",
        ),
        ([[0, 1], [0, 2]], r"target 2 of sample 1 is no label; labels are 0 or 1, or probabilities between"),
        ([0.5, 1.0, 1.5], r"target 1\.5 of sample 2 is no label"),
        ([0.0, np.nan], r"target nan of sample 1 is no label"),
    ],
)
def test_what_is_no_label_is_told_with_its_place(npz: Any, targets: Any, told: str):
    with pytest.raises(DataError, match=told):
        npz(np.array(targets))


def test_names_are_for_a_loss_of_classes(tmp_path: Path):
    (tmp_path / "t.csv").write_text("1,yes\n2,no\n")
    with pytest.raises(DataError, match=r"holds names .* binary_cross_entropy takes numbers; for names use"):
        data_of("csv", "binary_cross_entropy", path=str(tmp_path / "t.csv"), target=1, header=False)
