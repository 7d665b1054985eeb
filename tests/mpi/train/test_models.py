"""Several models in one job: one order on every rank, and the same weights as alone."""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict

import numpy as np
import pytest

from tests.mpi.train.fleets import (
    RANK,
    SIZE,
    after_compiling,
    assert_equal,
    before_kernel,
    changed,
    dense,
    final,
    fleet,
    text,
)
from weft.runtime.observe import read_chrome, read_metrics
from weft.runtime.train.fleet import claim
from weft.runtime.train.interleave import steps
from weft.runtime.train.prepare import Prepared


@pytest.mark.mpi
@pytest.mark.parametrize("inside", ["shared", "flat"])
def test_s2_4_the_weights_are_those_of_separate_runs(inside, folder):
    """Two models that differ in size, optimizer, data and length."""
    jobs = [changed(job, "exchange", inside=inside) for job in (dense(folder), text(folder))]
    together = fleet(jobs)
    assert [result.steps for result in together.results] == [8, 6]
    assert [result.failure for result in together.results] == [None, None]
    for model, job in enumerate(jobs):
        assert_equal(together, model, fleet([job]))


@pytest.mark.mpi(min_size=2)
def test_s2_4_models_whose_ranks_take_work_from_each_other_lose_and_double_nothing(folder):
    """Beside each other, and with ranks that are late: their losses are those of a fixed division."""
    jobs = [dense(folder, batch=72 * SIZE, steps=4), text(folder, batch=12 * SIZE)]
    fixed = fleet(jobs)
    free = fleet([changed(job, "train", deterministic=False) for job in jobs], arrange=disturbed)
    for model in range(2):
        assert free.results[model].score[:2] == pytest.approx(fixed.results[model].score[:2], rel=1e-3)
        if RANK == 0:
            metrics = [read_metrics(ran.ready[model].folder.metrics) for ran in (free, fixed)]
            losses = [one.steps.loss.tolist() for one in metrics]
            np.testing.assert_allclose(*losses, rtol=1e-4)
            if len(metrics[0].work) == SIZE:  # (who has its node's memory for itself takes nothing)
                counted = sum(sum(row["micro_batches"].values()) for row in metrics[0].work)
                assert counted == jobs[model].train.steps * 3 * SIZE
            assert not metrics[1].work


def disturbed(ready: list[Prepared]) -> None:
    """Ranks of which each is late in other steps."""
    late = random.Random(RANK)

    def tamper(one: Prepared) -> None:
        load = one.replica.load

        def slow_load(*arguments) -> None:
            time.sleep(late.choice([0, 0, 0.01]))
            load(*arguments)

        one.replica.load = slow_load  # type: ignore[method-assign]

    for one in ready:
        tamper(one)


@pytest.mark.mpi
def test_s2_1_steps_start_in_the_determined_order_on_every_rank(folder):
    jobs = [
        dense(folder, "one", steps=9),
        changed(text(folder, "two", steps=4), "run", share=2.0),
        dense(folder, "three", steps=6, batch=9, micro_batch=9),
        changed(dense(folder, "four", steps=5), "run", priority=1),
    ]
    ran = fleet(jobs, disturbed)
    claims = [claim(one.replica.graph, one.job, len(one.data.train), SIZE) for one in ran.ready]
    order = [(jobs[model].name, step) for model, step in steps(claims, [9, 4, 6, 5])]
    assert ran.starts == order
    if RANK == 0:
        for one in ran.ready:  # every model's folder holds the spans of all
            traces = read_chrome(one.folder.trace)
            assert [trace.rank for trace in traces] == list(range(SIZE))
            for trace in traces:
                first: dict[tuple[str, int], int] = {}
                for span in trace.spans:
                    if span.track == "compute" and "step" in span.args:
                        first.setdefault((span.args["model"], span.args["step"]), span.start_ns)
                assert sorted(first, key=first.__getitem__) == order


