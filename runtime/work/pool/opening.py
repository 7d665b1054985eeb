"""What a pool is opened with, checked before its ranks do anything together."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from math import inf
from typing import Any

from ...errors import Mistake
from ...graph.tasks import amount, whole
from .lanes import UNLIMITED, Offer
from .parcel import MOST_PLACES

NOT_PLAIN = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
"""Whether a function, called, begins nothing."""


MOST_CLASSES = 64
"""Each takes every rank a lane of its shelf or more, 2 MiB with the usual places: 5000 took 10 GiB a rank."""


def check_functions(pool: str, functions: Mapping[str, Any]) -> None:
    """Mistake for what are no functions that a pool can call by name."""
    if not isinstance(functions, Mapping):
        raise Mistake(
            f"the pool {pool!r} is to run a {type(functions).__name__}; give functions by name, as in"
            " {'halve': halve, 'square': square}"
        )
    for each, function in functions.items():
        if not isinstance(each, str) or not callable(function):
            raise Mistake(
                f"the pool {pool!r} is to run {function!r:.80} as {each!r:.80}; give functions by name, as in"
                " {'halve': halve, 'square': square}"
            )
        # Called, they begin nothing: a spawned task counted as run, and nobody heard that it was not.
        if any(kind(function) for kind in NOT_PLAIN):
            raise Mistake(
                f"the function {each!r} of the pool {pool!r} is `async def`, or has a `yield`; tasks run"
                " on a thread: give a plain one, which may call `asyncio.run`, or consume a generator"
            )


def check_settings(pool: str, *, classes: int, task_s: float, places: int, place_bytes: int) -> None:
    """Mistake for a number that a pool cannot have. (Half a place ended in the arithmetic of its memory.)"""
    if not (whole(classes, 1) and classes <= MOST_CLASSES):
        raise Mistake(
            f"the pool {pool!r} is to have classes={classes!r}; give a whole number, 1 to {MOST_CLASSES}"
        )
    if not amount(task_s) or task_s == inf:
        raise Mistake(
            f"the pool {pool!r} is to take its tasks for task_s={task_s!r} long; give seconds, 0 or more"
        )
    if not (whole(places, 1) and places <= MOST_PLACES):
        raise Mistake(
            f"the pool {pool!r} is to have places={places!r} a lane; give a whole number, 1 to {MOST_PLACES}"
        )
    if not whole(place_bytes, 1):
        raise Mistake(
            f"the pool {pool!r} is to have place_bytes={place_bytes!r}; give a whole number, 1 or more: what"
            " does not fit goes by message"
        )


def checked_offer(pool: str, devices: Collection[str], memory_bytes: float) -> Offer:
    """What this rank has for the tasks of a pool; Mistake where that is no names, or no number.

    Bytes may be a fraction, as in 0.9 * 64e9, or endless.
    """
    listed = isinstance(devices, Collection) and not isinstance(devices, str)
    if not listed or not all(isinstance(each, str) for each in devices):
        raise Mistake(
            f"this rank offers devices={devices!r:.80} to the pool {pool!r}; give a list of names, as in"
            " ['cpu', 'gpu']"
        )
    if not amount(memory_bytes):
        raise Mistake(
            f"this rank offers memory_bytes={memory_bytes!r:.80} to the pool {pool!r}; give what one task may"
            " hold, 0 or more"
        )
    return Offer(tuple(devices), int(min(memory_bytes, UNLIMITED)))
