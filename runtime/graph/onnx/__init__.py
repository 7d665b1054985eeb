"""Models from ONNX files: read() gives a graph and the values of its weights."""

from .model import Model
from .reader import read

__all__ = ["Model", "read"]
