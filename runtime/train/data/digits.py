"""The handwritten digits that scikit-learn bundles: 1,797 images of 8×8 pixels from 0 to 16.

Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from ...errors import MachineError
from .arrays import Pair
from .samples import Affine

AFFINE = Affine(scale=1 / 16)
"""Images from 0 to 1 are what is trained on."""


def pair() -> Pair:
    """The digits as (1, 8, 8) images from 0 to 16."""
    table = np.loadtxt(_file(), delimiter=",", dtype=np.float32)
    images = table[:, :-1].reshape(-1, 1, 8, 8)
    return Pair(images, table[:, -1].astype(np.int32), "digits", "digits")


def _file() -> Path:
    """The file inside scikit-learn, found without importing it: that takes 0.9 s on every rank."""
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise MachineError("the digits come with scikit-learn, which is missing: pip install scikit-learn")
    return Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
