"""Ranks of a node take micro-batches and weight gradients from each other, and the sums are the oracle's.

Ranks are held on their lanes until others have taken their work: nothing depends on how fast anybody is.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import numpy as np
import pytest
from mpi4py import MPI

from tests.mpi.train.test_same_answer import ROWS, SMALL, made
from tests.mpi.training import Bench, Trained, disturb, everyones, require_equal_bits, until
from weft.runtime.exchange.stealing import Stealing
from weft.runtime.graph.backward import Phase
from weft.runtime.train.order import batch_indices
from weft.runtime.work import claims, offers
from weft.runtime.work.claims import BACK

SIZE, RANK = MPI.COMM_WORLD.Get_size(), MPI.COMM_WORLD.Get_rank()


class Node:
    """The ranks of this one's node, and what they do in the step that is looked at."""

    def __init__(self, stealing: Stealing, step: int) -> None:
        self.claims, self.offers, self.step = stealing.claims, stealing.offers, step
        self.rank, self.size = stealing.claims.rank, len(stealing.claims.ranks)
        self.last = self.size - 1

    @property
    def begun(self) -> int:
        """How many micro-batches this rank has begun."""
        return self.claims.counts.micro_batches.total()

    def taken(self, rank: int) -> tuple[int, int]:
        """How many of a rank's micro-batches it has claimed itself, and how many others have."""
        word = self.claims.pots[self.step % 2][rank].peek()
        return word % BACK, word // BACK


