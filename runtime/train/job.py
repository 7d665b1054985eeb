"""Reading a job file: overrides, and every problem of it at once, each with its line.

    digits.toml:14: [train] batch = 0: must be at least 1
    digits.toml:15: [train] epoch: unknown key; did you mean epochs? Allowed: batch, micro_batch, epochs, …
    --set train.seed=1: [train] seed: unknown key. Allowed: …

Several jobs that train together have names of their own, which `--set NAME:section.key=value` uses; the
second of a name is NAME-2.

pydantic finds the problems (schema.py), toml.py knows where each stands, and this file says it in the job
file's own terms.
"""

from __future__ import annotations

import itertools
import os
import tomllib
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path as FilePath
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

from ..errors import JobError
from .schema import ALTERNATIVES, Job
from .section import nearest
from .toml import Path, key_lines, to_toml_value

__all__ = ["Job", "load_job", "load_jobs", "packaged_jobs"]

FILE_KEYS = ("path", "inputs", "targets", "test_path", "test_inputs", "test_targets")
"""Keys of [data] that name files: relative ones are taken from the job file's folder."""


def packaged_jobs() -> list[str]:
    """The names of the jobs that come with Weft."""
    folder = resources.files(__package__) / "jobs"
    names = (entry.name for entry in folder.iterdir())
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


def load_job(name: str, overrides: Sequence[str] = ()) -> Job:
    """The job of a packaged name or of a .toml file, with `section.key=value` overrides.

    Raises JobError naming every problem: file and line, key, value and what is allowed.
    """
    text, label, folder = _read(name)
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        what, _, place = str(error).partition(" (at line ")
        line = f":{place.partition(',')[0]}" if place[:1].isdecimal() else ""
        raise JobError(f"{label}{line}: not TOML: {what}") from None
    origins: dict[Path, tuple[int, str]] = {
        path: (line, f"{label}:{line}") for path, line in key_lines(text).items()
    }
    if folder is not None:
        _from_folder(values.get("data"), folder)
    for number, override in enumerate(overrides):
        _apply(override, number, values, origins)
    _from_folder(values.get("data"), FilePath.cwd())  # those of --set; a stored job is resumed from anywhere
    values.setdefault("name", FilePath(label).stem)
    try:
        return Job.model_validate(values)
    except ValidationError as error:
        sentences = _sentences(error, values, origins, label)
        raise JobError("\n".join(dict.fromkeys(sentences))) from None


def load_jobs(names: Sequence[str], overrides: Sequence[str] = ()) -> list[Job]:
    """Jobs that train together, under different names; an override holds for all, or for the job it names.

    Raises JobError with the problems of all of them.
    """
    titles = _distinct([_title(name) for name in names])
    jobs, problems = [], [
        f"--set {override}: no job here is called {job}{nearest(job, titles)}; there are {', '.join(titles)}"
        for override in overrides
        if (job := _addressee(override)) is not None and job not in titles
    ]  # fmt: skip
    for name, title in zip(names, titles, strict=True):
        try:
            jobs.append(load_job(name, [text for text in overrides if _addressee(text) in (None, title)]))
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
        choices = "\n".join(f"    {other}" for other in packaged)
        raise JobError(
            f"no packaged job is called {name!r}{nearest(name, packaged)}\nThere are\n{choices}\n"
            "A job file of your own is given as a path that ends in .toml."
        )
    try:
        return path.read_text("utf-8"), name, path.parent.absolute()
    except UnicodeDecodeError as error:
        raise JobError(f"{name}: not TOML: byte {error.start} is not UTF-8") from None
    except OSError as error:
        hint = f"packaged jobs: {', '.join(packaged)}"
        raise JobError(f"{name}: cannot be read: {error.strerror}; {hint}") from None


def _from_folder(data: object, folder: FilePath) -> None:
    if not isinstance(data, dict):
        return
    keys = ("path",) if data.get("source") == "npz" else FILE_KEYS  # npz: the others are names inside
    for key in keys:
        value = data.get(key)
        if isinstance(value, str) and value and not value.startswith(("~", "$", "{")):
            data[key] = os.path.join(folder, value)


def _apply(override: str, number: int, values: dict[str, Any], origins: dict[Path, tuple[int, str]]) -> None:
    """Set one `section.key=value` in `values`; the value is TOML, or else a plain string."""
    dotted, equals, text = override.partition("=")
    dotted = dotted.rpartition(":")[2]  # behind the job's name
    keys = [key.strip() for key in dotted.split(".")]
    if not equals or not all(keys):
        raise JobError(f"--set {override}: must be section.key=value, as in --set train.epochs=3")
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
            raise JobError(
                f"--set {override}: {_where(path[:-1])} has elements 0 to {len(table) - 1}, not {key}"
            )
        if depth == len(keys) - 1:
            break
        table = table.setdefault(index, {}) if isinstance(table, dict) else table[index]
        if not isinstance(table, dict | list):
            raise JobError(f"--set {override}: {_where(path)} is a value, not a table")
    for other in ALTERNATIVES.get(keys[0], ()) if len(keys) == 2 else ():
        if keys[1] in ALTERNATIVES[keys[0]]:
            table.pop(other, None)
    table[path[-1]] = value
    for inner in [other for other in origins if other[: len(path)] == path]:
        del origins[inner]
    origins[path] = (1_000_000_000 + number, f"--set {override}")  # behind every line of the file


