"""Which colour kernels and transfers have: one a phase, or with several models a hue each, and shades."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from matplotlib.colors import to_hex, to_rgb

from .picture import BLUE, CYAN, GREEN, INK, ORANGE, PURPLE, RED, TEAL, VIOLET, YELLOW, Swatch
from .shares import EXCHANGE
from .trace import Span

# What the exchange costs on the lane is violet, next to the wire's purple.
PHASES: Final = {
    "load": ("load", CYAN),
    "forward": ("forward", BLUE),
    "input_gradient": ("input gradient", YELLOW),
    "weight_gradient": ("weight gradient", RED),
    "reduce": ("reduce", VIOLET),
    "encode": ("encode", "#8F79C9"),
    "decode": ("decode", "#B9A9E0"),
    "update": ("update", GREEN),
    "evaluation": ("evaluation", "#999999"),
    "": ("other", "#BBBBBB"),
}
EVALUATION: Final = "evaluation"  # of no phase of training, though its kernels run forward
PART_OF: Final = {"sum": "weight_gradient"}  # of later micro-batches: too short for a colour of its own
WIRE_HIDDEN: Final = "#E2BDD1"
WIRE_EXPOSED: Final = PURPLE

HUES: Final = (BLUE, ORANGE, TEAL, PURPLE, YELLOW)
SHADES: Final = {  # of a model's hue: towards white, or if below zero towards black
    "load": 0.80,
    "forward": 0.50,
    "input_gradient": 0.25,
    "weight_gradient": 0.0,
    "reduce": -0.25,
    "encode": -0.25,
    "decode": -0.25,
    "update": -0.50,
    "": 0.90,
}
PALE: Final = 0.60


class Palette:
    """The colours of a picture of these models."""

    def __init__(self, models: Sequence[str]) -> None:
        self._hues = {model: HUES[i % len(HUES)] for i, model in enumerate(models)}
        self.models = list(models) if len(models) > 1 else []

    def kernel(self, model: str, phase: str) -> str:
        """The colour of a kernel."""
        if not self.models or phase == EVALUATION:
            return PHASES[phase][1]
        # What no model is named for is grey.
        return shade(self._hues[model], SHADES[phase]) if model in self._hues else PHASES[""][1]

    def wire(self, model: str) -> tuple[str, str]:
        """The colours of a transfer, hidden behind a kernel and exposed."""
        if model not in self._hues or not self.models:
            return WIRE_HIDDEN, WIRE_EXPOSED
        return shade(self._hues[model], PALE), self._hues[model]

    def marks(self, model: str = "") -> tuple[str, str]:
        """The colours of the marks "ready" and "used": of the phases that end and begin there.

        Without a model those of the key.
        """
        if not self.models:
            return RED, GREEN
        dark = shade(self._hues[model], SHADES["update"]) if model in self._hues else INK
        return dark, dark

    def key(self, seen: Collection[tuple[str, str]], *, wire: bool) -> list[tuple[str, list[Swatch]]]:
        """Lines of the key to what was `seen`, as model and phase."""
        lines: list[tuple[str, list[Swatch]]] = []
        for model in self.models or [""]:
            phases = {phase for of, phase in seen if of == model or not self.models} - {EVALUATION}
            if not phases:
                continue  # it has ended, or not begun
            words = {
                self.kernel(model, phase): words for phase, (words, _) in PHASES.items() if phase in phases
            }
            if self.models and len(phases & EXCHANGE) > 1:
                words[self.kernel(model, "reduce")] = "exchange"  # of one shade
            swatches = [Swatch(word, colour) for colour, word in words.items()]
            if wire and self.models:
                hidden, exposed = self.wire(model)
                swatches += [Swatch("wire, hidden", hidden), Swatch("exposed", exposed)]
            lines.append((model, swatches))
        if wire and not self.models:
            lines.append(
                ("", [Swatch("wire, hidden by kernels", WIRE_HIDDEN), Swatch("wire, exposed", WIRE_EXPOSED)])
            )
        greys = {EVALUATION} & {phase for _, phase in seen}
        if self.models and any(model not in self._hues for model, _ in seen):
            greys.add("")
        if greys:
            lines.append(("", [Swatch(*PHASES[phase]) for phase in PHASES if phase in greys]))
        return lines or [("", [])]


def phase_of(span: Span) -> str:
    """The phase by which a kernel is coloured."""
    phase = span.args.get("phase", "")
    if span.evaluates:
        return EVALUATION
    phase = PART_OF.get(phase, phase)
    return phase if phase in PHASES else ""


def shade(colour: str, amount: float) -> str:
    """`colour` mixed with so much white, or if `amount` is negative with so much black."""
    end = 1.0 if amount > 0 else 0.0
    r, g, b = (part + (end - part) * abs(amount) for part in to_rgb(colour))
    return to_hex((r, g, b)).upper()


def ink_on(colour: str) -> str:
    """White or dark, whichever reads better on `colour` (relative luminance, WCAG 2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "white" if luminance < 0.24 else INK
