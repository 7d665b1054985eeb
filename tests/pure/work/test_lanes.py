"""Lanes: who may run what, and that a thief who keeps to its lanes can run all that it takes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.runtime.errors import Mistake
from weft.runtime.work.pool.lanes import Lanes, Offer

LAPTOP, BIG, GPU = Offer(("cpu",), 8), Offer(("cpu",), 64), Offer(("cpu", "gpu"), 64)


def test_r3_ranks_that_are_alike_have_one_lane_a_class():
    lanes = Lanes([BIG] * 3, classes=2)
    assert [lane.name for lane in lanes.all] == ["class 0 up to 64 bytes", "class 1 up to 64 bytes"]
    assert lanes.of(1, "cpu", 64) == lanes.of(1) == 1
    assert lanes.open_to(2) == [[0], [1]]
    assert lanes.closed_to(2) == {}


def test_r3_a_lane_for_each_set_of_ranks_that_can_run_what_is_in_it():
    lanes = Lanes([LAPTOP, BIG, GPU])
    assert [sorted(lane.ranks) for lane in lanes.all] == [[0, 1, 2], [1, 2], [2]]
    assert [lanes.of(0, *demand) for demand in ((None, 8), ("cpu", 9), ("gpu", 1))] == [0, 1, 2]
    assert lanes.open_to(0) == [[0]]
    assert lanes.open_to(2) == [[2, 1, 0]]  # first what others cannot do
    assert lanes.closed_to(0) == {1: "too little memory", 2: "wrong device"}
    assert lanes.closed_to(1) == {2: "wrong device"}
    assert lanes.closed_in([0, 2]) == [set(), {0}, {0}]


def test_r3_a_lane_of_tasks_that_want_memory_or_a_device_is_closed_for_both_reasons():
    lanes = Lanes([LAPTOP, GPU])
    assert lanes.of(0, None, 9) == lanes.of(0, "gpu", 1) == 1
    assert lanes.closed_to(0) == {1: "too little memory or wrong device"}


@pytest.mark.parametrize(
    ("demand", "message"),
    [
        ((0, "tpu", 0), "wants 0 bytes on tpu: the ranks offer cpu, gpu"),
        ((0, None, 65), "wants 65 bytes on any device: the most that one offers there is 64 bytes"),
        ((0, "gpu", 65), "wants 65 bytes on gpu: the most that one offers there is 64 bytes"),
        ((2, None, 0), r"class 2; this pool has classes 0 \(first\) to 1"),
        ((-1, None, 0), "class -1"),
        (([0], None, 0), r"class \[0\]"),
        ((np.zeros(1, int), None, 0), r"class array\(\[0\]\)"),
    ],
)
def test_what_nobody_can_run_is_refused(demand, message):
    with pytest.raises(Mistake, match=message):
        Lanes([LAPTOP, BIG, GPU], classes=2).of(*demand)


DEVICES = st.sampled_from(["cpu", "gpu", "npu"])
OFFERS = st.builds(
    Offer, st.lists(DEVICES, min_size=1, unique=True).map(tuple), st.sampled_from([1, 10, 100, 1000])
)


@given(st.lists(OFFERS, min_size=1, max_size=6), st.none() | DEVICES, st.integers(0, 1100), st.integers(0, 1))
def test_r3_a_rank_may_take_from_a_lane_exactly_if_it_can_run_all_that_comes_into_it(
    offers, device, memory_bytes, priority
):
    lanes = Lanes(offers, classes=2)
    able = {
        rank
        for rank, o in enumerate(offers)
        if device in (None, *o.devices) and memory_bytes <= o.memory_bytes
    }
    if not able:
        with pytest.raises(Mistake, match="no rank can run"):
            lanes.of(priority, device, memory_bytes)
        return
    lane = lanes.of(priority, device, memory_bytes)
    assert lanes.all[lane].priority == priority
    assert {rank for rank in range(len(offers)) if lane in lanes.open_to(rank)[priority]} == able
    assert {rank for rank in range(len(offers)) if lane not in lanes.closed_to(rank)} == able
