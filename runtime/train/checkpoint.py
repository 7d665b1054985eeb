"""Checkpoints: whole or not there at all, and refused with a reason when they are not what they say.

    step-00000120.safetensors      tensors; and in the header's metadata:
                                   format, format_version, weft, step, progress (JSON), checksum

A checkpoint is written under another name, synced, renamed, and the folder synced, in this order; so at every
instant the newest file under a final name is whole, and a crash costs at most the steps since. Only then are
older ones beyond `keep` removed. One process writes into a folder at a time.

The files are plain safetensors, for any reader. The writer is ours because the library's makes a second copy
of all tensors in memory and does not sync.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from ...kernels.kernel import ArraySpec
from ..errors import CheckpointError, MachineError
from .residuals import is_residual

FORMAT = "weft-checkpoint"
FORMAT_VERSION = 1

DIGEST = "the data's digest"
"""In a lineage: what stands for the samples themselves."""

CHOICE = ("data.files", "data.exclude")
"""What begins the names of keys in a lineage that choose files of a folder."""

_NAME = re.compile(r"step-(\d+)\.safetensors")
_TEMPORARY = re.compile(r"\.step-\d+\.safetensors\.part")
_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bool": "BOOL",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a run is at a step: its tensors, and as JSON whatever else it needs to go on."""

    step: int
    tensors: Mapping[str, NDArray[Any]]
    progress: Mapping[str, Any] = field(default_factory=dict)
    #: Of a loaded one: what wire formats have left out, which stays in the file (`read`).
    left_out: Mapping[str, ArraySpec] = field(default_factory=dict)


