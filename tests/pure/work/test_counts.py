"""The end of a pool's run on several nodes: found in every interleaving, and never while a task is left."""

from __future__ import annotations

from random import Random

import pytest

from tests.pure.work.memory import Memory
from weft.runtime.work.pool.counts import LOOPS, THREADS, WORD_BYTES, Counts, Rounds, words_of


class Ranks:
    """Ranks that run, spawn and send tasks in random order; sums are read rank by rank, in between."""

    def __init__(self, size: int, seed: int) -> None:
        self.random = Random(seed)
        self.spawned, self.ended = [0] * size, [0] * size
        self.tasks: list[list[int]] = [[] for _ in range(size)]
        self.flying: list[tuple[int, int]] = []
        self.spawn(0, 9)

    def spawn(self, rank: int, depth: int) -> None:
        self.spawned[rank] += 1
        self.tasks[rank].append(depth)

    @property
    def left(self) -> int:
        return sum(map(len, self.tasks)) + len(self.flying)

    def step(self) -> None:
        random = self.random
        rank = random.randrange(len(self.tasks))
        if self.flying and random.random() < 0.4:
            to, depth = self.flying.pop(random.randrange(len(self.flying)))
            self.tasks[to].append(depth)
        elif self.tasks[rank]:
            depth = self.tasks[rank].pop()
            if random.random() < 0.5:
                self.flying.append((random.randrange(len(self.tasks)), depth))
                return
            for _ in range(random.choice((0, 1, 2, 2)) if depth else 0):
                self.spawn(rank, depth - 1)
            self.ended[rank] += 1


def test_r3_a_node_is_done_when_as_many_tasks_have_ended_as_were_spawned_whoever_counts_them():
    memory = Memory(2, words_of(2) * WORD_BYTES)
    first, second = (Counts(memory, rank, 2, 2) for rank in range(2))
    assert first.over()
    words = [(rank, word) for rank in (first, second) for word in (THREADS, LOOPS)]
    for rank, word in words:
        rank.spawned[word] += 1
    for rank, word in words:
        assert not first.over()
        assert not second.over()
        rank.ended[word] += 1
    assert first.over()
    assert second.over()
    assert first.mine() == second.mine() == (2, 2)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_r3_the_end_is_found_and_not_before_it_is_there(size):
    early = 0
    for seed in range(300):
        ranks, rounds = Ranks(size, seed), Rounds()
        for _ in range(1000):
            ended = spawned = 0
            for rank in ranks.random.sample(range(size), size):  # each joins at a moment of its own
                ended += ranks.ended[rank]
                spawned += ranks.spawned[rank]
                for _ in range(ranks.random.randrange(20)):
                    ranks.step()
            early += ended == spawned and ranks.left > 0  # what one round alone would take for the end
            if rounds.over(ended, spawned):
                break
        else:
            pytest.fail("the end was never found")
        assert ranks.left == 0
    assert early > 0 or size == 1