# -------------------------------------------------------------------------------------- the sentences


def _sentences(
    error: ValidationError, values: dict[str, Any], origins: dict[Path, tuple[int, str]], label: str
) -> Iterable[str]:
    found = []
    for details in error.errors(include_url=False):
        if details["type"] == "default_factory_not_called":
            continue  # follows from another problem of the same section
        path, value = _follow(details["loc"], values)
        context = details.get("ctx", {})
        path = context.get("at") or path
        if details["type"] in ("union_tag_invalid", "union_tag_not_found"):
            path = (*path, context["discriminator"].strip("'"))
        value = _follow(path, values)[1]
        order, origin = next(
            (origins[path[:length]] for length in range(len(path), 0, -1) if path[:length] in origins),
            (0, label),
        )
        shown = "" if value is _NOTHING or isinstance(value, dict | list) else f" = {to_toml_value(value)}"
        what = _explain(details["type"], context, details, value)
        found.append((order, f"{origin}: {_where(path)}{shown}: {what}"))
    return [sentence for _, sentence in sorted(found, key=lambda item: item[0])]


_NOTHING = object()


def _follow(location: Sequence[str | int], values: Any) -> tuple[Path, Any]:
    """The path in the file, and its value, of pydantic's location, which names alternatives of unions too."""
    path: Path = ()
    for position, key in enumerate(location):
        if (isinstance(values, dict) and key in values) or (
            isinstance(values, list) and isinstance(key, int) and key < len(values)
        ):
            path, values = (*path, key), values[key]  # type: ignore[index]
        elif position == len(location) - 1 and isinstance(values, dict):
            return (*path, key), _NOTHING
    return path, values


def _where(path: Path) -> str:
    """[section] key.key[index], as a reader finds it in the file."""
    section, *keys = path
    if not keys:
        return f"[{section}]" if section in _sections(Job) else str(section)
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)
    return f"[{section}] {text.lstrip('.')}"


def _explain(kind: str, context: dict[str, Any], details: Any, value: object) -> str:
    match kind:
        case "missing":
            return "is missing"
        case "extra_forbidden":
            *above, key = details["loc"]
            allowed = _allowed(above)
            return f"unknown key{nearest(str(key), allowed)}; allowed: {', '.join(allowed)}"
        case "greater_than_equal":
            return f"must be at least {context['ge']:g}"
        case "greater_than":
            return f"must be more than {context['gt']:g}"
        case "less_than_equal":
            return f"must be at most {context['le']:g}"
        case "less_than":
            return f"must be less than {context['lt']:g}"
        case "int_type" | "int_from_float":
            return f"must be a whole number{_not_a_string(value)}"
        case "float_type" | "finite_number":
            return f"must be a number{_not_a_string(value)}"
        case "string_type":
            return 'must be a string, in "quotes"'
        case "bool_type":
            return "must be true or false"
        case "list_type":
            return "must be a list, [ … ]"
        case "string_too_short" | "too_short":
            return "must not be empty"
        case "literal_error" | "union_tag_invalid":
            expected = str(context.get("expected") or context["expected_tags"])
            choices = [choice.strip("' ") for choice in expected.replace(" or ", ", ").split(",")]
            return f"must be one of {', '.join(choices)}{nearest(str(value), choices)}"
        case "union_tag_not_found":
            return "is missing"
        case "model_type" | "model_attributes_type" | "dict_type":
            return "must be a table of keys"
        case _:
            return str(details["msg"])


def _not_a_string(value: object) -> str:
    return ", without quotes" if isinstance(value, str) else ""


def _sections(model: type[BaseModel]) -> list[str]:
    return [name for name, field in model.model_fields.items() if list(_models(field.annotation))]


def _models(annotation: Any) -> Iterable[type[BaseModel]]:
    """Every pydantic class in an annotation."""
    if isinstance(annotation, type) and get_origin(annotation) is None:
        if issubclass(annotation, BaseModel):
            yield annotation
        return
    for argument in get_args(annotation):
        yield from _models(argument)


def _allowed(location: Sequence[str | int]) -> list[str]:
    """The keys of the table at pydantic's location, which picks an alternative of a union by its tag."""
    choices: list[type[BaseModel]] = [Job]
    for key in location:
        if any(isinstance(key, str) and key in model.model_fields for model in choices):
            choices = [
                inner
                for model in choices
                if key in model.model_fields
                for inner in _models(model.model_fields[str(key)].annotation)
            ]
        elif isinstance(key, str):
            choices = [model for model in choices if key in _tags(model)]
    return list(dict.fromkeys(name for model in choices for name in model.model_fields))


def _tags(model: type[BaseModel]) -> list[str]:
    fields = (model.model_fields.get("source"), model.model_fields.get("name"))
    return [
        tag
        for field in fields
        if field is not None and get_origin(field.annotation) is Literal
        for tag in get_args(field.annotation)
    ]
