"""Data sources: one family a file, all of which return `Data`."""

from .files import MissingData
from .load import Loader, compare, load_data
from .npz import Sound
from .samples import Affine, Data, Samples

__all__ = ["Affine", "Data", "Loader", "MissingData", "Samples", "Sound", "compare", "load_data"]