class Posted:
    """Whose portion 0 has left on this rank; lanes can wait for it."""

    def __init__(self) -> None:
        self.events: dict[str, threading.Event] = defaultdict(threading.Event)

    def __call__(self, what: str) -> None:
        if "portion 0" in what:
            self.events[portion_of(what)[0]].set()

    def before(self, one: Prepared, model: str) -> None:
        """Have the last weight gradient of the first step of `one` wait for portion 0 of `model`.

        Later steps must not: portions leave when those of the step before have arrived, for which another
        rank may need the lane that waits.
        """

        def wait(step: int) -> None:
            assert step or self.events[model].wait(30), f"portion 0 of {model} did not leave"

        after_compiling(one, lambda: before_kernel(one, "backward", wait))


def portion_of(what: str) -> tuple[str, int]:
    """Model and step (from 0) of a portion, as the exchange describes its transfer."""
    model, _, rest = what.partition(": step ")
    return model, int(rest.partition(",")[0]) - 1


@pytest.mark.mpi
def test_s2_2_one_model_computes_while_the_others_gradients_travel(folder):
    """The last weight gradient of b waits, on the lane, until the first portion of a has left, and no portion
    of a arrives before that weight gradient: spans overlap on every rank, or nothing goes on.
    Of a rank alone nothing travels."""
    jobs = [changed(dense(folder, name, evaluate_every=8), "exchange", inside="flat") for name in "ab"]
    posted = Posted()

    def hold(what: str) -> tuple[str, str, int] | None:
        if what[0] == "a" and "portion" in what:
            return ("b", "dense_1.weight_gradient", portion_of(what)[1])
        return None

    ran = fleet(jobs, lambda ready: posted.before(ready[1], "a"), hold, posted)
    assert [result.steps for result in ran.results] == [8, 8]
    ends = {
        task.info["step"]: end
        for model, task, _, end in ran.spans
        if model == "b" and task.name == "dense_1.weight_gradient" and task.info
    }
    assert sorted(ends) == list(range(8))
    travelling = [(facts["step"], left, arrived) for _, left, arrived, facts in ran.wires
                  if facts["model"] == "a"]  # fmt: skip
    assert all(ends[step] <= arrived for step, _, arrived in travelling)
    assert any(left <= ends[step] for step, left, _ in travelling if step == 0) == (SIZE > 1)


@pytest.mark.mpi
def test_s2_3_synchronisation_starts_before_all_gradients_exist(folder):
    """The last weight gradient of each model's first step waits, on the lane, until a portion has left."""
    jobs = [changed(dense(folder, name), "exchange", inside="flat") for name in "ab"]
    posted = Posted()

    def arrange(ready: list[Prepared]) -> None:
        for one in ready:
            posted.before(one, one.job.name)

    ran = fleet(jobs, arrange, started=posted)
    assert [(result.failure, result.steps) for result in ran.results] == [(None, 8), (None, 8)]


@pytest.mark.mpi
def test_a_model_whose_target_is_reached_leaves_the_others(folder):
    target = {"metric": "loss", "value": 100.0}
    jobs = [dense(folder, "early", target=target), dense(folder, "late", evaluate_every=8)]
    ran = fleet(jobs)
    assert [result.steps for result in ran.results] == [4, 8]
    assert_equal(ran, 1, fleet([jobs[1]]))


@pytest.mark.mpi
def test_runs_of_several_models_are_resumed_together(folder):
    # Portions as large as layers: a run's first step computes layers whole, and rows may round otherwise.
    jobs = [changed(job, "exchange", portion_bytes=1 << 20) for job in (dense(folder), text(folder))]
    whole = fleet(jobs)
    short = [changed(job, "train", steps=3, evaluate_every=3) for job in jobs]
    first = fleet(short)
    runs = [result.folder for result in first.results]
    second = fleet(jobs, resume=runs)
    assert [one.first_step for one in second.ready] == [3, 3]
    if RANK == 0:
        for model in range(2):
            expected = final(whole, model)
            for name, tensor in final(second, model).items():
                np.testing.assert_array_equal(tensor, expected[name], err_msg=name)
