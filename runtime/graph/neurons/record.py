"""Blocks of neurons in the table of tags: their rows, and how what they took becomes the nodes' costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..table import KINDS, SOURCES, Table, Tags
from .blocks import Blocks
from .placement import Placement
from .regions import size


def tagged(blocks: Blocks, tags: Tags) -> Blocks:
    """The blocks with the costs that the user gave for some of them by name."""
    own = tuple(
        replace(block, cost_s=float(tags[block.name]["cost_s"]))
        if "cost_s" in tags.get(block.name, {}) and block.name not in blocks.graph.by_name
        else block
        for block in blocks.blocks
    )
    return replace(blocks, blocks=own)


def write_blocks(table: Table, blocks: Blocks, placement: Placement, graph_rows: Table, tags: Tags) -> None:
    """Fill a row for every block, in their order; `graph_rows` are those of kernels and layers."""
    by_name = {node.name: row for node, row in zip(blocks.graph.nodes, graph_rows, strict=False)}
    specs = blocks.graph.specs(blocks.batch)
    for row, block, home in zip(table, blocks.blocks, placement.homes, strict=True):
        head = blocks.stages[block.stage].head
        whole = by_name[head]
        for field in ("kernel", "activation", "device", "dropout", "kernel_size", "filter_size", "priority"):
            row[field] = whole[field]
        share = size(block.region) / size(specs[head].region)
        row["name"], row["kind"], row["layer"] = block.name.encode(), KINDS.index("neurons"), whole["layer"]
        row["source"] = SOURCES.index("given") if block.name in tags else whole["source"]
        row["cost_s"], row["measured_s"] = block.cost_s, 0.0
        row["flops"], row["bytes"] = share * whole["flops"], share * whole["bytes"]
        row["neurons"] = row["live"] = neurons = size(block.region)
        if block.region:
            mask = blocks.live[head][block.region[0]]
            row["live"] = neurons // len(mask) * int(mask.sum())
        row["waits_for"], row["home"] = len(block.needs), home


def measured_s(table: Table, blocks: Blocks, costs_s: Mapping[str, float]) -> dict[str, float]:
    """What every node took by its blocks' last runs; a stage's time is divided as its nodes' costs are.

    Nodes of which some block has not run are left out.
    """
    found: dict[str, float] = {}
    for number, stage in enumerate(blocks.stages):
        own = [
            float(row["measured_s"])
            for row, block in zip(table, blocks.blocks, strict=True)
            if block.stage == number
        ]
        if not own or not all(own):
            continue
        total = sum(costs_s[name] for name in stage.nodes)
        for name in stage.nodes:
            found[name] = sum(own) * (costs_s[name] / total if total else 1 / len(stage.nodes))
    return found
