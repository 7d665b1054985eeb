"""What a file became: the graph, first values of its parameters, and who is who in the file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..graph import Graph
from ..parameters import Layout, initialise


@dataclass(frozen=True, slots=True)
class Model:
    """`weights` have the names of the layout's parameters ("conv1.weight"), also where a loss was added."""

    graph: Graph
    weights: Mapping[str, NDArray[np.float32]]
    inputs: Mapping[str, str]  # the file's names of inputs -> the graph's
    outputs: Mapping[str, str]  # the file's names of outputs -> the graph's
    constants: Mapping[str, NDArray[Any]]  # outputs of the file that depend on no input
    shared: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The file's weights that several of its nodes read, by those: one parameter of the graph each."""
    parted: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Such weights of which each reader has a parameter of its own: they read it in different forms."""

    def parameters(self, layout: Layout, seed: int = 0) -> NDArray[np.float32]:
        """The flat vector of a graph that holds these weights; parameters of its own are drawn by `seed`."""
        flat = initialise(layout, seed)
        for parameter in layout.parameters:
            if parameter.name in self.weights:
                flat[parameter.start : parameter.stop] = self.weights[parameter.name].reshape(-1)
        return flat
