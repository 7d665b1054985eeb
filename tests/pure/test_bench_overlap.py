"""The overlap bench's sizes, its serial losses, and how it tells where a step's time went."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from bench._core import Use
from bench._idle import causes
from bench._steps import Sizes, check_losses, reference, widths
from bench._sums import Sums
from bench.harness import WrongResultError
from weft.runtime.errors import Mistake
from weft.runtime.observe.trace import COMPUTE, WIRE, Span

MS = 1_000_000


def kernel(start_ms: float, end_ms: float, **args: object) -> Span:
    return Span(COMPUTE, "kernel", int(start_ms * MS), int(end_ms * MS), args)


def transfer(start_ms: float, end_ms: float, portion: int, waited_ms: float = 0.0, step: int = 0) -> Span:
    args = {"step": step, "portion": portion, "waited_us": waited_ms * 1e3}
    return Span(WIRE, f"portion {portion}", int(start_ms * MS), int(end_ms * MS), args)


def in_ms(spans: list[Span], stop_ms: float) -> dict[str, float]:
    found = causes(spans, (0, int(stop_ms * MS)))
    return {name: round(seconds * 1e3, 3) for name, seconds in found.items() if seconds}


@pytest.mark.parametrize(
    ("spans", "stop_ms", "expected"),
    [
        (
            [kernel(0, 4), transfer(1, 6, 0), kernel(7, 9, step=0, portion=0), transfer(8, 9, 1)],
            9,
            {"lane_busy": 6, "lane_arrival": 2, "lane_wake": 1, "wire_busy": 6, "wire_unready": 3},
        ),
        (
            [kernel(0, 4), transfer(0, 1, 0), kernel(5, 7, step=0, portion=0), transfer(6, 7, 1)],
            7,
            {"lane_busy": 6, "lane_wake": 1, "wire_busy": 2, "wire_unready": 5},
        ),
        (
            [kernel(0, 4), transfer(0, 1, 0), transfer(4, 7, 1, waited_ms=2), kernel(6, 7)],
            7,
            {"lane_busy": 5, "lane_other": 2, "wire_busy": 4, "wire_unready": 1, "wire_late": 2},
        ),
        (
            [kernel(0, 4), kernel(4.015, 7), transfer(0, 7, 0, step=1)],
            7,
            {"lane_busy": 6.985, "lane_between": 0.015, "wire_busy": 7},
        ),
        ([kernel(-5, 1), kernel(8, 9), transfer(3, 20, 0)], 5, {"lane_busy": 1, "lane_other": 4,
                                                                 "wire_busy": 2, "wire_unready": 3}),
    ],
    ids=[
        "an update waits for its portion, then for the lane to begin",
        "a portion that came while the lane computed is not waited for",
        "a portion that was ready while nothing travelled is late",
        "the pause between kernels is no wait",
        "what is outside the window does not count",
    ],
)  # fmt: skip
def test_idle_time_has_a_cause(spans, stop_ms, expected):
    assert in_ms(spans, stop_ms) == expected


@pytest.mark.parametrize(
    ("layers", "width", "skew"),
    [(8, 1024, None), (8, 1024, 0.7), (8, 1024, 0.5), (5, 512, 0.7), (3, 256, 0.6)],
)
def test_a_skewed_network_has_as_many_weights_and_their_share_in_one_layer(layers, width, skew):
    found = widths(layers, width, skew)
    sizes = Sizes(found, batch=1, ranks=2)
    assert len(found) == layers + 1
    assert sizes.parameters == pytest.approx(layers * width**2, rel=0.05)
    assert sizes.nbytes == 4 * sizes.parameters
    largest = max(a * b for a, b in pairwise(found)) / sizes.parameters
    assert largest == pytest.approx(skew or 1 / layers, abs=0.03)


@pytest.mark.parametrize(
    ("layers", "width", "skew"), [(0, 8, None), (2, 8, 0.7), (8, 8, 0.1), (8, 8, 1.0)], ids=str
)
def test_impossible_sizes_are_refused(layers, width, skew):
    with pytest.raises(Mistake, match="give"):
        widths(layers, width, skew)


def test_the_serial_losses_fall_and_do_not_depend_on_how_many_ranks_share_the_samples():
    two = reference(Sizes((16, 16, 16), batch=8, ranks=2), 5)
    assert two == sorted(two, reverse=True)
    assert two == reference(Sizes((16, 16, 16), batch=4, ranks=4), 5)


def test_with_momentum_the_first_step_is_shorter_and_later_ones_gather():
    sizes = Sizes((16, 16, 16), batch=8, ranks=2)
    plain, gathered = reference(sizes, 12), reference(sizes, 12, momentum=0.9)
    assert gathered[0] == plain[0]
    assert plain[1] < gathered[1] < gathered[0]
    assert gathered[-1] - gathered[-2] < gathered[1] - gathered[0]


def test_a_loss_that_is_off_is_a_wrong_result():
    check_losses("weft", [2.0, 1.00001, 0.5], [2.0, 1.0])
    with pytest.raises(WrongResultError, match="weft: losses"):
        check_losses("weft", [2.0, 1.01], [2.0, 1.0])
    with pytest.raises(WrongResultError):
        check_losses("weft", [], [2.0])


def test_a_sum_that_is_off_is_a_wrong_result():
    arrays = [[np.empty(size, np.float32) for size in (5, 3)] for _ in range(3)]
    sums = [Sums(rank, 3, own) for rank, own in enumerate(arrays)]
    for each in sums:
        each.fill()
    for parts in zip(*arrays, strict=True):
        parts[0][:] = np.sum(parts, axis=0)
    sums[0].check("portions")
    with pytest.raises(WrongResultError, match="portions: a sum is wrong"):
        sums[1].check("portions")


def test_what_neither_the_processes_nor_the_network_used_others_did():
    assert Use(core=5.0, softirq=0.5, own=4.0).since(Use(1.0, 0.25, 1.5)).others == pytest.approx(1.25)
    assert Use(core=1.0, softirq=0.0, own=1.01).others == 0.0
