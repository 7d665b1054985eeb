"""What every policy keeps: no job is lost or doubled, whatever happens; and each peer's own rule."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pure.serve.emulated import FAST, SLOW, job, profiles, started
from tests.pure.serve.emulated import settings as make_settings
from weft.runtime.serve.policy import POLICIES, Batch, Model, Triton
from weft.runtime.serve.profile import Profiles
from weft.runtime.serve.request import Reason
from weft.runtime.serve.virtual import Cost, Device, Simulation

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


@pytest.mark.parametrize("name", [name for name in POLICIES if name != "first_come"])
@pytest.mark.parametrize("samples", [1, 8])
def test_s5_5_deadlines_expire_while_the_only_worker_is_stuck(name, samples):
    policy = started(POLICIES[name], FAST)
    policy.arrive(job(0), 0.0)
    assert isinstance(policy.next(0.0), Batch)  # it takes 4 ms, and never ends
    now_s = 0.010
    assert policy.arrive(job(1, now_s, samples=samples), now_s) is None
    while (ask_s := policy.next(now_s)) < inf:
        now_s = ask_s
    assert [(each.number, refused.reason) for each, refused in policy.dropped()] == [(1, Reason.EXPIRED)]
    assert now_s <= 0.061


@pytest.mark.parametrize("name", POLICIES)
def test_s5_2_without_a_resource_there_is_no_worker(name):
    policy = started(POLICIES[name], FAST)
    policy.down("fast", 0.0)
    refused = policy.arrive(job(0), 0.0)
    assert refused is not None
    assert refused.reason == Reason.NO_WORKER


VISION = {"vision": (Model("large", 32, accuracy=0.9), Model("small", 8, accuracy=0.99))}
TWO_SIZES = replace(FAST, costs={"large": Cost(3e-3, 2e-3), "small": Cost(1e-3, 0.1e-3)})


@pytest.mark.parametrize("name", POLICIES)
def test_s5_2_a_request_is_answered_by_a_variant_whose_batches_have_room_for_it(name):
    policy = started(POLICIES[name], TWO_SIZES, with_settings=make_settings(**VISION))
    simulation = Simulation(policy, (TWO_SIZES,), seed=1)
    sizes = (16, 16, 2, 16, 8, 9)
    outcomes = simulation.run(
        [job(n, 0.0, 1.0, family="vision", samples=samples) for n, samples in enumerate(sizes)]
    )
    assert len(outcomes) == len(sizes)
    for outcome in outcomes:
        assert outcome.batch is not None
        assert outcome.batch.samples <= policy.models[outcome.batch.model].max_batch
        assert outcome.job.samples <= 8 or outcome.batch.model == "large"


@pytest.mark.parametrize("name", POLICIES)
def test_s5_5_a_request_that_no_variant_has_room_for_is_refused(name):
    policy = started(POLICIES[name], TWO_SIZES, with_settings=make_settings(**VISION))
    refused = policy.arrive(job(0, family="vision", samples=9, accuracy=0.95), 0.0)
    assert refused is not None
    assert refused.reason is Reason.IMPOSSIBLE
    assert "an accuracy of 0.95 or more and batches of 9 or more" in str(refused)
    assert "small (accuracy 0.99, cost 0, batches of 8)" in str(refused)


@pytest.mark.parametrize("name", POLICIES)
def test_s5_2_jobs_that_wait_move_when_their_variant_is_loaded_with_smaller_batches(name):
    policy = started(POLICIES[name], TWO_SIZES, with_settings=make_settings(**VISION))
    sizes = (2, 6, 20)
    for number, samples in enumerate(sizes):
        assert policy.arrive(job(number, 0.0, 1.0, family="vision", samples=samples), 0.0) is None
    policy.configure(make_settings(vision=(Model("large", 16, 0.9), Model("small", 4, 0.99))), 0.0)
    assert [(each.number, refused.reason) for each, refused in policy.dropped()] == [(2, Reason.NO_WORKER)]
    sent = set()
    while isinstance(batch := policy.next(0.0), Batch):
        assert all(each.samples <= 4 or batch.model == "large" for each in batch.jobs)
        sent |= {each.number for each in batch.jobs}
        policy.ended(batch, 0.0, batch.expected_s)
    assert sent == {0, 1}
    assert policy.queued.total() == 0


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


@pytest.mark.parametrize("name", ["weft", "clockwork"])
@pytest.mark.parametrize("seed", range(3))
def test_hiccups_while_little_is_known_leave_deadlines_of_a_few_milliseconds_possible(name, seed):
    random = Random(seed)
    device = Device("new", {"a": Cost(0.3e-3, 0.01e-3)}, hiccup_every=20, hiccup=50.0)
    known = Profiles().of("new", "a", 32)
    for size in (1, 1, 1, 32, 32, 32):  # as a first look leaves it
        known.measured(size, 0.5e-3 + 0.01e-3 * size, 0.0)
    known = Profiles.from_list([{"resource": "new", "model": "a", **known.to_dict()}])
    policy = POLICIES[name](make_settings(a=(Model("a", 32),)), known)
    jobs = [job(n, n * 0.01, 0.005, samples=random.randint(1, 32)) for n in range(400)]
    outcomes = Simulation(policy, (device,), seed=seed).run(jobs)
    assert sum(outcome.on_time for outcome in outcomes) > 0.8 * len(jobs)


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


def test_s5_6_clockwork_drops_a_large_job_when_the_batch_before_it_has_overrun():
    policy = started(POLICIES["clockwork"], FAST)
    policy.arrive(job(0, samples=16), 0.0)
    first = policy.next(0.0)
    assert isinstance(first, Batch)
    assert policy.arrive(job(1, 0.0, 0.030, samples=16), 0.0) is None  # takes 11 ms
    policy.ended(first, 0.0, 0.024)
    assert policy.next(0.024) == inf
    assert [(each.number, refused.reason) for each, refused in policy.dropped()] == [(1, Reason.EXPIRED)]


def test_s5_6_nexus_answers_a_job_that_is_larger_than_the_batch_it_planned():
    policy = started(POLICIES["nexus"], FAST)
    simulation = Simulation(policy, (FAST,), seed=1)
    small = [job(n, n * 0.02) for n in range(100)]  # 50 a second: batches of two
    outcomes = simulation.run([*small, job(100, 2.0, 0.100, samples=32)])
    assert all(outcome.on_time for outcome in outcomes)


def test_s5_6_nexus_plans_for_two_classes_whose_deadline_and_rate_are_the_same():
    policy = started(POLICIES["nexus"], FAST)
    for number in range(40):
        for each in ("interactive", "batch"):
            policy.arrive(job(number, number * 0.005, each=each), number * 0.005)
    policy.next(0.2)
    planned = {key for own in policy._rounds.values() for key, _ in own}
    assert planned == {("a", "interactive"), ("a", "batch")}


@pytest.mark.parametrize("rest_s", [0.0, 3600.0], ids=["from the first request on", "after an hour's rest"])
@pytest.mark.parametrize("samples", [1, 8])
def test_s5_6_nexus_plans_for_the_rate_since_requests_came_whatever_the_clock_says(rest_s, samples):
    policy, first_s = started(POLICIES["nexus"], FAST), 1e6
    simulation = Simulation(policy, (FAST,), seed=1)
    simulation.run([job(0, first_s)])
    first_s += rest_s
    step_s = 1e-3 * samples  # 1000 samples a second, of the 1684 that it is able to
    jobs = [job(1 + n, first_s + n * step_s, samples=samples) for n in range(int(0.5 / step_s))]
    outcomes = simulation.run(jobs)[1:]
    assert all(outcome.on_time for outcome in outcomes)
    assert sum(rate for rate in policy._rates.values()) == pytest.approx(1000, rel=0.05)


def test_s5_6_nexus_answers_a_session_that_is_new_since_its_plan():
    policy = started(POLICIES["nexus"], FAST)
    simulation = Simulation(policy, (FAST,), seed=1)
    often = [job(n, n * 0.02, 2.0, "batch") for n in range(150)]
    new = [job(1000 + n, 2.05 + n * 0.001) for n in range(10)]
    outcomes = simulation.run(sorted([*often, *new], key=lambda each: each.arrival_s))
    assert all(outcome.on_time for outcome in outcomes)


def test_s5_6_nexus_answers_a_session_that_has_rested_for_twenty_minutes_beside_another():
    policy, again_s = started(POLICIES["nexus"], FAST), 1200.05
    often = [job(n, n * 1.0, 2.0, "batch") for n in range(1200)]
    rested = [job(10_000 + n, at_s + n * 0.001) for at_s in (0.1, again_s) for n in range(10)]
    outcomes = Simulation(policy, (FAST,), seed=1).run(
        sorted([*often, *rested], key=lambda each: each.arrival_s)
    )
    assert all(outcome.on_time for outcome in outcomes)


@pytest.mark.parametrize("name", ["triton", "weft"])
def test_s5_6_requests_may_name_any_priority_and_few_queues_are_made(name):
    policy = started(POLICIES[name], FAST)
    for number in range(200):
        assert policy.arrive(job(number, deadline_s=2.0, each="batch", priority=200 - number), 0.0) is None
    assert len(policy.queues if name == "triton" else policy._groups) == 32
