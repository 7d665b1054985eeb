"""A resource that fails what others compute costs no answer, is left out, and is found again."""

from __future__ import annotations

import asyncio

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
    for _ in range(7):
        failing.leave_out(key, now_s)
        failing.try_again(np.nextafter(failing.due_s, 0.0))
        assert key in failing
        waits.append(failing.due_s - now_s)
        now_s = failing.due_s
        failing.try_again(now_s)
        assert key not in failing
    assert waits == [FIRST_S, 2.0, 4.0, 8.0, LAST_S, LAST_S, LAST_S]
    failing.well(key)
    failing.leave_out(key, now_s)
    assert failing.due_s == now_s + FIRST_S
