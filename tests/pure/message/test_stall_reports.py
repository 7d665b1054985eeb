"""What a stalled wait prints, as a table of answers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from weft.runtime.message.selector import Call, Needs, Waiting
from weft.runtime.message.stall import Answer, Question, alikes, describe, due

HOSTS = ("n1", "n1", "n2", "n2")
PORTION = Call("allreduce (sum)", "all-reduce of portion 3", elements="<f8")
REDUCE = Waiting("all-reduce of portion 3", 0.0, Needs((1, 2, 3), "gradients", 7, PORTION))
RECEIVE = Waiting("receive from rank 2", 0.0, Needs((2,)))
COUNTER = Waiting("m: step 3, gradients of portion 2", 0.0, Needs((1,), "m", witnesses=(1, 2, 3)))
THERE = Answer("step 41", 12.0, (), 7, PORTION)
ONE_BEHIND = Answer("step 41: evaluating", 12.0, (), 6)
FAR_BEHIND = Answer("step 40", 30.0, (), 2)
ELSEWHERE = Answer("step 41", 1.0, (), 7, Call("broadcast from rank 0", "the plan"))
OTHER_PORTION = Answer("step 41", 1.0, (), 7, PORTION._replace(what="portion 4"))
INTEGERS = Answer("step 41", 1.0, (), 7, PORTION._replace(elements="<i8"))
WAITS_TOO = Answer("step 41", 12.0, (("receive from rank 3", 11.0),), 6)

HEAD = 'weft: rank 0 (n1) has waited 10 s in "all-reduce of portion 3"'


@pytest.mark.parametrize(
    ("wait", "answers", "text"),
    [
        pytest.param(
            REDUCE,
            {1: THERE, 2: ONE_BEHIND, 3: THERE},
            f'{HEAD} for\n  rank 2 (n2), which has not called it; it is at "step 41: evaluating" (12 s)',
            id="one rank has not called the collective",
        ),
        pytest.param(
            REDUCE,
            {1: THERE, 2: FAR_BEHIND, 3: THERE},
            f"{HEAD} for\n  rank 2 (n2), which has not called it (5 collectives behind); "
            'it is at "step 40" (30 s)',
            id="one rank is far behind",
        ),
        pytest.param(
            REDUCE,
            {1: THERE, 2: WAITS_TOO},
            f'{HEAD} for\n  rank 2 (n2), which has not called it; it is at "step 41" (12 s) and waits in '
            '"receive from rank 3" (11 s)\n'
            "  rank 3 (n2), which does not answer: its event loop is blocked, or its process is stopped",
            id="one rank waits for another that does not answer",
        ),
        pytest.param(
            REDUCE,
            {1: ELSEWHERE, 2: THERE, 3: THERE},
            f'{HEAD} for\n  rank 1 (n1), which called "broadcast from rank 0: the plan" there, as '
            "collective 7 on 'gradients': all ranks must call the same collectives in the same order",
            id="one rank called another collective",
        ),
        pytest.param(
            REDUCE,
            {1: OTHER_PORTION, 2: THERE, 3: THERE},
            f'{HEAD} for\n  rank 1 (n1), which called "portion 4" there, as collective 7 on '
            "'gradients': all ranks must call the same collectives in the same order",
            id="one rank reduces another portion",
        ),
        pytest.param(
            REDUCE,
            {1: INTEGERS, 2: THERE, 3: THERE},
            f"{HEAD} for\n  rank 1 (n1), which gave it <i8, where this rank gave <f8: all ranks must give a "
            "collective arrays of one type and order",
            id="one rank gives an array of another type",
        ),
        pytest.param(
            COUNTER,
            {1: ONE_BEHIND, 2: WAITS_TOO},
            'weft: rank 0 (n1) has waited 10 s in "m: step 3, gradients of portion 2" for\n'
            '  rank 1 (n1), which is at "step 41: evaluating" (12 s)',
            id="the counter of one rank does not come",
        ),
        pytest.param(
            REDUCE,
            {1: THERE, 2: THERE, 3: THERE},
            f"{HEAD}; every rank has called it, so it is MPI or the network that does not move",
            id="all have called it",
        ),
        pytest.param(
            RECEIVE,
            {2: Answer("reading data", 12.0)},
            'weft: rank 0 (n1) has waited 10 s in "receive from rank 2" for\n'
            '  rank 2 (n2), which is at "reading data" (12 s)',
            id="a message does not come",
        ),
    ],
)
def test_a_stall_names_whom_it_waits_for(wait: Waiting, answers: dict[int, Answer], text: str) -> None:
    assert describe(Question(wait, 10.4, answers), 0, HOSTS) == text


@pytest.mark.parametrize(
    ("away_s", "told"),
    [
        pytest.param(0.3, 10.0, id="a loop that looked just now tells in time"),
        pytest.param(4.0, 10.0, id="one that computed for a while does, too"),
        pytest.param(20.0, 30.0, id="one that stood still looks whether the wait is over"),
    ],
)
def test_who_stood_still_itself_blames_nobody_at_once(away_s: float, told: float) -> None:
    assert due(10.0, patience_s=10.0, now=20.0, away_s=away_s) == told


def test_waits_for_the_same_ranks_are_told_together() -> None:
    again = replace(RECEIVE, what="receive from rank 2 (tag 1)")
    assert list(alikes([RECEIVE, REDUCE, again])) == [[RECEIVE, again], [REDUCE]]
    text = describe(Question(again, 10.4, {2: Answer("reading data", 12.0)}, more=9997), 0, HOSTS)
    assert text.startswith(
        'weft: rank 0 (n1) has waited 10 s in "receive from rank 2 (tag 1)" and in 9,997 more for'
    )


def test_many_late_ranks_are_counted_not_listed() -> None:
    wait = Waiting("barrier", 0.0, Needs(tuple(range(1, 100)), "world", 1, "barrier"))
    lines = describe(Question(wait, 10.0, {}), 0, ["n1"] * 100).splitlines()
    assert len(lines) == 10
    assert lines[-1] == "  and 91 more ranks"
