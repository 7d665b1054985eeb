"""A resource that fails what others compute costs no answer, is left out, and is found again."""

from __future__ import annotations

import asyncio
from math import inf

import numpy as np
import pytest

from tests.pure.serve.emulated import FAST, SLOW, job, started
from tests.pure.serve.test_dispatcher import Fake, dispatcher, request
from weft.runtime.errors import RequestError
from weft.runtime.serve.policy import POLICIES, Batch, Policy, Weft
from weft.runtime.serve.policy.failing import FIRST_S, LAST_S, LEAST, Failing


@pytest.mark.parametrize("policy", POLICIES)
def test_s5_1_a_worker_that_fails_everything_costs_no_answer_and_is_found_again(
    policy: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("weft.runtime.serve.policy.failing.FIRST_S", 0.02)

    async def main() -> None:
        broken, well = Fake(0), Fake(1, 1e-3)  # it would be the faster one
        made = dispatcher(broken, well, policy=policy)
        broken.raises = "Traceback: no memory"

        async def ask(count: int) -> set[str]:
            asked = (made.infer(request(float(value), best_effort=True)) for value in range(count))
            answers = await asyncio.gather(*asked)
            assert [each.outputs["y"].item() for each in answers] == [2.0 * value for value in range(count)]
            return {each.resource for each in answers}

        profile = made.policy.profiles.of("rank 0 cpu", "double/1")
        async with asyncio.timeout(30):
            while profile.availability >= LEAST:
                assert await ask(4) == {"rank 1 cpu"}
            assert made.policy.profiles.of("rank 1 cpu", "double/1").availability == pytest.approx(
                1.0, abs=0.1
            )
            (told,) = {
                each["availability"] for each in made.status()["profiles"] if "rank 0" in each["resource"]
            }
            assert told < LEAST
            broken.raises = ""
            while "rank 0 cpu" not in await ask(4):
                await asyncio.sleep(0.005)
        assert made.tally.model("double/1").fail.count == 0

    asyncio.run(main())


def test_s5_1_a_request_that_fails_wherever_it_is_computed_is_held_against_nobody():
    async def main() -> None:
        workers = [Fake(0, 1e-3), Fake(1, 1e-3)]
        made = dispatcher(*workers, policy="weft")
        for worker in workers:
            worker.fails_at = 13.0
        for _ in range(100):
            with pytest.raises(RequestError, match="unlucky"):
                await made.infer(request(13.0))
        assert made.tally.model("double/1").fail.count == 100
        assert sum(len(worker.batches) for worker in workers) == 200  # each was tried once on either
        for worker in workers:
            assert made.policy.profiles.of(worker.resource, "double/1").availability == pytest.approx(1.0)

    asyncio.run(main())


@pytest.mark.parametrize("policy", POLICIES)
def test_s5_1_of_several_that_fail_everything_none_vouches_for_another(policy: str):
    async def main() -> None:
        workers = [Fake(0), Fake(1), Fake(2, 1e-3)]
        made = dispatcher(*workers, policy=policy)
        for broken in workers[:2]:
            broken.raises = "Traceback: no memory"
        lost = 0
        async with asyncio.timeout(30):
            for _ in range(100):
                asked = (made.infer(request(1.0, best_effort=True)) for _ in range(4))
                answers = await asyncio.gather(*asked, return_exceptions=True)
                lost += sum(isinstance(answer, RequestError) for answer in answers)
        assert lost <= 8  # until each has failed twice

    asyncio.run(main())


def failed(policy: Policy, number: int, now_s: float) -> str:
    """Where a job fails that arrives now; its second try goes well."""
    assert policy.arrive(job(number, now_s, 1.0), now_s) is None
    batch = policy.next(now_s)
    assert isinstance(batch, Batch)
    policy.failed(batch, now_s)
    again = policy.alone(batch, batch.jobs[0], now_s)
    assert again is not None
    assert again.resource != batch.resource
    policy.ended(again, now_s, now_s + again.expected_s)
    return batch.resource


def test_s5_1_who_fails_is_left_out_as_long_as_somebody_else_is_up():
    policy = started(Weft, FAST, SLOW)
    assert {failed(policy, number, 0.0) for number in range(14)} == {"fast"}
    assert policy.resources["fast"].models == {"b"}
    assert policy.arrive(job(20, 0.0, 1.0), 0.0) is None
    batch = policy.next(0.0)
    assert isinstance(batch, Batch)
    assert batch.resource == "slow"
    policy.down("slow", 0.1)
    assert policy.resources["fast"].models == {"a", "b"}  # rather it than nobody
    batch = policy.next(0.1)
    assert isinstance(batch, Batch)
    assert batch.resource == "fast"
    policy.up("slow", SLOW.kind, SLOW.costs, 0.2)
    assert policy.resources["fast"].models == {"b"}
    policy.failed(batch, 0.3)
    assert policy.alone(batch, batch.jobs[0], 0.3).resource == "slow"  # type: ignore[union-attr]


def test_s5_1_a_trial_that_fails_doubles_the_time_to_the_next_and_one_that_does_not_ends_it():
    failing, key, now_s, waits = Failing(), ("fast", "a"), 0.0, []
    for number in range(7):
        failing.leave_out(sent(number), now_s)
        failing.try_again(np.nextafter(failing.due_s, 0.0))
        assert key in failing
        waits.append(failing.due_s - now_s)
        now_s = failing.due_s
        failing.try_again(now_s)
        assert key not in failing
    assert waits == [FIRST_S, 2.0, 4.0, 8.0, LAST_S, LAST_S, LAST_S]
    failing.well(key)
    failing.leave_out(sent(7), now_s)
    assert failing.due_s == now_s + FIRST_S


def sent(number: int) -> Batch:
    """A batch of one job, on its way."""
    return Batch(number, "fast", "a", [job(number)], 1, 0.0, 1e-3)


@pytest.mark.parametrize("times", [1, 2, 5, 6])
def test_s5_1_what_is_taken_back_changes_no_later_time(times: int):
    failing, now_s = Failing(), 0.0
    for number in range(times):
        failing.leave_out(sent(number), now_s)
        now_s = failing.due_s
        failing.try_again(now_s)
    trial = sent(times)
    failing.leave_out(trial, now_s)
    wait_s = failing.due_s - now_s
    assert not failing.take_back(sent(times))  # another one's failure
    assert failing.take_back(trial)
    assert not failing.take_back(trial)
    assert failing.due_s == inf
    failing.leave_out(sent(times + 1), now_s)
    assert failing.due_s - now_s == wait_s


def committed(policy: Policy, first: int, count: int, now_s: float) -> Batch:
    """The next batch, of so many jobs that arrive now."""
    for number in range(first, first + count):
        assert policy.arrive(job(number, now_s, 1.0, best_effort=True), now_s) is None
    batch = policy.next(now_s)
    assert isinstance(batch, Batch)
    assert len(batch.jobs) == count
    return batch


def test_s5_1_batches_that_were_under_way_are_no_trials():
    policy = started(Weft, FAST, SLOW)
    for number in range(13):
        assert failed(policy, number, 0.0) == "fast"
    first = committed(policy, 20, 1, 0.0)
    horizon_s = policy.resources["fast"].free_s(0.0) - policy.settings.horizon_s
    second = committed(policy, 21, 1, horizon_s)
    assert first.resource == second.resource == "fast"
    policy.failed(first, 0.004)
    assert policy.resources["fast"].models == {"b"}
    policy.failed(second, 0.005)
    assert policy._failing.due_s == 0.004 + FIRST_S
    for batch in (first, second):
        again = policy.alone(batch, batch.jobs[0], 0.005)
        assert again is not None
        policy.ended(again, 0.005, 0.02)
    assert policy.arrive(job(30, 1.5, 1.0), 1.5) is None
    trial = policy.next(1.5)
    assert isinstance(trial, Batch)
    assert trial.resource == "fast"
    policy.failed(trial, 1.5)
    assert policy._failing.due_s == 1.5 + 2 * FIRST_S


def tried(policy: Policy, batch: Batch, now_s: float, *, poison: range) -> None:
    """`batch` has failed; of its jobs, tried again, those in `poison` fail again."""
    policy.failed(batch, now_s)
    for each in batch.jobs:
        again = policy.alone(batch, each, now_s)
        assert again is not None
        assert again.resource != batch.resource
        if each.number in poison:
            policy.failed(again, now_s)
            assert policy.alone(again, each, now_s) is None
        else:
            policy.ended(again, now_s, now_s + again.expected_s)


def test_s5_1_a_batch_of_requests_that_fail_everywhere_is_forgiven_once():
    policy = started(Weft, FAST, SLOW)
    for number in range(5):
        assert failed(policy, number, 0.0) == "fast"
    profile = policy.profile("fast", "a")
    before = profile.availability
    batch = committed(policy, 100, 8, 0.0)
    assert batch.resource == "fast"
    tried(policy, batch, 0.0, poison=range(100, 108))
    assert profile.availability == pytest.approx(before)
    assert policy.profile("slow", "a").availability == pytest.approx(1.0, abs=0.2)


@pytest.mark.parametrize("every", [2, 3, 10])
def test_s5_1_who_fails_everything_is_found_among_requests_that_fail_everywhere(every: int):
    """The fast one is broken, and of all requests one in `every` would fail on any."""
    policy, now_s, number = started(Weft, FAST, SLOW), 0.0, 0
    batches = 0
    while "a" in policy.resources["fast"].models:
        now_s, number, batches = now_s + 1e-3, number + 1, batches + 1
        assert batches < 100
        batch = committed(policy, number, 1, now_s)
        assert batch.resource == "fast"
        tried(policy, batch, now_s, poison=range(0, 10_000, every))
    assert batches <= 14 * every / (every - 1) + 1
    assert policy.profile("slow", "a").availability == pytest.approx(1.0)


def test_s5_1_requests_that_fail_everywhere_keep_nobody_out_who_is_well_again():
    policy = started(Weft, FAST, SLOW)
    for number in range(14):
        assert failed(policy, number, 0.0) == "fast"
    assert policy.resources["fast"].models == {"b"}
    now_s = policy._failing.due_s
    for number in range(20, 30):  # it is well again, and its trials are such requests
        batch = committed(policy, number, 1, now_s)
        assert batch.resource == "fast"
        tried(policy, batch, now_s, poison=range(20, 30))
        assert policy.resources["fast"].models == {"a", "b"}


def test_s5_1_while_a_broken_one_is_left_out_no_other_takes_the_blame_for_a_request():
    """Only where it is tried, too, it is seen that a request fails everywhere."""
    policy = started(Weft, FAST, SLOW)
    for number in range(14):
        assert failed(policy, number, 0.0) == "fast"
    for number in range(20, 40):
        now_s = number / 50
        batch = committed(policy, number, 1, now_s)
        assert batch.resource == "slow"
        tried(policy, batch, now_s, poison=range(20, 40))
    assert policy.profile("slow", "a").availability == pytest.approx(1.0)
    assert policy.resources["slow"].models == {"a", "b"}
    assert policy.resources["fast"].models == {"b"}


def test_s5_1_what_fails_on_the_last_that_is_not_left_out_is_tried_on_one_that_is():
    policy = started(Weft, FAST, SLOW)
    for number in range(14):
        assert failed(policy, number, 0.0) == "fast"
    batch = committed(policy, 20, 1, 0.1)
    assert batch.resource == "slow"
    policy.failed(batch, 0.1)
    again = policy.alone(batch, batch.jobs[0], 0.1)
    assert again is not None
    assert again.resource == "fast"
    policy.ended(again, 0.1, 0.2)
    assert policy.profile("slow", "a").availability < 1.0


def left_and_failed(policy: Policy, number: int, now_s: float, after_s: float) -> str:
    """Who fails a job that arrives now and whose caller leaves while it is computed, `after_s` later."""
    batch = committed(policy, number, 1, now_s)
    assert not policy.cancel(batch.jobs[0])
    policy.failed(batch, now_s + after_s)
    return batch.resource


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_s5_1_who_leaves_what_fails_everywhere_keeps_nobody_out(policy: type[Policy]):
    """Nothing tries it elsewhere, so it was held against whoever was given it."""
    made = started(policy, FAST, SLOW)
    before = made.profile("fast", "a").availability
    for number in range(40):
        assert left_and_failed(made, number, number / 10, after_s=1e-4) == "fast"
    assert made.resources["fast"].models == {"a", "b"}
    assert made.profile("fast", "a").availability == pytest.approx(before)


def test_s5_1_who_fails_so_slowly_that_callers_leave_is_left_out():
    policy, asked = started(Weft, FAST, SLOW), 0
    while left_and_failed(policy, asked, asked / 10, after_s=0.09) == "fast":
        asked += 1
        assert asked < 40
    assert policy.resources["fast"].models == {"b"}


def test_s5_1_what_a_batch_took_counts_from_its_start_though_that_was_sooner_than_expected():
    policy = started(Weft, FAST, SLOW)
    first = committed(policy, 0, 1, 0.0)
    now_s = policy.resources["fast"].free_s(0.0) - policy.settings.horizon_s
    second = committed(policy, 1, 1, now_s)
    assert second.resource == first.resource == "fast"
    policy.ended(first, 0.0, now_s)
    assert not policy.cancel(second.jobs[0])
    enough_s = policy.profile("fast", "a").safe_s(1) + policy.settings.horizon_s / 2
    policy.failed(second, now_s + enough_s)
    assert second.held  # its caller may have left because it took so long


def test_s5_1_a_failure_is_held_as_long_as_anybody_waits_who_can_be_tried_elsewhere():
    policy = started(Weft, FAST, SLOW)
    batch = committed(policy, 0, 2, 0.0)
    policy.cancel(batch.jobs[0])
    policy.failed(batch, 1e-4)
    assert batch.held
    again = policy.alone(batch, batch.jobs[1], 1e-4)
    assert again is not None
    policy.cancel(batch.jobs[1])
    policy.failed(again, 2e-4)  # seen, though nobody waits for it any more
    assert not batch.held
    assert policy.profile("fast", "a").availability == pytest.approx(1.0)
