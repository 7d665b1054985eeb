"""A graph as lines of text: what ranks compare, and what a checkpoint keeps."""

from __future__ import annotations

from dataclasses import fields

from .graph import Graph


def outline(graph: Graph) -> dict[str, str]:
    """A line for every node, by name: kernel, settings that are not the defaults, inputs, what it shares."""
    found = {}
    for node in graph.nodes:
        settings = [
            f"{field.name}={value!r}"
            for field in fields(node.kernel)
            if field.init and (value := getattr(node.kernel, field.name)) != field.default
            if isinstance(value, bool | int | float | str | tuple)  # a kernel's own state is no setting
        ]
        shared = "".join(f", its {name} is {theirs}" for name, theirs in node.shares.items())
        found[node.name] = f"{node.kernel.name}({', '.join(settings)}) of {', '.join(node.inputs)}{shared}"
    return found
