"""What `weft info MODEL` says: every node of a model with what its metadata tells a scheduler.

node      kernel                      output      parameters   MFLOP    MB  cost        splits     tags
conv1     conv2d channels=64 …        64×112×112       9,472  237.63  3.85  determined  64 112     device=cpu

And, under the names that a client knows, what it gives and gets:

client  name    dtype    datatype  shape
gives   image   float32  FP32      [batch, 3, 224, 224]
gets    logits  float32  FP32      [batch, 1000]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from ...kernels.kernel import ArraySpec, Kernel
from ..graph import Graph, Metadata, describe
from ..graph.graph import Node

ATTRIBUTES_WIDTH = 48
"""Characters; a list of a thousand indices would push everything else off the screen."""

PREFIXES = {"M": 1e6, "K": 1e3, "": 1.0}

EXTENTS = frozenset({"kernel_size", "stride", "dilation", "shape"})
LEFT = frozenset({"node", "kernel", "output", "cost", "splits", "shares", "tags"})

CLIENT = ("client", "name", "dtype", "datatype", "shape")


def model_table(graph: Graph, batch: int) -> str:
    """Every node's kernel, output for a sample, own parameters, cost of `batch` samples, splits, tags.

    In `shares` stand parameters of other nodes that it reads in place of its own.
    """
    found = describe(graph, batch)
    costs = [each.cost for each in found.values()]
    flop, byte = _unit([cost.forward_flops for cost in costs]), _unit([cost.bytes for cost in costs])
    titles = (
        "node", "kernel", "output", "parameters", f"{flop}FLOP", f"{byte}B", "cost", "splits", "shares",
        "tags",
    )  # fmt: skip
    rows = [_row(node, found[node.name], flop, byte) for node in graph.nodes]
    inputs = ", ".join(f"{name} ({_show(spec)})" for name, spec in graph.inputs.items())
    outputs = ", ".join(graph.outputs)
    samples = "1 sample" if batch == 1 else f"{batch:,} samples"
    flops = sum(cost.forward_flops for cost in costs)
    nodes = f"{len(rows):,} node{'' if len(rows) == 1 else 's'}"
    parameters = sum(each.parameters for each in found.values())
    ending = (
        f"{nodes}, {parameters:,} parameters, {_in(flop, flops)} {flop}FLOP forward for {samples}; "
        f"from {inputs or 'no input'} to {outputs or 'no output'}"
    )
    return f"{align(titles, rows)}\n\n{ending}" if rows else ending


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or an output as a client of the model knows it.

    `dtype` is NumPy's, `datatype` the protocol's (empty where it has none); `shape` has a word for each axis.
    """

    name: str
    dtype: str
    datatype: str
    shape: Sequence[str]


def client_table(given: Sequence[Tensor], got: Sequence[Tensor]) -> str:
    """What a client gives the model, and what it gets."""
    rows = [
        (what, each.name, each.dtype, each.datatype, f"[{', '.join(each.shape)}]")
        for what, tensors in (("gives", given), ("gets", got))
        for each in tensors
    ]
    return align(CLIENT, rows)


def align(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need, numbers to the right; empty ones are left out."""
    columns = [(title, [row[i] for row in rows]) for i, title in enumerate(titles)]
    padded = []
    for title, cells in columns:
        if any(cells):
            width = max(map(len, (title, *cells)))
            place = str.ljust if title in LEFT or titles is CLIENT else str.rjust
            padded.append([place(cell, width) for cell in (title, *cells)])
    return "\n".join("  ".join(line).rstrip() for line in zip(*padded, strict=True))


def _unit(amounts: Sequence[float]) -> str:
    """The prefix with which the largest of a column shows."""
    largest = max(amounts, default=0.0)
    return next((prefix for prefix, size in PREFIXES.items() if largest >= size / 10), "")


def _in(prefix: str, amount: float) -> str:
    return f"{amount / PREFIXES[prefix]:,.2f}" if prefix else f"{amount:,.0f}"


def _row(node: Node, found: Metadata, flop: str, byte: str) -> tuple[str, ...]:
    splits = " ".join(str(split.extent) for split in found.splits if split.extent > 1)
    return (
        node.name,
        f"{found.kernel} {_attributes(node.kernel)}".rstrip(),
        "×".join(map(str, found.shape[1:])) or "1",
        f"{found.parameters:,}" if found.parameters else "",
        _in(flop, found.cost.forward_flops),
        _in(byte, found.cost.bytes),
        found.cost_source,
        splits,
        " ".join(node.shares.values()),
        " ".join(f"{tag}={value}" for tag, value in found.tags.items()),
    )


def _attributes(kernel: Kernel) -> str:
    """The attributes that are not as they are by default."""
    parts = []
    for field in fields(kernel):
        value = _short(getattr(kernel, field.name))
        if field.init and value != field.default:
            joint = "×" if field.name in EXTENTS else ","
            shown = joint.join(map(_word, value)) if isinstance(value, tuple) else _word(value)
            parts.append(f"{field.name}={shown}")
    text = " ".join(parts)
    return text if len(text) <= ATTRIBUTES_WIDTH else f"{text[: ATTRIBUTES_WIDTH - 1]}…"


def _short(value: Any) -> Any:
    """(3, 3) as 3: extents that are equal in all directions."""
    return value[0] if isinstance(value, tuple) and len(value) > 1 and len(set(value)) == 1 else value


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _show(spec: ArraySpec) -> str:
    return f"{'×'.join(map(str, spec.shape)) or '1'} {spec.dtype}"
