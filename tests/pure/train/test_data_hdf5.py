"""HDF5 files: what is mapped, what is read when, and what other programs write."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.pure.train.loaded import AnyArray, gathered, load
from weft.runtime.errors import DataError, MachineError
from weft.runtime.train.data import Data, hdf5
from weft.runtime.train.data.hdf5 import ByRow
from weft.runtime.train.data.stored import Joined

N = 30
FIELDS = np.random.default_rng(0).normal(size=(N, 2, 3)).astype("f4")
CLASSES = np.arange(N) % 4


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def stored(inputs: AnyArray = FIELDS, userblock: int = 0, **how: Any) -> None:
    with h5py.File("d.h5", "w", userblock_size=userblock) as file:
        file.create_dataset("run/fields", data=inputs, **how)
        file["classes"] = CLASSES


def loaded(loss: str = "softmax_cross_entropy", **keys: Any) -> Data:
    names = {"path": "d.h5", "inputs": "run/fields", "targets": "classes", "validation": 0, "test": 0}
    return load("hdf5", loss, **{**names, **keys})


def is_mapped(array: Any) -> bool:
    while array is not None and not isinstance(array, np.memmap):
        array = getattr(array, "base", None)
    return array is not None


CHUNKED = {"chunks": (4, 2, 3), "compression": "gzip", "shuffle": True, "fletcher32": True}

WAYS: dict[str, tuple[dict[str, Any], bool]] = {
    "contiguous": ({}, True),
    "contiguous, behind a block of the user's": ({"userblock": 1024}, True),
    "in chunks": ({"chunks": (1, 2, 3)}, False),
    "compressed": (CHUNKED, False),
    "to be extended": ({"maxshape": (None, 2, 3)}, False),
}


@pytest.mark.parametrize("small", [True, False], ids=["read whole", "read by rows"])
@pytest.mark.parametrize("dtype", ["f4", ">f4", "f8", "u1", "?"])
@pytest.mark.parametrize(("how", "mapped"), WAYS.values(), ids=WAYS)
def test_however_it_is_stored_samples_are_the_same(
    how: dict[str, Any], mapped: bool, dtype: str, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not small:
        monkeypatch.setattr(hdf5, "SMALL_BYTES", 0)
    stored((FIELDS * 3).astype(dtype), **how)
    train = loaded().train
    assert is_mapped(train.content()[0]) == mapped
    assert isinstance(train.content()[0], ByRow) == (not mapped and not small)
    inputs, targets = gathered(train, [7, 2, 29, 0, 7])
    rows = train.content()[2][[7, 2, 29, 0, 7]]
    expected = (FIELDS * 3).astype(dtype)[rows] / np.float32(255 if dtype == "u1" else 1)
    np.testing.assert_allclose(inputs, expected, rtol=1e-6)
    np.testing.assert_array_equal(targets, CLASSES[rows])


def test_normalised_and_reshaped_what_is_read_by_rows_is_as_what_is_mapped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hdf5, "SMALL_BYTES", 0)
    keys = {"normalise": "standard", "shape": [3, 2]}
    stored()
    mapped = gathered(loaded(**keys).train)
    stored(**CHUNKED)
    by_row = gathered(loaded(**keys).train)
    np.testing.assert_array_equal(mapped[0], by_row[0])


def test_many_small_parts_are_not_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each was within the limit, and all together were more than the memory."""
    stored(**CHUNKED)
    Path("d.h5").rename("d-0.h5")
    stored(**CHUNKED)
    one = FIELDS.nbytes  # classes are contiguous
    for limit, by_row in ((one, True), (2 * one, False)):
        monkeypatch.setattr(hdf5, "SMALL_BYTES", limit)
        inputs = loaded(path="d*.h5").train.content()[0]
        assert isinstance(inputs, Joined)
        assert [isinstance(part, ByRow) for part in inputs.parts] == [by_row] * 2


def test_a_number_alone_is_no_samples() -> None:
    with h5py.File("d.h5", "w") as file:
        file["run/fields"], file["classes"] = np.float64(3), CLASSES
    with pytest.raises(DataError, match=r"^d.h5\[run/fields\]: holds no samples; its shape is \(\)$"):
        loaded()


