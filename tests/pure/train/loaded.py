"""Data as a job's [data] names it, and samples of it gathered as a step gathers them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from weft.runtime.train.data import Data, Samples, compare, load_data
from weft.runtime.train.data.section import DataSection

AnyArray = NDArray[Any]


def load(source: str, loss: str = "softmax_cross_entropy", seed: int = 0, **keys: Any) -> Data:
    section: DataSection = TypeAdapter(DataSection).validate_python({"source": source, **keys})
    compare(section, set())  # as one rank of a node does
    return load_data(section, seed, loss)


def gathered(samples: Samples, indices: list[int] | None = None) -> tuple[AnyArray, AnyArray]:
    chosen = np.array(range(len(samples)) if indices is None else indices)
    inputs = np.full((len(chosen) + 1, *samples.input_spec.shape), 99, samples.input_spec.dtype)
    targets = np.full((len(chosen) + 1, *samples.target_spec.shape), 99, samples.target_spec.dtype)
    samples.gather(chosen, inputs, targets)
    assert (inputs[-1] == 99).all(), "wrote behind the samples asked for"
    assert (targets[-1] == 99).all()
    return inputs[:-1], targets[:-1]
