"""weft predict: what a model makes of a file of samples, computed on all ranks.

    samples.npy ── batches ──> a server without HTTP, deadlines and hurry ──> predictions.npy or .csv

Rank 0 reads the file where it is (memory-mapped), asks its own server for one batch after the other, a few
for each rank at a time, and writes answers into their places as they come. So it needs the memory of these
batches alone, whoever is fast computes more, and models are read, shared and compiled as for serving.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, GraphError, MachineError, Mistake, RequestError, first_of
from ..message import World
from ..message.failure import say
from ..observe import RunFolder
from ..observe.folder import require_file
from ..observe.screen import silence
from ..observe.words import speed
from ..train.serving import ClassSettings
from .catalog import DTYPES
from .client import Client
from .profile import MOST_BATCH
from .repository import Entry, Platform, Version
from .request import ModelInfo, TensorInfo
from .server import Server
from .settings import ModelSettings, ServerSettings
from .table import SUFFIX, table_for

NAME = "model"
MAGIC = b"\x93NUMPY"
AHEAD = 4  # batches under way for each rank: one computed, others on the way
TOLD_S = 5.0  # between lines that say how far it is


@dataclass(frozen=True, slots=True)
class Options:
    """The command line's."""

    model: Path
    samples: Path
    predictions: Path
    output: str
    batch: int
    device: str


async def predict(world: World, options: Options) -> None:
    """Compute an output of the model for every sample; every rank calls it alike.

    Raises Mistake for what is no model, and samples that it does not take; MachineError where the predictions
    cannot be written. There is then no file of that name that was not there before.
    """
    samples = samples_for(options) if world.rank == 0 else None
    settings = ServerSettings(classes={"all": ClassSettings()}, default_class="all")
    async with await Server.open(world, None, settings=settings, device=options.device) as server:
        if server.service is None or samples is None:
            return
        sizes = await asyncio.to_thread(open_sizes, options.model, samples.shape[1:])
        model = ModelSettings(max_batch=options.batch, sizes=sizes)
        version = Version(NAME, 1, options.model.resolve(), _platform(options.model))
        if problems := await server.loading.put(Entry(NAME, model, (version,))):
            raise Mistake("\n".join(problems))
        info = server.service.model(NAME)
        entry, output = require_fitting(info, samples, options)
        path, shape, dtype = options.predictions, (len(samples), *output.shape[1:]), DTYPES[output.datatype]
        table = table_for(options.model, info, output) if path.suffix.lower() == SUFFIX else None
        began_s = time.monotonic()
        with (room if table else written)(path, shape, dtype) as into:
            await ask(await Client.open(world), world.size, samples, entry, output, into, options.batch)
            took = speed(len(samples) / (time.monotonic() - began_s))
            if table:
                await save(path, table.text(into))
        what = f"{output.name} {into.dtype} {into.shape}"
        if table and table.labels is not None:
            what = f"class and probability of {len(samples):,} samples"
        ranks = f"{world.size} rank{'s' if world.size > 1 else ''}"
        tell(f"{path}: {what}, {took} on {ranks}")


def samples_for(options: Options) -> NDArray[np.generic]:
    """The samples, mapped; Mistake for options that cannot be followed, and files that are not there."""
    if options.predictions.resolve() == options.samples.resolve():
        raise Mistake(f"{options.predictions} holds the samples: name another file for the predictions")
    if options.batch > MOST_BATCH:
        raise Mistake(f"--batch {options.batch}: at most {MOST_BATCH} samples are computed together")
    require_model(options.model)
    return read_samples(options.samples)


def require_model(path: Path) -> None:
    """Mistake for a model that is not there; it is read later, as for serving."""
    if os.path.exists(path):
        return
    if path.suffix not in (".onnx", ".safetensors"):
        RunFolder.open(path)  # says which runs there are
    raise Mistake(f"{path}: no such file: give a run's folder, or an .onnx file")


def open_sizes(model: Path, sample: tuple[int, ...]) -> dict[str, int]:
    """How long axes are that an ONNX file leaves open, which samples of this shape tell."""
    if _platform(model) is not Platform.ONNX:
        return {}
    try:
        from ..graph.onnx import load, sizes_of  # needs the onnx package

        return sizes_of(load(model), sample)
    except (GraphError, ModuleNotFoundError):
        return {}  # whoever loads the model for all ranks tells what is wrong with it


def read_samples(path: Path) -> NDArray[np.generic]:
    """The array in a .npy file, memory-mapped; DataError where it is none, or holds no samples."""
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        # What a look at the first bytes took out of a pipe was missing when the array was to be read.
        raise DataError(f"{path}: is a device or a pipe, which cannot be mapped; store the samples as a file")
    try:
        with path.open("rb") as file:
            magic = file.read(len(MAGIC))
        if (
            magic != MAGIC and magic[:2] != b"PK"
        ):  # NumPy takes a table for a pickle, and says how to trust it
            raise DataError(f"{path}: is no .npy file; write the samples, an array of numbers, by numpy.save")
        samples = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, TokenError) as error:  # the last: of a damaged header
        reason = error.strerror or error if isinstance(error, OSError) else error
        raise DataError(f"{path}: cannot be read as an .npy file: {reason}") from error
    if not isinstance(samples, np.ndarray):
        samples.close()
        raise DataError(f"{path}: holds several arrays; save the one of the samples as .npy, with numpy.save")
    if samples.ndim == 0 or len(samples) == 0 or samples.dtype.kind not in "biuf":
        raise DataError(f"{path}: holds {samples.dtype} {samples.shape}, which are no samples of numbers")
    return samples


