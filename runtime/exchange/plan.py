"""The order in which portions leave: a plan that every rank follows to the letter.

MPI matches collectives by the order in which they are started, so ranks that chose for themselves would
deadlock or, worse, add conv2 to dense1. A plan is computed by a pure function from what all ranks know alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .portions import Portion

CREDIT = 4
"""Portions in flight at once: enough to keep the wire busy between two looks at it."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Portions, by index, in the order of their start, at most `credit` of them under way."""

    order: tuple[int, ...]
    credit: int = CREDIT

    def __post_init__(self) -> None:
        if sorted(self.order) != list(range(len(self.order))):
            raise ValueError(f"a plan starts every portion once; got the order {self.order}")
        if self.credit < 1:
            raise ValueError(f"credit is {self.credit}; at least one portion must be allowed to travel")


def first_come(portions: Sequence[Portion], credit: int = CREDIT) -> Plan:
    """Portions in the order in which backward completes them, which is the order they are numbered in."""
    return Plan(tuple(portion.index for portion in portions), credit)
