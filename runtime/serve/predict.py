"""weft predict: what a model makes of a file of samples, computed on all ranks.

    samples.npy ── batches ──> a server without HTTP, deadlines and hurry ──> predictions.npy or .csv

Rank 0 reads the files where they are (mapped, or by rows), asks its own server for one batch after the
other, a few for each rank at a time, and writes answers into their places as they come. So it needs the
memory of these batches alone, whoever is fast computes more, and models are read, shared and compiled as for
serving.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
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
from ..train.data.inputs import Inputs
from ..train.data.stored import Array, reshaped
from ..train.serving import ClassSettings
from .catalog import DTYPES
from .client import Client
from .profile import MOST_BATCH
from .repository import Entry, Platform, Version
from .request import ModelInfo, TensorInfo
from .server import Server
from .settings import ModelSettings, ServerSettings
from .table import SUFFIX, job_of, table_for

NAME = "model"
AHEAD = 4  # batches under way for each rank: one computed, others on the way
TOLD_S = 5.0  # between lines that say how far it is


@dataclass(frozen=True, slots=True)
class Options:
    """The command line's."""

    model: Path
    samples: str  # a path, a folder or a pattern, of some kinds of files with an array's name behind a colon
    predictions: Path | None  # None: beside the samples
    output: str
    batch: int
    device: str


async def predict(world: World, options: Options) -> None:
    """Compute an output of the model for every sample; every rank calls it alike.

    Raises Mistake for what is no model, and samples that it does not take; MachineError where the predictions
    cannot be written. There is then no file of that name that was not there before.
    """
    found = samples_for(options) if world.rank == 0 else None
    settings = ServerSettings(classes={"all": ClassSettings()}, default_class="all")
    async with await Server.open(world, None, settings=settings, device=options.device) as server:
        if server.service is None or found is None:
            return
        samples, path = found
        sizes = await asyncio.to_thread(open_sizes, options.model, samples.shape[1:])
        model = ModelSettings(max_batch=options.batch, sizes=sizes)
        version = Version(NAME, 1, options.model.resolve(), _platform(options.model))
        if problems := await server.loading.put(Entry(NAME, model, (version,))):
            raise Mistake("\n".join(problems))
        info = server.service.model(NAME)
        samples = as_trained(samples, options.model)
        of_table = path.suffix.lower() == SUFFIX
        entry, outputs = require_fitting(info, samples, options, several=of_table)
        table = table_for(options.model, info, outputs) if of_table else None
        began_s = time.monotonic()
        with contextlib.ExitStack() as files:
            into = {
                each.name: files.enter_context(
                    (room if table else written)(
                        path, (len(samples), *each.shape[1:]), DTYPES[each.datatype], number
                    )
                )
                for number, each in enumerate(outputs)
            }
            await ask(await Client.open(world), world.size, samples, entry, into, options.batch)
            took = speed(len(samples) / (time.monotonic() - began_s))
            if table:
                await save(path, table.text(*into.values()))
        what = ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in into.items())
        if table and table.labels is not None:
            what = f"class and probability of {len(samples):,} samples"
        elif table and table.binary:
            what = f"probabilities of {len(samples):,} samples"
        ranks = f"{world.size} rank{'s' if world.size > 1 else ''}"
        tell(f"{path}: {what}, {took} on {ranks}")


def samples_for(options: Options) -> tuple[Array, Path]:
    """The samples, mapped or read by rows, and the file to write.

    Mistake for options that cannot be followed, and files that are not there.
    """
    inputs = Inputs.find(options.samples)
    path = options.predictions or beside(inputs)
    if path.resolve() in {each.resolve() for each in inputs.paths}:
        raise Mistake(f"{path} holds the samples: name another file for the predictions")
    samples = inputs.open()
    if options.predictions is not None and _like(samples, path):
        # Of `weft predict RUN new/*.npy`, with two files there, the second was written over.
        raise Mistake(
            f"{path} would be written over, and may hold samples as {inputs.given} does: put the pattern "
            "into quotation marks if it was one, or else remove the file"
        )
    if options.batch > MOST_BATCH:
        raise Mistake(f"--batch {options.batch}: at most {MOST_BATCH} samples are computed together")
    require_model(options.model)
    return samples, path


def _like(samples: Array, path: Path) -> bool:
    """Whether there is a file that may hold more of the samples; predictions are in .npy and .csv files."""
    if path.suffix.lower() != ".npy":
        return path.suffix.lower() != SUFFIX and path.is_file()
    try:
        found = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return False
    return bool(found.dtype == samples.dtype and found.shape[1:] == samples.shape[1:])


