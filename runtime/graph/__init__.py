"""WHAT is computed: metadata, the graph of kernels, its backward graph and its buffers. Pure."""

from .builder import Builder, sequential, with_loss
from .graph import Graph, Node
from .metadata import Metadata, describe
from .parameters import Layout, initialise
from .program import Memory, Program

__all__ = [
    "Builder",
    "Graph",
    "Layout",
    "Memory",
    "Metadata",
    "Node",
    "Program",
    "describe",
    "initialise",
    "sequential",
    "with_loss",
]
