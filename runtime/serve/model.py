"""A model on one rank: the weights of its node, and a program for every batch size.

All programs share one arena, which fits the largest batch; a program itself is only views. They are made when
the model is loaded: made by the first batch of its size, one of a 70-layer network would be late by 6 ms.

A batch comes in pieces, one or more arrays an input, as the requests brought them: putting the samples
together is the one copy into the program's input, and it is the lane that makes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...kernels.device import Device
from ..graph import Layout, Memory, Program
from .source import Source

Array = NDArray[Any]


class Model:
    """Ready to compute up to `max_batch` samples; `parameters` is the flat vector of weights on the device.

    On the lane's thread alone.
    """

    def __init__(self, source: Source, device: Device, parameters: Any, max_batch: int) -> None:
        self.source = source
        self._device = device
        self._parameters = parameters
        self._layout = Layout.of(source.graph)
        self._memory = Memory(source.graph, self._layout, device, max_batch, training=False)
        self._staging = {name: device.staging(array) for name, array in self._memory.inputs.items()}
        self._places = [source.graph.outputs.index(own) for own in source.outputs.values()]
        self._programs: dict[int, Program] = {}

    def program(self, count: int) -> Program:
        """The program for `count` samples; made once."""
        if count not in self._programs:
            self._programs[count] = Program(
                self.source.graph, self._layout, self._memory, count, self._parameters
            )
        return self._programs[count]

    def warm_ups(self, count: int) -> list[Callable[[], object]]:
        """Calls that compile the kernels which a batch of `count` needs, one each, in their order."""
        return [step.run for step in self.program(count).forward]

    def run(self, pieces: Sequence[Sequence[Array]], count: int) -> list[Array]:
        """The outputs, new arrays in the order of the source's names, for `count` samples.

        `pieces` has for each input, in the order of the source's names, arrays that together hold them.
        """
        program = self.program(count)
        for name, parts in zip(self.source.inputs.values(), pieces, strict=True):
            staged, at = self._staging[name], 0
            for part in parts:
                self.put(part, staged[at : at + len(part)])
                at += len(part)
            self._device.copy_in(staged[:count], program.inputs[name])
        self.compute(count)
        # Copies: the arena is the next batch's as soon as this returns.
        outputs = [np.array(self._device.to_host(program.outputs[place])) for place in self._places]
        return [*outputs, *self.source.constants.values()]

    def compute(self, count: int) -> None:
        """Run the program for `count` samples over what its inputs hold."""
        for step in self.program(count).forward:
            step.run()

    def put(self, part: Array, into: Array) -> None:
        """Samples as clients send them, into the graph's input."""
        if (affine := self.source.affine) is None:
            into[...] = part
        elif affine.mean.dtype == into.dtype:
            np.subtract(part, affine.mean, out=into)
            np.multiply(into, affine.scale, out=into)
        else:  # float64: rounded behind both, as in training
            np.multiply(part - affine.mean, affine.scale, out=into, casting="unsafe")
