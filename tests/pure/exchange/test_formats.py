"""Wire formats without MPI: what ranks end with, what is left over, and in which order they talk."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest

from tests.formats import WIRES, NumpyFormat
from weft.kernels.kernel import ParameterSpec
from weft.runtime.exchange import Portion
from weft.runtime.exchange.formats import Half, make_carrier
from weft.runtime.graph import Layout
from weft.runtime.graph.parameters import Parameter

SIZE = 1024


class Hub:
    """A wire in memory: a collective is over when the last rank has called it; counts what leaves each."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self.sent = [0] * ranks
        self.calls: list[tuple[int, str, str]] = []
        self.keep_back = False
        self._under_way: dict[tuple[str, int], dict[int, tuple]] = {}
        self._finished: list[tuple[str, list[tuple]]] = []

    def comms(self) -> list[Comm]:
        return [Comm(self, rank, "portions") for rank in range(self.ranks)]

    def call(self, comm: Comm, kind: str, arrays: Sequence[np.ndarray], what: str) -> asyncio.Future[None]:
        done = asyncio.get_running_loop().create_future()
        self.calls.append((comm.rank, comm.name, what))
        key = comm.name, comm.called
        comm.called += 1
        together = self._under_way.setdefault(key, {})
        together[comm.rank] = (kind, *arrays, done)
        if len(together) == self.ranks:
            assert len({kind for kind, *_ in together.values()}) == 1, "ranks called different collectives"
            self._finished.append((kind, [together[rank] for rank in range(self.ranks)]))
            if not self.keep_back:
                self.let_go(0)
        return done

    def let_go(self, number: int) -> None:
        """End one of the collectives that all ranks have called."""
        kind, calls = self._finished.pop(number)
        mine, theirs = [call[1] for call in calls], [call[2] for call in calls]
        blocks = [array.reshape(self.ranks, -1) for array in mine] if kind == "alltoall" else []
        for rank, into in enumerate(theirs):
            rows = into.reshape(self.ranks, -1)
            for source in range(self.ranks):
                block = blocks[source][rank] if blocks else mine[source]
                rows[source] = block.copy()
                self.sent[source] += block.nbytes if source != rank else 0
        for *_, done in calls:
            done.set_result(None)


class Comm:
    def __init__(self, hub: Hub, rank: int, name: str) -> None:
        self.hub, self.rank, self.name, self.size = hub, rank, name, hub.ranks
        self.called = 0

    def alltoall(self, array, into, *, what="", patience_s=None):
        return self.hub.call(self, "alltoall", (array, into), what)

    def allgather(self, share, array, *, what="", patience_s=None):
        return self.hub.call(self, "allgather", (share, array), what)

    async def duplicate(self, name):
        return Comm(self.hub, self.rank, name)


def layout(statistics: Sequence[slice] = ()) -> Layout:
    """One flat vector of SIZE elements, of which some are statistics."""
    edges = sorted({0, SIZE, *(edge for part in statistics for edge in (part.start, part.stop))})
    parameters = []
    for start, stop in pairwise(edges):
        role = "statistic" if slice(start, stop) in statistics else "weight"
        parameters.append(
            Parameter("node", ParameterSpec(f"p{start}", (stop - start,), "zeros", role=role), start)
        )
    return Layout(tuple(parameters), SIZE)


class Ranks:
    """Carriers of several ranks on one wire."""

    def __init__(self, wire: str, ranks: int, statistics: Sequence[slice] = (), keep: float = 0.05) -> None:
        self.hub = Hub(ranks)
        self.gradients = np.zeros((ranks, SIZE), np.float32)
        self.residuals = np.zeros((ranks, SIZE), np.float32)
        self.carriers = [
            make_carrier(wire, comm, gradient, residual, layout(statistics), keep=keep)
            for comm, gradient, residual in zip(self.hub.comms(), self.gradients, self.residuals, strict=True)
        ]

    def cut(self, spans: Sequence[slice]) -> list[Portion]:
        for carrier in self.carriers:
            carrier.cut(spans)
        return [Portion(i, span.start, span.stop, ("node",), 0) for i, span in enumerate(spans)]

    def add_up(self, held: np.ndarray, spans: Sequence[slice]) -> np.ndarray:
        """What each rank ends with."""
        self.gradients[:] = held
        portions = self.cut(spans)

        async def exchange() -> None:
            for carrier in self.carriers:
                await carrier.open()
            sums = []
            for portion in portions:
                for carrier in self.carriers:
                    carrier.encode(portion)
                    sums.append(carrier.start(portion, portion.name))
            await asyncio.gather(*sums)
            for carrier in self.carriers:
                for portion in portions:
                    carrier.decode(portion)

        asyncio.run(exchange())
        return self.gradients.copy()


