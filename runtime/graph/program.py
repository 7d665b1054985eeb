"""A graph bound to arrays: for one micro-batch size, the serial list of kernel calls ready to be run.

    parameters ─┐                         ┌─> outputs (loss, prediction)
    inputs ─────┼─> Program.forward ──────┤
                └─> Program.backward ─────┴─> gradients (flat vector)

Everything is allocated before the first step: activations, gradients and workspace stand in one arena at
planned offsets, parameters and weight gradients are views of the flat vectors. A step allocates no array.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from typing import Protocol

import numpy as np

from ...kernels.kernel import Array, ArraySpec, Buffers, Mode, with_last
from ...kernels.optimizer import accumulate
from .backward import Call, Calls, Phase, differentiate, gradient, inference, of_one_sample, postponed
from .graph import Graph, Node
from .memory import (
    Placement,
    begin,
    carved,
    carved_nbytes,
    lifetimes,
    place,
    resolve,
    saved_name,
    scratch_nbytes,
    value_of,
    workspace,
)
from .parameters import Layout


class Allocator(Protocol):
    """The part of a device that a program needs."""

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Array:
        """A new array of zeros on the device."""


@dataclass(frozen=True, slots=True)
class Step:
    """One bound call. `node` names the node and `phase` what is computed, for traces.

    `run()` does all of it. Forward and weight gradient of a kernel that can be computed by rows also take
    `run(rows=slice(first, last))`: these output neurons alone.
    """

    node: str
    phase: Phase
    run: Callable[..., None]

    @property
    def name(self) -> str:
        """For traces and messages."""
        return f"{self.node}.{self.phase.value}"


class Memory:
    """The arrays that programs of one graph share: arena, workspace, and gradients of later micro-batches.

    Programs for several micro-batch sizes, and for training and evaluation, run one after the other on one
    lane, so they share one arena, as large as the largest needs. What the weight gradients of the nodes in
    `movable` read stays to the end of backward: they may run in any order. What any of them reads can come
    from `shared`, of which it takes `shared_bytes`: memory where other ranks see it, who may then run them.
    """

    def __init__(
        self,
        graph: Graph,
        layout: Layout,
        device: Allocator,
        batch: int,
        *,
        training: bool,
        movable: frozenset[str] = frozenset(),
        shared: Allocator | None = None,
    ) -> None:
        self.device = device
        self.batch = batch
        self.movable = movable
        self.workspace = device.zeros((scratch_nbytes(graph, batch, training),), "uint8")
        self.partial = device.zeros((layout.largest if training else 0,), "float32")
        self._specs = _shared(graph, batch, training, movable)
        self._place(shared or device)

    def _place(self, shared: Allocator) -> None:
        arrays = {name: shared.zeros(spec.shape, spec.dtype) for name, spec in self._specs.items()}
        self.arena = arrays.pop(ARENA)
        self.loss_gradient = arrays.pop(LOSS_GRADIENT)
        self.inputs = arrays

    def seen(self, shared: Allocator) -> Memory:
        """Another rank's memory, as it has it from `shared`, but with this one's workspace."""
        other = copy(self)
        other._place(shared)
        return other

    @property
    def nbytes(self) -> int:
        """Bytes held, parameters and their gradients not counted."""
        own = (self.arena, self.workspace, self.partial, self.loss_gradient, *self.inputs.values())
        return sum(int(array.nbytes) for array in own)


ARENA, LOSS_GRADIENT = "'arena", "'loss gradient"  # (no input is called so)


def _shared(graph: Graph, batch: int, training: bool, movable: frozenset[str]) -> dict[str, ArraySpec]:
    """What kernels read of a micro-batch."""
    plans = [plan(graph, answering(graph, batch), batch)]
    if training:
        plans.append(plan(graph, postponed(differentiate(graph), movable), batch))
    return {
        ARENA: ArraySpec((max(p.nbytes for p in plans),), "uint8"),
        LOSS_GRADIENT: ArraySpec((batch,)),
        **{name: ArraySpec((batch, *spec.shape), spec.dtype) for name, spec in graph.inputs.items()},
    }


def shared_bytes(graph: Graph, batch: int, movable: frozenset[str]) -> int:
    """What a `Memory` for training takes of `shared`, each array on cache lines of its own."""
    return carved_nbytes(_shared(graph, batch, True, movable).values())


def plan(graph: Graph, calls: Calls, batch: int) -> Placement:
    """Offsets in the arena for everything but the inputs and the gradient that is fed in."""
    return place(lifetimes(graph, calls, batch, outside=(*graph.inputs, gradient(graph.outputs[0]))))


def answering(graph: Graph, batch: int) -> Calls:
    """The calls of programs that only compute forward, in memory for `batch` samples at most."""
    return of_one_sample(graph) if batch == 1 else inference(graph)


class Program:
    """Forward, and where `gradients` is given backward, for `batch` samples at most `memory.batch`.

    The first output of a graph to be trained is its loss, one element a sample; `loss_gradient` (batch,)
    float32 holds what each sample's loss counts for, and is the caller's to fill.

    `backward` overwrites the gradients of the flat vector, `backward_more` adds to them: a step runs the one
    for its first micro-batch and the other for the rest.
    """

    def __init__(
        self,
        graph: Graph,
        layout: Layout,
        memory: Memory,
        batch: int,
        parameters: Array,
        gradients: Array | None = None,
    ) -> None:
        calls = answering(graph, memory.batch) if gradients is None else differentiate(graph)
        self.graph = graph
        self.batch = batch
        self.mode = Mode(training=gradients is not None)
        self.inputs: Mapping[str, Array] = {name: array[:batch] for name, array in memory.inputs.items()}
        self.loss_gradient = memory.loss_gradient[:batch]
        binder = _Binder(graph, layout, memory, calls, batch, self)
        self.outputs = tuple(binder.array(value) for value in graph.outputs)
        bound = {node.name: binder.buffers(node, parameters, gradients) for node in graph.nodes}
        self.forward = tuple(self._forward(call, bound[call.node.name]) for call in calls.forward)
        self.backward: tuple[Step, ...] = ()
        self.backward_more: tuple[Step, ...] = ()
        if gradients is None:
            return
        first, more, written = [], [], set[str]()
        for call in calls.backward:
            buffers = bound[call.node.name]
            step = following = self._backward(call, buffers, binder)
            if call.phase is Phase.WEIGHT_GRADIENT:
                names = [each.name for each in layout.of_node(call.node.name)]
                adding = partial(self._adding, call, buffers, layout, memory, gradients)
                # A gradient that a node behind this one has written is added to: they share the parameter.
                if not written.isdisjoint(names):
                    step = adding(tuple(name in written for name in names))
                following = adding((True,) * len(names))
                written.update(names)
            first.append(step)
            more.append(following)
        self.backward, self.backward_more = tuple(first), tuple(more)

    def _forward(self, call: Call, buffers: Buffers) -> Step:
        return Step(call.node.name, call.phase, partial(call.node.kernel.forward, buffers, self.mode))

    def _backward(self, call: Call, buffers: Buffers, binder: _Binder) -> Step:
        kernel = call.node.kernel
        run: Callable[..., None]
        match call.phase:
            case Phase.INPUT_GRADIENT:
                run = partial(kernel.input_gradient, buffers, self.mode)
            case Phase.WEIGHT_GRADIENT:
                run = partial(kernel.weight_gradient, buffers, self.mode)
            case _:
                first, second = (binder.array(name) for name in call.reads)
                into = first if call.writes[0] == call.reads[0] else binder.array(call.writes[0])
                run = partial(_sum, first, second, into)
        return Step(call.node.name, call.phase, run)

    def _adding(
        self, call: Call, buffers: Buffers, layout: Layout, memory: Memory, gradients: Array,
        adds: tuple[bool, ...],
    ) -> Step:  # fmt: skip
        """A weight gradient that adds to what is there, or, of parameters without `adds`, overwrites it."""
        views = layout.apart(memory.partial, call.node.name)
        compute = partial(
            call.node.kernel.weight_gradient, replace(buffers, weight_gradients=views), self.mode
        )
        into = layout.views(gradients, call.node.name)

        def run(**rows: slice) -> None:
            compute(**rows)
            others = slice(0, None)
            if (some := rows.get("rows")) is not None:  # a learned number has none
                accumulate(into[0][some].reshape(-1), views[0][some].reshape(-1))
                others = slice(1, None) if with_last(some, len(into[0])) else slice(0)
            for total, view, add in zip(into[others], views[others], adds[others], strict=True):
                if add:
                    accumulate(total.reshape(-1), view.reshape(-1))
                else:
                    total[...] = view

        return Step(call.node.name, call.phase, run)


def _sum(first: Array, second: Array, into: Array) -> None:
    if into is not first:
        into[...] = first
    accumulate(into.reshape(-1), second.reshape(-1))


class _Binder:
    """Finds the memory behind every name."""

    def __init__(
        self, graph: Graph, layout: Layout, memory: Memory, calls: Calls, batch: int, program: Program
    ) -> None:
        self._graph = graph
        self._layout = layout
        self._memory = memory
        self._calls = calls
        self._specs = graph.specs(batch)
        # The largest batch's plan, whatever this one: a smaller batch's own can need more (60,736 bytes for 7
        # samples of a network, 58,560 for 8), since rounding to cache lines changes who fits into which gap.
        self._placement = plan(graph, postponed(calls, memory.movable), memory.batch)
        self._outside: dict[str, Array] = dict(program.inputs)
        self._outside[gradient(graph.outputs[0])] = program.loss_gradient

    def array(self, name: str) -> Array:
        """The array of a value, a gradient or an alias, in the shape of its own value."""
        spec = self._specs[value_of(name)]
        root = resolve(name, self._calls.aliases)
        if root in self._outside:
            return self._outside[root].reshape(spec.shape)
        skipped = begin(name, self._calls) * np.dtype(spec.dtype).itemsize
        return self._at(self._placement.offsets[root] + skipped, spec)

    def _at(self, offset: int, spec: ArraySpec) -> Array:
        return (
            self._memory.arena[offset : offset + spec.nbytes].view(np.dtype(spec.dtype)).reshape(spec.shape)
        )

    def buffers(self, node: Node, parameters: Array, gradients: Array | None) -> Buffers:
        """Everything one node's kernel works on."""
        inputs = self._graph.input_specs(node, self._specs)
        names = self._calls.input_gradients.get(node.name, ())
        return Buffers(
            inputs=tuple(self.array(value) for value in node.inputs),
            output=self.array(node.name),
            parameters=self._layout.views(parameters, node.name),
            saved=self._saved(node, inputs),
            scratch=carved(self._memory.workspace, workspace(node, inputs, bool(self._calls.backward))),
            output_gradient=self.array(gradient(node.name)) if names else None,
            input_gradients=tuple(None if name is None else self.array(name) for name in names),
            weight_gradients=() if gradients is None else self._layout.views(gradients, node.name),
            key=int.from_bytes(blake2b(node.name.encode(), digest_size=8).digest(), "little"),
        )

    def _saved(self, node: Node, inputs: tuple[ArraySpec, ...]) -> tuple[Array, ...]:
        return tuple(
            self._at(self._placement.offsets[saved_name(node.name, number)], spec)
            for number, spec in enumerate(node.kernel.saved(*inputs))
        )
