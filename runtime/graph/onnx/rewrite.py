"""What exporters write around an operator for its own sake, and Weft's kernel does not need.

    a norm of x, ones and zeros, one without weights        ->   the same, and both are not trained
    tables of sines and cosines, masks, grids, as weights   ->   the same, and they are not trained
    Where(Greater(u, 20), x, Softplus(u) / β),  u = x · β   ->   Softplus(u) / β

PyTorch's newer exporter stores the ones and zeros as it stores weights, but under a name that it counts. What
a model computes from no parameter it stores, too, and buffers: a decoder's rotations were trained, and so was
its causal mask. No name tells them from parameters, so their values do, which no training ever gave a weight.
PyTorch takes x for its softplus where exp(u) might overflow, and the exporter writes that out. Weft has no
computed conditions, and its softplus does not overflow.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import package

COUNTED = re.compile(r"val_\d+")
"""How PyTorch names what is no parameter, and parameters that it has turned or reshaped."""

SAME_FROM = 17.0
"""From here on log(1 + exp(u)) and u are the same float32: exp(-17) is less than 2 ** -24."""


def rewritten(nodes: Sequence[package.Proto], stored: Mapping[str, NDArray[Any]]) -> Sequence[package.Proto]:
    """The nodes of a file, in which such a Where is the Identity of what it chooses but for large u."""
    makers = {name: node for node in nodes for name in node.output}
    return [
        package.operator("Identity", [node.input[2]], node.output[:1], node.name, {})
        if node.op_type == "Where" and not node.domain and _guards(node, makers, stored)
        else node
        for node in nodes
    ]


def _guards(
    where: package.Proto, makers: Mapping[str, package.Proto], stored: Mapping[str, NDArray[Any]]
) -> bool:
    def made(name: str, op: str) -> list[str]:
        node = makers.get(name)
        return list(node.input) if node is not None and (node.op_type, node.domain) == (op, "") else []

    def number(name: str) -> float | None:
        array = stored.get(name)
        return float(array.reshape(())) if array is not None and array.size == 1 else None

    condition, large, small = where.input
    beta = None
    if scaled := made(small, "Div"):
        small, beta = scaled[0], number(scaled[1])
    if not ((compared := made(condition, "Greater")) and (curved := made(small, "Softplus"))):
        return False
    u, least = curved[0], number(compared[1])
    if compared[0] != u or least is None or least < SAME_FROM:
        return False
    if not scaled:
        return bool(large == u)
    product = made(u, "Mul")
    return bool(product) and product[0] == large and beta is not None and beta == number(product[1])


MADE = re.compile(
    r"(new_)?(zeros|ones|full|arange|eye|tril|triu|scalar_tensor|clone|lifted_tensor)(_like|_default|_\d+)*"
)
"""What PyTorch's newer exporter calls a tensor that the model makes of nothing: by the function. (A clone is
one that is written down in it.)"""

WRITTEN = re.compile(r"(/.*)?/Constant(_\d+)?_output_0")
"""What simplifiers (onnxslim) call an array that they store in place of a Constant node of PyTorch's older
exporter; to them it is as any weight."""

NUMBER = re.compile(r"onnx::.*|/.*|_v_\d+")
"""How that exporter calls a number that is no parameter, and how simplifiers do (onnxsim: _v_32)."""

NORMS = ("InstanceNormalization", "LayerNormalization")
WAVE = 2e-3  # how far from 1 the squares of tables in float16 are


KIND = "pkg.torch.export.graph_signature.InputSpec.kind"
"""By which PyTorch's newer exporter says of a stored array that it is a PARAMETER, or else a BUFFER, say."""


def kinds(values: Iterable[package.Proto]) -> dict[str, str]:
    """What a file's value_info says of stored arrays, by their names."""
    return {value.name: each.value for value in values for each in value.metadata_props if each.key == KIND}


