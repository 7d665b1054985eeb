"""What every kernel is: shapes in, shapes out, and three pieces of arithmetic on given buffers.

    forward          inputs, parameters        -> output, saved
    input_gradient   output_gradient, ...      -> input_gradients
    weight_gradient  output_gradient, ...      -> weight_gradients

The three are apart because the runtime schedules them apart: a weight gradient leaves for the wire while the
input gradients of lower layers are still being computed. Kernels that are ByRows go further: blocks of output
neurons one by one, so that the first leaves before the weight gradient is whole.

A kernel object holds only its attributes (the metadata a scheduler reads); it owns no array, so one object
serves any number of micro-batches and threads. Kernels always overwrite the arrays they are to write; who
wants a sum adds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Literal

import numpy as np

Array = Any
"""A NumPy or CuPy array. The two share no base class; kernels take the module from the argument."""


Region = tuple[slice, ...]
"""A part of an array in every sample: a slice(start, stop) for each axis behind the batch."""


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """Shape and dtype of an array; for activations the first axis is the micro-batch."""

    shape: tuple[int, ...]
    dtype: str = "float32"

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def region(self) -> Region:
        """All of it."""
        return tuple(slice(0, extent) for extent in self.shape[1:])

    @property
    def nbytes(self) -> int:
        """Bytes of a contiguous array of this shape and dtype."""
        return self.size * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class ParameterSpec:
    """A parameter of a kernel: its name within the node, shape and how it starts.

    `role` "weight" is trained by the optimizer. `role` "statistic" (batch norm's running mean and variance)
    is not: weight_gradient writes the micro-batch's own statistic, the exchange averages those over the batch
    like gradients, and the running value moves towards the average by `momentum`.
    """

    name: str
    shape: tuple[int, ...]
    initial: Literal["zeros", "ones", "normal", "uniform"]
    bound: float = 0.0  # standard deviation for "normal", half-width for "uniform"
    role: Literal["weight", "statistic"] = "weight"
    decay: bool = True  # whether weight decay applies (not to biases and norms)
    momentum: float = 0.1  # of a statistic only

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Cost:
    """Work of one call: floating-point operations and bytes read and written, by phase."""

    forward_flops: float
    input_gradient_flops: float
    weight_gradient_flops: float
    bytes: float  # moved by one forward call


@dataclass(frozen=True, slots=True)
class Split:
    """One way to divide a kernel's output neurons: along `axis` of the output, in multiples of `granule`.

    `weight_axis` is the axis of every parameter that divides with it, or None where all parameters are
    needed whole (rows of an image share the filters). `granule` is a size from which a block is worth its
    call; only the last block need not be a multiple of it.
    """

    axis: int
    extent: int
    granule: int = 1
    weight_axis: int | None = None


@dataclass(slots=True)
class Buffers:
    """The arrays of one node for one micro-batch; planned once, reused every step.

    `input_gradients` holds None where no gradient is wanted. `weight_gradients` has the shapes of
    `parameters`. `key` tells nodes apart in counter-based random numbers.
    """

    inputs: tuple[Array, ...]
    output: Array
    parameters: tuple[Array, ...] = ()
    saved: tuple[Array, ...] = ()
    scratch: tuple[Array, ...] = ()
    output_gradient: Array = None
    input_gradients: tuple[Array | None, ...] = ()
    weight_gradients: tuple[Array, ...] = ()
    key: int = 0


@dataclass(slots=True)
class Mode:
    """How a call runs: training or inference, the seed that step and micro-batch give it, and its share.

    `share` is the micro-batch's part of the global batch (by samples): what statistics are weighted by.
    """

    training: bool = True
    seed: int = 0
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Kernel(ABC):
    """Base of all kernels. Subclasses are frozen dataclasses whose fields are the kernel's attributes."""

    name: ClassVar[str]
    """Its name in job files and in the registry."""

    arity: ClassVar[int | None] = 1
    """Number of inputs; None for any number from one up."""

    view: ClassVar[bool] = False
    """True where the output is the first input's memory under another shape: no arithmetic, no buffer."""

    passes_gradient: ClassVar[bool] = False
    """True where each input's gradient *is* the output's gradient: no arithmetic, no buffer (add)."""

    differentiable: ClassVar[tuple[int, ...] | None] = None
    """Which inputs have gradients; None for all (tokens and targets have none)."""

    @abstractmethod
    def output(self, *inputs: ArraySpec) -> ArraySpec:
        """Shape and dtype of the output; raises ValueError naming the shapes when they do not fit."""

    def parameters(self, *inputs: ArraySpec) -> tuple[ParameterSpec, ...]:
        """Parameters for inputs of these shapes."""
        return ()

    def saved(self, *inputs: ArraySpec) -> tuple[ArraySpec, ...]:
        """Arrays that forward leaves for the gradients (masks, argmax, statistics)."""
        return ()

    def scratch(self, *inputs: ArraySpec) -> tuple[ArraySpec, ...]:
        """Workspace without meaning between calls; nodes that never run at once share it."""
        return ()

    def gradient_scratch(self, *inputs: ArraySpec) -> tuple[ArraySpec, ...]:
        """Workspace of the gradients alone, which follows in `Buffers.scratch`; inference has none."""
        return ()

    def split(self, *inputs: ArraySpec) -> tuple[Split, ...]:
        """Ways to divide the output neurons; empty where there is none."""
        return ()

    def needs(self, region: Region, *inputs: ArraySpec) -> tuple[Region, ...]:
        """The part of each input that `region` of the output follows from; an empty slice: nothing of it."""
        return tuple(each.region for each in inputs)

    @abstractmethod
    def cost(self, *inputs: ArraySpec) -> Cost:
        """Operations and bytes of one call with inputs of these shapes."""

    @abstractmethod
    def forward(self, b: Buffers, mode: Mode) -> None:
        """Write `b.output` (and `b.saved`) from `b.inputs` and `b.parameters`."""

    def forward_region(self, b: Buffers, mode: Mode, region: Region) -> None:
        """For inference: write `region` of `b.output`, nothing else, and read of the inputs what it `needs`.

        Axes are cut where `split` names them; ValueError where a kernel cannot. Calls for several regions may
        run at once on the same input and output, where each has `saved` and `scratch` of its own.
        """
        own = ArraySpec(b.output.shape).region
        if region != own:
            raise ValueError(f"{self.name}: {region} of an output {own}; it is computed only whole")
        self.forward(b, mode)

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        """Write every wanted `b.input_gradients` from `b.output_gradient`."""

    def weight_gradient(self, b: Buffers, mode: Mode) -> None:
        """Write `b.weight_gradients`."""


@dataclass(frozen=True, slots=True)
class ByRows(Kernel):
    """A kernel that also computes blocks of its output neurons, which are rows of its first parameter.

    Its Split whose weight_axis is 0 says how many rows there are and how many at a time are efficient. Blocks
    come in any order; each may be computed as soon as its own rows of the parameters are there.
    """

    input_axis: ClassVar[int | None]
    """The axis of the input that the second axis of the rows is multiplied with and summed over: where they
    are zero the output is. None for kernels that do something else with rows."""

    @abstractmethod
    def forward(self, b: Buffers, mode: Mode, rows: slice = slice(None)) -> None:
        """Write output neurons `rows` of `b.output`, all of them by default."""

    @abstractmethod
    def weight_gradient(self, b: Buffers, mode: Mode, rows: slice = slice(None)) -> None:
        """Write rows `rows` of the first of `b.weight_gradients`; with the last rows all the others, whole.

        In the flat gradient the others (the bias) follow the last rows: both leave together.
        """


def need_floats(name: str, *inputs: ArraySpec, halves: bool = False) -> None:
    """ValueError where an input of kernel `name` holds no floats: its output would be cut to whole numbers.

    Floats of 16 bits are for `halves`, kernels without compiled loops: numba has no such type.
    """
    for x in inputs:
        if np.dtype(x.dtype).kind != "f" or (x.dtype == "float16" and not halves):
            raise ValueError(
                f"{name}: an input is {x.shape} {x.dtype}; it computes with float32: look tokens up with an "
                'embedding, or put a cast to "float32" before it'
            )


def sample_axis(name: str, axis: int, rank: int) -> int:
    """`axis` of an input of `rank` axes, from the front; ValueError where there is none, or the batch."""
    found = axis + rank if axis < 0 else axis
    if not 0 < found < rank:
        raise ValueError(f"{name}: axis is {axis}; an input of {rank} axes has 1 to {rank - 1}")
    return found


def with_last(rows: slice, extent: int) -> bool:
    """Whether the last of `extent` rows is among `rows`."""
    return rows.indices(extent)[1] == extent
