"""What is wrong with a TOML file, said in the file's own terms: place, key, value, and what is allowed.

    digits.toml:14: [train] batch = 0: must be at least 1
    digits.toml:15: [train] epoch: unknown key; did you mean epochs? Allowed: batch, micro_batch, epochs, …

pydantic finds the problems, toml.py knows where each key stands, and this file puts them into sentences.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from ..errors import JobError
from .section import nearest
from .toml import Path, key_lines, to_toml_value

Origins = dict[Path, tuple[int, str]]
"""Where each key comes from: its line, for the order of problems, and the place as a problem names it."""

Root = TypeVar("Root", bound=BaseModel)


def parse(text: str, label: str) -> tuple[dict[str, Any], Origins]:
    """The values of a TOML text and where they stand; JobError where it is none."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        what, _, place = str(error).partition(" (at line ")
        line = f":{place.partition(',')[0]}" if place[:1].isdecimal() else ""
        raise JobError(f"{label}{line}: not TOML: {what}") from None
    return values, {path: (line, f"{label}:{line}") for path, line in key_lines(text).items()}


def validated(root: type[Root], values: dict[str, Any], origins: Origins, label: str) -> Root:
    """The values as a `root`; JobError naming every problem."""
    try:
        return root.model_validate(values)
    except ValidationError as error:
        raise JobError("\n".join(dict.fromkeys(sentences(root, error, values, origins, label)))) from None


def sentences(
    root: type[BaseModel], error: ValidationError, values: dict[str, Any], origins: Origins, label: str
) -> Iterable[str]:
    """What is wrong with `values`, of a file that is to be a `root`, in the order of its lines."""
    found = []
    for details in error.errors(include_url=False):
        if details["type"] == "default_factory_not_called":
            continue  # follows from another problem of the same section
        path, value = _follow(details["loc"], values)
        context = details.get("ctx", {})
        path = context.get("at") or path
        if details["type"] in ("union_tag_invalid", "union_tag_not_found"):
            path, _ = _follow((*path, context["discriminator"].strip("'")), values)  # or a name alone
        value = _follow(path, values)[1]
        order, origin = next(
            (origins[path[:length]] for length in range(len(path), 0, -1) if path[:length] in origins),
            (0, label),
        )
        shown = "" if value is _NOTHING or isinstance(value, dict | list) else f" = {to_toml_value(value)}"
        what = _explain(root, context, details, value)
        found.append((order, f"{origin}: {where(root, path)}{shown}: {what}"))
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


def where(root: type[BaseModel], path: Path) -> str:
    """[section] key.key[index], as a reader finds it in the file."""
    section, *keys = path
    if not keys:
        return f"[{section}]" if section in _sections(root) else str(section)
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)
    return f"[{section}] {text.lstrip('.')}"


def _explain(root: type[BaseModel], context: dict[str, Any], details: Any, value: object) -> str:
    match details["type"]:
        case "missing":
            return "is missing"
        case "extra_forbidden":
            *above, key = details["loc"]
            allowed = _allowed(root, above)
            meant = _elsewhere(root, above, str(key)) or nearest(str(key), allowed)
            return f"unknown key{meant}; allowed: {', '.join(allowed)}"
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
            return "must be a table of keys, { KEY = …, … }"
        case _:
            return str(details["msg"])


def _elsewhere(root: type[BaseModel], above: Sequence[str | int], key: str) -> str:
    """A question about a key that stands in no section, or in a wrong one: `--set epochs=3`. Or nothing."""
    others = [section for section in _sections(root) if section not in above[:1]]
    meant = [f"{section}.{key}" for section in others if key in _allowed(root, [section])]
    return f"; did you mean {' or '.join(meant)}?" if meant else ""


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


def _allowed(root: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """The keys of the table at pydantic's location, which picks an alternative of a union by its tag.

    A key that is neither a field nor a tag is a name of the user's, as in [classes.NAME].
    """
    choices: list[type[BaseModel]] = [root]
    for key in location:
        if any(isinstance(key, str) and key in model.model_fields for model in choices):
            choices = [
                inner
                for model in choices
                if key in model.model_fields
                for inner in _models(model.model_fields[str(key)].annotation)
            ]
        elif isinstance(key, str):
            choices = [model for model in choices if key in _tags(model)] or choices
    return list(dict.fromkeys(name for model in choices for name in model.model_fields))


def _tags(model: type[BaseModel]) -> list[str]:
    fields = (model.model_fields.get("source"), model.model_fields.get("name"))
    return [
        tag
        for field in fields
        if field is not None and get_origin(field.annotation) is Literal
        for tag in get_args(field.annotation)
    ]
