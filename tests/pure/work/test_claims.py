"""Who computes which block: placement by cost, and the loop that runs live, in virtual time."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from tests.pure.graph.neuron_graphs import GRAPHS, chain, inception, parameters
from weft.runtime.graph import Graph
from weft.runtime.graph.neurons.blocks import Block, Blocks, cut
from weft.runtime.graph.neurons.cut import Grain
from weft.runtime.graph.neurons.placement import place
from weft.runtime.work.neurons import claims
from weft.runtime.work.neurons.virtual import Ran, simulate

WHOLE = (slice(0, 1),)


def blocks(*costs_and_needs: tuple[float, tuple[int, ...]]) -> list[Block]:
    return [Block(str(n), 0, WHOLE, cost, needs) for n, (cost, needs) in enumerate(costs_and_needs)]


def of(graph: Graph, ranks: int, *, cost_s: float = 1.0, most: int = 4, **options) -> Blocks:
    """Every node costs as much."""
    costs = {node.name: cost_s for node in graph.nodes}
    grain = Grain(cost_s / 1000, cost_s / 1000, most=most)
    return cut(graph, 1, parameters(graph), costs, ranks=ranks, grain=grain, **options)


def makespan(ran: list[Ran]) -> float:
    return max(each.end_s for each in ran)


@pytest.mark.parametrize(
    ("given", "ranks", "expected"),
    [
        ([(5, ()), (5, ()), (1, ()), (1, ())], 2, [{0, 1}, {0, 1}]),
        ([(6, ()), (2, ()), (2, ()), (2, ())], 2, [{0}, {1, 2, 3}]),
        ([(1, ()), (1, ()), (1, (0,)), (1, (1,))], 2, [{0, 2}, {1, 3}]),
        ([(1, ()), (1, ()), (1, (1,)), (1, (0,))], 2, [{0, 3}, {1, 2}]),
        ([(1, ()), (9, (0,)), (1, ()), (1, (2,)), (1, (3,))], 2, [{0, 1}, {2, 3, 4}]),
    ],
    ids=[
        "costly blocks spread over the ranks",
        "one costly block counts as several others",
        "what a block needs stays on its rank",
        "whichever that is",
        "the longest chain goes first and stays together",
    ],
)
def test_s1_6_costs_decide_the_place(given, ranks, expected):
    homes = place(blocks(*given), ranks).homes
    parts = [{n for n, home in enumerate(homes) if home == rank} for rank in range(ranks)]
    if expected == [{0, 1}, {0, 1}]:
        assert homes[0] != homes[1]
        assert homes[2] != homes[3]
    else:
        assert sorted(parts, key=sorted) == sorted(expected, key=sorted)


def test_s1_6_the_longest_chain_is_urgent_and_not_what_most_wait_for():
    fan, long = [(1, ()), (1, (0,)), (1, (0,)), (1, (0,))], [(1, ()), (2, (4,))]
    assert place(blocks(*fan, *long), 1).urgent[0] == 4


def test_s1_6_other_costs_alone_change_who_computes_what():
    found = of(inception(), 2).blocks
    placement = place(found, 2)
    dear = [number for number, block in enumerate(found) if block.name.startswith("three0")][:1]
    other = [replace(b, cost_s=b.cost_s * 50) if n in dear else b for n, b in enumerate(found)]
    changed = place(other, 2)
    assert changed.homes != placement.homes

    def by_rank(given: list[Block]) -> dict[int, int]:
        return {each.block: each.rank for each in simulate(given, place(given, 2), 2)}

    assert by_rank(list(found)) != by_rank(other)
    # The rank that has the costly block has little else of the blocks beside it.
    beside = [n for n, b in enumerate(other) if b.name.startswith(("one0", "five0", "pooled0", "three0"))]
    alone = [n for n in beside if changed.homes[n] == changed.homes[dear[0]]]
    assert len(alone) < len(beside) / 2


@pytest.mark.parametrize("ranks", [1, 2, 3, 16, 4096])
@pytest.mark.parametrize("name", GRAPHS)
def test_s1_5_no_block_begins_before_what_it_needs_has_ended(name, ranks):
    found = of(GRAPHS[name](), min(ranks, 16)).blocks
    speeds = [1 + rank % 3 for rank in range(ranks)]
    ran = simulate(found, place(found, min(ranks, 16)), ranks, speeds=speeds, requests=2)
    assert sorted(each.block for each in ran) == list(range(len(found)))
    ends = {each.block: each.end_s for each in ran}
    for each in ran:
        assert all(ends[need] <= each.start_s for need in found[each.block].needs)
    for rank in {each.rank for each in ran}:
        own = sorted((each for each in ran if each.rank == rank), key=lambda each: each.start_s)
        assert all(a.end_s <= b.start_s for a, b in pairwise(own))


def test_s1_5_lookahead_blocks_of_two_later_layers_begin_before_the_first_ends():
    """One block of the first layer takes as long as all others of its layer, and more."""
    found = list(of(chain(), 2).blocks)
    slow = next(n for n, block in enumerate(found) if block.stage == 0)
    found[slow] = replace(found[slow], cost_s=40 * found[slow].cost_s)
    ran = simulate(found, place(found, 2), 2)
    end = max(each.end_s for each in ran if found[each.block].stage == 0)
    for later in (1, 2):
        assert min(each.start_s for each in ran if found[each.block].stage == later) < end


@pytest.mark.parametrize("ranks", [2, 4, 16])
@pytest.mark.parametrize("name", ["chain", "inception", "residual"])
def test_s1_5_without_barriers_fewer_wait_for_a_block_that_is_late(name, ranks):
    """Every fourth block takes three times what the costs say: behind a barrier all wait for each of them."""

    def mean_makespan(barrier: bool) -> float:
        found = of(GRAPHS[name](), ranks, barrier=barrier).blocks
        placement, times = place(found, ranks), []
        for seed in range(20):
            late = np.random.default_rng(seed).random(len(found)) < 0.25
            real = [replace(b, cost_s=b.cost_s * (3 if late[n] else 1)) for n, b in enumerate(found)]
            times.append(makespan(simulate(real, placement, ranks)))
        return float(np.mean(times))

    assert mean_makespan(False) < mean_makespan(True)


def test_a_block_of_another_home_is_taken_when_none_of_ones_own_is_ready():
    found = blocks((1.0, ()), (1.0, ()), (1.0, ()), (1.0, ()))
    everything_at_0 = replace(place(found, 2), homes=(0, 0, 0, 0))
    ran = simulate(found, everything_at_0, 2)
    assert sorted(each.rank for each in ran) == [0, 0, 1, 1]


def test_s1_6_blocks_of_another_home_are_taken_only_after_some_looks_for_ones_own():
    found = blocks((1, ()), (1, (0,)))
    words = np.zeros(claims.words(2, 2), np.int64)
    book = claims.book([block.needs for block in found], [1], [0])
    assert claims.take(words, book, 1, 3, 3) == claims.NOTHING
    assert claims.take(words, book, 1, 4, 3) == 0


def test_who_comes_late_to_a_request_that_failed_takes_nothing():
    found = blocks((1, ()), (1, ()))
    words = np.zeros(claims.words(2, 2), np.int64)
    book = claims.book([block.needs for block in found], [0, 1], [])
    claims.fail(words, 1)
    claims.begin(book)
    assert claims.take(words, book, 1, 10, 0) == claims.OVER
    assert words[claims.ENDED] == 0


def test_a_request_that_failed_leaves_nothing_behind():
    found = blocks((1.0, ()), (1.0, (0,)), (1.0, (0, 1)))
    book = claims.book([block.needs for block in found], [0, 1, 2], [])
    words = np.zeros(claims.words(3, 1), np.int64)
    for request, fails in ((1, False), (2, True), (3, False), (4, True), (5, False)):
        claims.begin(book)
        seen, block = [], claims.take(words, book, request, 1, 0)
        while block >= 0:
            seen.append(block)
            if fails and block == 1:
                claims.fail(words, request)
                assert claims.take(words, book, request, 1, 0) == claims.OVER
                claims.settle(words, book, request)
                break
            block = claims.advance(words, book, block, request, 1, 0)
        assert seen == ([0, 1] if fails else [0, 1, 2])


def test_who_is_late_finds_nothing_to_take():
    """It enters request 1 when all of it has ended, and while request 2 is under way."""
    found = blocks((1.0, ()), (1.0, ()))
    words = np.zeros(claims.words(2, 2), np.int64)
    first, late = (claims.book([block.needs for block in found], [0, 1], []) for _ in range(2))
    for block in (0, 1):
        assert claims.take(words, first, 1, 1, 0) == block
        claims.advance(words, first, block, 1, 0, 0)
    assert claims.take(words, late, 1, 1, 0) == claims.OVER
    claims.begin(first)
    assert claims.take(words, first, 2, 1, 0) == 0
    assert claims.take(words, late, 1, 1, 0) == claims.OVER
