"""A model on one rank: flat weights, gradients and optimizer state, and the programs that work on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...kernels.device import Device, Event
from ...kernels.kernel import Array, ArraySpec
from ...kernels.optimizer import Optimizer, accumulate, move_statistic, squared_norm
from ...kernels.reduction import add_up, reduce_and_update
from ..graph import Graph, Layout, Memory, Program, initialise
from ..graph.backward import differentiate
from ..graph.program import Allocator
from .data import Samples


@dataclass(frozen=True, slots=True)
class Flats:
    """The flat vectors of a model: of this rank alone, or its gradients and the node's one copy of the rest.

    `parts` are the gradients of all ranks that share `parameters`; `writes` tells whether this rank is the
    one that fills them with first values. `arrays` makes, by rank of the node, arrays that all see; `rank` is
    this one.
    """

    parameters: Array
    gradients: Array
    states: tuple[Array, ...]
    parts: Sequence[Array] = ()
    writes: bool = True
    rank: int = 0
    arrays: Callable[[int], Allocator] | None = None

    @classmethod
    def of(cls, device: Device, size: int, slots: int) -> Flats:
        """A rank's own."""
        zeros = [device.zeros((size,), "float32") for _ in range(2 + slots)]
        return cls(zeros[0], zeros[1], tuple(zeros[2:]))


