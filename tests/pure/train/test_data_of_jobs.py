"""Data of several jobs: what they have in common is in memory once, and read once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from tests.pure.train.loaded import gathered
from tests.pure.train.sources import SOURCES
from weft.runtime.train.data import Loader, load_data
from weft.runtime.train.data.section import DataSection

LOSS = "softmax_cross_entropy"


def section(**keys: Any) -> DataSection:
    made: DataSection = TypeAdapter(DataSection).validate_python(keys)
    return made


def test_jobs_of_one_data_set_and_seed_have_one_object(here: Path) -> None:
    loader = Loader()
    first = loader.load(section(**SOURCES["CSV"]), 0, LOSS)
    assert loader.load(section(**SOURCES["CSV"]), 0, LOSS) is first
    values = loader.load(section(**SOURCES["CSV"]), 0, "mean_squared_error")
    assert values is not first
    assert loader.load(section(**SOURCES["CSV"]), 0, "huber") is values


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("digits", {}),
        ("CSV", {"validation": 0.3}),
        ("a compressed npz file", {"normalise": "standard"}),
        ("gzipped IDX files", {"shape": [15], "test": 0.0}),
    ],
)
def test_another_seed_or_split_shares_the_arrays(name: str, other: dict[str, Any], here: Path) -> None:
    loader = Loader()
    data = [loader.load(section(**SOURCES[name], **keys), seed, LOSS) for seed, keys in ((0, {}), (1, other))]
    inputs = [one.train.content()[0] for one in data]
    assert np.shares_memory(*inputs)
    assert data[0].digest() != data[1].digest()
    alone = load_data(section(**SOURCES[name], **other), 1, LOSS)
    assert data[1].digest() == alone.digest()
    np.testing.assert_array_equal(gathered(data[1].train)[0], gathered(alone.train)[0])


def test_a_text_of_a_folder_is_read_once_for_any_context(here: Path) -> None:
    Path("texts").mkdir()
    Path("texts/a.txt").write_text("a text " * 100)
    loader = Loader()
    keys = {"source": "text", "path": "texts"}
    long, short = (loader.load(section(**keys, context=context), 0, LOSS) for context in (16, 8))
    assert (long.input_spec.shape, short.input_spec.shape) == ((16,), (8,))
    assert np.shares_memory(long.train.content()[0], short.train.content()[0])


def test_other_files_are_other_data(here: Path) -> None:
    loader = Loader()
    plain = loader.load(section(**SOURCES["a plain npz file"]), 0, LOSS)
    packed = loader.load(section(**SOURCES["a compressed npz file"]), 0, LOSS)
    turned = loader.load(
        section(**{**SOURCES["a plain npz file"], "targets": "x", "inputs": "y"}), 0, "mean_squared_error"
    )
    assert plain is not packed
    assert turned.input_spec.shape == (1,)
