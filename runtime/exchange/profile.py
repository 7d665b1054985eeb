"""What a plan is made from: how long the calls of backward take, and a byte on the wire.

Kept by call and by byte, not by portion, so that a profile measured with one cut serves for another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

from ..graph import Graph
from ..graph.backward import Call, Phase
from .plan import Timings, Work
from .portions import Block, Portion

GUESSED_FLOPS = 50e9  # a second, of a core; only ratios matter, and only until something was measured
GUESSED_BYTE_S = 8e-9  # 1 Gbit/s


@dataclass(frozen=True, slots=True)
class Profile:
    """Seconds of every call of the last micro-batch's backward, by number, and of a byte on the wire."""

    call_s: tuple[float, ...]
    byte_s: float = GUESSED_BYTE_S

    @classmethod
    def guess(cls, graph: Graph, calls: Sequence[Call], batch: int) -> Profile:
        """From the kernels' own costs, before anything was measured."""
        specs = graph.specs(batch)
        seconds = []
        for call in calls:
            cost = call.node.kernel.cost(*graph.input_specs(call.node, specs))
            weight = call.phase is Phase.WEIGHT_GRADIENT
            seconds.append(
                (cost.weight_gradient_flops if weight else cost.input_gradient_flops) / GUESSED_FLOPS
            )
        return cls(tuple(seconds))

    def timings(self, blocks: Sequence[Block], portions: Sequence[Portion]) -> Timings:
        """The same as a plan wants it, by block and by portion."""
        rows: dict[int, int] = {}
        for block in blocks:
            if block.rows is not None:
                rows[block.call] = rows.get(block.call, 0) + block.rows[1] - block.rows[0]
        backward = tuple(
            Work(
                self.call_s[b.call] * ((b.rows[1] - b.rows[0]) / rows[b.call] if b.rows else 1.0),
                b.completes,
                b.movable,
            )
            for b in blocks
        )
        byte_s = self.byte_s if isfinite(self.byte_s) else GUESSED_BYTE_S
        return Timings(backward, tuple(p.nbytes * byte_s for p in portions), tuple(p.layer for p in portions))