class Replica:
    """Everything of a model that has memory; `micro_batch` is the most samples it takes at once.

    `travelling` is the gradient as the exchange sees it: on a CPU the flat gradient itself, for a GPU its
    copy in page-locked host memory (MPI libraries that take device pointers are rare; see device.py).
    """

    def __init__(
        self,
        graph: Graph,
        optimizer: Optimizer,
        device: Device,
        micro_batch: int,
        seed: int,
        *,
        flats: Flats | None = None,
        movable: frozenset[str] = frozenset(),
    ) -> None:
        self.graph = graph
        self.layout = Layout.of(graph)
        self.calls = differentiate(graph).backward
        self.device = device
        self.optimizer = optimizer
        self._flats = flats or Flats.of(device, self.layout.size, optimizer.slots)
        self.parameters, self.gradients = self._flats.parameters, self._flats.gradients
        self.states = self._flats.states
        if self._flats.writes:
            self.parameters[...] = device.to_device(initialise(self.layout, seed))
        self._arrays = self._flats.arrays
        shared = None if self._arrays is None else self._arrays(self._flats.rank)
        self.memory = Memory(
            graph, self.layout, device, micro_batch, training=True, movable=movable, shared=shared
        )
        self.travelling: NDArray[np.float32] = device.travelling(self.gradients)
        self._staging = {name: device.staging(array) for name, array in self.memory.inputs.items()}
        self._loaded: Event | None = None  # behind the last copy out of `_staging`
        self._training: dict[int, Program] = {}
        self._inference: dict[int, Program] = {}
        self._others: dict[tuple[int, int], Program] = {}

    def training(self, batch: int) -> Program:
        """The program that computes gradients for `batch` samples; made once."""
        if batch not in self._training:
            self._training[batch] = Program(
                self.graph, self.layout, self.memory, batch, self.parameters, self.gradients
            )
        return self._training[batch]

    def other(self, rank: int, batch: int) -> Program:
        """The program that `training` gives the node's rank `rank`, on its arrays and gradients; made once.

        Its kernels have the workspace of this replica: one that runs here is in nobody's way.
        """
        if (rank, batch) not in self._others:
            assert self._arrays is not None
            memory, gradients = self.memory.seen(self._arrays(rank)), self._flats.parts[rank]
            self._others[rank, batch] = Program(
                self.graph, self.layout, memory, batch, self.parameters, gradients
            )
        return self._others[rank, batch]

    def inference(self, batch: int) -> Program:
        """The program that computes loss and prediction for `batch` samples; made once."""
        if batch not in self._inference:
            self._inference[batch] = Program(self.graph, self.layout, self.memory, batch, self.parameters)
        return self._inference[batch]

    def load(self, program: Program, samples: Samples, indices: NDArray[np.int64]) -> None:
        """Put samples into the program's inputs."""
        count = len(indices)
        if self._loaded is not None:
            self._loaded.wait()
        samples.gather(indices, self._staging["x"][:count], self._staging["target"][:count])
        for name, staged in self._staging.items():
            self.device.copy_in(staged[:count], program.inputs[name])
        self._loaded = self.device.record()

    def fetch(self, start: int, stop: int) -> None:
        """Bring a slice of the gradient to where the exchange finds it."""
        self.device.copy_out(self.gradients[start:stop], self.travelling[start:stop])

    def squared_norm(self, start: int, stop: int) -> float:
        """Squared norm of the summed gradient in a slice; statistics do not count."""
        return sum(
            squared_norm(self.travelling[run.start : run.stop])
            for run in self.layout.runs(start, stop)
            if run.role == "weight"
        )

    def gather(self, start: int, stop: int) -> None:
        """Sum a slice of the gradients of all ranks of the node into this rank's own."""
        add_up(self.gradients[start:stop], tuple(part[start:stop] for part in self._flats.parts))

    def update(
        self, start: int, stop: int, *, rate: float, step: int, scale: float, gather: bool = False
    ) -> None:
        """Apply the summed gradient of a slice to its weights; `step` counts from 1.

        With `gather` the node's gradients are summed on the way, while they are in cache.
        """
        if not gather:
            self.device.copy_in(self.travelling[start:stop], self.gradients[start:stop])
        for run in self.layout.runs(start, stop):
            own = slice(run.start, run.stop)
            if run.role == "statistic":
                if gather:
                    self.gather(run.start, run.stop)
                move_statistic(self.parameters[own], self.gradients[own], run.momentum)
                continue
            parameters, gradients = self.parameters[own], self.gradients[own]
            states = tuple(state[own] for state in self.states)
            if gather:
                parts = tuple(part[own] for part in self._flats.parts)
                reduce_and_update(
                    self.optimizer, parameters, parts, states,
                    rate=rate, step=step, scale=scale, decay=run.decay,
                )  # fmt: skip
            else:
                self.optimizer.update(
                    parameters, gradients, states, rate=rate, step=step, scale=scale, decay=run.decay
                )

    def warm_up(self, batch: int) -> None:
        """Compile every kernel a step needs, without changing a weight."""
        program = self.training(batch)
        for step in (
            *self.inference(batch).forward,
            *program.forward,
            *program.backward,
            *program.backward_more,
        ):
            step.run()
        nothing = slice(0, 0)
        empty = tuple(state[nothing] for state in self.states)
        self.optimizer.update(self.parameters[nothing], self.gradients[nothing], empty, rate=0.0, step=1)
        accumulate(self.parameters[nothing], self.gradients[nothing])
        if self._flats.parts:
            self.gather(0, 0)
            parts = tuple(part[nothing] for part in self._flats.parts)
            reduce_and_update(self.optimizer, self.parameters[nothing], parts, empty, rate=0.0, step=1)
        squared_norm(self.travelling[nothing])
        self.gradients[...] = 0

    @property
    def nbytes(self) -> int:
        """Bytes held on the device."""
        flat = (self.parameters, self.gradients, *self.states)
        return self.memory.nbytes + sum(int(array.nbytes) for array in flat)

    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """Copies, on the host, of every weight and its optimizer state, by name."""
        found = {}
        for title, flat in self._titled().items():
            host = self.device.to_host(flat)
            for p in self.layout.parameters:
                found[f"{title}/{p.name}"] = host[p.start : p.stop].reshape(p.spec.shape).copy()
        return found

    def specs(self) -> dict[str, ArraySpec]:
        """Names, shapes and dtypes of `tensors`."""
        return {
            f"{title}/{p.name}": ArraySpec(p.spec.shape)
            for title in self._titled()
            for p in self.layout.parameters
        }

    def restore(self, tensors: Mapping[str, NDArray[np.float32]]) -> None:
        """Take over what `tensors` gave; names and shapes must be those of `specs`."""
        if not self._flats.writes:
            return
        for title, flat in self._titled().items():
            host = np.zeros(self.layout.size, np.float32)
            for p in self.layout.parameters:
                host[p.start : p.stop] = tensors[f"{title}/{p.name}"].reshape(-1)
            flat[...] = self.device.to_device(host)

    def begin(self, weights: Mapping[str, NDArray[np.float32]]) -> None:
        """Take over first weights, by the layout's names; the others stay as they were drawn."""
        if not self._flats.writes:
            return
        host = np.array(self.device.to_host(self.parameters))
        for p in self.layout.parameters:
            if p.name in weights:
                host[p.start : p.stop] = weights[p.name].reshape(-1)
        self.parameters[...] = self.device.to_device(host)

    def _titled(self) -> dict[str, Array]:
        return {
            "weight": self.parameters,
            **{f"optimizer{number}": state for number, state in enumerate(self.states)},
        }