def test_values_read_by_rows_are_looked_at_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5, "SMALL_BYTES", 0)
    values = FIELDS.copy()
    values[20, 1, 2] = np.inf
    stored(values, **CHUNKED)
    with pytest.raises(DataError, match=r"^d.h5\[run/fields\]: target inf of sample 20 is no float32; clean"):
        loaded("mean_squared_error", targets="run/fields")


@pytest.mark.parametrize("rows", [[], [0], [29, 3, 3, 17], [5, 6, 8, 7], [29, 0], [*range(N)]], ids=str)
def test_any_rows_are_those_asked_for(rows: list[int]) -> None:
    stored(**CHUNKED)
    path = Path("d.h5").absolute()
    found = ByRow(path, path.stat().st_mtime_ns, "run/fields", FIELDS.shape, FIELDS.dtype)
    np.testing.assert_array_equal(found[np.array(rows, int)], FIELDS[rows])


def test_a_damaged_chunk_that_is_read_late_is_told_with_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5, "SMALL_BYTES", 0)
    stored(chunks=(1, 2, 3), fletcher32=True)
    train = loaded().train
    content, then = Path("d.h5").read_bytes(), Path("d.h5").stat().st_mtime_ns
    at = content.index(FIELDS[13].tobytes())
    hdf5._kept_open.cache_clear()
    Path("d.h5").write_bytes(content[:at] + b"\xff" + content[at + 1 :])
    os.utime("d.h5", ns=(then, then))
    with pytest.raises(DataError, match=r"^d.h5\[run/fields\]: cannot be read: .*; save or fetch it again$"):
        gathered(train)


