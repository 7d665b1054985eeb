"""Targets of a regression: normalised for training, and predictions led back to their units."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.pure.train.loaded import gathered, load
from weft.runtime.errors import DataError
from weft.runtime.train.advice import far_off
from weft.runtime.train.data import Data
from weft.runtime.train.inference import described
from weft.runtime.train.job import load_job

REGRESSION = {"loss": "mean_squared_error", "normalise_targets": "standard"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with 200 samples of three targets: around 300, in thousandths, and a constant; and classes."""
    monkeypatch.chdir(tmp_path)
    np.save("c.npy", np.arange(200) % 30)
    random = np.random.default_rng(3)
    np.save("x.npy", random.standard_normal((200, 4)))
    columns = random.normal(300, 100, 200), random.normal(0, 1e-3, 200), np.full(200, 7.0)
    np.save("y.npy", np.stack(columns, axis=1))
    return tmp_path


def npy(**keys: Any) -> Data:
    return load("npy", **{"inputs": "x.npy", "targets": "y.npy", **REGRESSION, **keys})


def test_targets_have_mean_0_and_deviation_1_by_the_training_samples_alone(here: Path):
    data, plain = npy(), npy(normalise_targets=None)
    assert not plain.outcome.changes
    _, targets = gathered(data.train)
    np.testing.assert_allclose(targets[:, :2].mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(targets[:, :2].std(0), 1, rtol=1e-5)
    assert (targets[:, 2] == 0).all()  # a constant is no reason to divide by nothing
    for normalised, raw in ((data.train, plain.train), (data.test, plain.test)):
        _, got = gathered(normalised)
        _, wanted = gathered(raw)
        np.testing.assert_allclose(got / data.outcome.scale + data.outcome.mean, wanted, rtol=1e-5)
    _, test = gathered(data.test)
    assert abs(test[:, 0].mean()) > 1e-3  # by the training samples' mean, not by its own
    assert data.digest() == plain.digest()  # of what is in the files


def test_a_target_of_one_number_and_a_test_set_of_its_own(here: Path):
    np.save("one.npy", np.load("y.npy")[:, 0])
    np.save("other.npy", np.load("y.npy")[:, 0] + 50)
    data = npy(targets="one.npy", test_inputs="x.npy", test_targets="other.npy", validation=0.0)
    np.testing.assert_allclose(gathered(data.train)[1].std(), 1, rtol=1e-5)
    np.testing.assert_allclose(gathered(data.test)[1].mean(), 50 * data.outcome.scale[0], rtol=1e-4)


def test_images_as_targets_are_normalised_by_channel(here: Path):
    images = np.random.default_rng(1).standard_normal((200, 2, 3, 3)) * [[[[1]], [[50]]]] + 9
    np.save("y.npy", images)
    _, targets = gathered(npy().train)
    np.testing.assert_allclose(targets.std((0, 2, 3)), 1, rtol=1e-5)


def test_times_near_1e9_keep_their_minutes(here: Path):
    """A float32 has steps of 128 there; the mean is taken off before."""
    times = 1.7e9 + np.random.default_rng(1).uniform(0, 100, 200)
    np.save("y.npy", times)
    _, targets = gathered(npy(validation=0.0, test=0.0).train)
    wanted = (times - times.mean()) / times.std()
    np.testing.assert_allclose(targets[:, 0], wanted, atol=1e-4)


def test_classes_are_not_normalised(here: Path):
    with pytest.raises(DataError, match=r'normalise_targets = "standard" is for values, and softmax_cross'):
        npy(loss="softmax_cross_entropy", targets="c.npy")
    with pytest.raises(DataError, match=r"for values, and binary_cross_entropy takes labels: leave it out"):
        npy(loss="binary_cross_entropy")


@pytest.mark.parametrize(
    ("targets", "about"),
    [
        (lambda y: y * 0 + 250.0, "250"),
        (lambda y: y * 0 + 1e-3, "0.001"),
        (lambda y: y[:, 1:2] * 1e3, ""),
        (lambda y: y * 0, ""),
    ],
    ids=["large", "small", "as they should be", "nothing but zeros"],
)
def test_of_targets_that_train_slowly_a_run_says_so(here: Path, targets: Any, about: str):
    np.save("y.npy", targets(np.load("y.npy")))
    job, classes = load_job("digits", ["model.loss=huber"]), load_job("digits")
    told = far_off(job, npy(normalise_targets=None))
    assert told == "" if not about else f"numbers of about {about}" in told
    np.save("y.npy", 250 + np.random.default_rng(1).standard_normal(200))
    assert far_off(job, npy()) == ""
    assert far_off(classes, npy(loss="softmax_cross_entropy", normalise_targets=None, targets="c.npy")) == ""


def test_a_checkpoint_tells_how_targets_were_normalised(here: Path):
    told = described(npy())
    assert np.shape(told["target_mean"]) == np.shape(told["target_scale"]) == (3,)
    plain = described(npy(normalise_targets=None))
    assert (plain["target_mean"], plain["target_scale"]) == (0.0, 1.0)
