"""Data sources: what is read from good files, and what becomes of its numbers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.pure.train.loaded import gathered, load
from tests.pure.train.sources import LABELS, SOURCES, N, images
from weft.runtime.errors import DataError
from weft.runtime.train.data.samples import split
from weft.runtime.train.tally import Tally


@pytest.mark.parametrize("keys", SOURCES.values(), ids=SOURCES)
def test_three_splits_of_one_kind(keys: dict[str, Any], here: Path) -> None:
    data = load(**keys)
    total = 1797 if keys["source"] == "digits" else N
    counts = [len(data.train), len(data.validation), len(data.test)]
    assert counts == [total - round(total * 0.1) - round(total * 0.2), round(total * 0.1), round(total * 0.2)]
    assert data.classes == (10 if keys["source"] == "digits" else 7)
    assert (data.input_spec.dtype, data.target_spec.dtype, data.target_spec.shape) == ("float32", "int32", ())
    assert data.digest() == load(**keys).digest() != load(**keys, seed=1).digest()


@pytest.mark.parametrize("name", [name for name in SOURCES if name not in ("digits", "CSV")])
def test_every_image_arrives_once_with_its_label(name: str, here: Path) -> None:
    data = load(**SOURCES[name])
    inputs, targets = (
        np.concatenate(both)
        for both in zip(*map(gathered, (data.train, data.validation, data.test)), strict=True)
    )
    numbers = np.rint(inputs.reshape(N, -1)[:, 0] * 255).astype(int)
    assert sorted(numbers) == list(range(N))
    np.testing.assert_array_equal(targets, LABELS[numbers])
    np.testing.assert_allclose(inputs.reshape(N, 3, 5), images()[numbers] / np.float32(255), rtol=1e-6)


def test_digits_are_raw_in_the_file_and_from_0_to_1_in_training() -> None:
    data = load("digits")
    inputs, _ = gathered(data.train)
    assert (inputs.min(), inputs.max()) == (0.0, 1.0)
    assert data.affine.scale == 1 / 16


def test_images_of_idx_files_have_a_channel(here: Path) -> None:
    assert load(**SOURCES["IDX files"]).input_spec.shape == (1, 3, 5)
    assert load(**SOURCES["a plain npz file"]).input_spec.shape == (3, 5)
    assert load(**SOURCES["a plain npz file"], shape=[1, 5, 3]).input_spec.shape == (1, 5, 3)


@pytest.mark.parametrize("name", ["a pair of npy files", "a plain npz file", "an HDF5 file", "IDX files"])
def test_large_arrays_stay_in_the_file(name: str, here: Path) -> None:
    inputs = load(**SOURCES[name]).train.content()[0]
    while inputs is not None and not isinstance(inputs, np.memmap):
        inputs = inputs.base  # type: ignore[assignment]
    assert isinstance(inputs, np.memmap)


@pytest.mark.parametrize("dtype", ["u1", "i2", "i8", "f2", "f4", "f8", ">f4", "?"])
@pytest.mark.parametrize("normalise", ["range", "standard", "none"])
def test_inputs_of_any_type_leave_as_float32(dtype: str, normalise: str, here: Path) -> None:
    raw = images("i8").reshape(N, 15)
    np.save("x.npy", raw.astype(dtype))
    data = load("npy", inputs="x.npy", targets="y.npy", normalise=normalise, test=0.0)
    inputs, _ = gathered(data.train)
    rows = data.train.content()[2]
    expected = raw.astype(dtype).astype(np.float64)[rows]
    if normalise == "range" and dtype == "u1":
        expected /= 255
    if normalise == "standard":
        deviation = expected.std(0)
        expected = (expected - expected.mean(0)) / np.where(deviation > 0, deviation, 1)
    np.testing.assert_allclose(inputs, expected, rtol=1e-5, atol=1e-5)


def test_a_column_far_from_zero_keeps_its_digits(here: Path) -> None:
    times = 1.7e9 + np.arange(N)
    np.save("x.npy", times)
    data = load("npy", inputs="x.npy", targets="y.npy", normalise="standard")
    inputs, _ = gathered(data.train)
    assert len(np.unique(inputs)) == len(data.train)
    assert abs(inputs.std() - 1) < 1e-5


@pytest.mark.parametrize(
    ("dtype", "mean", "deviation", "takes"),
    [
        ("float64", 1.7e9, 3e3, "float64"),
        ("int64", 1.7e9, 3e3, "float64"),
        ("float32", 1.7e9, 3e3, "float32"),  # as training took them
        ("float64", 1.7e9, 3e7, "float32"),
        ("float64", 300.0, 0.5, "float32"),
        ("uint8", 100.0, 9.0, "float32"),
        ("float64", 1.7e9, 0.0, "float64"),  # new samples may vary there
        ("float64", 1e3, 0.0, "float32"),
        ("float64", 0.0, 0.0, "float32"),
    ],
)
def test_a_model_takes_float64_where_float32_keeps_too_little_of_what_training_read(
    dtype: str, mean: float, deviation: float, takes: str, here: Path
) -> None:
    column = mean + deviation * np.linspace(-1, 1, N)
    np.save("x.npy", column.astype(dtype))
    assert load("npy", inputs="x.npy", targets="y.npy", normalise="standard").affine.takes == takes


@pytest.mark.parametrize("value", [0.1, 1 / 3, -7.7, 1e9 / 7, 0.0])
def test_a_column_of_one_number_is_as_large_as_it_is(value: float, here: Path) -> None:
    np.save("x.npy", np.stack([np.arange(N), np.full(N, value)], 1))
    np.save("other.npy", np.stack([np.arange(N), np.full(N, value + 1)], 1))
    test = {"test_inputs": "other.npy", "test_targets": "y.npy"}
    data = load("npy", inputs="x.npy", targets="y.npy", normalise="standard", **test)
    assert np.abs(gathered(data.train)[0][:, 1]).max() <= 1e-5 * abs(value)
    np.testing.assert_allclose(gathered(data.test)[0][:, 1], 1, rtol=1e-5)


@pytest.mark.parametrize("extents", [(3, 3), (2, 3, 3)], ids=["images", "volumes"])
def test_images_and_volumes_are_normalised_by_channel(here: Path, extents: tuple[int, ...]) -> None:
    by_channel = (np.reshape(each, (2, *[1] * len(extents))) for each in ([5, -1], [2, 9]))
    np.save("x.npy", np.random.default_rng(0).normal(*by_channel, (N, 2, *extents)))
    inputs, _ = gathered(load("npy", inputs="x.npy", targets="y.npy", normalise="standard").train)
    others = (0, *range(2, inputs.ndim))
    np.testing.assert_allclose(inputs.mean(others), 0, atol=1e-6)
    np.testing.assert_allclose(inputs.std(others), 1, atol=1e-5)


def test_numbers_to_be_met_have_an_axis_as_a_dense_layers_output_has(here: Path) -> None:
    np.save("y.npy", np.linspace(-1, 1, N))
    data = load("npy", "mean_squared_error", inputs="x.npy", targets="y.npy")
    assert (data.classes, data.target_spec.shape, data.target_spec.dtype) == (None, (1,), "float32")
    _, targets = gathered(data.train)
    np.testing.assert_array_equal(targets[:, 0], np.linspace(-1, 1, N).astype("f4")[data.train.content()[2]])


def test_a_test_set_of_its_own_is_taken_whole(here: Path) -> None:
    np.savez("both.npz", x_train=images(), y_train=LABELS, x_test=images()[:5], y_test=LABELS[:5] + 3)
    keys = {"inputs": "x_train", "targets": "y_train", "test_inputs": "x_test", "test_targets": "y_test"}
    data = load("npz", path="both.npz", **keys)
    assert [len(data.train), len(data.validation), len(data.test)] == [36, 4, 5]
    np.testing.assert_array_equal(gathered(data.test)[1], LABELS[:5] + 3)
    assert data.classes == 8


@given(st.integers(11, 300), st.integers(0, 2**63 - 1), st.floats(0.1, 0.45), st.floats(0.1, 0.45))
def test_a_split_loses_and_doubles_nothing(n: int, seed: int, validation: float, test: float) -> None:
    parts = split(n, seed, validation, test, "data")
    assert sorted(np.concatenate(parts)) == list(range(n))
    assert [len(part) for part in parts[1:]] == [round(n * validation), round(n * test)]


@pytest.mark.parametrize("value", [np.nan, -np.inf, 1e300])
def test_the_sample_that_no_float32_holds_is_named(value: float, here: Path) -> None:
    inputs = images("f8")
    inputs[17, 1, 2] = value
    np.save("x.npy", inputs)
    data = load("npy", inputs="x.npy", targets="y.npy")
    rows = list(data.train.content()[2])
    first, others = rows.index(17), [index for index, row in enumerate(rows) if row != 17]
    assert data.train.damage(np.array([others[0], first])) == f"sample 17 of x.npy holds {value}"
    assert data.train.damage(np.array(others)) == ""
    tally = Tally.of(3, N, N)
    tally.enter(1, np.nan, 0)
    parts = [np.array([first]), np.array(others), np.array([first])]
    assert tally.damage(data.train, parts) == ""  # where the loss is a number, nobody looks
    tally.enter(2, np.inf, 0)
    assert tally.damage(data.train, parts) == f"sample 17 of x.npy holds {value}"


@pytest.mark.parametrize("value", [np.nan, np.inf, -1e39])
def test_targets_that_no_float32_holds_are_refused(value: float, here: Path) -> None:
    targets = np.zeros((N, 2))
    targets[5, 1] = value
    np.save("y.npy", targets)
    with pytest.raises(
        DataError, match=rf"y.npy: target {re.escape(str(value))} of sample 5 is no float32; clean"
    ):
        load("npy", "mean_squared_error", inputs="x.npy", targets="y.npy")


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e9, 0.5])
def test_numbers_that_are_no_class_are_told_as_they_are(value: float, here: Path) -> None:
    targets = LABELS.astype(float)
    targets[5] = value
    np.save("y.npy", targets)
    with pytest.raises(DataError, match=rf"y.npy: target {re.escape(str(value))} of sample 5 is no class"):
        load("npy", inputs="x.npy", targets="y.npy")


def test_a_shape_that_does_not_fit(here: Path) -> None:
    with pytest.raises(
        DataError, match=r"a sample has shape \(3, 5\), which does not fit into \[data\] shape = \[4, 4\]"
    ):
        load(**SOURCES["a plain npz file"], shape=[4, 4])


@pytest.mark.parametrize(
    ("value", "told"),
    [
        pytest.param(np.nan, "sample 7 holds nan", id="a NaN is named"),
        pytest.param(-np.inf, "sample 7 holds -inf", id="so is an infinity, without a warning of NumPy's"),
        pytest.param(
            1e200, "it holds numbers too large to be squared", id="what is finite is not called NaN"
        ),
    ],
)
def test_what_cannot_be_normalised(value: float, told: str, here: Path) -> None:
    inputs = np.zeros((N, 2))
    inputs[7, 1] = value
    np.save("x.npy", inputs)
    with pytest.raises(DataError, match=rf"^x.npy: {told}, so that nothing can be normalised; clean it$"):
        load("npy", inputs="x.npy", targets="y.npy", normalise="standard", validation=0.0, test=0.0)
