"""All that Weft uses of the onnx package: files, attributes, tensors, and its evaluator for what is fixed."""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import GraphError, MachineError

try:
    import onnx
    import onnx.checker
    import onnx.inliner
    import onnx.shape_inference
    from onnx import numpy_helper
    from onnx.reference import ReferenceEvaluator
except ImportError as error:
    raise MachineError(f"ONNX files need the onnx package ({error}): pip install 'weft[onnx]'") from error

Proto = Any
"""A message of the file format; protobuf makes its classes at run time."""


def load(path: Path) -> Proto:
    """The file's model."""
    try:
        proto = onnx.load(path)
    except FileNotFoundError as error:
        raise GraphError(f"{error.filename or path} does not exist") from error
    except OSError as error:
        raise GraphError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # protobuf has several kinds, none of them public
        raise GraphError(f"{path} is no ONNX model, or a damaged one: {error}") from error
    if not proto.graph.node:
        raise GraphError(f"{path} is no ONNX model: there is no node in it")
    return proto


def operator_set(proto: Proto) -> int:
    """The set of operators that the model is in; GraphError for one that the package does not know."""
    found = [each.version for each in proto.opset_import if each.domain in ("", "ai.onnx")]
    if not found and proto.ir_version < 3:  # there was one set alone
        return 1
    version = max(found, default=0)
    if version < 1:  # read as the first set, a Softmax of today would be one over all its axes
        raise GraphError(
            "the file does not say of which set its operators are; export it with an opset_import"
        )
    if version > (known := onnx.defs.onnx_opset_version()):
        raise GraphError(
            f"the file has operators of set {version}, but onnx {onnx.__version__} knows those up to {known};"
            " install a newer onnx package, or export the file with an older set"
        )
    return version


def inlined(proto: Proto) -> Proto:
    """The model with functions of its own written out in place."""
    if not proto.functions:
        return proto
    try:
        return onnx.inliner.inline_local_functions(proto)
    except Exception as error:  # of the C++ side, without a public base; a function that calls itself is one
        raise GraphError(f"the model's own functions cannot be written out: {error}") from error


def tensor(proto: Proto) -> NDArray[Any]:
    """A stored tensor as an array."""
    try:
        return np.asarray(numpy_helper.to_array(proto))
    except Exception as error:  # of several kinds: a type that is none, bytes that are too few
        raise GraphError(f"the stored tensor {proto.name!r} cannot be read: {error}") from error


def dtype(element_type: int) -> str:
    """NumPy's name for the format's element type; what NumPy lacks has one of ml_dtypes' names."""
    try:
        return str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(element_type)).name)
    except (KeyError, TypeError) as error:
        raise GraphError(f"the file has values of type {element_type}, which ONNX does not know") from error


def attributes(node: Proto) -> dict[str, Any]:
    """A node's attributes; texts as str, tensors as arrays, subgraphs as they are."""
    found = {}
    for each in node.attribute:
        value = onnx.helper.get_attribute_value(each)
        if isinstance(value, bytes):
            value = value.decode(errors="backslashreplace")
        elif each.type == onnx.AttributeProto.STRINGS:
            value = [text.decode(errors="backslashreplace") for text in value]
        found[each.name] = tensor(value) if isinstance(value, onnx.TensorProto) else value
    return found


def has_subgraph(node: Proto) -> bool:
    """Whether the node carries graphs of its own (If, Loop, Scan)."""
    kinds = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    return any(each.type in kinds for each in node.attribute)


def _rows(x: NDArray[Any], axis: int) -> NDArray[Any]:
    """As Softmax and its kin see it up to set 12: all axes before `axis`, and all from there on."""
    axis %= x.ndim
    rows: NDArray[Any] = x.reshape(math.prod(x.shape[:axis]), -1)
    return rows


def _log_softmax(x: NDArray[Any], axis: int = 1) -> NDArray[Any]:
    rows = _rows(x, axis)
    rows = rows - rows.max(axis=1, keepdims=True)
    result: NDArray[Any] = (rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))).reshape(x.shape)
    return result


def _softmax(x: NDArray[Any], axis: int = 1) -> NDArray[Any]:
    result: NDArray[Any] = np.exp(_log_softmax(x, axis))
    return result


def _hardmax(x: NDArray[Any], axis: int = 1) -> NDArray[Any]:
    rows = _rows(x, axis)
    chosen: NDArray[Any] = np.eye(rows.shape[1], dtype=x.dtype)[rows.argmax(axis=1)]
    return chosen.reshape(x.shape)


