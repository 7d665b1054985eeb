"""Reading a job file: overrides, and every problem of it at once, each with its line.

    digits.toml:14: [train] batch = 0: must be at least 1
    digits.toml:15: [train] epoch: unknown key; did you mean epochs? Allowed: batch, micro_batch, epochs, …
    --set train.seed=1: [train] seed: unknown key. Allowed: …

Several jobs that train together have names of their own, which `--set NAME:section.key=value` uses; the
second of a name is NAME-2. A job of which `--vary` makes several lends them its name, with a value behind it.

pydantic finds the problems (schema.py), and sentences.py says them in the job file's own terms.
"""

from __future__ import annotations

import itertools
import os
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path as FilePath
from typing import Any

from ..errors import JobError
from .data.section import files
from .schema import ALTERNATIVES, Job
from .section import nearest
from .sentences import Origins, parse, validated, where
from .toml import Path
from .vary import displaced, variants

__all__ = ["Job", "load_job", "load_jobs", "packaged_jobs"]


def packaged_jobs() -> list[str]:
    """The names of the jobs that come with Weft."""
    folder = resources.files(__package__) / "jobs"
    names = (entry.name for entry in folder.iterdir())
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


def load_job(name: str, overrides: Sequence[str] = (), varied: Sequence[str] = ()) -> Job:
    """The job of a packaged name or of a .toml file, with `section.key=value` overrides.

    `varied` are more of them, which --vary gave and not --set.

    Raises JobError naming every problem: file and line, key, value and what is allowed.
    """
    text, label, folder = _read(name)
    values, origins = parse(text, label)
    if folder is not None:
        _from_folder(values, folder)
    options = [("--set", text) for text in overrides] + [("--vary", text) for text in varied]
    for number, (option, override) in enumerate(options):
        _apply(option, override, number, values, origins)
    _from_folder(values, FilePath.cwd())  # those of --set; a stored job is resumed from anywhere
    if "name" not in values:
        values["name"] = FilePath(label).stem
        origins["name",] = (0, f"{label}: gives no name, and its own will not do")
    return validated(Job, values, origins, label)


def load_jobs(
    names: Sequence[str], overrides: Sequence[str] = (), variations: Sequence[str] = ()
) -> list[Job]:
    """Jobs that train together, under different names: of each, one for every combination of `variations`.

    An override or a variation holds for all, or for the job it names. Raises JobError with the problems of
    all of them.
    """
    titles = _distinct([_title(name) for name in names])
    options = [("--set", text) for text in overrides] + [("--vary", text) for text in variations]
    jobs: list[Job] = []
    problems = [
        f"{option} {text}: no job here is called {job}{nearest(job, titles)}; there are {', '.join(titles)}"
        for option, text in options
        if (job := _addressee(text)) is not None and job not in titles
    ]  # fmt: skip
    for name, title in zip(names, titles, strict=True):
        own = [text for text in overrides if _addressee(text) in (None, title)]
        varied = [text for text in variations if _addressee(text) in (None, title)]
        problems += displaced(own, varied)
        try:
            wanted = variants(varied)
        except JobError as error:
            problems.append(str(error))
            continue
        for variant in wanted:
            try:
                made = load_job(name, own, variant.overrides)
                jobs.append(made.model_copy(update={"name": made.name + variant.suffix}))
            except JobError as error:
                problems += str(error).splitlines()
    if problems:
        raise JobError("\n".join(dict.fromkeys(problems)))
    found = _distinct([job.name for job in jobs])
    return [job.model_copy(update={"name": name}) for job, name in zip(jobs, found, strict=True)]


def _title(name: str) -> str:
    """What a job calls itself, as far as can be told before it is checked."""
    try:
        title = tomllib.loads(_read(name)[0]).get("name")
    except (JobError, tomllib.TOMLDecodeError):
        title = None
    return title if isinstance(title, str) else FilePath(name).stem


def _distinct(names: Sequence[str]) -> list[str]:
    """The names; the second of a kind with -2 behind it, and so on."""
    found: list[str] = []
    for name in names:
        numbered = (f"{name}-{number}" for number in itertools.count(2))
        free = (other for other in numbered if other not in names and other not in found)
        found.append(next(free) if name in found else name)
    return found


def _addressee(override: str) -> str | None:
    """The job that `NAME:section.key=value` is for; None for all."""
    name, colon, _ = override.partition("=")[0].partition(":")
    return name.strip() if colon else None


