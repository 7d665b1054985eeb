"""Read the body of an inference request: what is asked of the model, and in which form the caller wants it.

    { JSON ... "inputs": [{..., "parameters": {"binary_data_size": 16}}] } │ 16 bytes │ ...
    └──────────── Inference-Header-Content-Length ───────────────────────┘

Everything that the body says of itself is checked here; whether the model takes it, the service knows. What
is null is not there: so clients in many languages write what they have no value for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from ..request import ORDINARY, Array, InferRequest, Qos
from .datatypes import DTYPES
from .problem import Problem, shown, wrong
from .tensors import read_binary, read_json

MAX_AXES: Final = 32
MAX_TEXT: Final = 1024  # of a name, an id, a class
REGION: Final = "shared_memory_region"
HEADER_LENGTH: Final = "Inference-Header-Content-Length"


@dataclass(frozen=True, slots=True)
class Form:
    """How an output is wanted: as bytes behind the JSON, and as its `classes` greatest elements (0: all)."""

    binary: bool
    classes: int = 0


@dataclass(frozen=True, slots=True)
class Call:
    """A request, and the form of its outputs: those that are named, and any other."""

    request: InferRequest
    forms: Mapping[str, Form] = field(default_factory=dict)
    other: Form = Form(False)

    def form(self, output: str) -> Form:
        """The form of this output."""
        return self.forms.get(output, self.other)


def read_call(
    body: bytes,
    header_bytes: int | None,
    model: str,
    version: str,
    max_json_bytes: int,
    arrival_s: float | None = None,
) -> Call:
    """Read an inference request; `header_bytes` are the JSON's, None where the body is nothing else."""
    size = len(body) if header_bytes is None else header_bytes
    if size > len(body):
        raise wrong(f"{HEADER_LENGTH} is {size}, and the whole body only {len(body)} bytes")
    cut = size < len(body)
    part = f" in its first {size} bytes of {len(body)}, as {HEADER_LENGTH} has it," if cut else ""
    content = read_json_object(body[:size] if cut else body, max_json_bytes, f"the body{part}")
    parameters = _object(content, "parameters", "the request")
    inputs = _inputs(content, memoryview(body)[size:])
    forms, other = _forms(content, parameters)
    called = _text(content, "id", "the request")
    request = InferRequest(model, inputs, tuple(forms), version, _qos(parameters), called, arrival_s)
    return Call(request, forms, other)


def read_json_object(raw: bytes, max_json_bytes: int, what: str = "the body") -> dict[str, Any]:
    """The JSON object that `raw` is; nothing at all is an empty one. `what` says where it was found."""
    if len(raw) > max_json_bytes:
        raise Problem(
            413, f"{len(raw)} bytes of JSON: the limit is {max_json_bytes}; send tensors as binary data"
        )
    try:
        content = orjson.loads(raw) if raw else {}
    except ValueError as error:
        hint = ""
        if b"binary_data_size" in raw:  # such as curl's --data-binary of both, and no header
            hint = f"; where tensors follow it, {HEADER_LENGTH} is the length of the JSON alone"
        elif b"NaN" in raw or b"Infinity" in raw:
            hint = "; JSON has no NaN and no Infinity, binary data has"
        raise wrong(f"{what} is not JSON: {error}{hint}") from None
    if not isinstance(content, dict):
        raise wrong(f"{what} is {shown(content)}, not a JSON object")
    return content


def _inputs(content: dict[str, Any], binary: memoryview) -> dict[str, Array]:
    entries = content.get("inputs")
    if not isinstance(entries, list) or not entries:
        raise wrong(f"inputs is a list of at least one tensor, not {shown(entries)}")
    arrays: dict[str, Array] = {}
    place = 0
    for entry in entries:
        name, datatype, shape, size = _tensor(entry)
        if name in arrays:
            raise wrong(f"input {name!r} is there twice")
        if size is None:
            if entry.get("data") is None:
                raise wrong(f"input {name!r} has neither data nor parameters.binary_data_size")
            arrays[name] = read_json(name, datatype, shape, entry["data"])
        else:
            if entry.get("data") is not None:
                raise wrong(f"input {name!r} has both data and binary_data_size")
            if size > len(binary) - place:
                raise wrong(
                    f"input {name!r}: binary_data_size is {size}, {len(binary) - place} bytes are left"
                )
            arrays[name] = read_binary(name, datatype, shape, binary[place : place + size])
            place += size
    if place < len(binary):
        raise wrong(f"{len(binary) - place} bytes behind the JSON belong to no input")
    return arrays