def check(bench: Bench, trained: Trained) -> None:
    """Every micro-batch was computed once; losses and weights are those of the same division, to the bit."""
    require_equal_bits(trained.parameters)
    train = bench.job.train
    counts = np.zeros((trained.steps, train.batch), np.int64)
    for step, mine in enumerate(trained.division):
        np.add.at(counts[step], mine, 1)
    for step, computed in enumerate(everyones(counts).sum(0)):
        samples = len(batch_indices(bench.job.seed, step, len(bench.data.train), train.batch))
        expected = -(-samples // train.micro_batch)
        assert list(computed) == [1] * expected + [0] * (train.batch - expected)
    losses, weights = bench.oracle(trained)
    np.testing.assert_array_equal(trained.losses, losses)
    np.testing.assert_array_equal(trained.parameters, weights)


def total(trained: Trained, chosen: Callable[[dict[str, object]], bool]) -> int:
    """How many kernels' facts, of all ranks, are chosen."""
    found = [chosen(info) for track, _, _, _, info in trained.spans if track == "compute"]
    return int(everyones(np.array([sum(found)])).sum())


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("layers", [SMALL, ROWS], ids=["small", "blocks of rows"])
@pytest.mark.parametrize("clip_norm", [None, 0.5], ids=["no clipping", "clipping"])
def test_a_held_ranks_micro_batches_are_computed_by_the_others_of_its_node(layers, clip_norm, monkeypatch):
    """The last rank of each node does not begin its first micro-batch until nothing else is left."""
    monkeypatch.setattr(claims, "leaves", lambda *given: False)  # whatever they take that one for
    per_rank = 4
    given = {} if clip_norm is None else {"clip_norm": clip_norm}
    bench = Bench(made(layers, steps=4, batch=8 * per_rank * SIZE, portion_bytes=8192, **given))
    alone: list[bool] = []

    def arrange(training, replica, world):
        if training._stealing is None or world.node_size == 1:
            alone.append(True)
            return
        node = Node(training._stealing, 1)

        def before(step, rows):
            if node.rank == node.last and node.begun == 1:
                until(lambda: all(sum(node.taken(r)) >= per_rank - 1 for r in range(node.size)))

        disturb(replica, before)

    trained = bench.train(arrange=arrange)
    check(bench, trained)
    node = MPI.COMM_WORLD.Split_type(MPI.COMM_TYPE_SHARED)
    mine = [index for index in trained.division[0] if index % SIZE != RANK]
    if not alone and node.rank == node.size - 1:
        assert trained.division[0] == [RANK]
    stolen = node.allreduce(len(mine))
    node.Free()
    assert stolen == 0 if alone else stolen >= per_rank - 1


@pytest.mark.mpi(min_size=2)
@pytest.mark.limit(180)
@pytest.mark.skipif("+" in os.environ.get("WEFT_NODES", ""), reason="the ranks of one node are enough")
def test_a_rank_that_seemed_slow_once_takes_more_than_its_first_again(monkeypatch):
    """The last rank of each node is told once that a micro-batch takes it half a second; from then on the
    others take none until it has taken a second one, or left it to them."""
    bench = Bench(made(SMALL, steps=200, batch=16 * SIZE))
    told_at = 10
    nodes: list[Node] = []
    take = claims.Dealt.next

    def held(dealt):
        if nodes and dealt.step > told_at and (node := nodes[0]).rank != node.last:
            leavers = node.claims.leavers[dealt.step % 2]
            until(lambda: not dealt._left(node.last) or leavers.peek())
        return take(dealt)

    monkeypatch.setattr(claims.Dealt, "next", held)

    def arrange(training, replica, world):
        if training._stealing is not None and world.node_size > 1:
            nodes.append(Node(training._stealing, 0))

    def before_step(step, team):
        if step == told_at and nodes and nodes[0].rank == nodes[0].last:
            nodes[0].claims.seconds = 0.5

    trained = bench.train(arrange=arrange, before_step=before_step)
    check(bench, trained)
    if nodes and nodes[0].rank == nodes[0].last:
        assert nodes[0].claims.counts.left > 10
        took = [len(mine) for mine in trained.division[told_at + 5 :]]  # behind those in flight when told
        assert max(took[took.index(1) :]) > 1, f"believes in {nodes[0].claims.seconds} s"


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("per_rank", [1, 2], ids=["of its first micro-batch", "of its second"])
@pytest.mark.parametrize("layers", [SMALL, ROWS], ids=["small", "blocks of rows"])
def test_a_held_ranks_weight_gradients_are_computed_by_the_others_of_its_node(layers, per_rank, monkeypatch):
    """The last rank goes on when the others are idle, and then when one of them has run its first kernel."""
    monkeypatch.setattr(offers, "WORTH_S", 0.0)
    bench = Bench(made(layers, steps=4, batch=8 * per_rank * SIZE, portion_bytes=8192))
    alone: list[bool] = []

    def arrange(training, replica, world):
        if training._stealing is None or world.node_size == 1:
            alone.append(True)
            return
        node = Node(training._stealing, 1)
        assert node.offers is not None

        def before(step, rows):
            if node.begun > per_rank:
                return
            if node.rank == node.last and node.begun == per_rank:
                if step.phase is Phase.FORWARD:  # of its last micro-batch
                    until(lambda: node.offers.over(node.step))
            elif node.rank != node.last and per_rank == 2 and node.begun == 1:
                until(lambda: node.taken(node.last)[0] == 1)

        def first_ran(step, rows):
            before(step, rows)
            last_begins = node.begun == per_rank and node.offers._out[node.last][0] == (
                node.step * offers.COUNT + 1
            )
            if node.rank == node.last and step.phase is Phase.INPUT_GRADIENT and last_begins:
                until(lambda: bool(node.offers.ended(node.step, [0])))

        disturb(replica, first_ran)

    trained = bench.train(arrange=arrange)
    check(bench, trained)
    shared = everyones(np.array([not alone])).any()

    def stolen_at_first(info):
        return info.get("phase") == "weight_gradient" and info["step"] == 0 and "of" in info

    stolen = total(trained, stolen_at_first)
    assert stolen >= 1 if shared else stolen == 0
    put_out = total(trained, lambda info: info.get("phase") == "put out")
    assert put_out >= stolen


@pytest.mark.mpi
def test_a_deterministic_job_gives_the_same_bits_however_ranks_dawdle():
    bench = Bench(made(ROWS, steps=4, batch=8 * 4 * SIZE, deterministic=True))
    never = threading.Event()

    def dawdle(training, replica, world):
        assert training._stealing is None
        disturb(replica, lambda step, rows: never.wait(1e-3) if world.rank == 0 else None)

    runs = [bench.train(), bench.train(arrange=dawdle)]
    assert runs[0].losses == runs[1].losses
    np.testing.assert_array_equal(runs[0].parameters, runs[1].parameters)
    assert runs[0].division == [list(range(RANK, 4 * SIZE, SIZE))] * 4
