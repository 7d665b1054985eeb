"""The tags as the scheduler reads them: a structured array in memory that all ranks see.

    kernel     a node of the graph                 cost_s as determined, given or measured
    layer      nodes with one tag "layer"          the sum of its kernels', or given
    neurons    a block that one rank computes      its share of them, or given; measured_s by whoever ran it

A cost that the user gave, for a kernel, a layer or a block, stands against any other. The others are
determined from operations, bytes and the machine's rates, and replaced by what runs take.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import GraphError
from .graph import Graph
from .metadata import CostSource, Metadata, describe
from .tasks import Rates

Kind = Literal["kernel", "layer", "neurons"]
KINDS: tuple[Kind, ...] = ("kernel", "layer", "neurons")
SOURCES: tuple[CostSource, ...] = ("determined", "given", "measured")
Tags = Mapping[str, Mapping[str, Any]]
"""By name of a node, a layer or a block ("conv1 rows 0-13"): the user's tags, beside those in the graph."""

ROW = np.dtype(
    [
        ("name", "S64"),
        ("kernel", "S24"),
        ("activation", "S8"),
        ("device", "S8"),
        ("cost_s", "f8"),
        ("measured_s", "f8"),  # the last run's; 0 where none was measured
        ("flops", "f8"),
        ("bytes", "f8"),
        ("neurons", "i8"),  # of one sample
        ("live", "i8"),  # those of them that are computed
        ("kind", "u1"),
        ("source", "u1"),
        ("dropout", "f4"),
        ("layer", "i4"),  # the row of its layer
        ("kernel_size", "i4", 2),
        ("filter_size", "i4", 3),
        ("priority", "i4"),
        ("waits_for", "i4"),  # readiness: blocks that must have been before
        ("home", "i4"),  # the rank where it is placed; -1 where it is not
    ],
    align=True,
)
Table = NDArray[np.void]


def layers(found: Mapping[str, Metadata]) -> dict[str, list[str]]:
    """The nodes of every layer, in the order of the graph."""
    groups: dict[str, list[str]] = {}
    for name, each in found.items():
        groups.setdefault(each.layer, []).append(name)
    return groups


def rows(graph: Graph) -> int:
    """How many rows the kernels and layers of a graph take."""
    return len(graph.nodes) + len(layers(describe(graph, 1)))


def write_graph(
    table: Table,
    graph: Graph,
    batch: int,
    rates: Rates,
    tags: Tags,
    measured_s: Mapping[str, float],
) -> None:
    """Fill the rows of kernels and layers; `measured_s` by node.

    Tags that count here: "cost_s" (seconds), "cost" (FLOPs, in the graph), "priority", "device".
    """
    found = describe(graph, batch)
    groups = layers(found)
    numbers = {name: len(graph.nodes) + number for number, name in enumerate(groups)}
    table[: len(graph.nodes) + len(groups)] = np.zeros((), ROW)
    table["home"] = -1
    for row, (name, each) in zip(table, found.items(), strict=False):
        own = {**graph.by_name[name].tags, **tags.get(name, {})}
        seconds, source = _cost(
            own, each, rates, measured_s.get(name, 0.0), view=graph.by_name[name].kernel.view
        )
        _write(row, name, "kernel", seconds, source, numbers[each.layer], each)
        row["measured_s"] = measured_s.get(name, 0.0)
        row["priority"] = int(own.get("priority", 0))
        row["device"] = str(own.get("device", "")).encode()
    for layer, members in groups.items():
        row = table[numbers[layer]]
        kernels = [table[place] for place, name in enumerate(found) if name in set(members)]
        _write(row, layer, "layer", 0.0, "determined", numbers[layer], None)
        for field in ("measured_s", "flops", "bytes", "neurons", "live"):
            row[field] = sum(each[field] for each in kernels)
        if "cost_s" in tags.get(layer, {}) and layer not in found:
            _scale(kernels, float(tags[layer]["cost_s"]))
        row["cost_s"] = sum(each["cost_s"] for each in kernels)
        row["source"] = max(each["source"] for each in kernels)
        row["priority"] = max(each["priority"] for each in kernels)


def costs_s(table: Table, graph: Graph) -> dict[str, float]:
    """What every node costs, by the table."""
    return {node.name: float(row["cost_s"]) for node, row in zip(graph.nodes, table, strict=False)}


def text(field: bytes) -> str:
    """A name as it was written, or what there was room for."""
    return field.decode(errors="ignore")


def check(tags: Tags, known: Iterable[str]) -> None:
    """GraphError for tags of something that there is not."""
    names = set(known)
    for name in tags:
        if name not in names:
            raise GraphError(
                f"tags are given for {name!r}, and no kernel, layer or block of neurons is called so"
            )


def _cost(
    own: Mapping[str, Any], found: Metadata, rates: Rates, measured_s: float, *, view: bool
) -> tuple[float, CostSource]:
    if "cost_s" in own:
        return float(own["cost_s"]), "given"
    if found.cost_source == "given":
        return rates.seconds(found.cost), "given"
    if measured_s:
        return measured_s, "measured"
    return (0.0 if view else rates.seconds(found.cost)), "determined"


def _scale(rows: Sequence[np.void], total_s: float) -> None:
    """A layer's given cost falls to its kernels as theirs are."""
    before = sum(float(row["cost_s"]) for row in rows)
    for row in rows:
        row["cost_s"] = total_s * (row["cost_s"] / before if before else 1 / len(rows))
        row["source"] = SOURCES.index("given")


def _write(
    row: np.void, name: str, kind: Kind, cost_s: float, source: CostSource, layer: int, found: Metadata | None
) -> None:
    row["name"], row["kind"], row["layer"] = name.encode(), KINDS.index(kind), layer
    row["cost_s"], row["source"] = cost_s, SOURCES.index(source)
    if found is not None:
        row["kernel"], row["activation"] = found.kernel.encode(), (found.activation or "").encode()
        row["flops"], row["bytes"] = found.cost.forward_flops, found.cost.bytes
        row["neurons"] = row["live"] = found.neurons
        row["dropout"] = found.dropout
        row["kernel_size"] = (*found.kernel_size, 0, 0)[:2]
        row["filter_size"] = (*found.filter_size, 0, 0, 0)[:3]
