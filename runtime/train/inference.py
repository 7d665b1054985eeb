"""A trained model without its data: what a run's checkpoint holds, ready to be asked.

A checkpoint tells in its progress what a sample looks like and how it was normalised, so that the graph can
be built where the data is not. Checkpoints of before that have their data loaded once more.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...kernels.arithmetic import ArithmeticWeight, Operator
from ...kernels.kernel import ArraySpec
from ...kernels.loss import Predicts
from ..errors import Mistake
from ..graph import Graph
from ..graph.graph import Node
from ..observe import RunFolder
from . import checkpoint
from .data import Data, load_data
from .data.samples import Affine
from .job import load_job
from .model import build, without_loss

WEIGHT = "weight/"  # what the names of weights in a checkpoint begin with; behind it the layout's


@dataclass(frozen=True, slots=True)
class Shapes:
    """What a model sees of its data."""

    input_spec: ArraySpec
    target_spec: ArraySpec
    classes: int | None
    affine: Affine
    outcome: Affine = field(default_factory=Affine)


@dataclass(frozen=True, slots=True)
class Trained:
    """A run's model at a step: raw samples in, predictions out; `weights` by the layout's names.

    Predictions are in the targets' own units, whether or not these were normalised in training.
    """

    graph: Graph
    weights: Mapping[str, NDArray[np.float32]]
    affine: Affine
    labels: tuple[str, ...]
    step: int
    predicts: Predicts  # of classes and labels logits


def described(data: Data) -> dict[str, Any]:
    """What a checkpoint's progress tells of the samples."""
    return {
        "input": [list(data.input_spec.shape), data.input_spec.dtype],
        "target": [list(data.target_spec.shape), data.target_spec.dtype],
        "classes": data.classes,
        "count": data.count,
        "mean": np.asarray(data.affine.mean).tolist(),
        "scale": np.asarray(data.affine.scale).tolist(),
        "wide": data.affine.of_wide,
        "target_mean": np.asarray(data.outcome.mean).tolist(),
        "target_scale": np.asarray(data.outcome.scale).tolist(),
    }


def trained(path: Path) -> Trained:
    """The model of a run, given by its folder, at its best or newest checkpoint; or by one of these.

    A Mistake says what is wrong with it.
    """
    if os.path.isfile(path) and path.suffix != ".safetensors":
        raise Mistake(f"{path} is no run's folder, and no checkpoint (step-….safetensors) in one")
    single = path.suffix == ".safetensors"
    folder = RunFolder.open(path.parent.parent if single else path)
    path = path if single else checkpoint.chosen(folder.checkpoints)
    snapshot = checkpoint.load(path)
    job = load_job(folder.require_job())
    told = snapshot.progress.get("samples")
    shapes = _shapes(told) if told is not None else load_data(job.data, job.seed, job.model.loss.name)
    weights = {
        name.removeprefix(WEIGHT): tensor
        for name, tensor in snapshot.tensors.items()
        if name.startswith(WEIGHT)
    }
    labels = tuple(snapshot.progress.get("labels", ()))
    graph = without_loss(build(job.model, shapes)).parted(weights)
    if shapes.outcome.changes:
        graph, led_back = in_units(graph, shapes.outcome)
        weights |= led_back
    return Trained(graph, weights, shapes.affine, labels, snapshot.step, job.model.loss.predicts)


def in_units(graph: Graph, outcome: Affine) -> tuple[Graph, dict[str, NDArray[np.float32]]]:
    """The graph, led back to targets that were normalised by `outcome`; and the two weights that do it."""
    (output,) = graph.outputs
    nodes, weights, last = list(graph.nodes), {}, output
    steps: list[tuple[str, Operator, NDArray[np.float64]]] = [
        (f"{output}_deviations", "mul", 1.0 / np.asarray(outcome.scale)),
        (f"{output}_in_units", "add", np.asarray(outcome.mean)),
    ]
    for name, operator, by in steps:
        nodes.append(Node(name, ArithmeticWeight(operator, by.shape, trained=False), (last,)))
        weights[f"{name}.weight"] = by.astype(np.float32)
        last = name
    return Graph(graph.inputs, tuple(nodes), (last,)), weights


def predicting(name: str) -> Graph:
    """What predicts: the graph of a run, given by its folder or a checkpoint, or of a job."""
    path = Path(name)
    if os.path.isdir(path) or path.suffix == ".safetensors":
        return trained(path).graph
    job = load_job(name)
    return without_loss(build(job.model, load_data(job.data, job.seed, job.model.loss.name)))


def _shapes(told: Mapping[str, Any]) -> Shapes:
    (input_shape, input_dtype), (target_shape, target_dtype) = told["input"], told["target"]
    return Shapes(
        ArraySpec(tuple(input_shape), input_dtype),
        ArraySpec(tuple(target_shape), target_dtype),
        told["classes"],
        Affine(np.array(told["mean"]), np.array(told["scale"]), told.get("wide", True)),
        Affine(np.array(told.get("target_mean", 0.0)), np.array(told.get("target_scale", 1.0))),
    )
