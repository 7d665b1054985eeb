"""Tuning and new plans on live ranks: alike on all of them, and nothing of the result depends on it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import astuple, dataclass, field
from math import inf

import numpy as np
import pytest
from mpi4py import MPI

from tests.mpi.exchange.test_overlap import two_layers
from tests.mpi.training import Bench, Trained, disturb, require_equal_bits
from weft.runtime.exchange import Plan
from weft.runtime.exchange.tune import DEFAULT, STEPS, Settings
from weft.runtime.graph.backward import Phase
from weft.runtime.train import loop, oracle
from weft.runtime.train.loop import Planned
from weft.runtime.train.schema import Job

LENGTH = 30  # of a run, in steps
WAYS = pytest.mark.parametrize("inside", ["shared", "flat"])


@pytest.fixture(autouse=True)
def _short_runs_are_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "TUNED_STEPS", STEPS)
    # On busy cores all of the steps may go to trials that are repeated.
    monkeypatch.setattr("weft.runtime.exchange.tune.DISTURBED", inf)


def job(**exchange: object) -> Job:
    """A layer of 1 MB, to be cut in up to eight."""
    layers = [
        {"kernel": "flatten"},
        {"kernel": "dense", "features": 512},
        {"kernel": "relu"},
        {"kernel": "dense", "features": 512},
        {"kernel": "relu"},
        {"kernel": "dense", "features": 10},
    ]
    size = MPI.COMM_WORLD.Get_size()
    return Job.model_validate(
        {
            "name": "tuned",
            "data": {"source": "digits"},
            "model": {"layers": layers},
            "train": {
                "batch": 8 * size,
                "micro_batch": 8,
                "steps": LENGTH,
                "optimizer": {"name": "sgd", "rate": 0.01, "momentum": 0.9},
            },
            "exchange": exchange,
        }
    )


@dataclass
class Tuned:
    """What was seen of a run: its end, the settings tried, and with which each step was made."""

    trained: Trained
    tried: list[Settings]
    by_step: list[Settings] = field(default_factory=list)
    travels: bool = True
    planned: list[Planned] = field(default_factory=list)  # what was told

    @property
    def end(self) -> Settings:
        return self.by_step[-1]


def tune(bench: Bench, *given: Callable, **more: object) -> Tuned:
    tried: list[Settings] = []
    by_step: list[Settings] = []
    planned: list[Planned] = []
    travels = []

    def arrange(training, replica, world):
        attempt, step = training._try, training._step
        travels.append(training.travels)

        async def attempted(settings: Settings, *how: object) -> None:
            tried.append(settings)
            await attempt(settings, *how)

        async def made(number: int) -> None:
            by_step.append(training.settings)
            await step(number)

        training._try, training._step, training._on_plan = attempted, made, planned.append

    trained = bench.train(*given, arrange=arrange, **more)
    require_equal_everywhere([astuple(settings) for settings in by_step])
    require_equal_everywhere([(one.step, one.words) for one in planned])
    return Tuned(trained, tried, by_step, travels[0], planned)


def require_equal_everywhere(values: object) -> None:
    assert all(other == values for other in MPI.COMM_WORLD.allgather(values))


@pytest.mark.mpi(min_size=2)
@WAYS
def test_s3_4_all_ranks_choose_the_same_settings_and_the_result_does_not_change(inside):
    bench = Bench(job(inside=inside))
    tuned = tune(bench)
    assert tuned.trained.steps == LENGTH
    if tuned.travels:
        assert len(set(tuned.tried)) > 2
        assert tuned.end in tuned.tried
    else:
        assert tuned.tried == []
    on_trial = 2 * len(tuned.tried)
    assert on_trial <= STEPS
    assert tuned.by_step[:on_trial] == [settings for settings in tuned.tried for _ in range(2)]
    assert set(tuned.by_step[on_trial:]) == {tuned.end}
    assert bool(tuned.planned) == tuned.travels
    for planned in tuned.planned:
        assert (planned.settings, planned.on_trial) == (tuned.end, on_trial)
        assert planned.words.startswith(f"wire, at most {tuned.end.credit} under way: ")
    require_equal_bits(tuned.trained.parameters)
    serial = bench.replica()
    losses = oracle.train(bench.job, bench.data, serial, LENGTH, lambda array: None)
    np.testing.assert_allclose(tuned.trained.losses, losses, rtol=2e-5)
    np.testing.assert_allclose(tuned.trained.parameters, serial.parameters, rtol=1e-3, atol=2e-5)


@pytest.mark.mpi(min_size=2)
def test_s3_4_what_the_job_file_gives_is_left_alone():
    tuned = tune(Bench(job(inside="flat", credit=3, rule="latest_first")))
    assert {(settings.credit, settings.rule) for settings in tuned.by_step} == {(3, "latest_first")}
    assert len({settings.portion_bytes for settings in tuned.tried}) > 1
    given = Settings(1 << 18, 1, "first_come")
    tuned = tune(Bench(job(inside="flat", **{name: getattr(given, name) for name in given.__slots__})))
    assert tuned.tried == []
    assert set(tuned.by_step) == {given}


@pytest.mark.mpi(min_size=2)
@WAYS
def test_a_pause_comes_at_its_step_and_tuning_goes_on_behind_it(inside):
    """It ended there: of a run that evaluates every three steps one trial was made."""
    pauses = []
    tuned = tune(Bench(job(inside=inside)), pause={3, 6, 7, 9}, boundary=lambda done: pauses.append(done))
    assert pauses == [3, 6, 7, 9]
    assert tuned.trained.steps == LENGTH
    if not tuned.travels:
        return
    # Steps 1, 2 | 4, 5 | 8, 9 are trials before the last pause; those between are made with the best so far.
    assert len(tuned.tried) > 3
    assert [tuned.by_step[step] for step in (0, 1, 3, 4, 7, 8)] == [
        settings for settings in tuned.tried[:3] for _ in range(2)
    ]
    assert {tuned.by_step[2], tuned.by_step[5], tuned.by_step[6]} <= set(tuned.tried[:2])
    assert {one.on_trial for one in tuned.planned} == {2 * len(tuned.tried)}


@pytest.mark.mpi(min_size=2)
def test_a_run_that_pauses_after_each_step_is_not_tuned_and_tells_its_plan_all_the_same():
    tuned = tune(Bench(job(inside="flat")), pause=range(1, LENGTH + 1))
    assert tuned.tried == []
    assert tuned.planned[0].step == 1
    assert {(one.settings, one.on_trial) for one in tuned.planned} == {(DEFAULT, 0)}


@pytest.mark.mpi(min_size=2)
@WAYS
def test_a_wish_to_stop_while_settings_are_tried_stops_all_behind_the_same_step(inside):
    def stop_on_the_last_rank(step, team):
        if team.rank == team.size - 1 and step == 4:
            team.stopping = True

    trained = tune(Bench(job(inside=inside)), stop_on_the_last_rank).trained
    assert 4 < trained.steps <= 8
    require_equal_everywhere(trained.steps)
    require_equal_bits(trained.parameters)


@pytest.mark.mpi(min_size=2)
def test_a_short_run_is_not_tuned(monkeypatch):
    monkeypatch.setattr(loop, "TUNED_STEPS", LENGTH + 1)
    tuned = tune(Bench(job(inside="flat")))
    assert set(tuned.by_step) == {DEFAULT}


@pytest.mark.mpi(min_size=2)
def test_a_gradient_of_one_portion_is_not_tuned():
    small = job(inside="flat")
    layers = [*small.model.layers[:1], *small.model.layers[-1:]]
    tuned = tune(Bench(small.model_copy(update={"model": small.model.model_copy(update={"layers": layers})})))
    assert tuned.tried == []
    assert set(tuned.by_step) == {DEFAULT}


@pytest.mark.mpi(min_size=2)
@WAYS
def test_timings_that_drift_give_all_ranks_the_same_new_plan(inside, monkeypatch):
    """Kernels of one rank take 50 ms for three steps, then next to nothing; the wire is always as fast."""
    monkeypatch.setattr("weft.runtime.exchange.exchange.byte_s", lambda order, portions, round_: 1e-8)
    long = two_layers(inside=inside, rule="lower_layer_first").model_dump()
    long["train"]["steps"] = 12
    bench, steps = Bench(Job.model_validate(long)), 0
    plans: list[Plan] = []
    travels = []

    def arrange(training, replica, world):
        exchange = training.exchange
        replan = exchange._replan
        travels.append(training.travels)
        plans.append(exchange.plan)

        async def replanned() -> None:
            await replan()
            plans.append(exchange.plan)

        def before(step, rows):
            nonlocal steps
            steps += (step.node, step.phase) == ("two", Phase.FORWARD) and not (rows and rows.start)
            if step.phase is Phase.WEIGHT_GRADIENT and steps <= 3 and world.rank == world.size - 1:
                time.sleep(0.05)

        exchange._replan = replanned
        disturb(replica, before)

    trained = bench.train(arrange=arrange)
    require_equal_everywhere([(plan.order, plan.backward, plan.credit) for plan in plans])
    if travels[0]:
        guessed, slow, fast = plans  # made before the first step and behind the third and the tenth
        assert slow is not guessed
        assert fast is not slow
    else:
        assert len(plans) == 1
    losses, weights = bench.oracle(trained)
    np.testing.assert_array_equal(trained.losses, losses)
    np.testing.assert_array_equal(trained.parameters, weights)
