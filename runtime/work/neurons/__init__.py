"""Blocks of neurons ahead of their layer: one request through a graph, on the ranks of a node."""

from .crew import BlockError, BlockHeld
from .engine import Neurons

__all__ = ["BlockError", "BlockHeld", "Neurons"]