def save(folder: Path, snapshot: Snapshot, keep: int = 2) -> Path:
    """Write a checkpoint, remove all but the `keep` newest and the best, and return its path.

    Raises MachineError where the disk is full or can't be written; the folder is then as it was before.
    """
    path = folder / _name(snapshot.step)
    temporary = folder / f".{path.name}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for entry in folder.iterdir():  # left by a crash
            if _TEMPORARY.fullmatch(entry.name):
                entry.unlink()
        _write(temporary, snapshot)
        os.replace(temporary, path)
        _sync_folder(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise _could_not_write(path, snapshot, error) from error
    spared = {path, best_of(folder, snapshot.progress)}
    for old in [other for other in checkpoints(folder) if other not in spared][keep - 1 :]:
        with contextlib.suppress(OSError):  # one too many does no harm, and the next save tries again
            old.unlink()
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, newest first; temporary files are none."""
    found = [(int(match[1]), entry) for entry in folder.iterdir() if (match := _NAME.fullmatch(entry.name))]
    return [entry for _, entry in sorted(found, reverse=True)]


def latest(folder: Path) -> Path:
    """The newest checkpoint of a folder."""
    found = checkpoints(folder) if folder.is_dir() else []
    if not found:
        state = "holds no checkpoint" if folder.is_dir() else "is no folder"
        raise CheckpointError(f"{folder}: {state}; nothing can be resumed from it")
    return found[0]


def chosen(folder: Path) -> Path:
    """The checkpoint that is used: of the best evaluation where the run keeps it, or else the newest.

    Raises CheckpointError where it is not there.
    """
    newest = latest(folder)
    try:
        with safe_open(newest, framework="numpy") as file:
            progress = json.loads((file.metadata() or {})["progress"])
    except (SafetensorError, OSError, ValueError, KeyError):
        return newest  # who loads it is told what is wrong
    best = best_of(folder, progress)
    if best is not None and not best.is_file():
        raise CheckpointError(
            f"{best}: the run's best checkpoint is missing; name another one in its place, such as {newest}"
        )
    return best or newest


def _name(step: int) -> str:
    return f"step-{step:08d}.safetensors"


def best_of(folder: Path, progress: Mapping[str, Any]) -> Path | None:
    """The checkpoint of the best evaluation, where the progress of the newest tells of one (best.py)."""
    step = progress.get("best", {}).get("step", 0)  # 0: there was none to be the best
    return folder / _name(step) if step else None


def load(path: Path) -> Snapshot:
    """Read a checkpoint and check all of it against its checksum.

    What wire formats have left out is checked and not kept: of as many ranks as there were it is as many
    times the weights, and every rank that went on with the run had all of it in memory, to use one at most.

    Raises CheckpointError with the reason. A damaged checkpoint is never passed over in silence: where others
    lie beside it, the error names them.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata: dict[str, str] = file.metadata() or {}
            _check_format(metadata)
            tensors: dict[str, NDArray[Any]] = {}
            left_out: dict[str, ArraySpec] = {}

            def each() -> Iterator[tuple[str, NDArray[Any]]]:
                for name in sorted(file.keys()):
                    tensor = file.get_tensor(name)
                    if is_residual(name):
                        left_out[name] = ArraySpec(tensor.shape, tensor.dtype.name)
                    else:
                        tensors[name] = tensor
                    yield name, tensor

            checksum = _checksum(metadata, each())
        if checksum != metadata["checksum"]:
            raise CheckpointError("is damaged: its content does not match its checksum")
        step = int(metadata["step"])
        if (match := _NAME.fullmatch(path.name)) and int(match[1]) != step:  # it counts as newer than it is
            raise CheckpointError(f"holds step {step:,}: give it its name, {_name(step)}")
        return Snapshot(step, tensors, json.loads(metadata["progress"]), left_out)
    except (SafetensorError, UnicodeDecodeError) as error:
        reason = f"is damaged or no safetensors file ({error})"
    except OSError as error:
        reason = f"cannot be read ({error.strerror or error})"
    except CheckpointError as error:
        reason = str(error)
    raise CheckpointError(f"{path}: {reason}{_others(path)}")


def read(path: Path, names: Collection[str]) -> dict[str, NDArray[Any]]:
    """These tensors of a checkpoint that `load` has checked; CheckpointError where it is gone meanwhile."""
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: changed or was removed while it was read ({error})") from error


def require_tensors(path: Path, snapshot: Snapshot, expected: Mapping[str, ArraySpec]) -> None:
    """Raise CheckpointError, naming every difference, where the tensors are another model's."""
    found = {name: ArraySpec(of.shape, of.dtype.name) for name, of in snapshot.tensors.items()}
    found |= snapshot.left_out
    differences = [f"{name} is missing" for name in expected if name not in found]
    differences += [f"{name} is not of this model" for name in found if name not in expected]
    for name, spec in expected.items():
        if name in found and found[name] != spec:
            differences.append(f"{name} is {_shown(found[name])}, the model's {_shown(spec)}")
    _refuse(path, "is of another model", differences)


def _shown(spec: ArraySpec) -> str:
    return f"{spec.dtype} {spec.shape}"


def require_lineage(path: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise CheckpointError where the checkpoint's `Job.lineage` differs from the job that resumes it.

    Other files may be chosen of a folder, if what is in them is the same: a part of it that could not be
    read, and was passed over, has to be left out by name now.
    """
    was, now = _leaves(found), _leaves(expected)
    same = DIGEST in now and was.get(DIGEST) == now[DIGEST]
    differences = [
        f"{name} was {json.dumps(was.get(name))}, is {json.dumps(now.get(name))}"
        for name in {**was, **now}
        if was.get(name) != now.get(name) and not (same and name.startswith(CHOICE))
    ]
    _refuse(path, "is of a job with other", differences)


def _leaves(value: object, name: str = "") -> dict[str, object]:
    """Every single value of nested tables and lists, by dotted key, as --set names it."""
    if isinstance(value, Mapping):
        inside = list(value.items())
    elif isinstance(value, list | tuple):
        inside = list(enumerate(value))
    else:
        return {name: value}
    found: dict[str, object] = {}
    for key, inner in inside:
        found |= _leaves(inner, f"{name}.{key}" if name else str(key))
    return found


def _refuse(path: Path, reason: str, differences: list[str]) -> None:
    if differences:
        shown = differences[:8] + [f"and {len(differences) - 8} more"] * (len(differences) > 8)
        raise CheckpointError(f"{path}: {reason}:\n" + "\n".join(f"    {line}" for line in shown))


# ------------------------------------------------------------------------------------------- the file


def _write(path: Path, snapshot: Snapshot) -> None:
    """The safetensors file, synced: length of the header, header, tensors one after the other."""
    with open(path, "wb") as file:
        file.write(_head(snapshot))
        for _, tensor in _in_order(snapshot):
            file.write(_bytes(tensor))
        file.flush()
        os.fsync(file.fileno())


def _head(snapshot: Snapshot) -> bytes:
    """What stands before the tensors: the header, and its length."""
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "weft": version("weft"),
        "step": str(snapshot.step),
        "progress": json.dumps(snapshot.progress),
    }
    metadata["checksum"] = _checksum(metadata, sorted(snapshot.tensors.items()))
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, tensor in _in_order(snapshot):
        start, end = end, end + tensor.nbytes
        dtype, shape = _DTYPES[tensor.dtype.name], list(tensor.shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    return len(head).to_bytes(8, "little") + head


def _in_order(snapshot: Snapshot) -> list[tuple[str, NDArray[Any]]]:
    """Wide elements first, so that every tensor is aligned to its element."""
    return sorted(snapshot.tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))


def _bytes(tensor: NDArray[Any]) -> memoryview:
    """The elements in C order, little-endian; no copy where they lie so already."""
    plain = np.ascontiguousarray(tensor, tensor.dtype.newbyteorder("<"))
    return plain.reshape(-1).view(np.uint8).data


def _checksum(metadata: Mapping[str, str], tensors: Iterable[tuple[str, NDArray[Any]]]) -> str:
    """BLAKE2b of the metadata but itself, and of every tensor's name, dtype, shape and elements (1 GB/s).

    Tensors come in the order of their names.
    """
    hashed = hashlib.blake2b(digest_size=32)
    described = {key: value for key, value in metadata.items() if key != "checksum"}
    hashed.update(json.dumps(described, sort_keys=True).encode())
    for name, tensor in tensors:
        hashed.update(json.dumps([name, tensor.dtype.name, list(tensor.shape)]).encode())
        hashed.update(_bytes(tensor))
    return hashed.hexdigest()


def _sync_folder(folder: Path) -> None:
    """Make the rename last: without this a power cut may bring the old name back."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_format(metadata: Mapping[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        raise CheckpointError("is a safetensors file, but no checkpoint of Weft")
    if metadata.get("format_version") != str(FORMAT_VERSION):
        raise CheckpointError(
            f"has format {metadata.get('format_version')}, written by Weft {metadata.get('weft')}; "
            f"this Weft, {version('weft')}, reads format {FORMAT_VERSION}"
        )
    missing = {"checksum", "step", "progress"} - set(metadata)
    if missing:
        raise CheckpointError(f"has no {', '.join(sorted(missing))} in its header: it is damaged")


def _others(path: Path) -> str:
    others = checkpoints(path.parent) if path.parent.is_dir() else []
    others = [other for other in others if other.name != path.name]
    names = "\n".join(f"    {other}" for other in others)
    return f"\nWithout this file the run resumes from the first of these:\n{names}" if names else ""


def _could_not_write(path: Path, snapshot: Snapshot, error: OSError) -> MachineError:
    with contextlib.suppress(OSError):
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            nbytes = len(_head(snapshot)) + sum(tensor.nbytes for tensor in snapshot.tensors.values())
            needed_kb = math.ceil(nbytes / 1000)
            free_kb = shutil.disk_usage(path.parent).free // 1000
            return MachineError(
                f"{path}: cannot be written: {error.strerror}; it needs {needed_kb:,} kB and "
                f"{free_kb:,} kB are free. Earlier checkpoints are kept"
            )
    return MachineError(f"{path}: cannot be written: {error.strerror or error}. Earlier checkpoints are kept")
