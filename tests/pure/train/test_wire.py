"""The job file's keys for what travels: wire and keep."""

from __future__ import annotations

import pytest

from weft.runtime.errors import JobError
from weft.runtime.train.job import load_job


def test_gradients_travel_exactly_unless_told_otherwise():
    exchange = load_job("digits").exchange
    assert (exchange.wire, exchange.keep) == ("float32", None)


def test_top_k_keeps_a_hundredth_unless_told_otherwise():
    assert load_job("digits", ["exchange.wire=top_k"]).exchange.keep == 0.01
    assert load_job("digits", ["exchange.wire=top_k", "exchange.keep=0.1"]).exchange.keep == 0.1


@pytest.mark.parametrize("wire", ["float32", "float16", "bfloat16", "top_k"])
def test_a_stored_job_says_what_was_trained(wire, tmp_path):
    job = load_job("digits", [f"exchange.wire={wire}"])
    path = tmp_path / "digits.toml"
    path.write_text(job.dump())
    assert load_job(str(path)) == job


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        pytest.param(["wire=float8"], "must be one of float32, float16, bfloat16", id="unknown format"),
        pytest.param(["keep=0.1"], 'keep = 0.1: is for wire = "top_k"', id="nothing is left out"),
        pytest.param(["wire=bfloat16", "keep=0.1"], 'is for wire = "top_k"', id="another format"),
        pytest.param(["wire=top_k", "keep=0"], "must be more than 0", id="none is kept"),
        pytest.param(["wire=top_k", "keep=1.5"], "must be at most 1", id="more than all"),
    ],
)
def test_what_makes_no_sense_is_refused(overrides, sentence):
    with pytest.raises(JobError, match=sentence):
        load_job("digits", [f"exchange.{text}" for text in overrides])