def beside(inputs: Inputs) -> Path:
    """The file of predictions where none is named: called after the file of samples, or their folder."""
    if inputs.path.is_dir():
        return inputs.path.resolve().with_name(f"{inputs.path.resolve().name}-predictions.npy")
    if inputs.path in inputs.paths:
        return inputs.path.with_name(f"{inputs.path.stem}-predictions.npy")
    raise Mistake(f"{inputs.given} is a pattern: name a file for the predictions behind it")


def as_trained(samples: Array, model: Path) -> Array:
    """Samples in the shape that a run gave its own: by [data] shape, and of one number with an axis."""
    if _platform(model) is Platform.ONNX:
        return samples
    shape = getattr(job_of(model).data, "shape", None) or ([1] if samples.ndim == 1 else samples.shape[1:])
    return reshaped(samples, shape) if prod(shape) == prod(samples.shape[1:]) else samples


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


def require_fitting(
    info: ModelInfo, samples: Array, options: Options, *, several: bool = False
) -> tuple[TensorInfo, tuple[TensorInfo, ...]]:
    """The model's input and the outputs that are wanted; Mistake where samples or options do not fit them.

    That is one, or where the file has room for `several` all of them.
    """
    if len(info.inputs) != 1:
        names = ", ".join(each.name for each in info.inputs)
        raise Mistake(f"{options.model} takes {names}: a file of samples has one input; ask it by weft serve")
    (entry,) = info.inputs
    outputs = {each.name: each for each in info.outputs if each.shape[:1] == (-1,)}
    if options.output in {each.name for each in info.outputs} - outputs.keys():
        raise Mistake(
            f"{options.model}: its output {options.output!r} is a constant, the same for any samples"
        )
    if options.output and options.output not in outputs:
        raise Mistake(f"{options.model} has no output {options.output!r}; it has {', '.join(outputs)}")
    if not options.output and len(outputs) > 1 and not several:
        raise Mistake(
            f"{options.model} has the outputs {', '.join(outputs)}: choose one with --output, or name "
            "a .csv file for all of them"
        )
    wanted = DTYPES[entry.datatype]
    if samples.shape[1:] != entry.shape[1:] or (wanted.kind in "iu" and samples.dtype.kind not in "biu"):
        raise DataError(
            f"{options.samples}: a sample is {samples.dtype} {samples.shape[1:]}, and {options.model} takes "
            f"{wanted} {entry.shape[1:]}"
        )
    of_wide = info.platform == Platform.CHECKPOINT and wanted == np.float64  # float32 tells too little there
    if of_wide and samples.dtype.kind == "f" and samples.dtype.itemsize < wanted.itemsize:
        raise DataError(
            f"{options.samples}: holds {samples.dtype}, which tells too little of what {options.model} was "
            f"trained on: save the samples as {wanted}"
        )
    if options.output:
        return entry, (outputs[options.output],)
    return entry, tuple(outputs.values())


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
def written(
    path: Path, shape: tuple[int, ...], dtype: np.dtype[np.generic], number: int = 0
) -> Iterator[NDArray[np.generic]]:
    """An array that becomes the .npy file `path`, whole or not at all.

    Raises Mistake where something else has that name, MachineError where it cannot be written.
    """
    with room(path, shape, dtype, number) as into:
        yield into
        try:
            into.flush()
            _part(path, number).replace(path)
        except OSError as error:
            raise MachineError(f"{path}: cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def room(
    path: Path, shape: tuple[int, ...], dtype: np.dtype[np.generic], number: int = 0
) -> Iterator[np.memmap[Any, Any]]:
    """An array on the disk of `path`, beside it, that is gone afterwards; raises as `written`.

    `number` tells those of several outputs apart.
    """
    require_file(path, f"predictions{path.suffix or '.npy'}")
    temporary = _part(path, number)
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


def _part(path: Path, number: int) -> Path:
    return path.with_name(f".{path.name}.part{number or ''}")


async def ask(
    client: Client,
    ranks: int,
    samples: Array,
    entry: TensorInfo,
    into: Mapping[str, NDArray[np.generic]],
    batch: int,
) -> None:
    """Fill `into`, by outputs' names, with all answers, in batches; Mistake where those of one fail."""
    starts = iter(range(0, len(samples), batch))
    done, told_s = 0, time.monotonic()

    async def one_after_the_other() -> None:
        nonlocal done, told_s
        for start in starts:
            rows = slice(start, start + batch)
            given = converted(samples[rows], DTYPES[entry.datatype], start)
            try:
                result = await client.infer(NAME, given, outputs=list(into))
            except RequestError as error:  # such as a token that has no row: the last line says so
                reason = error.traceback.rstrip().rpartition("\n")[2]
                raise Mistake(f"samples {start} to {start + len(given) - 1} failed: {reason}") from error
            for name, array in into.items():
                array[rows] = result.outputs[name]
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
