"""What every policy keeps: no job is lost or doubled, whatever happens; and each peer's own rule."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pure.serve.emulated import FAST, SLOW, job, profiles, started
from tests.pure.serve.emulated import settings as make_settings
from weft.runtime.serve.policy import POLICIES, Batch, Triton
from weft.runtime.serve.request import Reason
from weft.runtime.serve.virtual import Simulation

ARRIVALS = st.lists(
    st.tuples(
        st.floats(0.0, 0.02),  # after the one before
        st.sampled_from([0.004, 0.02, 0.05, 0.2, 2.0, inf]),
        st.sampled_from(["interactive", "batch"]),
        st.sampled_from(["a", "b"]),
        st.integers(1, 6),  # samples
        st.booleans(),  # best effort
        st.one_of(st.none(), st.floats(0.0, 0.1)),  # cancelled so long after
    ),
    max_size=60,
)


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=25, deadline=None)
@given(arrivals=ARRIVALS, lost=st.booleans(), max_queue=st.sampled_from([3, 1000]))
def test_s5_2_every_job_is_answered_or_refused_once_with_a_reason(name, arrivals, lost, max_queue):
    policy = POLICIES[name](make_settings(max_queue=max_queue), profiles(FAST, SLOW))
    simulation = Simulation(policy, (FAST, SLOW), seed=1)
    jobs, now_s, cancelled = [], 0.0, []
    for number, (step_s, deadline_s, each, family, samples, best_effort, leaves_s) in enumerate(arrivals):
        now_s += step_s
        made = job(number, now_s, deadline_s, each, family=family, samples=samples, best_effort=best_effort)
        jobs.append(made)
        if leaves_s is not None:
            simulation.at(
                now_s + leaves_s, lambda _, made=made: cancelled.append(made) if policy.cancel(made) else None
            )
    if lost:
        simulation.at(0.1, lambda _: simulation.down("fast"))
        simulation.at(0.3, lambda _: simulation.up("fast"))
    outcomes = simulation.run(jobs)
    numbers = [outcome.job.number for outcome in outcomes] + [each.number for each in cancelled]
    assert sorted(numbers) == list(range(len(jobs)))
    assert all(o.refused is None or isinstance(o.refused.reason, Reason) for o in outcomes)
    assert policy.queued.total() == 0
    for batch, _, _ in simulation.batches:
        assert batch.samples == sum(each.samples for each in batch.jobs) <= 32
        assert {each.family for each in batch.jobs} == {batch.model}


@pytest.mark.parametrize("name", POLICIES)
def test_s5_2_a_full_queue_refuses(name):
    policy = started(POLICIES[name], FAST, with_settings=make_settings(max_queue=2))
    refused = [policy.arrive(job(n, deadline_s=2.0, each="batch"), 0.0) for n in range(3)]
    assert [r and r.reason for r in refused] == [None, None, Reason.QUEUE_FULL]


@pytest.mark.parametrize("name", POLICIES)
def test_s5_2_without_a_resource_there_is_no_worker(name):
    policy = started(POLICIES[name], FAST)
    policy.down("fast", 0.0)
    refused = policy.arrive(job(0), 0.0)
    assert refused is not None
    assert refused.reason == Reason.NO_WORKER


@pytest.mark.parametrize("name", POLICIES)
def test_s5_3_the_result_updates_the_profile_of_that_resource_and_model_alone(name):
    policy = started(POLICIES[name], FAST, SLOW)
    before = {key: profile.results for key, profile in policy.profiles.items()}
    policy.arrive(job(0), 0.0)
    batch = policy.next(0.0)
    assert isinstance(batch, Batch)
    policy.ended(batch, 0.0, 0.004)
    changed = {key for key, profile in policy.profiles.items() if profile.results != before[key]}
    assert changed == {(batch.resource, batch.model)}


def test_s5_6_triton_waits_for_its_delay_and_no_longer():
    policy = Triton(make_settings(), profiles(FAST), delay_s=0.005)
    policy.up("fast", "cpu", FAST.costs, 0.0)
    policy.arrive(job(0), 0.0)
    assert policy.next(0.0) == 0.005
    assert isinstance(policy.next(0.005), Batch)


def test_s5_6_nexus_drops_the_head_that_would_not_survive_the_batch():
    policy = started(POLICIES["nexus"], FAST)
    policy.arrive(job(0, deadline_s=0.004), 0.0)
    for number in range(1, 9):
        policy.arrive(job(number), 0.0)
    batch = policy.next(0.0)
    assert isinstance(batch, Batch)
    assert [each.number for each in batch.jobs] == list(range(1, 9))
    assert [(each.number, r.reason) for each, r in policy.dropped()] == [(0, Reason.EXPIRED)]


def test_s5_6_clockwork_takes_a_size_that_can_be_filled_exactly():
    policy = started(POLICIES["clockwork"], FAST)
    for number in range(11):
        policy.arrive(job(number), 0.0)
    batch = policy.next(0.0)
    assert isinstance(batch, Batch)
    assert batch.samples == 8
