"""What exporters write around an operator for its own sake, and Weft's kernel does not need.

    InstanceNormalization(x, ones, zeros), a norm without weights   ->   the same, and both are not trained
    Where(Greater(u, 20), x, Softplus(u) / β),  u = x · β           ->   Softplus(u) / β

PyTorch's newer exporter stores the ones and zeros as it stores weights, but under a name that it counts.
PyTorch takes x for its softplus where exp(u) might overflow, and the exporter writes that out. Weft has no
computed conditions, and its softplus does not overflow.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

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
        package.operator("Identity", [node.input[2]], node.output[0], node.name, {})
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


def constants(
    producer: str, nodes: Sequence[package.Proto], stored: Mapping[str, NDArray[Any]]
) -> frozenset[str]:
    """Names of stored ones and zeros by which norms of instances have neither weight nor bias."""
    if producer != "pytorch":
        return frozenset()
    found: set[str] = set()
    others: set[str] = set()
    for node in nodes:
        for place, name in enumerate(node.input):
            neutral = {1: 1, 2: 0}.get(place) if node.op_type == "InstanceNormalization" else None
            if neutral is not None and COUNTED.fullmatch(name) and name in stored:
                (found if (stored[name] == neutral).all() else others).add(name)
            else:
                others.add(name)
    return frozenset(found - others)
