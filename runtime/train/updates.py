"""What becomes of a portion once its gradient is computed: sum, norm, update, and whom to tell.

    flat     computed ── wire ──[gate]── update of the whole portion, on every rank
    shared   computed ──[by all ranks of the node]── reduce own slice ── wire ──[gate]── update own slice
                       node_updates.py               └ only with other nodes ┘

Both are held to the same weights: `flat` is the oracle, and what a GPU uses, whose weights are its own.

Clipping by the global norm needs every portion before the first update: the overlap with backward stays, that
with the next forward is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import IntEnum
from functools import partial
from math import sqrt
from typing import Protocol

from ...kernels.lane import Task, gate
from ..exchange import Carrier, Portion, Round
from ..work import Compute
from .replica import Replica

CLASSES = 1 << 20
"""Priorities that a step has of its own: turn × CLASSES + class."""


class Class(IntEnum):
    """Priorities within a step: what feeds the wire goes before what the wire has brought."""

    REDUCE = 0
    CHAIN = 1
    UPDATE = 2  # and the layer's place: lower layers are wanted first


class Step(Protocol):
    """The part of a step's share that an update needs."""

    @property
    def step(self) -> int:
        """Number of the step, from 0."""

    @property
    def rate(self) -> float:
        """The learning rate."""


class Updates(Protocol):
    """One of the two ways. All are called on the loop; `make` first."""

    #: To be run on the lane once this rank's gradient of a portion is computed; None: nothing.
    encode: Callable[[Portion], None] | None

    def make(
        self, share: Step, round_: Round, readers: Mapping[int, Sequence[Task]], turn: int
    ) -> tuple[list[Task], list[Task]]:
        """All tasks of a step's updates, and of them, by portion, what the next forward waits for.

        `readers` are, by portion, the tasks that must have run before its weights may be overwritten.
        """

    def computed(self, round_: Round, portion: Portion) -> None:
        """This rank's gradient of the portion is computed."""

    def released(self, round_: Round, portion: Portion) -> None:
        """It is computed, and the last kernel that reads the portion's weights has run."""


class FlatUpdates:
    """Every rank updates everything."""

    def __init__(
        self, replica: Replica, portions: Sequence[Portion], compute: Compute, carrier: Carrier, *,
        clip_norm: float | None, model: str,
    ) -> None:  # fmt: skip
        self._replica = replica
        self._portions = portions
        self._compute = compute
        self._carrier = carrier
        # What leaves a GPU is in host memory only when `computed` is called.
        self._late = carrier.encodes and replica.device.asynchronous
        at_once = carrier.encodes and not self._late
        self.encode: Callable[[Portion], None] | None = carrier.encode if at_once else None
        self._clip_norm = clip_norm
        self._model = model

    def make(
        self, share: Step, round_: Round, readers: Mapping[int, Sequence[Task]], turn: int
    ) -> tuple[list[Task], list[Task]]:
        """See `Updates`."""
        arrived = [gate(f"{portion.name} has arrived") for portion in self._portions]
        round_.arrived = lambda index: self._compute.finish(arrived[index])
        decoding: list[Task] = []
        if self._carrier.encodes:
            decoding = coding(
                "decode", self._carrier.decode, arrived, share, self._portions, turn, self._model
            )
        whole = decoding or arrived
        squares = [0.0] * len(self._portions)
        norms = []
        if self._clip_norm is not None:
            norms = [
                task(share, f"{p.name}.norm", partial(self._square, squares, p), [whole[p.index]], p, turn,
                     self._model)
                for p in self._portions
            ]  # fmt: skip
        updates = [
            task(share, f"{p.name}.update", partial(self._apply, p, share, squares),
                 [whole[p.index], *norms, *readers[p.index]], p, turn, self._model)
            for p in self._portions
        ]  # fmt: skip
        return [*arrived, *decoding, *norms, *updates], updates

    def computed(self, round_: Round, portion: Portion) -> None:
        """See `Updates`."""
        if self._late:
            self._carrier.encode(portion)
        round_.mark_ready(portion.index)

    def released(self, round_: Round, portion: Portion) -> None:
        """See `Updates`."""

    def _square(self, squares: list[float], portion: Portion) -> None:
        squares[portion.index] = self._replica.squared_norm(portion.start, portion.stop)

    def _apply(self, portion: Portion, share: Step, squares: list[float]) -> None:
        scale = clip_scale(squares, self._clip_norm)
        self._replica.update(portion.start, portion.stop, rate=share.rate, step=share.step + 1, scale=scale)


def task(
    share: Step,
    name: str,
    run: Callable[[], None],
    needs: Sequence[Task],
    portion: Portion,
    turn: int,
    model: str,
    phase: str = "update",
) -> Task:
    """A task for one portion, at the priority of its phase and layer."""
    number = Class.REDUCE if phase in ("reduce", "encode") else Class.UPDATE + portion.layer
    info = {"phase": phase, "step": share.step, "micro_batch": -1, "portion": portion.index, "model": model}
    return Task(name, run, needs, priority=turn * CLASSES + number, info=info)


def coding(
    phase: str,
    run: Callable[[Portion], None],
    behind: Sequence[Task],
    share: Step,
    portions: Sequence[Portion],
    turn: int,
    model: str,
) -> list[Task]:
    """Tasks that bring portions into the wire's format, or back, each when one of `behind` has ended."""
    return [
        task(share, f"{p.name}.{phase}", partial(run, p), [need], p, turn, model, phase)
        for p, need in zip(portions, behind, strict=True)
    ]


def clip_scale(squares: Iterable[float], limit: float | None) -> float:
    """What the gradient is multiplied with so that its norm is at most `limit` (Pascanu et al. 2013)."""
    if limit is None:
        return 1.0
    norm = sqrt(sum(squares))
    return min(1.0, limit / norm) if norm > 0.0 else 1.0
