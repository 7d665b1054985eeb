"""Weft's policy: its rules one by one, and what they come to in virtual time."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest

from tests.pure.serve.emulated import CLASSES, FAST, SLOW, fast_way, job, profiles, settings, started
from weft.runtime.serve.policy import Batch, Guarantee, Model, Policy, Weft
from weft.runtime.serve.policy.group import Group, limit_batches
from weft.runtime.serve.policy.guarantee import Buckets
from weft.runtime.serve.policy.queue import Queue
from weft.runtime.serve.policy.rate import MEMORY_S, Forecast
from weft.runtime.serve.policy.size import size
from weft.runtime.serve.request import Reason
from weft.runtime.serve.virtual import Cost, Simulation

MS = 1e-3


def queue(*due_ms: float) -> Queue:
    made = Queue()
    for number, due in enumerate(due_ms):
        made.add(due * MS, job(number))
    return made


@pytest.mark.parametrize(
    ("due_ms", "largest", "taken"),
    [
        pytest.param([50] * 4, 32, (0, 4), id="all that wait, when all can be met"),
        pytest.param([50] * 40, 32, (0, 32), id="no more than the largest batch"),
        pytest.param([6, *[60] * 7], 32, (0, 4), id="the first allow a small batch, the others can wait"),
        pytest.param([6, *[12] * 12], 32, (1, 12), id="the others can't wait, so the first are left"),
        pytest.param([*[15] * 10, *[60] * 30], 32, (10, 30), id="enough to fill the largest: those that can"),
        pytest.param([6, *range(9, 39)], 32, (9, 22), id="as many as that very batch would meet"),
        pytest.param([1, 2], 32, (0, 0), id="none can be met"),
        pytest.param([1, 50], 32, (1, 1), id="the first is past, the second is met"),
    ],
)
def test_s5_2_a_batch_takes(due_ms, largest, taken):
    found = size(queue(*due_ms), profiles(FAST).of("fast", "a"), 0.0, largest)
    assert found == taken


def busy_with_the_higher_class() -> tuple[Weft, Group]:
    """At 0 s: one job of it is computed, one waits in this group; the lower class is promised nothing."""
    classes = (CLASSES[0], replace(CLASSES[1], share=0.0))
    policy = started(Weft, FAST, with_settings=replace(settings(), classes=classes))
    policy.arrive(job(0), 0.0)
    assert isinstance(policy.next(0.0), Batch)
    waits = job(1)
    policy.arrive(waits, 0.0)
    return policy, waits.place[0]


def test_s5_5_a_class_that_is_left_nothing_is_refused_while_higher_ones_take_all():
    policy, higher = busy_with_the_higher_class()
    higher.forecast.add(1.0, 0.001)  # four times what there is, lately
    refused = policy.arrive(job(2, 0.001, 2.0, "batch"), 0.001)
    assert refused is not None
    assert refused.reason is Reason.OVERLOAD


def test_s5_2_a_burst_of_a_higher_class_is_not_thought_to_go_on():
    policy, higher = busy_with_the_higher_class()
    for n in range(2000):  # a third of what there is, then for a tenth of a second eight times that
        for rate in (higher.rate, higher.forecast):
            rate.add((MS if n < 1900 else 8 * MS) / 3, n * MS)
    assert policy.arrive(job(2, 2.0, 0.2, "batch"), 2.0) is None


def test_s5_2_still_less_for_as_long_as_there_is_time():
    policy, higher = busy_with_the_higher_class()
    for n in range(8000):  # half of what there is, then for a third of a second three times that
        higher.forecast.add((MS if n < 7667 else 6 * MS) / 2, n * MS)
    soon, late = (policy.arrive(job(n, 8.0, seconds, "batch"), 8.0) for n, seconds in ((2, 0.2), (3, 2.0)))
    assert soon is not None
    assert soon.reason is Reason.OVERLOAD
    assert late is None


@pytest.mark.parametrize(
    ("amounts", "soon", "later"),
    [
        pytest.param({}, 0.0, 0.0, id="nothing yet"),
        pytest.param({n * MS: MS for n in range(30_000)}, 1.0, 1.0, id="steady, for long"),
        pytest.param(
            {n * MS: MS for n in range(29_500, 30_000)}, 1.0, 1.0, id="steady, since half a second ago"
        ),
        pytest.param(
            {n * MS: (1 if n < 29_900 else 3) * MS for n in range(30_000)},
            1.19,
            1.05,
            id="steady, then a short burst",
        ),
        pytest.param({n * MS: MS for n in range(29_000)}, 0.37, 0.78, id="steady, until a second ago"),
    ],
)
def test_s5_2_what_will_come_is_what_came_in_the_last_second_or_for_long_in_the_last_four(
    amounts: dict[float, float], soon: float, later: float
):
    rate = Forecast()
    for now_s, amount in amounts.items():
        rate.add(amount, now_s)
    assert rate.per_s(30.0, 0.2) == pytest.approx(soon, rel=0.02)
    assert rate.per_s(30.0, 2.0) == pytest.approx(later, rel=0.02)


def test_s5_2_a_batch_takes_a_large_job_behind_a_small_one_that_is_past():
    made = Queue()
    made.add(1 * MS, job(0, samples=4))
    made.add(20 * MS, job(1, samples=20))
    assert size(made, profiles(FAST).of("fast", "a"), 0.0, 32) == (1, 1)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        pytest.param({"deadline_s": 0.050}, None, id="what can be met is accepted"),
        pytest.param({"deadline_s": 0.001}, Reason.IMPOSSIBLE, id="less than an idle resource takes"),
        pytest.param({"deadline_s": 0.001, "best_effort": True}, None, id="best effort is never too late"),
        pytest.param({"deadline_s": inf}, None, id="no deadline, no refusal"),
        pytest.param({"accuracy": 0.99}, Reason.IMPOSSIBLE, id="no variant is accurate enough"),
        pytest.param(
            {"deadline_s": 0.030, "samples": 32, "family": "c"},
            Reason.IMPOSSIBLE,
            id="less than all its samples take, which are more than a batch need have",
        ),
    ],
)
def test_s5_5_on_arrival(more, reason):
    device = replace(FAST, costs={**FAST.costs, "c": Cost(0.3 * MS, 1.5 * MS)})
    known = {name: (Model(name, 32),) for name in "abc"}
    refused = started(Weft, device, with_settings=settings(**known)).arrive(job(0, **more), 0.0)
    assert (refused and refused.reason) == reason


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"accuracy": 0.99}, "no variant of a has an accuracy of 0.99 or more: there are a (accuracy "),
        ({"cost": -1.0}, "no variant of a has a cost of -1 or less: there are a (accuracy "),
        ({"family": "z"}, "no variant of z is loaded"),
    ],
)
def test_s5_5_a_refusal_says_what_of_the_wish_no_variant_has(more, says):
    refused = started(Weft, FAST).arrive(job(0, **more), 0.0)
    assert refused is not None
    assert str(refused).startswith(says)


def test_s5_5_what_is_queued_already_makes_the_next_one_too_late():
    policy = started(Weft, FAST)
    reasons = []
    for number in range(400):
        refused = policy.arrive(job(number), 0.0)
        policy.next(0.0)
        reasons.append(refused and refused.reason)
    assert reasons[0] is None
    assert reasons[-1] == Reason.OVERLOAD
    assert 32 <= reasons.count(None) <= 96  # 50 ms hold three batches of 32 at most


def busy_with(samples: int) -> Policy:
    """One resource, that has begun a batch."""
    policy = started(Weft, FAST)
    assert policy.arrive(job(0, samples=samples), 0.0) is None
    assert isinstance(policy.next(0.0), Batch)
    return policy


def test_s5_5_what_is_under_way_makes_the_next_one_too_late():
    refused = busy_with(32).arrive(job(1, deadline_s=0.012), 0.0)  # 19 ms, and then its own 4
    assert refused is not None
    assert refused.reason == Reason.OVERLOAD
    assert busy_with(1).arrive(job(1, deadline_s=0.012), 0.0) is None


def test_s5_5_what_is_due_later_makes_nothing_too_late():
    policy = busy_with(1)
    for number in range(1, 401):  # 130 ms of work
        assert policy.arrive(job(number, deadline_s=10.0, family="b"), 0.0) is None
    assert policy.arrive(job(401), 0.0) is None


def test_s5_5_what_becomes_impossible_while_it_waits_is_dropped_at_once():
    policy = started(Weft, FAST)
    for number in range(40):
        policy.arrive(job(number), 0.0)
    policy.next(0.0)
    policy.next(0.049)
    dropped = policy.dropped()
    assert dropped
    assert {refused.reason for _, refused in dropped} == {Reason.EXPIRED}


def test_s5_5_what_waits_is_not_given_up_by_what_was_known_before_the_last_results():
    policy = started(Weft, FAST)
    assert policy.arrive(job(0), 0.0) is None
    under_way = policy.next(0.0)
    assert isinstance(under_way, Batch)
    assert policy.arrive(job(1), 0.0) is None
    for _ in range(5):  # 0.5 ms instead of 3.7
        policy.profile("fast", "a").measured(1, 0.5 * MS, 0.01)
    assert policy.next(0.048) > 0.048
    assert policy.dropped() == []
    policy.ended(under_way, 0.0, 0.0485)
    batch = policy.next(0.0485)
    assert isinstance(batch, Batch)
    assert [each.number for each in batch.jobs] == [1]


@pytest.mark.parametrize("busy", [False, True])
def test_s5_5_what_no_resource_can_meet_any_more_keeps_none_from_other_work(busy):
    policy = started(Weft, FAST)
    if busy:
        policy.arrive(job(0, samples=20), 0.0)
        first = policy.next(0.0)
        assert isinstance(first, Batch)
    assert policy.arrive(job(1, deadline_s=0.045, samples=32), 0.0) is None  # takes 22 ms
    assert policy.arrive(job(2, deadline_s=2.0, each="batch", family="b"), 0.0) is None
    if busy:
        policy.ended(first, 0.0, 0.030)  # it took 30 ms instead of 13
    batch = policy.next(0.030)
    assert isinstance(batch, Batch)
    assert [each.number for each in batch.jobs] == [2]
    assert [(each.number, refused.reason) for each, refused in policy.dropped()] == [(1, Reason.EXPIRED)]


def test_s5_2_a_higher_class_that_can_not_wait_for_another_batch_goes_first():
    policy = started(Weft, FAST)
    for number in range(32):
        policy.arrive(job(number, deadline_s=2.0, each="batch", family="b"), 0.0)
    policy.arrive(job(99, deadline_s=0.015), 0.0)
    batch = policy.next(0.0)
    assert isinstance(batch, Batch)
    assert [each.number for each in batch.jobs] == [99]


def test_s5_2_room_in_a_batch_is_filled_with_another_class_of_the_same_model():
    policy = started(Weft, FAST)
    policy.arrive(job(0), 0.0)
    policy.arrive(job(1, deadline_s=2.0, each="batch"), 0.0)
    policy.arrive(job(2, deadline_s=2.0, each="batch", family="b"), 0.0)
    batch = policy.next(0.0)
    assert isinstance(batch, Batch)
    assert [each.number for each in batch.jobs] == [0, 1]


@pytest.mark.parametrize(
    ("due_ms", "samples"),
    [
        pytest.param(50, 28, id="up to its own deadline where who waits can wait for it"),
        pytest.param(19, 22, id="no further than who waits for the resource can wait"),
    ],
)
def test_s5_2_where_the_highest_class_keeps_the_resource_busy_room_is_filled(due_ms, samples):
    policy = started(Weft, FAST)
    for number in range(400):  # 2,000 a second of either model
        each = job(number, number / 4 * MS, family="ab"[number % 2])
        policy.arrive(each, each.arrival_s)
        policy.cancel(each)
    for number in range(400, 440):
        policy.arrive(job(number, 0.1, 2.0, "batch"), 0.1)
    policy.changed(0.1)
    policy.arrive(job(440, 0.1, 20 * MS), 0.1)
    policy.arrive(job(441, 0.1, due_ms * MS, family="b"), 0.1)
    batch = policy.next(0.1)
    assert isinstance(batch, Batch)
    assert (batch.jobs[0].number, batch.samples) == (440, samples)


def test_s5_2_more_is_expected_so_a_small_batch_waits_a_little_and_no_longer():
    policy = started(Weft, FAST)
    for number in range(200):  # 1,000 a second
        each = job(number, number * MS)
        policy.arrive(each, each.arrival_s)
        policy.cancel(each)
    policy.arrive(job(200, 0.2), 0.2)
    until_s = policy.next(0.2)
    assert not isinstance(until_s, Batch)
    assert 0.2 < until_s <= 0.2 + 3.5 * MS  # what a batch costs, however small
    assert isinstance(policy.next(until_s), Batch)


def test_s5_2_a_batch_that_waits_for_more_can_still_be_answered_on_time():
    """What a lower class may put before it is short, so it may wait; but not for all that it would gain."""
    device = replace(FAST, costs={"a": Cost(10 * MS, 0.5 * MS), "b": Cost(0.1 * MS, 0.1 * MS)})
    policy = started(Weft, device)
    other = job(1000, deadline_s=2.0, each="batch", family="b")
    policy.arrive(other, 0.0)
    policy.cancel(other)
    for number in range(400):  # 2,000 a second
        each = job(number, number / 2 * MS)
        policy.arrive(each, each.arrival_s)
        policy.cancel(each)
    policy.changed(0.2)
    policy.arrive(job(400, 0.2, 16 * MS), 0.2)
    until_s = policy.next(0.2)
    assert not isinstance(until_s, Batch)
    assert 0.2 < until_s <= 0.2 + (16 - 11) * MS
    batch = policy.next(until_s)
    assert isinstance(batch, Batch)
    assert until_s + batch.expected_s <= 0.2 + 16 * MS


def test_s5_2_a_client_is_within_its_guarantee_as_its_bucket_fills():
    buckets = Buckets([Guarantee("paying", per_s=10.0, burst=2.0)])
    within = []
    for number, at_s in enumerate([0, 0, 0, 0.05, 0.11]):
        each = job(number, client="paying")
        within.append(buckets.within(each, at_s))
        if within[-1]:
            buckets.use(each)
    assert within == [True, True, False, False, True]
    assert not buckets.within(job(9, client="other"), 0.0)


def test_s5_2_what_is_refused_or_queued_anew_uses_no_more_of_a_guarantee():
    paying = settings(Guarantee("paying", per_s=0.0, burst=8.0))
    policy = started(Weft, FAST, SLOW, with_settings=paying)
    guaranteed = [job(n, deadline_s=2.0, each="batch", client="paying", samples=4) for n in (0, 1, 2)]
    assert policy.arrive(job(9, deadline_s=0.001, client="paying", samples=4), 0.0) is not None
    assert policy.arrive(guaranteed[0], 0.0) is None
    lost = policy.next(0.0)
    assert isinstance(lost, Batch)
    policy.down(lost.resource, 0.0)
    assert [policy.arrive(each, 0.0) for each in guaranteed[1:]] == [None, None]
    assert [each.place[0].priority for each in guaranteed] == [0, 0, 2]


def test_s5_2_a_lost_job_keeps_the_priority_of_a_guarantee_that_is_used_up():
    paying = settings(Guarantee("paying", per_s=0.0, burst=4.0))
    policy = started(Weft, FAST, SLOW, with_settings=paying)
    guaranteed = job(0, deadline_s=2.0, each="batch", client="paying", samples=4)
    policy.arrive(guaranteed, 0.0)
    lost = policy.next(0.0)
    assert isinstance(lost, Batch)
    policy.down(lost.resource, 0.0)
    assert guaranteed.place[0].priority == 0


def test_s5_2_who_was_idle_for_long_has_saved_no_more_than_its_burst():
    buckets = Buckets([Guarantee("paying", per_s=10.0, burst=2.0)])
    within = []
    for number in range(4):
        each = job(number, client="paying")
        within.append(buckets.within(each, 1000.0))
        if within[-1]:
            buckets.use(each)
    assert within == [True, True, False, False]
    assert buckets.within(job(9, client="paying", samples=8), 2000.0)  # larger than that, after a wait


@pytest.mark.parametrize(
    ("more", "deadline_s", "model"),
    [
        pytest.param({}, 0.200, "large", id="time for the accurate one"),
        pytest.param({}, 0.012, "small", id="the accurate one would be late"),
        pytest.param({"cost": 1.0}, 0.200, "small", id="the accurate one costs too much"),
        pytest.param({"accuracy": 0.9}, 0.200, "large", id="the small one is not accurate enough"),
    ],
)
def test_s5_2_of_a_models_variants(more, deadline_s, model):
    family = (Model("small", 32, accuracy=0.8, cost=1.0), Model("large", 32, accuracy=0.95, cost=4.0))
    device = replace(FAST, costs={"small": Cost(1 * MS, 0.2 * MS), "large": Cost(10 * MS, 5 * MS)})
    policy = started(Weft, device, with_settings=settings(vision=family))
    assert policy.arrive(job(0, deadline_s=deadline_s, family="vision", **more), 0.0) is None
    batch = policy.next(0.0)
    assert isinstance(batch, Batch)
    assert batch.model == model


def test_s5_2_whoever_asks_differently_each_time_makes_no_groups():
    policy = started(Weft, FAST)
    asked = [job(n, deadline_s=2.0, each="batch", cost=1.0 + n, accuracy=-1.0 - n) for n in range(50)]
    assert {policy.arrive(each, 0.0) for each in asked} == {None}
    assert len({id(each.place[0]) for each in asked}) == 1


def test_s5_2_jobs_of_a_lost_resource_are_queued_anew():
    policy = started(Weft, FAST, SLOW)
    policy.arrive(job(0, deadline_s=1.0), 0.0)
    first = policy.next(0.0)
    assert isinstance(first, Batch)
    policy.down(first.resource, 0.01)
    second = policy.next(0.01)
    assert isinstance(second, Batch)
    assert second.jobs == first.jobs
    assert second.resource != first.resource


def asked(deadline_s: float, priority: int, per_s: float = 0.0) -> Group:
    """A group with one resource, of whose time so much has been asked for lately."""
    group = Group(CLASSES[priority - 1], priority, [Model("a", 32)], deadline_s)
    group.ways = {"fast": [fast_way()]}
    for way in group.ways["fast"]:
        way.look(deadline_s)
    group.asked.add(per_s * MEMORY_S, 0.0)
    return group


def test_s5_2_a_batch_takes_half_the_deadline_for_who_arrives_has_to_wait_for_one_first():
    way = fast_way()
    way.look(16 * MS)
    assert way.profile.safe_s(7) <= 8 * MS < way.profile.safe_s(8)
    assert way.per_s == way.profile.per_s(7)


@pytest.mark.parametrize(
    ("priority", "per_s", "longest_ms"),
    [
        pytest.param(1, 0.1, 20, id="half the shorter deadline"),
        pytest.param(1, 0.9, 8, id="twice what is left of it, on a busy resource"),
        pytest.param(2, 0.1, inf, id="anything, where those are of a lower class"),
        pytest.param(1, 0.0, inf, id="anything, where nobody asks"),
    ],
)
def test_s5_2_for_the_sake_of_jobs_with_a_shorter_deadline_a_batch_takes(priority, per_s, longest_ms):
    group, shorter = asked(2.0, 1), asked(40 * MS, priority, per_s)
    limit_batches(sorted([shorter, group], key=lambda each: each.priority), "fast", 0.0)
    assert group.ways["fast"][0].longest_s == pytest.approx(longest_ms * MS)


@pytest.mark.parametrize("seed", range(2))
def test_s5_5_under_overload_the_top_class_is_on_time_and_the_lowest_is_not_starved(seed):
    simulation = Simulation(Weft(settings(), profiles(FAST)), (FAST,), seed)
    rate = 1.5 * 1600
    jobs = [
        job(n, n / rate, *((0.050, "interactive") if n % 2 else (2.0, "batch"))) for n in range(int(4 * rate))
    ]
    outcomes = simulation.run(jobs)
    on_time = {
        each: sum(o.on_time for o in outcomes if o.job.service_class == each) / (len(jobs) / 2)
        for each in ("interactive", "batch")
    }
    assert on_time["interactive"] >= 0.99
    assert on_time["batch"] >= 0.05
    assert sum(o.late for o in outcomes) <= 0.001 * len(jobs)


def test_s5_5_jobs_that_may_be_late_are_answered_in_the_end():
    simulation = Simulation(Weft(settings(), profiles(FAST)), (FAST,), 1)
    jobs = [job(n, n / 3000, best_effort=n % 10 == 0) for n in range(3000)]
    outcomes = simulation.run(jobs)
    assert all(o.refused is None for o in outcomes if o.job.best_effort)


@pytest.mark.parametrize("seed", range(2))
def test_s5_2_batches_are_no_larger_than_pays_so_that_the_top_class_need_not_wait(seed):
    # A batch's fixed cost is that of a fifth of a sample: one of 32 would save 2% over one of 8.
    devices = [replace(FAST, name=name, costs={"a": Cost(0.3 * MS, 1.5 * MS)}) for name in ("one", "two")]
    simulation = Simulation(Weft(settings(), profiles(*devices)), devices, seed)
    rate = 1.5 * 2 / (1.5 * MS)
    jobs = [
        job(n, n / rate, *((0.050, "interactive") if n % 5 < 3 else (2.0, "batch")))
        for n in range(int(4 * rate))
    ]
    outcomes = simulation.run(jobs)
    asked = [o for o in outcomes if o.job.service_class == "interactive"]
    assert sum(o.on_time for o in asked) >= 0.97 * len(asked)
    assert sum(o.on_time for o in outcomes) >= 0.95 * len(jobs) / 1.5


def test_s5_5_a_request_larger_than_a_batch_need_be_gets_its_turn():
    device = replace(FAST, costs={"a": Cost(0.3 * MS, 1.5 * MS)})
    simulation = Simulation(Weft(settings(), profiles(device)), (device,), 1)
    small = [job(n, n / 100, 0.200) for n in range(400)]
    large = [job(10_000 + n, 0.1 + n * 0.2, 2.0, "batch", samples=32) for n in range(18)]
    outcomes = simulation.run(sorted(small + large, key=lambda each: each.arrival_s))
    assert all(o.on_time for o in outcomes)
