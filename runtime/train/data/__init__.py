"""Data sources: one family a file, all of which return `Data`."""

from .load import load_data
from .samples import Affine, Data, Samples

__all__ = ["Affine", "Data", "Samples", "load_data"]
