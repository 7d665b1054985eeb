"""Several runs as one model: the mean of what its members predict, and how far they deviate from it.

    samples ─┬─ member_1. … ─┬─ mean ─────────────> the members' own output
             ├─ member_2. … ─┤    └─ deviation ───> …_deviation
             └─ member_3. … ─┘

Of members that tell classes apart the means are of probabilities, and the output is their logarithm: as any
classifier's it gives them back through a softmax. So of labels a sigmoid gives back each mean p, of
log(p / (1 - p)). Lakshminarayanan et al., "Simple and scalable predictive uncertainty estimation using deep
ensembles" (2017). Members are branches of the graph, which idle ranks can compute side by side.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ...kernels.arithmetic import ArithmeticWeight, Operator
from ..errors import Mistake
from ..graph import Builder, Graph, Layout
from ..graph.builder import Value
from .inference import Trained

LEAST: Final = 1e-37
"""Of a probability, so that its logarithm is a number."""


def ensemble(
    members: Sequence[Trained], names: Sequence[str]
) -> tuple[Graph, dict[str, NDArray[np.float32]]]:
    """The graph that takes raw samples as float32, or tokens, and the weights of all members, by its layout.

    Its outputs are called as the members', and that with `_deviation` behind it: the standard deviation over
    the members, with one less than their number in the denominator. `names` are what a Mistake calls them
    where they take, predict or mean different things.
    """
    _require_alike(members, names)
    first = members[0]
    (output,) = first.graph.outputs
    b = Builder()
    for name, spec in first.graph.inputs.items():
        b.input(name, spec.shape, spec.dtype)
    weights: dict[str, NDArray[Any]] = {}
    predictions = [_member(b, member, f"member_{place}.", weights) for place, member in enumerate(members, 1)]
    number = itertools.count(1)

    def put(kernel: str, *inputs: Value, name: str = "", **attributes: Any) -> Value:
        """A node under a name that no output has: a model's last node may be called add_1."""
        return b(kernel, *inputs, name=name or f"members.{kernel}_{next(number)}", **attributes)

    scaled, count = partial(put, "arithmetic_number", operator="mul"), len(members)

    def mean_of(values: Sequence[Value], name: str = "") -> Value:
        return scaled(put("add", *values), value=1 / count, name=name)

    def log(mean: Value, name: str = "") -> Value:
        return put("log", put("clip", mean, minimum=LEAST), name=name)

    match first.predicts:
        case "classes":
            predictions = [put("softmax", prediction) for prediction in predictions]
            mean = mean_of(predictions)
            log(mean, output)
        case "labels":
            # Both logarithms are of a mean: 1 - mean has lost its digits where the members are sure of yes.
            opposite = [put("sigmoid", scaled(prediction, value=-1.0)) for prediction in predictions]
            predictions = [put("sigmoid", prediction) for prediction in predictions]
            mean = mean_of(predictions)
            put("arithmetic", log(mean), log(mean_of(opposite)), operator="sub", name=output)
        case "values":
            mean = mean_of(predictions, output)
    away = [put("arithmetic", prediction, mean, operator="sub") for prediction in predictions]
    squares = put("add", *(put("arithmetic", one, one, operator="mul") for one in away))
    deviation = put("sqrt", scaled(squares, value=1 / (count - 1)), name=f"{output}_deviation")
    return b.build(Value(output), deviation), weights


def _member(b: Builder, member: Trained, prefix: str, weights: dict[str, NDArray[Any]]) -> Value:
    """Add a member's nodes and weights, its names behind the prefix; the value that it predicts."""
    renamed = {name: name for name in member.graph.inputs}
    if member.affine.changes:
        (entry,) = member.graph.inputs
        steps: list[tuple[str, Operator, Any]] = [
            ("less_mean", "sub", member.affine.mean),
            ("scaled", "mul", member.affine.scale),
        ]
        for name, operator, by in steps:
            by = np.asarray(by, np.float32)
            kernel = ArithmeticWeight(operator, by.shape, trained=False)
            renamed[entry] = b(kernel, Value(renamed[entry]), name=prefix + name)
            weights[f"{prefix}{name}.weight"] = by
    for node in member.graph.nodes:
        inputs = (Value(renamed[value]) for value in node.inputs)
        shares = {name: prefix + theirs for name, theirs in node.shares.items()}
        renamed[node.name] = b(node.kernel, *inputs, name=prefix + node.name, tags=node.tags, shares=shares)
    for parameter in Layout.of(member.graph).parameters:
        weights[prefix + parameter.name] = member.weights[parameter.name]
    return Value(renamed[member.graph.outputs[0]])


def _require_alike(members: Sequence[Trained], names: Sequence[str]) -> None:
    """Mistake where members are not of one thing."""
    first = members[0]
    for member, name in zip(members[1:], names[1:], strict=True):
        for what, mine, other in (
            ("takes", _takes(first), _takes(member)),
            ("predicts", _predicts(first), _predicts(member)),
            ("tells apart", ", ".join(first.labels), ", ".join(member.labels)),
        ):
            if mine != other:
                raise Mistake(
                    f"{name} {what} {other or 'classes without names'}, and {names[0]} "
                    f"{mine or 'classes without names'}: members of one model must agree"
                )


def _takes(member: Trained) -> str:
    return ", ".join(f"{name} {spec.dtype} {spec.shape}" for name, spec in member.graph.inputs.items())


def _predicts(member: Trained) -> str:
    specs = member.graph.specs(1)
    kind = "values" if member.predicts == "values" else f"scores of {member.predicts}"
    return ", ".join(f"{name} {specs[name].shape[1:]} ({kind})" for name in member.graph.outputs)
