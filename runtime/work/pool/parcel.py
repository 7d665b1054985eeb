"""What travels as one piece of bytes: tasks with their arguments and what they need, and results.

    parcel   number of arrays, bytes of the header │ header: msgpack body, descriptions │ array │ array ...
    task     head (below) │ its own parcel │ the parcel of each result that it needs
    result   a parcel for each part (an ordinary result has one)

Parcels are made once and handed on as they are: a result that another task needs is not opened on the way.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...errors import Mistake
from ...message.wire import EAGER_BYTES, as_bytes, decode, encode

Array = NDArray[Any]

PARCEL = struct.Struct("<II")

HEAD = struct.Struct("<HHHHIQd")
"""The fields of `Head`, in front of every task."""

NO_SLOT = 0xFFFF

NO_NEEDS = 0xFFFF
"""In the head of a task that was given without needs, which differs from one that was given none of them."""

MOST_NEEDS = NO_NEEDS - 1
"""What the head has room for beside that."""

MOST_PLACES = NO_SLOT
"""The same of slots, as many as there are places: one number stands for none."""


class Head(NamedTuple):
    """What is known of a task without opening it.

    `function` and `lane` are numbers, `needs` is how many results follow its own parcel (NO_NEEDS: its
    function is called without). The result goes to rank `home`, into its place `slot`, in answer to
    submission `number` (0: nobody waits for one).
    """

    function: int
    lane: int
    needs: int
    slot: int
    home: int
    number: int
    seconds: float

    @classmethod
    def of(cls, task: bytes) -> Head:
        """The head of a task."""
        return cls._make(HEAD.unpack_from(task))


class Result(NamedTuple):
    """What a task has returned: a body of what msgpack knows, and arrays (new, yours)."""

    body: Any
    arrays: list[Array]


class Parts(tuple[Result, ...]):
    """What a task returns that stands for several: a result for each."""

    __slots__ = ()


def pack(body: Any, arrays: Sequence[Array] = ()) -> bytes:
    """A parcel; Mistake if the body or an array cannot travel."""
    header, frames = encode(body, arrays)
    if not frames:
        return PARCEL.pack(0, len(header)) + header
    return b"".join([PARCEL.pack(len(frames), len(header)), header, *[frame.data for frame in frames]])


NOTHING = pack(None)


def unpack(data: bytes, at: int = 0) -> tuple[Result, int]:
    """The contents of the parcel that begins at byte `at`, copied, and where it ends."""
    count, header_bytes = PARCEL.unpack_from(data, at)
    at += PARCEL.size
    body, arrays = decode(data[at : at + header_bytes], count)
    at += header_bytes
    for array in arrays:
        as_bytes(array)[:] = np.frombuffer(data, np.uint8, array.nbytes, at)
        at += array.nbytes
    return Result(body, arrays), at


def unpack_all(data: bytes, at: int, count: int) -> list[Result]:
    """The contents of so many parcels, one behind the other."""
    found = []
    for _ in range(count):
        result, at = unpack(data, at)
        found.append(result)
    return found


def for_message(parcels: list[bytes]) -> tuple[Any, list[Array]]:
    """Parcels as a part of a message's body, and its arrays: many bytes go behind the body, as one array.

    In the body there is room for 4 GiB: half of the large tasks of a rank have more, together, and so had one
    task or its result.
    """
    if sum(map(len, parcels)) <= EAGER_BYTES:
        return parcels, []
    data = parcels[0] if len(parcels) == 1 else b"".join(parcels)
    return [len(parcel) for parcel in parcels], [np.frombuffer(data, np.uint8)]


def from_message(part: Any, arrays: Sequence[Array]) -> list[bytes]:
    """The parcels that `for_message` made this of."""
    if not arrays:
        return list(part)
    data, at, parcels = arrays[0].data, 0, []
    for size in part:
        parcels.append(bytes(data[at : at + size]))
        at += size
    return parcels


def result_of(value: Any) -> Result:
    """What a return value stands for: a body, an array, or a tuple of arrays with or without a body first."""
    if isinstance(value, Result):
        return value
    values = value if isinstance(value, tuple) else (value,)
    arrays = [each for each in values if isinstance(each, np.ndarray)]
    bodies = [each for each in values[:1] if not isinstance(each, np.ndarray)]
    if len(arrays) + len(bodies) == len(values):
        return Result(bodies[0] if bodies else None, arrays)
    return Result(value, [])  # a tuple of plain values: a body, which arrives as a list


def packed(value: Any) -> list[bytes]:
    """The parcels of what a function has returned; Mistake, with what it may return, if it cannot travel."""
    if value is None:
        return [NOTHING]
    try:
        if isinstance(value, Parts):
            return [pack(*part) for part in value]
        if isinstance(value, (tuple, np.ndarray)):
            return [pack(*result_of(value))]
        return [pack(value)]
    except Mistake as error:  # told alone: msgpack's frames and the message layer's help nobody here
        raise Mistake(
            "what a task returned can't travel: it returns a body, an array, or a tuple of arrays with or"
            f" without a body first, as in `return first, second` or `return body, first, second` ({error})"
        ) from None
