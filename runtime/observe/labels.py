"""What portions are called: "2a" is the first of layer 2's to be ready, "1–2" is of two layers, fused.

Layers are counted in forward order, those alone that have something to send. It all follows from the spans'
names: "portion 3 (dense_1 rows 256-511)", "dense_1.forward".
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from .trace import Span

NAME: Final = re.compile(r"portion (\d+)\s*\(?(.*?)\)?(?:\.\w+)?$")
ROWS: Final = re.compile(r" rows \d+-\d+$")


@dataclass(frozen=True, slots=True)
class Label:
    """What a portion is called, briefly and at length."""

    short: str
    what: str  # the nodes, and the rows where there are only some
    place: int  # of its lowest layer, from 1


def layers(names: Collection[str], forward: Sequence[str]) -> dict[str, int]:
    """The numbers of the nodes that have something to send, from 1 in forward order.

    `names` are of all portions of one step, `forward` are the model's nodes in forward order.
    """
    sent = {node for name in names for node in _nodes(name)}
    return {node: i for i, node in enumerate((n for n in dict.fromkeys(forward) if n in sent), 1)}


def labels(names: Collection[str], forward: Sequence[str]) -> dict[str, Label]:
    """By name of a portion; arguments as of `layers`."""
    nodes = {name: _nodes(name) for name in names}
    place = layers(names, forward)
    siblings: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name in sorted(names, key=number_in):
        siblings[nodes[name]].append(name)
    found = {}
    for own, of_layer in siblings.items():
        places = sorted(place[node] for node in own if node in place)
        for i, name in enumerate(of_layer):
            if places:
                short = str(places[0]) if len(places) == 1 else f"{places[0]}–{places[-1]}"
                short += _letters(i) if len(of_layer) > 1 else ""
            else:
                short = str(number_in(name))
            found[name] = Label(short, what_of(name), places[0] if places else 0)
    return found


def forward_order(spans: Iterable[Span], model: str) -> list[str]:
    """The model's nodes in the order of their forward kernels in a step; the first may be cut."""
    by_step: dict[int, list[Span]] = defaultdict(list)
    for span in spans:
        if span.args.get("phase") == "forward" and "step" in span.args and model_of(span) == model:
            by_step[span.args["step"]].append(span)
    if not by_step:
        return []
    steps = sorted(by_step)
    ordered = sorted(by_step[steps[len(steps) // 2]], key=lambda span: span.start_ns)
    return list(dict.fromkeys(span.name.partition(".")[0] for span in ordered))


def portion_of(span: Span) -> int | None:
    """The number of the portion that a span is about; older traces have it in the name alone."""
    if "portion" in span.args:
        return int(span.args["portion"])
    match = NAME.match(span.name)
    return int(match[1]) if match else None


def model_of(span: Span) -> str:
    """The model that a span is about; older traces have none."""
    return str(span.args.get("model", ""))


def number_in(name: str) -> int:
    """The number in a portion's name."""
    match = NAME.match(name)
    return int(match[1]) if match else 0


def what_of(name: str) -> str:
    """A portion's name without its number: its nodes, and the rows where there are only some."""
    match = NAME.match(name)
    return match[2] if match else name


def _nodes(name: str) -> tuple[str, ...]:
    return tuple(ROWS.sub("", what_of(name)).split(", "))


def _letters(i: int) -> str:
    """a, b, …, z, aa, ab, …"""
    text = ""
    i += 1
    while i:
        i, digit = divmod(i - 1, 26)
        text = chr(ord("a") + digit) + text
    return text
