"""What is said of numbers that are none: in what is given, in what training makes of it."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests.system.small import train


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    ("rate", "steps", "told"),
    [("1e38", 9, "the loss of small became "), ("1e38", 1, "the test loss of small became ")],
    ids=["in a step", "in the last step, which the test set alone tells"],
)
def test_training_that_diverges_says_so(rate, steps, told, ranks, job, tmp_path):
    result = train(
        ranks, job, "--set", "train.optimizer.name=sgd", "--set", f"train.optimizer.rate={rate}",
        "--set", "train.optimizer.weight_decay=0.0", "--set", f"train.steps={steps}", folder=tmp_path,
    )  # fmt: skip
    assert result.returncode == 1, result.stdout
    said = [line for line in result.stderr.splitlines() if "training diverged" in line]
    assert len(said) == 1, result.stderr
    assert said[0].startswith(f"weft: {told}")
    assert "Traceback" not in result.stderr
    assert "Warning" not in result.stderr
    assert "all steps done" not in result.stdout


@pytest.mark.parametrize("ranks", [1, 2])
def test_weights_that_overflow_in_the_last_step_are_told_of_and_not_stored(ranks, job, tmp_path):
    """Also where nothing is held out whose loss would tell."""
    x = np.random.default_rng(1).normal(scale=1e12, size=(40, 5)).astype(np.float32)
    np.savez(tmp_path / "large.npz", x=x, y=np.arange(40) % 3)
    result = train(
        ranks, job, "--set", "data={ source = 'npz', path = 'large.npz', validation = 0.0, test = 0.0 }",
        "--set", "model.layers=[{ kernel = 'dense', features = 3 }]", "--set", "train.steps=1",
        "--set", "train.optimizer={ name = 'sgd', rate = 1e38 }", folder=tmp_path,
    )  # fmt: skip
    assert result.returncode == 1, result.stdout
    said = [line for line in result.stderr.splitlines() if "training diverged" in line]
    assert len(said) == 1, result.stderr
    assert said[0].startswith("weft: dense_1.weight of small holds NaN or infinity after step 1")
    assert "Traceback" not in result.stderr
    assert "all steps done" not in result.stdout
    assert not list(tmp_path.glob("runs/*/checkpoints/*"))


def test_losses_that_are_no_numbers_from_the_start_are_not_blamed_on_the_rate(job, tmp_path):
    images = np.full((200, 1, 8, 8), np.nan, np.float32)
    np.savez(tmp_path / "bad.npz", x=images, y=np.arange(200) % 10)
    result = train(2, job, "--set", "data={ source = 'npz', path = 'bad.npz' }", folder=tmp_path)
    assert result.returncode == 1
    said = re.findall(
        r"weft: the loss of small is nan in step 1: sample \d+ of \S+bad.npz\[x\] holds nan;", result.stderr
    )
    assert len(said) == 1, result.stderr
    assert "rate" not in result.stderr
    assert "Traceback" not in result.stderr


def test_a_test_loss_that_is_no_number_names_its_sample(job, tmp_path):
    images = np.zeros((200, 1, 8, 8), np.float32)
    test = images[:9].copy()
    test[7, 0, 2] = np.inf
    np.savez(tmp_path / "bad.npz", x=images, y=np.arange(200) % 10, tx=test, ty=np.arange(9))
    data = "{ source = 'npz', path = 'bad.npz', test_inputs = 'tx', test_targets = 'ty' }"
    result = train(2, job, "--set", f"data={data}", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    said = r"small: test score after step \d+: the loss is nan: sample 7 of \S+bad.npz\[tx\] holds inf; clean"
    assert re.search(said, result.stdout), result.stdout