def require_fitting(
    info: ModelInfo, samples: NDArray[np.generic], options: Options
) -> tuple[TensorInfo, TensorInfo]:
    """The model's input and the output that is wanted; Mistake where samples or options do not fit them."""
    if len(info.inputs) != 1:
        names = ", ".join(each.name for each in info.inputs)
        raise Mistake(f"{options.model} takes {names}: a file of samples has one input; ask it by weft serve")
    (entry,) = info.inputs
    outputs = {each.name: each for each in info.outputs}
    if options.output and options.output not in outputs:
        raise Mistake(f"{options.model} has no output {options.output!r}; it has {', '.join(outputs)}")
    if not options.output and len(outputs) > 1:
        raise Mistake(f"{options.model} has the outputs {', '.join(outputs)}: choose one with --output")
    wanted = DTYPES[entry.datatype]
    if samples.shape[1:] != entry.shape[1:] or (wanted.kind in "iu" and samples.dtype.kind not in "biu"):
        raise DataError(
            f"{options.samples}: a sample is {samples.dtype} {samples.shape[1:]}, and {options.model} takes "
            f"{wanted} {entry.shape[1:]}"
        )
    of_wide = info.platform == Platform.CHECKPOINT and wanted == np.float64  # float32 tells too little there
    if of_wide and samples.dtype.kind == "f" and samples.itemsize < wanted.itemsize:
        raise DataError(
            f"{options.samples}: holds {samples.dtype}, which tells too little of what {options.model} was "
            f"trained on: save the samples as {wanted}"
        )
    return entry, outputs[options.output] if options.output else info.outputs[0]


def converted(samples: NDArray[np.generic], dtype: np.dtype[np.generic], start: int) -> NDArray[np.generic]:
    """A batch, the file's from sample `start` on, as the model takes it; DataError for what it can't take.

    Cut to fewer bits a token would be another one, and as right as any. A float64 like 1e300 would be
    infinite, and its sample's predictions NaN or, behind a tanh, as right as any, too.
    """
    with np.errstate(over="ignore"):
        given = np.ascontiguousarray(samples, dtype)
    lost = given != samples if dtype.kind in "iu" else np.isinf(given) & ~np.isinf(samples)
    if lost.any():
        number, *_ = np.argwhere(lost)[0]
        raise DataError(f"sample {start + number} holds a number that is no {dtype}")
    return given


@contextlib.contextmanager
def written(path: Path, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Iterator[NDArray[np.generic]]:
    """An array that becomes the .npy file `path`, whole or not at all.

    Raises Mistake where something else has that name, MachineError where it cannot be written.
    """
    with room(path, shape, dtype) as into:
        yield into
        try:
            into.flush()
            _part(path).replace(path)
        except OSError as error:
            raise MachineError(f"{path}: cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def room(path: Path, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Iterator[np.memmap[Any, Any]]:
    """An array on the disk of `path`, beside it, that is gone afterwards; raises as `written`."""
    require_file(path, f"predictions{path.suffix or '.npy'}")
    temporary = _part(path)
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            into = np.lib.format.open_memmap(temporary, "w+", dtype, shape)
            with open(temporary, "r+b") as file:  # a full disk would end the process while it is filled
                os.posix_fallocate(file.fileno(), 0, temporary.stat().st_size)
        except OSError as error:
            raise MachineError(f"{path}: cannot be written: {error.strerror or error}") from error
        yield into
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


async def save(path: Path, text: Iterable[str]) -> None:
    """Write a text file, whole or not at all; MachineError where it cannot be written.

    Between its parts the loop goes on: a million lines take seconds, in which this rank answers who asks
    whether it is there, and a Ctrl-C ends them.
    """
    partial = path.with_name(f".{path.name}.text")
    try:
        with partial.open("w", encoding="utf-8") as file:
            for part in text:
                file.write(part)
                await asyncio.sleep(0)
        partial.replace(path)
    except OSError as error:
        raise MachineError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


async def ask(
    client: Client,
    ranks: int,
    samples: NDArray[np.generic],
    entry: TensorInfo,
    output: TensorInfo,
    into: NDArray[np.generic],
    batch: int,
) -> None:
    """Fill `into` with the answers for all samples, batch by batch; Mistake where those of a batch fail."""
    starts = iter(range(0, len(samples), batch))
    done, told_s = 0, time.monotonic()

    async def one_after_the_other() -> None:
        nonlocal done, told_s
        for start in starts:
            rows = slice(start, start + batch)
            given = converted(samples[rows], DTYPES[entry.datatype], start)
            try:
                result = await client.infer(NAME, given, outputs=[output.name])
            except RequestError as error:  # such as a token that has no row: the last line says so
                reason = error.traceback.rstrip().rpartition("\n")[2]
                raise Mistake(f"samples {start} to {start + len(given) - 1} failed: {reason}") from error
            into[rows] = result.outputs[output.name]
            done += len(given)
            if time.monotonic() - told_s > TOLD_S:
                told_s = time.monotonic()
                tell(f"{done:,} of {len(samples):,} samples")

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(AHEAD * ranks):
                group.create_task(one_after_the_other())
    except ExceptionGroup as errors:
        raise first_of(errors) from None


def tell(text: str) -> None:
    """Print for whoever waits for the file, which is written although nobody reads that.

    A log on a full disk, and `| head` that had read enough, ended a job of hours with a traceback.
    """
    try:
        print(text, flush=True)
    except OSError as error:
        say(f"weft: how far it is cannot be printed: {error.strerror or error}; it goes on all the same")
        silence()


def _platform(model: Path) -> Platform:
    return Platform.ONNX if model.suffix == ".onnx" else Platform.CHECKPOINT