CUTS = {
    "one portion": [slice(0, SIZE)],
    "uneven portions": [slice(640, 1024), slice(16, 640), slice(0, 16)],
    "a portion with fewer elements than a line": [slice(8, 1024), slice(0, 8)],
    "an empty part": [slice(512, 1024), slice(512, 512), slice(0, 512)],
}
STATISTICS = [slice(96, 144), slice(1000, 1024)]


def is_statistic() -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    for part in STATISTICS:
        mask[part] = True
    return mask


def random_gradients(ranks: int, seed: int) -> np.ndarray:
    """Of many magnitudes; statistics beyond what float16 can hold."""
    random = np.random.default_rng(seed)
    gradients = random.standard_normal((ranks, SIZE)) * 10.0 ** random.integers(-6, 2, (ranks, SIZE))
    gradients[:, is_statistic()] = random.uniform(1e5, 1e7, (ranks, is_statistic().sum()))
    return gradients.astype(np.float32)


@pytest.mark.parametrize("spans", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("wire", WIRES)
def test_ranks_end_with_the_bits_that_numpy_has(wire, count, spans):
    ranks = Ranks(wire, count, STATISTICS)
    expected = NumpyFormat(wire, count, SIZE, is_statistic(), keep=0.05)
    for step in range(4):
        held = random_gradients(count, step)
        sums = ranks.add_up(held, spans)
        wanted = expected.add_up(held, spans)
        for row in sums:
            np.testing.assert_array_equal(row.view(np.uint32), wanted.view(np.uint32))
        np.testing.assert_array_equal(ranks.residuals, expected.residual)


@pytest.mark.parametrize("wire", WIRES)
def test_statistics_arrive_as_float32_has_them(wire):
    ranks = Ranks(wire, 3, STATISTICS)
    held = random_gradients(3, seed=1)
    sums = ranks.add_up(held, CUTS["uneven portions"])
    exact = held[0] + held[1] + held[2]
    np.testing.assert_array_equal(sums[1][is_statistic()], exact[is_statistic()])
    assert not ranks.residuals[:, is_statistic()].any()


@pytest.mark.parametrize("wire", WIRES)
def test_nothing_is_lost_over_steps_whatever_the_cut(wire):
    """What was sent and what still waits make up the gradients of all steps, to float32's own rounding."""
    ranks = Ranks(wire, 3)
    spans = list(CUTS.values())
    total, sent = np.zeros((2, SIZE))
    for step in range(12):
        held = np.random.default_rng(step).standard_normal((3, SIZE)).astype(np.float32)
        total += held.sum(axis=0, dtype=np.float64)
        sent += ranks.add_up(held, spans[step % len(spans)])[0]
        left = ranks.residuals.sum(axis=0, dtype=np.float64)
        np.testing.assert_allclose(sent + left, total, rtol=0, atol=2e-5)
    assert np.abs(sent - total).max() > 1e-4  # or the test would show nothing


@pytest.mark.parametrize("wire", WIRES)
def test_what_waits_is_sent_by_and_by(wire):
    ranks = Ranks(wire, 2)
    held = np.random.default_rng(0).standard_normal((2, SIZE)).astype(np.float32)
    sent = ranks.add_up(held, CUTS["uneven portions"])[0].astype(np.float64)
    for _ in range(40):
        sent += ranks.add_up(np.zeros_like(held), CUTS["one portion"])[0]
    np.testing.assert_allclose(sent, held.sum(axis=0, dtype=np.float64), rtol=1e-6, atol=1e-6)


# What one rank adds and the other takes away; that rounds the gradient off.
DISPUTED = {"float16": 4096.0, "bfloat16": 512.0}


def descend(wire: str, feedback: bool) -> float:
    """Distance of the worst weight from its optimum after gradient descent on two ranks, from distance 1.

    In top_k one weight's gradient is noise and always the largest; only one of 16 is sent.
    """
    ranks = Ranks(wire, 2, keep=1 / 16)
    weights = np.ones(16, np.float32)
    random = np.random.default_rng(5)
    noisy = np.arange(16) == 0
    for _ in range(400):
        held = np.zeros((2, SIZE), np.float32)
        held[1, :16] = weights
        if wire == "top_k":
            held[:, 0] = random.choice([-4.0, 4.0], 2)
        else:
            held[0, :16] += DISPUTED[wire]
            held[1, :16] -= DISPUTED[wire]
        if not feedback:
            ranks.residuals[:] = 0.0
        gradient = ranks.add_up(held, [slice(0, 16)])[0, :16]
        weights -= np.float32(0.05) * gradient
    return float(np.abs(weights[~noisy]).max())


@pytest.mark.parametrize("wire", WIRES)
def test_error_feedback_trains_where_plain_rounding_stands_still(wire):
    assert descend(wire, feedback=False) == 1.0
    assert descend(wire, feedback=True) < 0.2


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_half_the_bytes_leave_every_rank_at_any_number_of_ranks(ranks):
    """Against the 2 (n - 1) / n of its size that the best all-reduce of float32 sends."""
    for wire in ("float16", "bfloat16"):
        carriers = Ranks(wire, ranks)
        carriers.add_up(np.ones((ranks, SIZE), np.float32), [slice(0, 768)])  # 768: whole lines for all
        best = 768 * 4 * 2 * (ranks - 1) // ranks
        assert carriers.hub.sent == [best // 2] * ranks


def test_top_k_sends_eight_bytes_an_element_to_every_other_rank():
    ranks = Ranks("top_k", 4, keep=0.01)
    ranks.add_up(np.ones((4, SIZE), np.float32), [slice(0, SIZE)])
    assert ranks.hub.sent == [3 * 8 * 11] * 4
    assert ranks.carriers[0].nbytes(Portion(0, 0, SIZE, ("node",), 0)) == 88


def test_second_collectives_keep_the_order_of_the_plan_whichever_first_one_ends_first():
    ranks = Ranks("float16", 2)
    portions = ranks.cut([slice(0, 512), slice(512, 1024)])
    hub, carriers = ranks.hub, ranks.carriers

    async def exchange() -> None:
        for carrier in carriers:
            await carrier.open()
        hub.keep_back = True
        sums = []
        for portion in reversed(portions):  # the plan's order
            for carrier in carriers:
                carrier.encode(portion)
                sums.append(carrier.start(portion, f"p{portion.index}"))
        hub.let_go(1)  # p0, posted last
        await settle()
        assert [what for *_, what in hub.calls] == ["p1", "p1", "p0", "p0"]
        hub.let_go(0)
        await settle()
        assert [what for rank, _, what in hub.calls[4:] if rank == 0] == ["p1, sums", "p0, sums"]
        assert {name for _, name, _ in hub.calls[4:]} == {"sums of portions"}
        hub.let_go(1)
        hub.let_go(0)
        await asyncio.gather(*sums)

    asyncio.run(exchange())


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_a_format_without_a_residual_says_what_to_give():
    with pytest.raises(ValueError, match="top_k leaves something out: give a residual"):
        make_carrier("top_k", Hub(1).comms()[0], np.zeros(SIZE, np.float32), None, layout())


def test_a_carrier_makes_its_second_communicator_once():
    comm = Hub(2).comms()[0]
    carrier = make_carrier("float16", comm, *np.zeros((2, SIZE), np.float32), layout())
    assert isinstance(carrier, Half)

    async def twice() -> None:
        await carrier.open()
        made = carrier._second
        await carrier.open()
        assert carrier._second is made

    asyncio.run(twice())
