"""Where operators are written: the file so far, and the part of it that is one node's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....kernels.kernel import ArraySpec
from ..graph import Node
from . import package


@dataclass(slots=True)
class Sheet:
    """The file so far."""

    operators: list[package.Proto] = field(default_factory=list)
    stored: list[package.Proto] = field(default_factory=list)
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)  # those in `stored`

    def store(self, name: str, array: NDArray[Any]) -> str:
        """Put an array into the file; returns the name by which operators read it."""
        self.stored.append(package.stored(name, array))
        self.arrays[name] = array
        return name

    def put(
        self,
        op: str,
        inputs: Sequence[str],
        output: str,
        name: str = "",
        *,
        outputs: Sequence[str] = (),
        **attributes: Any,
    ) -> str:
        """Add an operator, called after its output unless told otherwise; returns the output.

        `outputs` are all of them, where nobody reads the others.
        """
        self.operators.append(package.operator(op, inputs, outputs or [output], name or output, attributes))
        return output


@dataclass(frozen=True, slots=True)
class To:
    """Where one node's operators go: its inputs, its parameters by their names in it, the shapes it sees."""

    sheet: Sheet
    node: Node
    specs: tuple[ArraySpec, ...]
    output: ArraySpec
    parameters: Mapping[str, NDArray[Any]]

    def part(self, name: str) -> str:
        """A value of this node's own; no node of a graph has a slash in its name."""
        return f"{self.node.name}/{name}"

    def weight(self, name: str = "weight") -> str:
        """A parameter, stored as it is."""
        return self.store(name, self.parameters[name])

    def store(self, name: str, array: NDArray[Any], *, trained: bool = True) -> str:
        """A parameter that the file holds in another form, under its name all the same; one that is not
        trained is a part of the node, by which whoever reads it again knows.

        What a node shares is read where the other node has stored it, if that is the same or its transpose.
        """
        theirs = self.node.shares.get(name, "")
        stored = self.sheet.arrays.get(theirs)
        if stored is not None and np.array_equal(stored, array):
            return theirs
        if stored is not None and np.array_equal(stored.T, array):
            return self.sheet.put("Transpose", [theirs], self.part(f"{name}_transposed"), perm=[1, 0])
        return self.sheet.store(f"{self.node.name}.{name}" if trained else self.part(name), array)

    def integers(self, name: str, values: Sequence[int]) -> str:
        """A stored list of whole numbers: axes, extents."""
        return self.sheet.store(self.part(name), np.array(values, np.int64))

    def put(self, op: str, *inputs: str, to: str = "", name: str = "", **attributes: Any) -> str:
        """Add an operator that makes the part `to`, or the node's value."""
        return self.sheet.put(
            op, inputs, self.part(to) if to else self.node.name, name and self.part(name), **attributes
        )

    def aligned(self, index: int, axes: int) -> str:
        """Input `index` with `axes` axes behind the batch, which Weft's broadcasting leaves in front."""
        value, own = self.node.inputs[index], len(self.specs[index].shape) - 1
        if own == axes:
            return value
        ones = self.integers(f"ones{index}", range(1, 1 + axes - own))
        return self.put("Unsqueeze", value, ones, to=f"aligned{index}")
