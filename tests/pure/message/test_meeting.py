"""Calls that block: whoever comes when, all ranks make them in one order, and none waits in a circle."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any

import msgpack
import pytest

from weft.runtime.errors import Mistake
from weft.runtime.message.control import MESSAGE_BYTES
from weft.runtime.message.meeting import Meetings, bits, late, ranks_in


class Job:
    """Ranks that tell each other of their meetings. Their calls block until all of the meeting are in one.

    A rank in a call takes no messages. Between two ranks messages keep their order; whose is next is chance.
    """

    def __init__(self, size: int, random: Random) -> None:
        self.random = random
        self.lines: dict[tuple[int, int], deque[tuple[str, tuple[Any, ...]]]] = {}
        self.posts = [Post(self, rank) for rank in range(size)]
        self.inside: dict[int, list[str]] = {
            rank: [] for rank in range(size)
        }  # calls not over, the first first
        self.made: list[list[str]] = [[] for _ in range(size)]
        self.refused: list[tuple[int, int, str]] = []

    def call(self, name: str, ranks: list[int], rank: int, checksum: int = 0) -> Visit:
        visit = Visit(self, rank, ranks, name, checksum)
        self.posts[rank].meetings.call(visit)
        return visit

    def meeting(self, name: str, ranks: list[int], rank: int, checksum: int = 0) -> None:
        self.posts[rank].meetings.come(self.call(name, ranks, rank, checksum))

    def leave(self, members: dict[str, list[int]]) -> bool:
        """End a call that all of its ranks are in; whether there is one."""
        for name, ranks in members.items():
            if all(self.inside[rank][:1] == [name] for rank in ranks):
                for rank in ranks:
                    self.made[rank].append(self.inside[rank].pop(0))
                return True
        return False

    def deliver(self) -> bool:
        """One message to a rank that is in no call; whether there is one."""
        ready = [line for line, texts in self.lines.items() if texts and not self.inside[line[1]]]
        if not ready:
            return False
        source, rank = self.random.choice(sorted(ready))
        kind, body = self.lines[source, rank].popleft()
        self.posts[rank].handlers[kind](source, *body)
        return True


class Visit:
    """What a rank is to do in a meeting: to be inside its call."""

    def __init__(self, job: Job, rank: int, ranks: list[int], name: str, checksum: int) -> None:
        self._inside = job.inside[rank]
        self._refused = job.refused
        self.rank, self.ranks, self.what = rank, ranks, f"{name} as rank {rank} calls it"
        self.key, self.checksum = (name, 1), checksum

    def make(self) -> None:
        self._inside.append(self.key[0])

    def refuse(self, first: int, what: str) -> None:
        self._refused.append((self.rank, first, what))


class Post:
    """What `Meetings` knows of control.py."""

    def __init__(self, job: Job, rank: int) -> None:
        self.job, self.rank = job, rank
        self.handlers: dict[str, Callable[..., None]] = {}
        self.meetings = Meetings(self)

    def on(self, kind: str, handler: Callable[..., None]) -> None:
        self.handlers[kind] = handler

    def send(self, rank: int, kind: str, *body: Any) -> None:
        self.job.lines.setdefault((self.rank, rank), deque()).append((kind, body))


@pytest.mark.parametrize("seed", range(200))
def test_whoever_comes_in_which_order_all_calls_are_made_and_in_one_order(seed: int) -> None:
    random = Random(seed)
    size = random.randint(2, 5)
    members = {}
    for number in range(random.randint(2, 6)):
        ranks = random.sample(range(size), random.randint(2, size))  # not by number: who is first is any rank
        members[f"meeting {number}"] = ranks
    job = Job(size, random)
    coming = [(name, rank) for name, ranks in members.items() for rank in ranks]
    visits = {(name, rank): job.call(name, members[name], rank) for name, rank in coming}
    random.shuffle(coming)  # all have come, but every rank sees it at a time of its own
    while True:
        steps: list[Callable[[], bool]] = [lambda: job.leave(members), job.deliver]
        free = [each for each in coming if not job.inside[each[1]]]
        if free:

            def come(free: list[tuple[str, int]] = free) -> bool:
                name, rank = random.choice(free)
                coming.remove((name, rank))
                job.posts[rank].meetings.come(visits[name, rank])
                return True

            steps.append(come)
        random.shuffle(steps)
        if not any(step() for step in steps):
            break
    for rank in range(size):
        assert sorted(job.made[rank]) == sorted(name for name, ranks in members.items() if rank in ranks)
        assert job.posts[rank].meetings.waiting() == []
    for one in job.made:  # any two ranks agree on the order of what they both make
        for other in job.made:
            assert [name for name in one if name in other] == [name for name in other if name in one]


def test_a_rank_that_is_alone_goes_in_at_once_and_who_waits_is_told_with_for_whom() -> None:
    job = Job(3, Random(0))
    job.meeting("own", [2], 2)
    assert job.inside[2] == ["own"]
    job.inside[2].clear()
    job.meeting("pair", [1, 2], 2)
    (waiting,) = job.posts[2].meetings.waiting()
    assert (waiting.what, waiting.needs.peers) == ("the turn of: pair as rank 2 calls it", (0,))
    assert (waiting.needs.group, waiting.needs.witnesses) == ("pair", (1,))


def test_a_rank_that_has_come_for_something_else_goes_nowhere_and_is_told_who_has_not() -> None:
    job = Job(3, Random(0))
    for rank in (2, 1, 0):
        job.meeting("all", [2, 1, 0], rank, checksum=7 if rank == 1 else 8)
    while job.deliver():
        pass
    assert job.refused == [(1, 2, "all as rank 2 calls it")]
    assert job.inside == {0: ["all"], 1: [], 2: ["all"]}


def test_a_rank_that_has_called_what_is_no_meeting_says_so_rather_than_wait_for_its_next_turn() -> None:
    """The others are in MPI, and can't."""
    job = Job(2, Random(0))
    job.call("later", [0, 1], 1)
    job.meeting("first", [0, 1], 0)
    with pytest.raises(Mistake, match=r'rank 0 called "first as rank 0 .*, and rank 1 something else there'):
        job.deliver()
    assert job.inside == {0: ["first"], 1: []}


@pytest.mark.parametrize(
    "ranks", [[0], [7, 8], [3, 2, 1], list(range(1, 2000, 3))], ids=["one", "a byte's edge", "turned", "many"]
)
def test_ranks_travel_as_bits(ranks: list[int]) -> None:
    assert ranks_in(bits(ranks)) == sorted(ranks)


def test_a_meeting_of_a_hundred_thousand_ranks_has_room_in_a_control_message() -> None:
    job = Job(2, Random(0))
    job.meeting("all", [1, 0, *range(2, 100_000)], 1)
    ((kind, body),) = job.lines[1, 0]
    assert len(msgpack.packb([kind, *body])) < MESSAGE_BYTES // 4


@pytest.mark.parametrize(
    ("ranks", "whom"),
    [
        ([0, 1], "it waits for rank 0, whose"),
        ([1, 0, 2, 3], "it waits for one or more of ranks 0, 2-3, whose"),
    ],
    ids=["of a pair it is the other", "of more one of them"],
)
def test_who_is_kept_in_a_call_says_for_whom(ranks: list[int], whom: str) -> None:
    job = Job(4, Random(0))
    text = late(job.call("all", ranks, 1), 1, 10.0)
    assert text.startswith("weft: rank 1 (")
    assert 'has been in MPI for 10 s, in "all as rank 1 calls it"' in text
    assert whom in text
