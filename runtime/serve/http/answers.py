"""Write the body of an inference response: JSON, and behind it the outputs that are wanted as bytes.

The JSON of many numbers comes in pieces, between which the loop answers others: 8 million, as a segmentation
may give, took 0.4 s in one, and 2 s on cores that had other work.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from ..request import Array, InferResult, WrongInput
from .datatypes import BF16, BYTES, datatype_of
from .messages import encode
from .requests import Call
from .tensors import write_binary, write_json

PIECE: Final = 2**15  # numbers, for 2 ms


def write_answer(
    call: Call, result: InferResult, declared: Mapping[str, str]
) -> tuple[Iterator[bytes], list[bytes]]:
    """The body: its JSON in pieces, each written when it is asked for, and what follows it.

    `declared` are the datatypes of the model's outputs; they tell BF16 from FP32, whose arrays are alike.
    """
    entries: list[dict[str, Any]] = []
    binary: list[bytes] = []
    for name in call.request.outputs or result.outputs:
        array, form = result.outputs[name], call.form(name)
        if form.classes:
            array = classified(array, form.classes, result.labels)
        datatype = datatype_of(array)
        if declared.get(name) == BF16 and datatype != BYTES:
            datatype = BF16
        entry: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(array.shape)}
        if form.binary:
            raw = write_binary(datatype, array)
            entry["parameters"] = {"binary_data_size": len(raw)}
            binary.append(raw)
        else:
            entry["data"] = write_json(name, datatype, array)
        entries.append(entry)
    content: dict[str, Any] = {"model_name": result.model, "model_version": result.version}
    if call.request.id:
        content["id"] = call.request.id
    content["parameters"] = {
        "resource": result.resource,
        "batch": result.batch,
        "queue_us": round(result.queue_s * 1e6),
        "compute_us": round(result.compute_s * 1e6),
    }
    return _pieces(content, entries), binary


def _pieces(content: dict[str, Any], entries: Sequence[dict[str, Any]]) -> Iterator[bytes]:
    """The JSON of an answer: `content` with `entries` as its outputs."""
    if all(len(entry.get("data", ())) <= PIECE for entry in entries):  # as it is nearly always
        yield encode({**content, "outputs": entries})
        return
    yield encode(content)[:-1] + b',"outputs":['
    for number, entry in enumerate(entries):
        between = b"," if number else b""
        if len(data := entry.get("data", ())) <= PIECE:
            yield between + encode(entry)
            continue
        yield between + encode({key: value for key, value in entry.items() if key != "data"})[:-1]
        for start in range(0, len(data), PIECE):
            yield (b"," if start else b',"data":[') + encode(data[start : start + PIECE])[1:-1]
        yield b"]}"
    yield b"]}"


def classified(array: Array, classes: int, labels: Sequence[str] = ()) -> Array:
    """Triton's classification: of each sample the greatest elements as "VALUE:INDEX", the greatest first.

    As "VALUE:INDEX:LABEL" where the class has a name.
    """
    if array.dtype.kind == "O" or array.ndim == 0:
        raise WrongInput("classification is of numbers, several a sample")
    flat = array.reshape(len(array), -1 if array.size else 0)
    order = np.argsort(-flat.astype(np.float64), axis=1, kind="stable")[:, :classes]
    words: Array = np.empty(order.shape, object)
    for sample, row in enumerate(order):
        words[sample] = [
            ":".join((_value(flat[sample, index]), str(index), *labels[index : index + 1])).encode()
            for index in row
        ]
    return words


def _value(value: Any) -> str:
    return f"{value:f}" if isinstance(value, np.floating) else str(value)
