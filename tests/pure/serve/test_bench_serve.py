"""The benches of serving: tiny runs give their figures, and a policy that loses a request gives none."""

from __future__ import annotations

import argparse

import pytest

from bench import dispatch, serve
from bench._arrivals import Load, jobs
from bench._emulated import FAMILIES
from bench._score import feasible, score
from bench.harness import WrongResultError
from weft.runtime.serve.policy import POLICIES
from weft.runtime.serve.virtual import Outcome


def test_s5_6_serve_compares_all_policies_and_draws_them(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    picture = tmp_path / "serve.png"
    found = serve.main(argparse.Namespace(loads=[0.8, 1.5], seconds=0.4, seeds=1, picture=picture))
    assert {f"over_{name}_15" for name in POLICIES if name != "weft"} <= set(found)
    assert 0.9 < found["on_time_08"].value <= 1.0
    assert 0.0 <= found["late_share"].value < 0.05
    assert picture.stat().st_size > 10_000
    told = capsys.readouterr().err
    assert [name for name in POLICIES if name not in told] == []  # whole, where a terminal has 80 columns


def test_s5_6_dispatch_tells_times_and_errors():
    found = dispatch.main(argparse.Namespace(queued=1000, events=1500, repetitions=1))
    assert 0 < found["decision_p50_us"].value <= found["decision_p99_us"].value
    assert found["prediction_error"].value <= 0.05
    assert found["relearned_batches"].value <= 20


@pytest.mark.parametrize("broken", ["lost", "doubled"])
def test_s5_6_a_request_that_is(broken):
    arriving = jobs(Load(100.0, 0.5, FAMILIES))
    outcomes = [Outcome(each, each.arrival_s + 0.01) for each in arriving]
    outcomes = outcomes[1:] if broken == "lost" else [*outcomes, outcomes[0]]
    with pytest.raises(WrongResultError, match="lost, or answered twice"):
        score(arriving, outcomes, 0.5, 100.0)


@pytest.mark.parametrize("bursty", [False, True])
def test_s5_6_arrivals_have_the_rate_that_was_asked_for_and_are_the_same_again(bursty):
    load = Load(1000.0, 40.0, FAMILIES, bursty)
    arriving = jobs(load)
    assert len(arriving) == pytest.approx(40_000, rel=0.12)
    assert [each.arrival_s for each in arriving] == [each.arrival_s for each in jobs(load)]


def test_s5_6_what_could_be_met_is_all_when_there_is_time_and_no_more_than_the_speed_allows():
    arriving = jobs(Load(1000.0, 2.0, FAMILIES))
    assert feasible(arriving, 10_000.0) == len(arriving)
    assert feasible(arriving, 500.0) <= 500.0 * (arriving[-1].deadline_s + 2.0)
