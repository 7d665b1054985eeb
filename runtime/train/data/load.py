"""From the [data] section of a job to samples."""

from __future__ import annotations

from ...errors import DataError
from .. import schema
from . import digits
from .samples import Data


def load_data(data: schema.Data, seed: int, loss: str = "softmax_cross_entropy") -> Data:
    """Open the source and split it by seed. With a loss of classes the targets must be whole numbers."""
    match data:
        case schema.DigitsData():
            return digits.load(data, seed)
    raise DataError(f"[data] source = {data.source!r} is not there yet")
