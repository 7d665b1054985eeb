"""What a pool cannot be opened with is told with the value and what to give, before ranks meet."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from weft.runtime.errors import Mistake
from weft.runtime.work.pool.lanes import UNLIMITED, Offer
from weft.runtime.work.pool.opening import check_functions, check_settings, checked_offer

SETTINGS: dict[str, Any] = {"classes": 2, "task_s": 1e-3, "places": np.int64(4), "place_bytes": 64}


def f(pool: Any, body: Any) -> None: ...


@pytest.mark.parametrize(
    ("setting", "wrong", "remedy"),
    [
        *[("classes", wrong, "give a whole number, 1 to 64") for wrong in (0, 1.5, "2", None, 65, 5000)],
        *[("task_s", wrong, "give seconds, 0 or more") for wrong in (-1, math.nan, math.inf, "x", [1])],
        *[("places", wrong, "a lane; give a whole number, 1 to 65535") for wrong in (0, 4.5, 65536, "8")],
        *[("place_bytes", wrong, "give a whole number, 1 or more: what does not fit") for wrong in (0, 0.5)],
    ],
    ids=str,
)
def test_a_setting_that_is_no_number_or_not_enough_is_refused(setting, wrong, remedy):
    check_settings("p", **SETTINGS)
    with pytest.raises(Mistake) as told:
        check_settings("p", **{**SETTINGS, setting: wrong})
    assert "the pool 'p' is to " in str(told.value)
    assert f" {setting}={wrong!r}" in str(told.value)
    assert remedy in str(told.value)


@pytest.mark.parametrize("wrong", [-1, math.nan, "64", np.array([8]), None], ids=str)
def test_memory_that_is_no_number_is_refused(wrong):
    with pytest.raises(Mistake, match=r"offers memory_bytes=.* to the pool 'p'; give what one task may hold"):
        checked_offer("p", ("cpu",), wrong)


@pytest.mark.parametrize("wrong", ["cpu", None, [1], 3], ids=str)
def test_devices_that_are_no_names_are_refused(wrong):
    with pytest.raises(Mistake, match=r"offers devices=.* to the pool 'p'; give a list of names, as in"):
        checked_offer("p", wrong, 0)


@pytest.mark.parametrize(
    ("given", "taken"),
    [(0, 0), (64e9, 64_000_000_000), (0.9 * 10, 9), (np.int64(7), 7), (math.inf, UNLIMITED)],
    ids=str,
)
def test_memory_is_any_number_and_travels_as_a_whole_one(given, taken):
    offer = checked_offer("p", ["cpu", "gpu"], given)
    assert offer == Offer(("cpu", "gpu"), taken)
    assert type(offer.memory_bytes) is int


@pytest.mark.parametrize(
    "wrong", [[f], None, {"f": 3}, {1: f}], ids=["a list", "nothing", "a number", "numbered"]
)
def test_what_are_no_functions_by_name_are_refused(wrong):
    check_functions("p", {"f": f})
    with pytest.raises(Mistake, match=r"the pool 'p' is to run .*; give functions by name, as in {'halve'"):
        check_functions("p", wrong)
