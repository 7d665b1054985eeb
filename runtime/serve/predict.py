"""weft predict: what a model makes of a file of samples, computed on all ranks.

    samples.npy ── batches ──> a server without HTTP, deadlines and hurry ──> predictions.npy

Rank 0 reads the file where it is (memory-mapped), asks its own server for one batch after the other, a few
for each rank at a time, and writes answers into their places as they come. So it needs the memory of these
batches alone, whoever is fast computes more, and models are read, shared and compiled as for serving.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, MachineError, Mistake, RequestError, first_of
from ..message import World
from ..observe.folder import require_file
from ..observe.words import speed
from ..train.serving import ClassSettings
from .catalog import DTYPES
from .client import Client
from .profile import MOST_BATCH
from .repository import Entry, Platform, Version
from .request import ModelInfo, TensorInfo
from .server import Server
from .settings import ModelSettings, ServerSettings

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
    if options.predictions.resolve() == options.samples.resolve():
        raise Mistake(f"{options.predictions} holds the samples: name another file for the predictions")
    if options.batch > MOST_BATCH:
        raise Mistake(f"--batch {options.batch}: at most {MOST_BATCH} samples are computed together")
    samples = read_samples(options.samples) if world.rank == 0 else None
    settings = ServerSettings(classes={"all": ClassSettings()}, default_class="all")
    async with await Server.open(world, None, settings=settings, device=options.device) as server:
        if server.service is None or samples is None:
            return
        model = ModelSettings(max_batch=options.batch)
        version = Version(NAME, 1, options.model.resolve(), _platform(options.model))
        if problems := await server.loading.put(Entry(NAME, model, (version,))):
            raise Mistake("\n".join(problems))
        info = server.service.model(NAME)
        entry, output = require_fitting(info, samples, options)
        began_s = time.monotonic()
        with written(options.predictions, (len(samples), *output.shape[1:]), DTYPES[output.datatype]) as into:
            await ask(await Client.open(world), world.size, samples, entry, output, into, options.batch)
        took = speed(len(samples) / (time.monotonic() - began_s))
        ranks = f"{world.size} rank{'s' if world.size > 1 else ''}"
        print(
            f"{options.predictions}: {output.name} {into.dtype} {into.shape}, {took} on {ranks}", flush=True
        )


def read_samples(path: Path) -> NDArray[np.generic]:
    """The array in a .npy file, memory-mapped; DataError where it is none, or holds no samples."""
    try:
        with path.open("rb") as file:
            magic = file.read(len(MAGIC))
        if (
            magic != MAGIC and magic[:2] != b"PK"
        ):  # NumPy takes a table for a pickle, and says how to trust it
            raise DataError(f"{path}: is no .npy file; write the samples, an array of numbers, by numpy.save")
        samples = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
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
    require_file(path, "predictions.npy")
    temporary = path.with_name(f".{path.name}.part")
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            into = np.lib.format.open_memmap(temporary, "w+", dtype, shape)
            with open(temporary, "r+b") as file:  # a full disk would end the process while it is filled
                os.posix_fallocate(file.fileno(), 0, temporary.stat().st_size)
        except OSError as error:
            raise MachineError(f"{path}: cannot be written: {error.strerror or error}") from error
        yield into
        try:
            into.flush()
            temporary.replace(path)
        except OSError as error:
            raise MachineError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


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
                print(f"{done:,} of {len(samples):,} samples", flush=True)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(AHEAD * ranks):
                group.create_task(one_after_the_other())
    except ExceptionGroup as errors:
        raise first_of(errors) from None


def _platform(model: Path) -> Platform:
    return Platform.ONNX if model.suffix == ".onnx" else Platform.CHECKPOINT