def constants(
    producer: str,
    nodes: Sequence[package.Proto],
    stored: Mapping[str, NDArray[Any]],
    told: Mapping[str, str] = MappingProxyType({}),
) -> frozenset[str]:
    """Names of stored arrays that are no parameters, though they are stored as those are.

    `told` are their `kinds`, of those of which the file tells; the others are known by names and by values.
    """
    found = _waves(stored) | {name for name, array in stored.items() if is_mask(array)}
    if producer == "weft":
        found |= {name for name in stored if "/" in name}  # sheet.py: parts of a node, not its parameters
    else:
        # PyTorch gives a learned scale its parameter's name, and a number of the model's code one of its own
        # making; others store an epsilon as they store a scale.
        numbers = {name for name, array in stored.items() if not array.ndim}
        found |= {name for name in numbers if told or producer != "pytorch" or NUMBER.fullmatch(name)}
    if producer == "pytorch":
        found |= _neutral(nodes, stored) | {name for name, array in stored.items() if _is_grid(array)}
        slopes = {name for node in nodes if node.op_type == "PRelu" for name in node.input}  # turned ones
        found |= {name for name in stored if COUNTED.fullmatch(name) and stored[name].size == 1} - slopes
        found |= {name for name in stored if MADE.fullmatch(name) or WRITTEN.fullmatch(name)}
    learned = {name for name, kind in told.items() if kind == "PARAMETER"}
    return frozenset((found | told.keys()) - learned)


def _neutral(nodes: Sequence[package.Proto], stored: Mapping[str, NDArray[Any]]) -> set[str]:
    """Ones and zeros by which norms have neither weight nor bias."""
    found: set[str] = set()
    others: set[str] = set()
    for node in nodes:
        for place, name in enumerate(node.input):
            neutral = {1: 1, 2: 0}.get(place) if node.op_type in NORMS else None
            if neutral is not None and COUNTED.fullmatch(name) and name in stored:
                (found if (stored[name] == neutral).all() else others).add(name)
            else:
                others.add(name)
    return found - others


HIDES = -100.0
"""What is added to scores that nobody is to see is this (Swin) or less: -10000 (BERT), the least float."""


def is_mask(array: NDArray[Any]) -> bool:
    """Whether it is 0 but for elements that hide what they are added to. A step of it would be no number, or
    a bias of what is seen."""
    if not array.size or not (array.dtype.kind == "f" or array.dtype.name == "bfloat16"):  # of no kind there
        return False
    if np.isinf(array).any():
        return True
    least = array.min()
    return bool(array.size > 1 and least <= HIDES and ((array == least) | (array == 0)).all())


def _is_grid(array: NDArray[Any]) -> bool:
    """Whether it holds places: whole numbers or halves, some of them two apart."""
    if array.dtype.kind != "f" or array.size < 2 or not np.isfinite(array).all():
        return False
    if array.max() - 2 < array.min():
        return False
    beyond = np.abs(array - np.rint(array))  # twice the least float, as masks have it, would be infinite
    return bool(((beyond == 0) | (beyond == 0.5)).all())


def _waves(stored: Mapping[str, NDArray[Any]]) -> set[str]:
    """Sines and cosines of the same angles: two tables, or one of both, side by side or in turns."""
    tables: dict[tuple[int, ...], list[str]] = {}
    found = set()
    for name, array in stored.items():
        if array.dtype.kind != "f" or array.ndim < 2 or array.size < 4:
            continue
        tables.setdefault(array.shape, []).append(name)
        half, odd = divmod(array.shape[-1], 2)
        if half and not odd and (
            _turn(array[..., :half], array[..., half:]) or _turn(array[..., ::2], array[..., 1::2])
        ):  # fmt: skip
            found.add(name)
    for names in tables.values():
        for first, second in combinations(names, 2):
            if _turn(stored[first], stored[second]):
                found |= {first, second}
    return found


def _turn(first: NDArray[Any], second: NDArray[Any]) -> bool:
    """Whether they are sine and cosine everywhere; ones and zeros are weights before their first step."""
    last = (-1,) * first.ndim
    sine, cosine = float(first[last]), float(second[last])  # whose ** raises where their product is infinite
    if not abs(sine * sine + cosine * cosine - 1) <= WAVE:  # nearly all are passed over
        return False
    a, b = np.abs(first.astype(np.float64)), np.abs(second.astype(np.float64))
    return bool(np.abs(a * a + b * b - 1).max() <= WAVE and (a + b).max() > 1 + WAVE)