def test_what_has_been_written_anew_is_not_read_in_the_place_of_what_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was where there are more parts than are kept open: other samples, and nobody was told."""
    monkeypatch.setattr(hdf5, "SMALL_BYTES", 0)
    stored(**CHUNKED)
    train, then = loaded().train, Path("d.h5").stat().st_mtime_ns
    hdf5._kept_open.cache_clear()
    stored(FIELDS + 1, **CHUNKED)
    os.utime("d.h5", ns=(then, then + 1))
    with pytest.raises(DataError, match=r"^d.h5: has been written anew while it was read; start again"):
        gathered(train)
    Path("d.h5").unlink()
    with pytest.raises(DataError, match=r"^d.h5: there is no such file"):
        gathered(train)


def test_a_dataset_that_lies_in_other_files_is_read_through_the_library() -> None:
    stored()
    layout = h5py.VirtualLayout((2 * N, 2, 3), "f4")
    for place in range(2):
        layout[place * N : (place + 1) * N] = h5py.VirtualSource("d.h5", "run/fields", FIELDS.shape)
    with h5py.File("all.h5", "w") as file:
        file.create_virtual_dataset("u", layout)
        file["classes"] = np.tile(CLASSES, 2)
        file.create_dataset("beside", FIELDS.shape, "f4", external="beside.raw", data=FIELDS)
    inputs, _ = gathered(loaded(path="all.h5", inputs="u").train)
    assert inputs.sum() == pytest.approx(2 * FIELDS.sum(), abs=1e-3)
    inputs, _ = gathered(
        loaded(path="all.h5", inputs="beside", targets="beside", loss="mean_squared_error").train
    )
    assert inputs.sum() == pytest.approx(FIELDS.sum(), abs=1e-3)


@pytest.mark.parametrize("how", [{}, CHUNKED], ids=["contiguous", "compressed"])
def test_a_dataset_that_is_a_link_to_another_file_is_read_from_that(how: dict[str, Any]) -> None:
    Path("below").mkdir()
    stored(**how)
    Path("d.h5").rename("below/fields.h5")
    with h5py.File("links.h5", "w") as file:
        file["before"] = np.ones(5000)
        file["u"] = h5py.ExternalLink("below/fields.h5", "run/fields")
        file["classes"] = CLASSES
    np.testing.assert_array_equal(gathered(loaded(path="links.h5", inputs="u").train)[0], FIELDS)


def numbers_of_another_form(name: str) -> Any:
    if name == "12 bits":
        form = h5py.h5t.STD_I16LE.copy()
        form.set_precision(12)
    else:
        form = h5py.h5t.IEEE_F32LE.copy()
        form.set_fields(15, 7, 8, 0, 7)
        form.set_size(2)
    return form


@pytest.mark.parametrize("name", ["12 bits", "bfloat16"])
def test_numbers_that_numpy_has_not_are_read_through_the_library(name: str) -> None:
    values = -np.arange(N * 2).reshape(N, 2)
    with h5py.File("d.h5", "w") as file:
        space = h5py.h5s.create_simple(values.shape)
        h5py.Dataset(h5py.h5d.create(file.id, b"u", numbers_of_another_form(name), space))[...] = values
        file["classes"], file["behind"] = CLASSES, np.ones(5000)
    np.testing.assert_array_equal(gathered(loaded(inputs="u").train)[0], values)


NO_DATASETS = {
    "three": r"^d.h5\[three\]: holds numbers that NumPy has not: .*; store them as others$",
    "type": r"^d.h5: 'type' is a datatype; it holds classes, run/fields, three$",
    "run": r"^d.h5: 'run' is a group; it holds classes, run/fields, three$",
    "broken": r"^d.h5: holds no dataset 'broken'; it holds classes, run/fields, three$",
    "away": r"^d.h5: 'away' is a link to '/x' in moved.h5, where there is none; it holds classes, ",
}


@pytest.mark.parametrize(("name", "expected"), NO_DATASETS.items(), ids=NO_DATASETS)
def test_what_is_no_dataset_of_numbers_is_told(name: str, expected: str) -> None:
    """With an integer of three bytes anywhere in the file, even a wrong name was a TypeError."""
    stored()
    with h5py.File("d.h5", "a") as file:
        form = h5py.h5t.STD_I32LE.copy()
        form.set_size(3)
        h5py.h5d.create(file.id, b"three", form, h5py.h5s.create_simple((N,)))
        file["type"], file["broken"] = np.dtype("f4"), h5py.SoftLink("/nowhere")
        file["away"] = h5py.ExternalLink("moved.h5", "/x")
    with pytest.raises(DataError, match=expected):
        loaded(inputs=name)


@pytest.mark.parametrize("what", [b"HEAP", b"SNOD", b"TREE"], ids=repr)
def test_a_damaged_file_is_told_as_that(what: bytes) -> None:
    stored()
    Path("d.h5").write_bytes(Path("d.h5").read_bytes().replace(what, b"1234"))
    with pytest.raises(DataError, match=r"^d.h5: is not a whole HDF5 file: .*; save or fetch it again$"):
        loaded()


def test_netcdf_4_is_hdf5() -> None:
    """As the netCDF library lays it out: dimensions are scales, variables refer to them, time may grow."""
    with h5py.File("run.nc", "w", track_order=True) as file:
        for name, extent in (("time", N), ("y", 2), ("x", 3)):
            file.create_dataset(
                name, data=np.arange(extent, dtype="f8"), maxshape=(None,) if name == "time" else None
            )
            file[name].make_scale(name)
        file.create_dataset("u", data=FIELDS, maxshape=(None, 2, 3), chunks=(1, 2, 3))
        file["u"].attrs["_FillValue"] = np.float32(9.96921e36)
        file["u"].attrs["scale_factor"], file["u"].attrs["add_offset"] = 1.0, 0.0
        for axis, name in enumerate(("time", "y", "x")):
            file["u"].dims[axis].attach_scale(file[name])
    train = loaded(path="run.nc", inputs="u", targets="time", loss="mean_squared_error").train
    inputs, targets = gathered(train)
    np.testing.assert_array_equal(inputs, FIELDS)
    np.testing.assert_array_equal(targets[:, 0], np.arange(N))


def test_a_test_set_may_be_a_dataset_of_the_same_file() -> None:
    with h5py.File("d.h5", "w") as file:
        file["run/fields"], file["classes"] = FIELDS, CLASSES
        file["test/x"], file["test/y"] = FIELDS[:3], CLASSES[:3]
    data = loaded(test_inputs="test/x", test_targets="test/y")
    assert [len(data.train), len(data.test)] == [N, 3]


def test_without_h5py_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    stored()
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(
        MachineError, match=r"^HDF5 files need the h5py package .*: pip install 'weft\[hdf5\]'"
    ):
        loaded()
