"""The same samples in every source's kind of file."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tests.pure.train.loaded import AnyArray

N = 40


def images(dtype: str = "u1") -> AnyArray:
    """N images whose first pixel is their number, so that a sample can be followed through the split."""
    made = np.random.default_rng(0).integers(0, 100, (N, 3, 5)).astype(dtype)
    made[:, 0, 0] = np.arange(N)
    return made


LABELS = np.arange(N) % 7


def idx_bytes(array: AnyArray, code: int) -> bytes:
    head = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


def store(folder: Path) -> None:
    """What SOURCES name."""
    np.save(folder / "x.npy", images())
    np.save(folder / "y.npy", LABELS)
    np.savez(folder / "plain.npz", x=images(), y=LABELS)
    np.savez_compressed(folder / "small.npz", x=images(), y=LABELS)
    (folder / "x.idx").write_bytes(idx_bytes(images(), 0x08))
    (folder / "y.idx").write_bytes(idx_bytes(LABELS.astype("u1"), 0x08))
    (folder / "x.idx.gz").write_bytes(gzip.compress(idx_bytes(images(), 0x08)))
    (folder / "y.idx.gz").write_bytes(gzip.compress(idx_bytes(LABELS.astype("i4"), 0x0C)))
    rows = [f"{number},{number / 2},{label}" for number, label in enumerate(LABELS)]
    (folder / "t.csv").write_text("a,b,y\n" + "\n".join(rows) + "\n")
    with h5py.File(folder / "plain.h5", "w") as file:
        file["fields/x"], file["y"] = images(), LABELS
    with h5py.File(folder / "small.h5", "w") as file:
        file.create_dataset("fields/x", data=images(), chunks=(3, 3, 5), compression="gzip")
        file.create_dataset("y", data=LABELS, chunks=(7,))


SOURCES: dict[str, dict[str, Any]] = {
    "digits": {"source": "digits"},
    "a pair of npy files": {"source": "npy", "inputs": "x.npy", "targets": "y.npy"},
    "a plain npz file": {"source": "npz", "path": "plain.npz"},
    "a compressed npz file": {"source": "npz", "path": "small.npz"},
    "an HDF5 file": {"source": "hdf5", "path": "plain.h5", "inputs": "fields/x", "targets": "y"},
    "a compressed HDF5 file": {"source": "hdf5", "path": "small.h5", "inputs": "fields/x", "targets": "y"},
    "IDX files": {"source": "idx", "inputs": "x.idx", "targets": "y.idx"},
    "gzipped IDX files": {"source": "idx", "inputs": "x.idx.gz", "targets": "y.idx.gz"},
    "CSV": {"source": "csv", "path": "t.csv", "target": "y", "header": True},
}
