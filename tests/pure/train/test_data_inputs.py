"""Samples without targets, as weft predict takes them: which files, and which arrays in them."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from weft.runtime.errors import DataError
from weft.runtime.train.data import hdf5
from weft.runtime.train.data.inputs import Inputs

PARTS = [np.random.default_rng(n).normal(size=(n + 1, 2, 3)).astype("f4") for n in range(3)]
WHOLE = np.concatenate(PARTS)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("npy", "npz", "h5"):
        (tmp_path / name).mkdir()
    for number, part in zip((2, 10, 11), PARTS, strict=True):  # numbers count by their value
        np.save(f"npy/u-{number}.npy", part)
        np.savez(f"npz/u-{number}.npz", x=part, y=np.arange(len(part)))
        np.savez_compressed(f"npz/alone-{number}.npz", x=part)
        with h5py.File(f"h5/u-{number}.h5", "w") as file:
            file.create_dataset("fields/u", data=part, chunks=(1, 2, 3), compression="gzip")
            file["classes"] = np.arange(len(part))


def opened(given: str) -> np.ndarray:
    found = Inputs.find(given).open()
    assert len(found) == found.shape[0]
    return np.asarray(found[0 : len(found)])


@pytest.mark.parametrize(
    "given",
    [
        "npy",
        "npy/",
        "npy/u-*.npy",
        "npz/u-*.npz:x",
        "npz/alone*",
        "npz/alone*:x",
        "h5:fields/u",
        "h*/*:fields/u",
    ],
)
def test_parts_are_one_array_in_the_order_of_their_numbers(given: str) -> None:
    np.testing.assert_array_equal(opened(given), WHOLE)


def test_large_data_sets_are_read_by_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5, "SMALL_BYTES", 0)
    assert isinstance(Inputs.find("h5/u-2.h5:fields/u").open(), hdf5.ByRow)
    np.testing.assert_array_equal(opened("h5:fields/u"), WHOLE)


def test_a_file_may_have_a_colon_in_its_name() -> None:
    np.save("12:30.npy", WHOLE)
    np.testing.assert_array_equal(opened("12:30.npy"), WHOLE)


def test_images_of_idx_get_an_axis_of_channels_as_in_training() -> None:
    Path("t10k-images-idx3-ubyte").write_bytes(struct.pack(">4B3I", 0, 0, 8, 3, 2, 2, 2) + bytes(range(8)))
    np.testing.assert_array_equal(opened("t10k-images-idx3-ubyte"), np.arange(8).reshape(2, 1, 2, 2))


def damaged_header(path: Path) -> None:
    np.save(path, WHOLE)
    path.write_bytes(path.read_bytes().replace(b"}", b"{"))


def cut_off(path: Path) -> None:
    np.save(path, WHOLE)
    path.write_bytes(path.read_bytes()[:-4])


NO_SAMPLES: dict[str, tuple[Callable[[Path], object], str]] = {
    "none": (lambda path: None, r"there is no such file; .* exists\.$"),
    "empty": (lambda path: path.write_bytes(b""), "is no .npy, .npz, HDF5 or IDX file"),
    "text": (lambda path: path.write_text("1,2"), "is no .npy, .*; write the samples, .*, by numpy.save$"),
    "a folder": (lambda path: path.mkdir(), r"is a folder, and no file in it ends in \.npy or "),
    "cut off": (cut_off, "is not a whole .npy file"),
    "no axis": (lambda path: np.save(path, np.array(1.0)), r"holds no samples; its shape is \(\)$"),
    "no samples": (lambda path: np.save(path, WHOLE[:0]), r"holds no samples; its shape is \(0, 2, 3\)"),
    "words": (lambda path: np.save(path, np.array(["a"])), "holds <U1 where numbers are needed"),
    "a pipe": (os.mkfifo, "is a device or a pipe, .*; store what it gives as a file$"),
    "a damaged header": (damaged_header, "is not a whole .npy file: .*header is damaged"),
}


@pytest.mark.parametrize(("save", "words"), NO_SAMPLES.values(), ids=NO_SAMPLES)
def test_a_file_that_holds_no_samples(save: Callable[[Path], object], words: str) -> None:
    save(Path("x.npy"))
    with pytest.raises(DataError, match=f"^x.npy: .*{words}"):
        Inputs.find("x.npy").open()


REFUSED = {
    "several arrays and no name": (
        "npz/u-2.npz",
        r"u-2.npz: holds 2 arrays \(x, y\); .* npz/u-2.npz:x$",
    ),
    "several datasets and no name": ("h5/u-2.h5", r"u-2.h5: holds 2 arrays \(classes, fields/u\); name "),
    "no such array": ("npz/u-2.npz:xx", "u-2.npz: holds no array 'xx'.*it holds x, y"),
    "no such dataset": ("h5:fields/v", "u-2.h5: holds no dataset 'fields/v'"),
    "a name in a file of one array": ("npy:x", "u-2.npy is an .npy file, .*: leave ':x' out$"),
    "no match": ("npy/v-*", r"npy/v-\*: no file matches this pattern; .* exists\.$"),
    "several kinds": ("n*/*", "holds files of several kinds"),
}


@pytest.mark.parametrize(("given", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_is_told(given: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        Inputs.find(given).open()


def test_parts_of_another_shape_and_flipped_bytes_are_told_with_their_file() -> None:
    np.save("npy/u-12.npy", np.zeros((2, 3, 2), "f4"))
    with pytest.raises(DataError, match=r"^npy/u-12.npy: a sample's inputs are float32 of shape \(3, 2\)"):
        Inputs.find("npy").open()
    content = Path("npz/u-11.npz").read_bytes()
    at = content.index(PARTS[2].tobytes())
    Path("npz/u-11.npz").write_bytes(content[:at] + b"\xff" + content[at + 1 :])
    with pytest.raises(DataError, match=r"^npz/u-11\.npz: is not a whole .npz file"):
        Inputs.find("npz/u-*:x").open()
