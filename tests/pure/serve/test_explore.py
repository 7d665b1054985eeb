"""Weft's policy tries a resource again that it thinks too slow: soon, then rarely, and as long as it pays."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from tests.pure.serve.emulated import FAST, SLOW, fast_way, job, profiles, settings, started
from weft.runtime.serve.policy import Batch, Model, Weft
from weft.runtime.serve.policy.explore import Explorer
from weft.runtime.serve.profile import Profile, Profiles
from weft.runtime.serve.request import Reason
from weft.runtime.serve.virtual import Cost, Device, Simulation

MS = 1e-3


def test_s5_4_a_resource_that_was_slow_is_avoided_and_found_again():
    other = replace(SLOW, slower=lambda now_s: 40.0 if 1.0 < now_s < 4.0 else 1.0)
    fast = replace(FAST, costs={"b": FAST.costs["b"]})
    simulation = Simulation(Weft(settings(), profiles(fast, other)), (fast, other), seed=1)
    outcomes = simulation.run([job(n, n * 0.01, 0.060) for n in range(1200)])
    sent = [sum(low <= begun < low + 1 for b, begun, _ in simulation.batches) for low in range(12)]
    assert sent[0] > 40
    assert sum(sent[2:4]) < sent[0] / 2  # tried now and then
    assert sent[-1] > 40
    late = sum(outcome.late for outcome in outcomes)
    assert late < 20


def test_s5_4_a_resource_whose_first_result_was_a_hiccup_is_found():
    policy = Weft(settings(), Profiles())
    policy.profiles.of(FAST.name, "a").measured(1, 0.2, 0.0)
    policy.up(FAST.name, FAST.kind, FAST.costs, 0.0)
    assert policy.arrive(job(0, 0.1, 0.050), 0.1) is not None  # impossible, it is thought
    answered = 0
    for number in range(1, 20):
        now_s = 0.2 * number
        if policy.arrive(job(number, now_s, 0.050), now_s) is None:
            batch = policy.next(now_s)
            assert isinstance(batch, Batch)
            policy.ended(batch, now_s, now_s + 0.004)
            answered += 1
    assert answered > 10


def test_s5_4_nobody_is_tried_for_a_deadline_that_is_out_of_all_reach():
    policy = started(Weft, FAST)  # a sample takes 3.7 ms
    refused = policy.arrive(job(0, 100.0, 0.001 * MS), 100.0)
    assert refused is not None
    assert refused.reason is Reason.IMPOSSIBLE
    assert policy.arrive(job(1, 100.0, 0.1 * MS), 100.0) is None


@pytest.mark.parametrize("seed", range(3))
def test_s5_4_what_takes_the_resource_for_a_moment_costs_no_second_of_short_deadlines(seed):
    device = Device(
        "taken", {"a": Cost(0.3e-3, 0.01e-3)}, slower=lambda now_s: 30.0 if now_s % 1.0 > 0.94 else 1.0
    )
    policy, random = started(Weft, device, with_settings=settings(a=(Model("a", 32),))), Random(seed)
    jobs = [job(n, n * 0.005, 5 * MS, samples=random.randint(1, 8)) for n in range(1000)]
    outcomes = Simulation(policy, (device,), seed=seed).run(jobs)
    assert sum(outcome.on_time for outcome in outcomes) > 0.85 * len(jobs)


@pytest.mark.parametrize(
    ("expected_s", "first_s"),
    [
        pytest.param(0.002, 1 / 16, id="soon at first"),
        pytest.param(0.1, 0.4, id="four times what it takes"),
        pytest.param(3.0, 1.0, id="after a second at the latest"),
    ],
)
def test_s5_4_trials_become_rare_and_no_rarer_than_every_16_seconds(expected_s, first_s):
    way = fast_way()
    way.profile = Profile(32)
    way.profile.measured(1, expected_s, 0.0)
    explorer, now_s, waits = Explorer(), 0.0, []
    for number in range(8 if first_s < 0.1 else 5):
        waits.append(explorer.due_s(way, 1) - now_s)
        now_s += waits[-1]
        explorer.sent(way, job(number), now_s)
        explorer.probed(Batch(number, "fast", "a", [job(number)], 1, now_s, 0.2), faster=False)
    assert waits == pytest.approx([first_s * 2**number for number in range(len(waits))])
    for number in range(8, 12):
        explorer.probed(Batch(number, "fast", "a", [job(number)], 1, now_s, 0.2), faster=False)
    assert explorer.due_s(way, 1) == pytest.approx(now_s + 16)
    explorer.probed(Batch(12, "fast", "a", [job(12)], 1, now_s, 0.2), faster=True)
    assert explorer.due_s(way, 1) == now_s


@pytest.mark.parametrize("lost", ["failed", "withdrawn", "expired", "answered by another"])
def test_s5_4_a_trial_that_is_lost_is_made_again(lost):
    policy = started(Weft, FAST, SLOW)
    for device in (FAST, SLOW):
        for number in range(12):
            policy.profile(device.name, "a").measured(1, 0.2, 0.01 * number)
    policy.changed(0.2)
    trials = [job(n, 2.0) for n in (0, 1)]  # one for each of the two
    assert [policy.arrive(each, 2.0) for each in trials] == [None, None]
    assert policy.arrive(job(2, 2.0), 2.0) is not None
    assert policy.arrive(job(2, 2.01), 4.0) is not None  # as long as they are out
    if lost == "withdrawn":
        assert all(policy.cancel(each) for each in trials)
    elif lost == "expired":
        policy.next(10.0)
        assert {each.number for each, _ in policy.dropped()} == {0, 1}
    else:
        now_s = 2.0
        while not isinstance(batch := policy.next(now_s), Batch):
            now_s = batch
        assert len(batch.jobs) == 2  # one resource gets the other's trial, too
        if lost == "failed":
            policy.failed(batch, 2.2)
        else:
            policy.ended(batch, 2.0, 2.4)
    assert policy.arrive(job(3, 2.5), 2.5) is not None  # not at once
    assert [policy.arrive(job(4 + n, 20.0), 20.0) for n in (0, 1)] == [None, None]


def test_s5_4_large_requests_that_seem_impossible_are_tried_though_small_ones_keep_the_resource_busy():
    known = profiles(FAST)
    for _ in range(12):
        known.of("fast", "a").measured(32, 0.5, 0.0)  # takes 22 ms
    small = [job(n, 0.01 * n) for n in range(1500)]
    large = [job(10_000 + n, 0.2 * n, 0.060, samples=32) for n in range(75)]
    jobs = sorted(small + large, key=lambda each: each.arrival_s)
    simulation = Simulation(Weft(settings(), known), (FAST,), 1)
    outcomes = {each.job.number: each for each in simulation.run(jobs)}
    assert not outcomes[10_000].on_time
    assert sum(outcomes[each.number].on_time for each in large[-25:]) >= 24
    assert sum(outcomes[each.number].on_time for each in small[-500:]) >= 480


@pytest.mark.parametrize("factor", [3, 30, 300])
def test_s5_4_profiles_of_a_slower_machine_are_found_out_within_a_second(factor: float):
    """What the first is to be tried with the second takes, and is the one that was tried."""
    measured_ms = (
        {1: (1.5, 15), 2: (2.8, 17), 3: (2.7, 7), 32: (4.0, 2)},
        {1: (11.4, 4), 2: (16.3, 4), 3: (7.2, 3), 32: (11.7, 2)},
    )
    devices = [Device(name, {"a": Cost(2 * MS, 0.5 * MS)}) for name in "xy"]
    stored = [
        {
            "resource": device.name, "model": "a", "max_batch": 32, "results": 30,
            "availability": 1.0, "error": 0.1, "ratios": [*[1.0] * 15, 1.2],
            "sizes": [[size, factor * ms * MS, count] for size, (ms, count) in sizes.items()],
        }
        for device, sizes in zip(devices, measured_ms, strict=True)
    ]  # fmt: skip
    simulation = Simulation(Weft(settings(), Profiles.from_list(stored)), devices)
    outcomes = simulation.run([job(number, number / 40, samples=2) for number in range(400)])
    assert sum(outcome.on_time for outcome in outcomes if outcome.job.arrival_s > 1.0) > 0.95 * 360
