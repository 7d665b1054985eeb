"""Networks to plan for: layers of so many bytes and seconds, cut into portions and blocks."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

from weft.runtime.exchange.plan import Rule, Timings, Work, make_plan
from weft.runtime.exchange.simulate import Forward, Simulated, simulate

MEGABYTE = 1 << 20
GIGABIT_BYTE_S = 9e-3 / MEGABYTE  # an all-reduce on 2 ranks at 1 Gbit/s
PORTION_S = 0.1e-3  # what a portion costs the lane
NAP_S = 0.5e-3  # until somebody looks
ROUNDS = 2  # of a large all-reduce


@dataclass(frozen=True)
class Network:
    """Dense layers, the lowest first: bytes of their weights, seconds of each of their three kernels."""

    layer_bytes: tuple[int, ...]
    kernel_s: tuple[float, ...]
    byte_s: float = GIGABIT_BYTE_S

    @property
    def lane_s(self) -> float:
        return (
            3 * sum(self.kernel_s) - self.kernel_s[0]
        )  # nobody wants the gradient of the lowest one's input

    @property
    def wire_s(self) -> float:
        return sum(self.layer_bytes) * self.byte_s

    def cut(self, portion_bytes: int, *, movable: bool = True) -> tuple[Timings, list[Forward]]:
        """Weight gradients and forward by portions; a layer's weight gradient before its input gradient."""
        backward: list[Work] = []
        wire_s: list[float] = []
        layers: list[int] = []
        forward: list[list[Forward]] = []
        for layer, (nbytes, seconds) in reversed(
            list(enumerate(zip(self.layer_bytes, self.kernel_s, strict=True)))
        ):
            pieces = max(1, round(nbytes / portion_bytes))
            portions = range(len(wire_s), len(wire_s) + pieces)
            wire_s += [nbytes / pieces * self.byte_s] * pieces
            layers += [layer] * pieces
            backward += [Work(seconds / pieces, (portion,), movable) for portion in portions]
            backward += [Work(seconds)] if layer else []
            forward.insert(0, [Forward(seconds / pieces, (portion,)) for portion in portions])
        return Timings(tuple(backward), tuple(wire_s), tuple(layers)), [
            item for row in forward for item in row
        ]

    def step(
        self, portion_bytes: int = MEGABYTE, credit: int = 2, rule: Rule = "lower_layer_first", **cut: bool
    ) -> Simulated:
        """A step under the plan for these settings."""
        timings, forward = self.cut(portion_bytes, **cut)
        plan = make_plan(timings, rule, credit)
        overhead_s = [PORTION_S] * len(timings.wire_s)
        return simulate(timings, forward, plan, overhead_s, latency_s=NAP_S, rounds=ROUNDS)


def balanced(kernel_s: float = 12.8e-3, gigabits: float = 1.0) -> Network:
    """Eight layers of 1024 x 1024; at batch 512 and 1 Gbit/s compute and wire take the same time."""
    return Network((4 * MEGABYTE,) * 8, (kernel_s,) * 8, GIGABIT_BYTE_S / gigabits)


def skewed(heavy: int, gigabits: float = 1.0) -> Network:
    """As large, but one of the eight layers holds 70% of the weights."""
    parts = [0.7 if layer == heavy else 0.3 / 7 for layer in range(8)]
    sizes = tuple(round(32 * MEGABYTE * part) for part in parts)
    return Network(sizes, tuple(8 * 12.8e-3 * part for part in parts), GIGABIT_BYTE_S / gigabits)


SECONDS = st.integers(0, 640).map(lambda number: number / 64)  # so that scaling is exact


@st.composite
def timings_of_any_kind(draw: st.DrawFn) -> Timings:
    """Any backward: layers of one or several blocks that may or may not wait, fused or without weights."""
    backward: list[Work] = []
    wire_s: list[float] = []
    layers: list[int] = []
    for layer in reversed(range(draw(st.integers(1, 5)))):
        pieces = draw(st.integers(0, 4))
        movable = draw(st.booleans())
        together = draw(st.booleans())
        portions = tuple(range(len(wire_s), len(wire_s) + pieces))
        wire_s += [draw(SECONDS) for _ in portions]
        layers += [layer] * pieces
        groups = [portions] if together and portions else [(portion,) for portion in portions]
        backward += [Work(draw(SECONDS), group, movable) for group in groups]
        backward.append(Work(draw(SECONDS)))
    return Timings(tuple(backward), tuple(wire_s), tuple(layers))
