"""The checks that kernels pass: finite differences, the oracle, PyTorch; and for some, blocks of rows.

check_gradients(kernel, *inputs)   analytic gradients in float64 against central differences
check_oracle(kernel, *inputs)      the CPU path against the array-module body, float32 and float64
check_against(kernel, reference, *inputs)   forward and gradients against PyTorch's, float32
check_rows(kernel, cuts, *inputs)  blocks of output neurons in any order against all at once
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any
from unittest import mock

import numpy as np
import pytest

from weft.kernels.compiled import FastPath
from weft.kernels.kernel import ArraySpec, Buffers, ByRows, Kernel, Mode

NAN = float("nan")


def spec(a: np.ndarray) -> ArraySpec:
    return ArraySpec(a.shape, str(a.dtype))


def normal(*shape: int, dtype: str = "float64", seed: int = 0) -> np.ndarray:
    """Standard normal numbers, the same on every call."""
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(dtype)


def distinct(*shape: int, dtype: str = "float64", seed: int = 0) -> np.ndarray:
    """Numbers at least 0.01 apart from each other and from 0, so that no maximum or kink is near a tie."""
    size = int(np.prod(shape))
    values = (np.arange(size) - size // 2 + 0.5) * 0.02
    return np.random.default_rng(seed).permutation(values).reshape(shape).astype(dtype)


def _filled(each: ArraySpec) -> np.ndarray:
    """An array as dirty as a reused buffer: a kernel that does not overwrite it shows."""
    return np.full(each.shape, NAN if each.dtype.startswith("f") else 77, each.dtype)


def has_gradient(kernel: Kernel, index: int) -> bool:
    return kernel.differentiable is None or index in kernel.differentiable


def allocate(kernel: Kernel, *inputs: np.ndarray, seed: int = 0, key: int = 0) -> Buffers:
    """Buffers for one micro-batch: dirty where a kernel writes, random where it reads."""
    specs = [spec(each) for each in inputs]
    output = kernel.output(*specs)
    float_dtype = next((each.dtype for each in specs if each.dtype.startswith("f")), "float64")
    generator = np.random.default_rng(seed)
    parameters = tuple(
        (generator.standard_normal(each.shape) * 0.5 + (each.initial == "ones")).astype(float_dtype)
        for each in kernel.parameters(*specs)
    )
    for each, parameter in zip(kernel.parameters(*specs), parameters, strict=True):
        if each.role == "statistic":
            np.abs(parameter, out=parameter)  # a variance is positive
    output_gradient = generator.standard_normal(output.shape).astype(output.dtype)
    if kernel.view:
        array, input_gradients = inputs[0].reshape(output.shape), (output_gradient.reshape(inputs[0].shape),)
    elif kernel.passes_gradient:
        array, input_gradients = _filled(output), (output_gradient,) * len(inputs)
    else:
        array = _filled(output)
        input_gradients = tuple(
            _filled(each) if has_gradient(kernel, index) else None for index, each in enumerate(specs)
        )
    return Buffers(
        inputs=inputs,
        output=array,
        parameters=parameters,
        saved=tuple(map(_filled, kernel.saved(*specs))),
        scratch=tuple(map(_filled, (*kernel.scratch(*specs), *kernel.gradient_scratch(*specs)))),
        output_gradient=output_gradient,
        input_gradients=input_gradients,
        weight_gradients=tuple(map(np.full_like, parameters, [NAN] * len(parameters))),
        key=key,
    )


def run(kernel: Kernel, b: Buffers, mode: Mode | None = None) -> Buffers:
    """Forward, weight gradient, input gradient, in the order of a training step."""
    mode = mode or Mode(seed=3)
    kernel.forward(b, mode)
    kernel.weight_gradient(b, mode)
    if not kernel.view and not kernel.passes_gradient:
        kernel.input_gradient(b, mode)
    return b


@contextmanager
def oracle_only() -> Iterator[None]:
    """Every fast path takes its array-module body, as it does for CuPy arrays."""
    with mock.patch.object(FastPath, "__call__", lambda self, *a, **k: self.oracle(*a, **k)):
        yield


def check_gradients(
    kernel: Kernel,
    *inputs: np.ndarray,
    mode: Mode | None = None,
    step: float = 1e-5,
    tolerance: float = 1e-6,
    samples: int = 40,
) -> None:
    """Gradients of sum(output * output_gradient) against central differences, at `samples` elements each.

    Inputs are float64 (or integer, for tokens and targets). Parameters of role "statistic" have no gradient.
    """
    mode = mode or Mode(seed=3)
    b = run(kernel, allocate(kernel, *inputs), mode)
    specs = kernel.parameters(*map(spec, inputs))
    pairs: list[tuple[str, np.ndarray, Any]] = [
        (f"input {index}", b.inputs[index], b.input_gradients[index])
        for index in range(len(inputs))
        if has_gradient(kernel, index)
    ]
    pairs += [
        (each.name, parameter, gradient)
        for each, parameter, gradient in zip(specs, b.parameters, b.weight_gradients, strict=True)
        if each.role == "weight"
    ]
    generator = np.random.default_rng(1)

    def objective() -> float:
        kernel.forward(b, mode)
        return float(np.sum(b.output * b.output_gradient))

    for name, values, gradient in pairs:
        gradient = gradient.copy()
        for flat_index in generator.permutation(values.size)[:samples]:
            index = np.unravel_index(flat_index, values.shape)
            kept = values[index]
            values[index] = kept + step
            above = objective()
            values[index] = kept - step
            below = objective()
            values[index] = kept
            difference = (above - below) / (2 * step)
            assert gradient[index] == pytest.approx(difference, rel=tolerance, abs=tolerance), (
                f"{kernel}: gradient of {name} at {tuple(map(int, index))}"
            )


def check_oracle(
    kernel: Kernel,
    *inputs: np.ndarray,
    mode: Mode | None = None,
    tolerance: float = 2e-5,
    dtypes: Sequence[str] = ("float32",),
) -> None:
    """Everything a kernel writes, CPU path against array-module body, within `tolerance` of the largest."""
    for dtype in dtypes:
        cast = [each.astype(dtype) if each.dtype.kind == "f" else each for each in inputs]
        fast = run(kernel, allocate(kernel, *cast), mode)
        with oracle_only():
            slow = run(kernel, allocate(kernel, *cast), mode)
        for name in ("output", "saved", "input_gradients", "weight_gradients"):
            close(name, getattr(fast, name), getattr(slow, name), tolerance)


def check_against(
    kernel: Kernel,
    reference: Callable[..., Any],
    *inputs: np.ndarray,
    mode: Mode | None = None,
    tolerance: float = 1e-4,
) -> None:
    """Forward and gradients in float32 against `reference(*inputs, *parameters)`, a PyTorch function."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)  # with two, what its second thread had computed of a tanh was once off by 9e-5
    cast = [each.astype("float32") if each.dtype.kind == "f" else each for each in inputs]
    b = run(kernel, allocate(kernel, *cast), mode)
    tensors = [torch.from_numpy(each.copy()) for each in (*b.inputs, *b.parameters)]
    leaves = [each.requires_grad_(each.is_floating_point()) for each in tensors]
    output = reference(*leaves)
    output.backward(torch.from_numpy(b.output_gradient))
    close("output", b.output, output.detach().numpy(), tolerance)
    for index, (gradient, leaf) in enumerate(
        zip((*b.input_gradients, *b.weight_gradients), leaves, strict=True)
    ):
        if gradient is not None and leaf.grad is not None:
            close(f"gradient {index}", gradient, leaf.grad.numpy(), tolerance)


