"""HDF5 files, and so netCDF-4 ones, by h5py: mapped, read whole or read row by row, as each was stored.

    contiguous                 the bytes lie in the file one behind the other: mapped, as those of .npy are
    chunked, or compressed     up to SMALL_BYTES in all read whole, more by the rows that are asked for

The HDF5 library has one lock for all threads of a process, and locks files, which some cluster file systems
refuse: files are opened without, to be read by all ranks at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError, MachineError
from .. import order
from ..section import nearest
from .arrays import Pair, joined, require_numbers
from .files import existing, reading
from .parts import parts
from .section import Hdf5Data
from .stored import AnyArray, Array, Stored

ENDINGS = (".h5", ".hdf5", ".nc")

SMALL_BYTES = 256 << 20
"""A row alone has its chunk read and decompressed: of chunks of a thousand rows, a thousand times."""

OPEN_FILES = 64
"""How many are kept open; a process may have a thousand, and data more parts than that."""

CLASSIC = b"CDF"  # what netCDF files begin with that are none of HDF5

SHOWN = 20  # names of datasets in a line

DAMAGED = (OSError, KeyError, RuntimeError, ValueError)
"""What h5py raises of bytes that are not those of before, of a filter that it lacks, and of a broken link."""


def pairs(data: Hdf5Data) -> tuple[Pair, Pair | None]:
    """The samples, and the test set if the job names one."""
    paths = parts(data.path, ENDINGS)
    pair = _pair(paths, data.path, data.inputs, data.targets)
    if not (data.test_inputs and data.test_targets):
        return pair, None
    return pair, _pair(paths, data.path, data.test_inputs, data.test_targets)


def _pair(paths: Sequence[Path], all_of_them: str, inputs: str, targets: str) -> Pair:
    found = arrays(paths, (inputs, targets))
    made = [
        Pair(x, y, f"{path}[{inputs}]", f"{path}[{targets}]")
        for path, (x, y) in zip(paths, found, strict=True)
    ]
    return joined(made, f"{all_of_them}[{inputs}]", f"{all_of_them}[{targets}]")


def arrays(paths: Sequence[Path], names: Sequence[str]) -> list[list[Array]]:
    """Of each file its datasets of these names; all are read whole where they are small together."""
    found = []
    for path in paths:
        with _opened(path) as file:
            try:
                found.append([_array(file, path, name) for name in names])
            except DAMAGED as error:
                raise _damaged(path, error) from error
    by_row = (array for each in found for array in each if isinstance(array, ByRow))
    if sum(array.size * array.dtype.itemsize for array in by_row) <= SMALL_BYTES:
        return [[_whole(array) for array in each] for each in found]
    return found


def names(path: Path) -> list[str]:
    """Those of a file's datasets, with the groups that they are in."""
    with _opened(path) as file:
        return _names(file)


def _whole(array: Array) -> Array:
    return array.whole() if isinstance(array, ByRow) else array


def _array(file: Any, path: Path, name: str) -> Array:
    dataset, what = _dataset(file, path, name), f"{path}[{name}]"
    if dataset.shape is None:
        raise DataError(f"{what}: holds no samples; it is an empty dataset")
    try:
        dtype: np.dtype[Any] = dataset.dtype
    except TypeError as error:  # of three bytes, say
        raise DataError(f"{what}: holds numbers that NumPy has not: {error}; store them as others") from error
    require_numbers(dtype, what)
    _require_unpacked(dataset, what)
    offset = dataset.id.get_offset() if _is_plain(dataset) else None
    if offset is not None:
        place = Path(dataset.file.filename)  # another than `path`, where the name is a link to it
        if offset + dataset.nbytes > place.stat().st_size:
            raise DataError(f"{what}: ends behind the file's end; save or fetch it again")
        return np.memmap(place, dtype, "r", offset, dataset.shape)
    return ByRow(path, path.stat().st_mtime_ns, name, dataset.shape, dtype)


def _is_plain(dataset: Any) -> bool:
    """Whether its numbers, where they lie in its file at all, are such as NumPy has.

    HDF5 has others, as of 12 bits, or floats of two bytes with a float32's exponent, which it converts: such
    bytes were taken for the numbers that h5py makes of them.
    """
    if dataset.external or dataset.is_virtual:
        return False
    of_numpy: bool = dataset.id.get_type() == _h5py().h5t.py_create(dataset.dtype, logical=True)
    return of_numpy