def _tensor(entry: Any) -> tuple[str, str, list[int], int | None]:
    """Name, datatype, shape and binary_data_size of an input."""
    if not isinstance(entry, dict):
        raise wrong(f"an input is a JSON object, not {shown(entry)}")
    name = _name(entry, "input")
    where = f"input {name!r}"
    datatype, shape = entry.get("datatype"), entry.get("shape")
    if not isinstance(datatype, str) or datatype not in DTYPES:
        raise wrong(f"{where}: datatype is one of {', '.join(DTYPES)}, not {shown(datatype)}")
    if not isinstance(shape, list) or any(
        type(extent) is not int or not 0 <= extent < 2**63 for extent in shape
    ):
        raise wrong(f"{where}: shape is a list of whole numbers from 0 to 2^63, not {shown(shape)}")
    if len(shape) > MAX_AXES:
        raise wrong(f"{where}: {len(shape)} axes, the limit is {MAX_AXES}")
    parameters = _object(entry, "parameters", where)
    if parameters.get(REGION) is not None:
        raise wrong(f"{where}: shared memory is not supported")
    return name, datatype, shape, _whole(parameters, "binary_data_size", where)


def _forms(content: dict[str, Any], parameters: dict[str, Any]) -> tuple[dict[str, Form], Form]:
    """The form of each output that is named, and of the others."""
    other = Form(_flag(parameters, "binary_data_output", "the request"))
    entries = content.get("outputs")
    if entries is None:
        return {}, other
    if not isinstance(entries, list):
        raise wrong(f"outputs is a list, not {shown(entries)}")
    forms: dict[str, Form] = {}
    for entry in entries:
        if not isinstance(entry, dict):
            raise wrong(f"an output is a JSON object, not {shown(entry)}")
        name = _name(entry, "output")
        where = f"output {name!r}"
        if name in forms:
            raise wrong(f"{where} is asked for twice")
        own = _object(entry, "parameters", where)
        if own.get(REGION) is not None:
            raise wrong(f"{where}: shared memory is not supported")
        binary = _flag(own, "binary_data", where, other.binary)
        forms[name] = Form(binary, _whole(own, "classification", where) or 0)
    return forms, other


def _qos(parameters: dict[str, Any]) -> Qos:
    if not parameters:
        return ORDINARY
    where = "the request"
    # Triton's schedule policy has 0 for "as the model's settings say".
    timeout_us = _whole(parameters, "timeout", where) or None
    deadline_ms = _number(parameters, "deadline_ms", where)
    if deadline_ms is not None and deadline_ms <= 0:
        raise wrong(f"deadline_ms of the request is more than 0, not {deadline_ms:g}")
    deadlines_s = [timeout_us / 1e6] if timeout_us else []
    if deadline_ms is not None:
        deadlines_s.append(deadline_ms / 1e3)
    return Qos(
        service_class=_text(parameters, "class", where) or None,
        deadline_s=min(deadlines_s, default=None),
        priority=_whole(parameters, "priority", where) or None,
        accuracy=_number(parameters, "accuracy", where),
        cost=_number(parameters, "cost", where),
        best_effort=_flag(parameters, "best_effort", where),
        client=_text(parameters, "client", where),
    )


# -- JSON's values, each checked ---------------------------------------------------------------------


def _object(entry: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    value = entry.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise wrong(f"{key} of {where} is a JSON object, not {shown(value)}")
    return value


def _text(entry: dict[str, Any], key: str, where: str) -> str:
    value = entry.get(key)
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise wrong(f"{key} of {where} is text of at most {MAX_TEXT} characters, not {shown(value)}")
    if not value.isprintable():  # nor a lone surrogate, which has no bytes
        raise wrong(f"{key} of {where} holds a character that can't be printed")
    return value


def _name(entry: dict[str, Any], what: str) -> str:
    name = _text(entry, "name", f"an {what}")
    if not name:
        raise wrong(f"an {what} has no name")
    return name


def _whole(entry: dict[str, Any], key: str, where: str) -> int | None:
    value = entry.get(key)
    if value is None:
        return None
    if type(value) is not int or not 0 <= value < 2**63:
        raise wrong(f"{key} of {where} is a whole number from 0 to 2^63, not {shown(value)}")
    return value


def _number(entry: dict[str, Any], key: str, where: str) -> float | None:
    value = entry.get(key)
    if value is None:
        return None
    if type(value) not in (int, float) or not abs(value) <= 1e300:
        raise wrong(f"{key} of {where} is a number up to 1e300, not {shown(value)}")
    return float(value)


def _flag(entry: dict[str, Any], key: str, where: str, default: bool = False) -> bool:
    value = entry.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise wrong(f"{key} of {where} is true or false, not {shown(value)}")
    return value