def _batch_normalization(
    x: NDArray[Any],
    scale: NDArray[Any],
    bias: NDArray[Any],
    mean: NDArray[Any],
    variance: NDArray[Any],
    epsilon: float = 1e-5,
    **others: Any,
) -> NDArray[Any]:
    one = (-1, *(1,) * (x.ndim - 2))
    factor = scale / np.sqrt(variance + np.float32(epsilon))
    result: NDArray[Any] = (x - mean.reshape(one)) * factor.reshape(one) + bias.reshape(one)
    return result


def _lrn(
    x: NDArray[Any], size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> NDArray[Any]:
    around = [(0, 0), ((size - 1) // 2, size // 2), *[(0, 0)] * (x.ndim - 2)]
    squares = np.pad(x * x, around)
    summed = sum(squares[:, shift : shift + x.shape[1]] for shift in range(size))
    result: NDArray[Any] = (x / (bias + alpha / size * summed) ** beta).astype(x.dtype)
    return result


EVER = 1 << 30
MISTAKEN: Mapping[str, tuple[int, Callable[..., NDArray[Any]]]] = {
    "BatchNormalization": (14, _batch_normalization),
    "Hardmax": (13, _hardmax),
    "LRN": (EVER, _lrn),
    "LogSoftmax": (13, _log_softmax),
    "Softmax": (13, _softmax),
}
"""What the evaluator of onnx 1.23 computes otherwise than the standard says, below a set of operators."""


def evaluate(node: Proto, inputs: Sequence[NDArray[Any] | None], version: int) -> list[NDArray[Any]]:
    """The outputs of one node whose inputs are known, as the onnx package computes them."""
    below, own = MISTAKEN.get(node.op_type, (0, None))
    if own is not None and version < below and len(node.output) == 1:
        return [own(*inputs, **attributes(node))]
    given = {name: array for name, array in zip(node.input, inputs, strict=True) if array is not None}
    graph = onnx.helper.make_graph(
        [node],
        "fold",
        [
            onnx.helper.make_tensor_value_info(
                name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
            )
            for name, array in given.items()
        ],
        [onnx.helper.make_empty_tensor_value_info(name) for name in node.output if name],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", version)])
    return [np.asarray(each) for each in ReferenceEvaluator(model).run(None, given)]


# ------------------------------------------------------------------------------------------- writing

FORMAT_VERSION = 9  # of files with operator set 20
WHOLE_BYTES = 2**31 - 2**20  # protobuf's largest message, with room for what is no weight

Entry = tuple[str, tuple[int | str, ...]]
"""An input or output: dtype and shape, in which a text is an open axis."""


def stored(name: str, array: NDArray[Any]) -> Proto:
    """An array that the file holds."""
    return numpy_helper.from_array(np.ascontiguousarray(array).reshape(np.shape(array)), name)


def operator(
    op: str, inputs: Sequence[str], outputs: Sequence[str], name: str, attributes: Mapping[str, Any]
) -> Proto:
    """A node; the attribute `to_type`, a dtype's name, becomes Cast's "to"."""
    given = dict(attributes)
    if "to_type" in given:
        given["to"] = _element_type(given.pop("to_type"))
    return onnx.helper.make_node(op, list(inputs), list(outputs), name=name, **given)


def model(
    nodes: Sequence[Proto],
    arrays: Sequence[Proto],
    inputs: Mapping[str, Entry],
    outputs: Mapping[str, Entry],
    version: int,
    properties: Mapping[str, str],
) -> Proto:
    """The ModelProto of these nodes in operator set `version`."""

    def told(entries: Mapping[str, Entry]) -> list[Proto]:
        return [
            onnx.helper.make_tensor_value_info(name, _element_type(dtype), shape)
            for name, (dtype, shape) in entries.items()
        ]

    graph = onnx.helper.make_graph(nodes, "weft", told(inputs), told(outputs), arrays)
    proto = onnx.helper.make_model(
        graph,
        opset_imports=[onnx.helper.make_opsetid("", version)],
        ir_version=FORMAT_VERSION,
        producer_name="weft",
        producer_version=importlib.metadata.version("weft"),
    )
    onnx.helper.set_model_props(proto, dict(properties))
    return proto


def save(proto: Proto, path: str | PathLike[str]) -> None:
    """Write a file, whole or not at all, which the package's checker finds in order.

    Raises MachineError where it cannot be written, GraphError where it is larger than a file may be.
    """
    path = Path(path)
    size = proto.ByteSize()
    if size > WHOLE_BYTES:
        raise GraphError(f"{path}: the model has {size / 1e9:.1f} GB, and an ONNX file at most 2.1")
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise GraphError(f"the model makes no valid ONNX file: {error}") from error
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(proto.SerializeToString())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise MachineError(f"{path}: cannot be written: {error.strerror or error}") from error


def _element_type(dtype: str) -> int:
    return int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
