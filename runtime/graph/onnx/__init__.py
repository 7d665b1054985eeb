"""Models from and to ONNX files: read() gives a graph and weights, write() makes a file's model of them."""

from .model import Model
from .package import load, save
from .reader import read, sizes_of
from .writer import write

__all__ = ["Model", "load", "read", "save", "sizes_of", "write"]