def _read(name: str) -> tuple[str, str, FilePath | None]:
    """Text, the label that errors use, and the folder of a job file (None for a packaged job)."""
    packaged = packaged_jobs()
    if name in packaged:
        entry = resources.files(__package__) / "jobs" / f"{name}.toml"
        return entry.read_text("utf-8"), f"{name}.toml", None
    path = FilePath(name)
    if not path.suffix and path.parent == FilePath("."):
        if os.path.isfile(own := f"{name}.toml"):
            raise JobError(f"no packaged job is called {name!r}; for the file here give {own}")
        choices = "\n".join(f"    {other}" for other in packaged)
        raise JobError(
            f"no packaged job is called {name!r}{nearest(name, packaged)}\nThere are\n{choices}\n"
            "A job file of your own is given as a path that ends in .toml."
        )
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        # Of `weft train <(…)` the first look left nothing for the second: all its tables were missing.
        raise JobError(
            f"{name}: is a device or a pipe, which cannot be read more than once, nor by every rank; store "
            "the job as a file"
        )
    try:
        return path.read_text("utf-8-sig"), name, path.parent.absolute()
    except UnicodeDecodeError as error:
        raise JobError(f"{name}: not TOML: byte {error.start} is not UTF-8") from None
    except OSError as error:
        hint = f"packaged jobs: {', '.join(packaged)}"
        if isinstance(error, IsADirectoryError):
            hint = f"to go on with a run in it, give --resume {name}"
        raise JobError(f"{name}: cannot be read: {error.strerror}; {hint}") from None


def _from_folder(values: dict[str, Any], folder: FilePath) -> None:
    """Take the relative paths of [data] and [model] from `folder`."""
    for section in ("data", "model"):
        table = values.get(section)
        if not isinstance(table, dict):
            continue
        for key in files(table.get("source")) if section == "data" else ("onnx", "weights"):
            value = table.get(key)
            if isinstance(value, str) and value and not value.startswith(("~", "$", "{")):
                table[key] = os.path.join(folder, value)


DEPENDENT: dict[Path, tuple[str, str]] = {
    ("train", "epochs"): ("train", "evaluate_every"),  # counted in epochs, or in steps
    ("train", "steps"): ("train", "evaluate_every"),
    ("exchange", "wire"): ("exchange", "keep"),
}
"""What a value means something for, and nothing with another: a stored job has it written out."""


NAMED: set[Path] = {("model", "loss")}
"""Tables that may be given as their name alone, and get a key by an option all the same."""


def _keeps_its_evaluations(path: Path, values: Mapping[str, Any]) -> bool:
    """Whether a run of another length, in the unit that it had, evaluates as often as before.

    Somebody must have asked for that: a number that is what the default would be may have been written out.
    """
    in_steps = path == ("train", "steps")
    if not in_steps and path != ("train", "epochs"):
        return False
    length, every = values["train"].get(str(path[1])), values["train"].get("evaluate_every")
    return isinstance(length, int) and every != (max(1, length // 10) if in_steps else 1)


def _forget(path: tuple[str, str] | None, values: dict[str, Any], origins: Origins) -> None:
    """Let a setting have its default again, unless an option gave it."""
    if path is None or origins.get(path, (0, ""))[1].startswith(("--set", "--vary")):
        return
    values.get(path[0], {}).pop(path[1], None)
    origins.pop(path, None)


def _apply(option: str, override: str, number: int, values: dict[str, Any], origins: Origins) -> None:
    """Set the `section.key=value` of an option in `values`; the value is TOML, or else a plain string."""
    label = f"{option} {override}"
    dotted, equals, text = override.partition("=")
    dotted = dotted.rpartition(":")[2]  # behind the job's name
    keys = [key.strip() for key in dotted.split(".")]
    if not equals or not all(keys):
        raise JobError(f"{label}: must be section.key=value, as in --set train.epochs=3")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    path: Path = ()
    table: Any = values
    for depth, key in enumerate(keys):
        index: str | int = int(key) if isinstance(table, list) and key.isdecimal() else key
        path = (*path, index)
        if isinstance(table, list) and not (isinstance(index, int) and index < len(table)):
            raise JobError(f"{label}: {where(Job, path[:-1])} has elements 0 to {len(table) - 1}, not {key}")
        if depth == len(keys) - 1:
            break
        if path in NAMED and isinstance(table, dict) and isinstance(table.get(index), str):
            table[index] = {"name": table[index]}
        table = table.setdefault(index, {}) if isinstance(table, dict) else table[index]
        if not isinstance(table, dict | list):
            raise JobError(f"{label}: {where(Job, path)} is a value, not a table")
    keeps = _keeps_its_evaluations(path, values)
    for other in ALTERNATIVES.get(keys[0], ()) if len(keys) == 2 else ():
        if keys[1] in ALTERNATIVES[keys[0]] and table.pop(other, None) is not None and other != keys[1]:
            _forget(DEPENDENT.get((keys[0], other)), values, origins)
    if DEPENDENT.get(path) and table.get(path[-1]) != value and not keeps:
        _forget(DEPENDENT[path], values, origins)
    table[path[-1]] = value
    for inner in [other for other in origins if other[: len(path)] == path]:
        del origins[inner]
    origins[path] = (1_000_000_000 + number, label)  # behind every line of the file