def check_rows(
    kernel: ByRows, cuts: Sequence[int], *inputs: np.ndarray, tolerances: tuple[float, float] = (0, 0)
) -> None:
    """Forward and weight gradients by blocks of output neurons, cut at `cuts`, against all at once.

    `tolerances` are for float32 and float64; (0, 0) means equal to the bit. Parameters and output gradient
    are whole numbers: where the inputs are, too, all sums are exact in any order.
    """

    def dirty() -> Buffers:
        b = allocate(kernel, *cast)
        for each in (*b.parameters, b.output_gradient):
            np.rint(4 * each, out=each)
        return b

    for dtype, tolerance in zip(("float32", "float64"), tolerances, strict=True):
        cast = [each.astype(dtype) for each in inputs]
        whole = run(kernel, dirty())
        (split,) = (each for each in kernel.split(*map(spec, cast)) if each.weight_axis == 0)
        edges = [0, *cuts, split.extent]
        blocks = [slice(start, stop) for start, stop in pairwise(edges)]
        for order in (blocks, blocks[::-1], blocks[1:] + blocks[:1]):
            b = dirty()
            first, *others = b.weight_gradients
            output = np.moveaxis(b.output, split.axis, 0)
            done = np.zeros(split.extent, bool)
            for rows in order:
                kernel.forward(b, Mode(), rows)
                kernel.weight_gradient(b, Mode(), rows)
                done[rows] = True
                assert np.isnan(first[~done]).all(), f"{rows} of the weight gradient reaches further"
                assert np.isnan(output[~done]).all(), f"{rows} of the output reaches further"
                for other in others:
                    assert np.isnan(other).all() != done[-1], "others than the weight come with the last rows"
            close(f"output, {order}", b.output, whole.output, tolerance)
            close(f"weight gradients, {order}", b.weight_gradients, whole.weight_gradients, tolerance)


def close(name: str, got: Any, wanted: Any, tolerance: float) -> None:
    """Arrays (or tuples of arrays) equal within `tolerance` of the largest wanted value; integers exactly."""
    if isinstance(got, tuple):
        for index, (one, other) in enumerate(zip(got, wanted, strict=True)):
            close(f"{name} {index}", one, other, tolerance)
    elif got is not None:
        scale = max(1.0, float(np.max(np.abs(wanted), initial=0)))
        allowed = tolerance * scale if got.dtype.kind == "f" else 0
        np.testing.assert_allclose(got, wanted, rtol=0, atol=allowed, err_msg=name)
