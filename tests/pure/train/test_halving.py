"""Rungs: who is judged where, what goes on, and that no order in which models come or end changes it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from math import inf, nan

import pytest

from weft.runtime.errors import JobError
from weft.runtime.train.evaluate import Score
from weft.runtime.train.halving import Contender, Halving, Verdict, require_comparable
from weft.runtime.train.interleave import Claim, ModelOrder
from weft.runtime.train.job import load_job
from weft.runtime.train.schema import Job
from weft.runtime.train.turns import Turns

NAMES = "abcdefgh"


def contenders(*steps: int) -> dict[int, Contender]:
    return {model: Contender(NAMES[model], count) for model, count in enumerate(steps)}


def made(found: Mapping[int, Contender], by: str = "loss", tell: Callable[[str], None] = print) -> Halving:
    claims = [Claim(1.0)] * (max(found) + 1)
    return Halving(found, Turns(ModelOrder(claims)), by, tell)


def at_rung(
    values: Sequence[float], by: str = "loss", gone: Sequence[int] = (), stopped: Sequence[int] = ()
) -> list[Verdict | str | None]:
    """What each of as many models hears, all of 8 steps; some have gone, or are stopped, before they come."""

    async def main() -> list[Verdict | str | None]:
        halving = made(contenders(*[8] * len(values)), by)

        async def come(model: int) -> Verdict | str | None:
            if model in gone or model in stopped:
                await asyncio.sleep(0)
                halving.leave(model, stopped=model in stopped)
                return "gone"
            value = values[model]
            return await halving.judge(model, Score(value, value))

        return list(await asyncio.gather(*map(come, range(len(values)))))

    return asyncio.run(main())


def places(verdicts: Sequence[Verdict | str | None]) -> list[int]:
    return [verdict.place for verdict in verdicts if isinstance(verdict, Verdict)]


def test_eight_models_have_rungs_at_an_eighth_a_quarter_and_a_half_of_their_own_steps() -> None:
    halving = made(contenders(160, 16, 5, 1, 160, 160, 160, 160))
    assert halving.pauses(0) == {20, 40, 80}
    assert halving.pauses(1) == {2, 4, 8}
    assert halving.pauses(2) == {1, 2, 3}
    assert halving.pauses(3) == {1}
    assert halving.due(0, 20)
    assert not halving.due(0, 40)


@pytest.mark.parametrize(("models", "rungs"), [(1, 0), (2, 1), (3, 1), (4, 2), (7, 2), (8, 3)])
def test_of_any_number_one_is_left_at_the_end(models: int, rungs: int) -> None:
    assert len(made(contenders(*[1 << 10] * models)).pauses(0)) == rungs
    left = models
    for _ in range(rungs):
        left = sum(not Verdict(1, place, left).outdone for place in range(1, left + 1))
    assert left == 1


def test_the_lower_loss_goes_on_and_of_equal_ones_the_first() -> None:
    verdicts = at_rung([0.5, 0.2, nan, 0.2, inf, 0.9])
    assert places(verdicts) == [3, 1, 6, 2, 5, 4]
    assert [verdict.outdone for verdict in verdicts if isinstance(verdict, Verdict)] == [
        False, False, True, False, True, True,
    ]  # fmt: skip


def test_the_higher_accuracy_goes_on_where_that_is_what_is_best() -> None:
    assert places(at_rung([0.5, 0.2, 0.9, 0.9], by="accuracy")) == [3, 4, 1, 2]


def test_a_model_that_has_ended_is_not_waited_for() -> None:
    verdicts = at_rung([0.3, 0.1, 0.2, 0.4], gone=[1])
    assert verdicts == [Verdict(2, 2, 3), "gone", Verdict(2, 1, 3), Verdict(2, 3, 3)]


def test_who_waits_is_stopped_with_a_model_that_a_signal_stops() -> None:
    assert at_rung([0.3, 0.1, 0.2], stopped=[2]) == [None, None, "gone"]


def test_who_comes_behind_a_model_that_a_signal_has_stopped_is_stopped() -> None:
    async def main() -> Verdict | None:
        halving = made(contenders(8, 8))
        halving.leave(0, stopped=True)
        return await asyncio.wait_for(halving.judge(1, Score(0.1, None)), 60)

    assert asyncio.run(main()) is None


async def trained(seed: int) -> tuple[list[tuple[int, int]], list[str], dict[int, int]]:
    """Steps in their order, lines, and how many steps each model took; c ends behind its third step."""
    delay, taken, lines = random.Random(seed), list[tuple[int, int]](), list[str]()
    lengths = [16, 32, 16, 16, 24]
    turns = Turns(ModelOrder([Claim(1), Claim(0.5), Claim(1, 3), Claim(2), Claim(1)]))
    halving = Halving(contenders(*lengths), turns, "loss", lines.append)
    done = dict.fromkeys(range(5), 0)

    async def pause() -> None:
        for _ in range(delay.randrange(20)):
            await asyncio.sleep(0)

    async def train(model: int) -> None:
        for step in range(lengths[model]):
            await pause()
            await turns.take(model)
            taken.append((model, step))
            done[model] += 1
            await pause()
            if model == 2 and step == 2:
                break
            if halving.due(model, step + 1):
                verdict = await halving.judge(model, Score((model * 2 + 3) % 5, None))
                assert verdict is not None
                if verdict.outdone:
                    break
        turns.leave(model)
        await pause()
        halving.leave(model, stopped=False)

    async with asyncio.TaskGroup() as group:
        for model in delay.sample(range(5), 5):
            group.create_task(train(model))
    return taken, lines, done


@pytest.mark.parametrize("seed", range(1, 20))
def test_s2_1_the_order_and_what_goes_on_do_not_depend_on_timing(seed: int) -> None:
    expected = asyncio.run(trained(0))
    assert asyncio.run(trained(seed)) == expected
    # Their losses are 3, 0, 2, 4 and 1; c is gone by the first rung.
    assert expected[1] == [
        "behind 1/4 of their steps 2 of 4 models go on: b, e (best validation loss 0.0000)",
        "behind 1/2 of their steps 1 of 2 models go on: b (best validation loss 0.0000)",
    ]
    assert expected[2] == {0: 4, 1: 32, 2: 3, 3: 4, 4: 12}


def test_runs_that_go_on_are_judged_at_the_rungs_that_all_have_before_them() -> None:
    def pauses(*found: Contender) -> list[int]:
        return sorted(made(dict(enumerate(found))).pauses(0))

    kept = Verdict(2, 1, 4)
    assert pauses(Contender("a", 80, 20), Contender("b", 80, 7), Contender("c", 80), Contender("d", 80)) == [
        20, 40,
    ]  # fmt: skip
    assert pauses(*[Contender(name, 80, 20, kept) for name in "abcd"]) == [40]
    assert pauses(Contender("a", 80, 41), Contender("b", 80, 7)) == []


def job(*overrides: str) -> Job:
    return load_job("digits", ["run.halve=true", *overrides])


def test_a_checkpoint_keeps_the_verdict_while_the_job_halves() -> None:
    verdict = Verdict(2, 3, 5)
    assert Verdict.of(job(), verdict.progress) == verdict
    assert Verdict.of(job("run.halve=false"), verdict.progress) is None
    assert Verdict.of(job(), {}) is None


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (["run.halve=false"], "halve is true of digits and false of other"),
        (
            ["model.loss=mean_squared_error"],
            'loss is "softmax_cross_entropy" of digits and "mean_squared_error" of other',
        ),
        (["train.best={metric='accuracy'}"], "best.metric is loss of digits and accuracy of other"),
    ],
)
def test_models_are_compared_by_one_thing(other: list[str], says: str) -> None:
    with pytest.raises(JobError, match=says):
        require_comparable([job(), job("name=other", *other)])
    apart = [load_job("digits", ["name=other", *other, "run.halve=false"])] * 2
    require_comparable([load_job("digits"), *apart])
    require_comparable([job(), job("name=other")])


def test_nothing_held_out_is_nothing_to_compare() -> None:
    with pytest.raises(JobError, match=r"halve = true: compares by the validation set"):
        job("data.validation=0")