def _names(file: Any) -> list[str]:
    found: list[str] = []
    kind = _h5py().Dataset
    file.visititems(lambda place, one: found.append(str(place)) if isinstance(one, kind) else None)
    return found


def _dataset(file: Any, path: Path, name: str) -> Any:
    found, h5py = file.get(name), _h5py()
    if isinstance(found, h5py.Dataset):
        return found
    names = _names(file)
    shown = ", ".join([*names[:SHOWN], *[f"{len(names) - SHOWN:,} more"] * (len(names) > SHOWN)])
    link = file.get(name, getlink=True)
    if found is not None:
        what = f"{name!r} is a {type(found).__name__.lower()}"
    elif isinstance(link, h5py.ExternalLink):
        what = f"{name!r} is a link to {link.path!r} in {link.filename}, where there is none"
    else:
        what = f"holds no dataset {name!r}{nearest(name, names)}"
    raise DataError(f"{path}: {what}; it holds {shown or 'none'}")


def _require_unpacked(dataset: Any, what: str) -> None:
    """DataError for netCDF's packed numbers: a model would learn 12,345 where 21.7 degrees are meant."""
    packing = {key: dataset.attrs[key] for key in ("scale_factor", "add_offset") if key in dataset.attrs}
    if np.all(packing.get("scale_factor", 1) == 1) and np.all(packing.get("add_offset", 0) == 0):
        return
    shown = ", ".join(f"{key} = {np.squeeze(value)}" for key, value in packing.items())
    raise DataError(f"{what}: is packed ({shown}); store its numbers themselves, as `ncpdq -U` does")


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise MachineError(f"HDF5 files need the h5py package ({error}): pip install 'weft[hdf5]'") from error
    return h5py


def _opened(path: Path) -> Any:
    with reading(path) as file:
        classic = file.read(len(CLASSIC)) == CLASSIC
    if classic:
        raise DataError(f"{path}: is a netCDF file of before version 4; convert it by `nccopy -k nc4`")
    try:
        return _h5py().File(path, "r", locking=False)
    except DAMAGED as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: is not a whole HDF5 file: {error}; save or fetch it again")


@lru_cache(maxsize=OPEN_FILES)
def _kept_open(path: Path, changed: int) -> Any:
    """The file that `changed` at this time, in nanoseconds; the least used is closed for one too many.

    What stands there when it is opened again may be another: of one in its place new samples were trained on.
    """
    if existing(path).stat().st_mtime_ns != changed:
        raise DataError(
            f"{path}: has been written anew while it was read; start again, with what it holds now"
        )
    return _opened(path)


def _read(dataset: Any, rows: Any, what: str) -> AnyArray:
    try:
        found: AnyArray = np.asarray(dataset[rows])
    except DAMAGED as error:
        raise DataError(f"{what}: cannot be read: {error}; save or fetch it again") from error
    return found


class ByRow(Stored):
    """A dataset in chunks, of which those are read that hold the rows asked for."""

    def __init__(
        self, path: Path, changed: int, name: str, shape: Sequence[int], dtype: np.dtype[Any]
    ) -> None:
        self.shape = tuple(shape)
        self.dtype = dtype
        self._place = path, changed, name

    def __getitem__(self, rows: slice | order.Indices) -> AnyArray:
        path, changed, name = self._place
        dataset, what = _kept_open(path, changed)[name], f"{path}[{name}]"
        if isinstance(rows, slice):
            return self._shaped(_read(dataset, rows, what))
        if not len(rows):
            return np.empty((0, *self.shape[1:]), self.dtype)
        first, end = int(rows.min()), int(rows.max()) + 1
        if end - first <= 2 * len(rows):  # as of a split's rows in turn: one read, and the others left out
            return self._shaped(_read(dataset, slice(first, end), what)[rows - first])
        found = np.empty((len(rows), *dataset.shape[1:]), self.dtype)
        for place in np.argsort(rows):  # neighbours share a chunk, which the library keeps
            found[place] = _read(dataset, int(rows[place]), what)
        return self._shaped(found)

    def whole(self) -> AnyArray:
        """All rows; the file is closed behind it."""
        path, _, name = self._place
        with _opened(path) as file:
            return _read(file[name], (), f"{path}[{name}]")

    def _shaped(self, found: AnyArray) -> AnyArray:
        return found.reshape(len(found), *self.shape[1:])

    def reshaped(self, shape: Sequence[int]) -> ByRow:
        """As in Stored."""
        return ByRow(*self._place, (len(self), *shape), self.dtype)
