"""Lanes of the queue: one for each priority class and each set of ranks that can run what is in it.

    rank 0: cpu, 8 GB          lanes of each class    all ranks     any device, up to 8 GB
    rank 1: cpu, 64 GB                                1 and 2       any device, up to 64 GB
    rank 2: cpu and gpu, 64 GB                        2             gpu, up to 64 GB

A thief looks only into lanes of whose set it is one, so it never holds a task that its device or its memory
can't do, however its look and its claim fall between two lots. Where all ranks are alike there is one lane a
class. Pure: everybody computes the same lanes from the same offers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ...errors import Mistake
from ...graph.tasks import whole

UNLIMITED = 1 << 62


@dataclass(frozen=True, slots=True)
class Offer:
    """What a rank has for tasks: kinds of devices, and bytes of memory that a task may hold."""

    devices: tuple[str, ...] = ("cpu",)
    memory_bytes: int = UNLIMITED

    def refusal(self, device: str | None, memory_bytes: int) -> str | None:
        """Why this rank cannot run a task that wants so much; None if it can."""
        if device is not None and device not in self.devices:
            return "wrong device"
        return "too little memory" if memory_bytes > self.memory_bytes else None


@dataclass(frozen=True, slots=True)
class Lane:
    """Tasks of one class that the same ranks can run. `device` and `memory_bytes` only name it.

    They are the least special device of those that tasks in it want, and the most memory on that.
    """

    priority: int
    device: str | None
    memory_bytes: int
    ranks: frozenset[int]

    @property
    def name(self) -> str:
        """As in "class 0" or "class 1 on gpu up to 2000 bytes"."""
        device = f" on {self.device}" if self.device else ""
        memory = f" up to {self.memory_bytes} bytes" if self.memory_bytes < UNLIMITED else ""
        return f"class {self.priority}{device}{memory}"


class Lanes:
    """The lanes of a pool whose rank i offers `offers[i]`."""

    def __init__(self, offers: Sequence[Offer], classes: int = 1) -> None:
        self.offers, self.classes = tuple(offers), classes
        #: By the ranks that meet them, what tasks may demand.
        self._demanded: dict[frozenset[int], list[tuple[str | None, int]]] = {}
        for demand in self._demands():
            if ranks := self._able(*demand):
                self._demanded.setdefault(ranks, []).append(demand)
        self._sets = {ranks: index for index, ranks in enumerate(self._demanded)}
        self.all = [
            Lane(priority, demands[0][0], max(most for on, most in demands if on == demands[0][0]), ranks)
            for priority in range(classes)
            for ranks, demands in self._demanded.items()
        ]

    def of(self, priority: int, device: str | None = None, memory_bytes: int = 0) -> int:
        """The lane of a task; Mistake where no rank can run it."""
        if not (whole(priority) and priority < self.classes):
            raise Mistake(
                f"a task of priority class {priority!r}; this pool has classes 0 (first) to"
                f" {self.classes - 1}: give one of these, or open it with more `classes`"
            )
        ranks = self._able(device, memory_bytes)
        if not ranks:
            most = max((o.memory_bytes for o in self.offers if device in (None, *o.devices)), default=None)
            have = (
                f"the most that one offers there is {most} bytes"
                if most is not None
                else f"the ranks offer {', '.join(sorted({d for o in self.offers for d in o.devices}))}"
            )
            raise Mistake(
                f"no rank can run a task that wants {memory_bytes} bytes on {device or 'any device'}: {have}."
                " Divide the task, or open the pool with other `devices` and `memory_bytes`"
            )
        return int(priority) * len(self._sets) + self._sets[ranks]

    def open_to(self, rank: int) -> list[list[int]]:
        """For each class the lanes that a rank may take from, those that the fewest can run first."""
        mine = [lane for lane in range(len(self.all)) if rank in self.all[lane].ranks]
        return [
            sorted(
                (lane for lane in mine if self.all[lane].priority == priority),
                key=lambda lane: len(self.all[lane].ranks),
            )
            for priority in range(self.classes)
        ]

    def closed_to(self, rank: int) -> dict[int, str]:
        """The lanes that a rank must leave to others, and why: all reasons that tasks in one may have."""
        offer = self.offers[rank]
        reasons = [
            {why for demand in self._demanded[lane.ranks] if (why := offer.refusal(*demand))}
            for lane in self.all
        ]
        return {number: " or ".join(sorted(whys)) for number, whys in enumerate(reasons) if whys}

    def closed_in(self, ranks: Sequence[int]) -> list[frozenset[int]]:
        """For each lane the places of those of `ranks` that must leave what is in it to others."""
        return [
            frozenset(place for place, rank in enumerate(ranks) if rank not in lane.ranks)
            for lane in self.all
        ]

    def _demands(self) -> Iterator[tuple[str | None, int]]:
        """Every demand that some rank just meets; the least special device first, for it names the lane."""
        devices = sorted({device for offer in self.offers for device in offer.devices})
        memories = sorted({offer.memory_bytes for offer in self.offers})
        for device in (None, *devices):
            for memory_bytes in memories:
                yield device, memory_bytes

    def _able(self, device: str | None, memory_bytes: int) -> frozenset[int]:
        return frozenset(
            rank for rank, offer in enumerate(self.offers) if offer.refusal(device, memory_bytes) is None
        )
