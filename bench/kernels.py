"""One training step on one thread, Weft beside PyTorch: a dense network, a CNN, a GPT; time and memory.

    dense  784-1024-1024-1024-10, ReLU            batch 32, 128, 512     SGD with momentum
    cnn    conv 32-64-pool-128-pool, dense 256-10 batch 64 of 28x28      SGD with momentum
    gpt    4 layers, width 256, 4 heads           batch 16, context 128  AdamW

A step is forward, backward and update on the same data. Both sides start from the same weights; before the
clock starts their losses and every gradient must agree, and after the last timed step their losses again.
PyTorch runs eagerly with its fused optimizers. Peak memory is what building a side and two steps add to the
process's resident set at its highest.

    CASE_over_torch     time of a step, Weft's over PyTorch's: CASE_weft_ms over CASE_torch_ms
    dense_over_torch    the worst of the dense cases
    CASE_weft_peak_mib, CASE_torch_peak_mib
"""

from __future__ import annotations

import argparse
import ctypes
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness import Figure, amount, check, measure, ratio, timed
from weft.kernels.blas import limit_threads
from weft.kernels.device import Device
from weft.kernels.kernel import ArraySpec
from weft.kernels.optimizer import SGD, AdamW, Optimizer
from weft.runtime.graph import Graph, sequential, with_loss
from weft.runtime.train.model import gpt
from weft.runtime.train.replica import Replica
from weft.runtime.train.schema import Gpt

RATE = 1e-3


@dataclass(frozen=True, slots=True)
class Case:
    """A model at a batch size: for Weft a graph, for PyTorch a function that makes the module."""

    name: str
    graph: Graph
    torch_module: Callable[[Any], Any]
    optimizer: Optimizer
    inputs: np.ndarray
    targets: np.ndarray


class Weft:
    """A replica with its program for one batch, as one rank of a training run has it."""

    def __init__(self, case: Case) -> None:
        batch = len(case.inputs)
        self.replica = Replica(case.graph, case.optimizer, Device(), batch, seed=0)
        self.program = self.replica.training(batch)
        self.program.inputs["x"][...] = case.inputs
        self.program.inputs["target"][...] = case.targets
        self.program.loss_gradient[...] = 1 / batch
        self.steps = 0

    def gradients(self) -> None:
        """Forward and backward."""
        for call in (*self.program.forward, *self.program.backward):
            call.run()

    def step(self) -> None:
        """A training step."""
        self.gradients()
        self.steps += 1
        self.replica.update(0, self.replica.layout.size, rate=RATE, step=self.steps, scale=1.0)

    @property
    def loss(self) -> float:
        """The mean loss of the last forward pass."""
        return float(self.program.outputs[0].mean())

    def named(self, flat: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Name and view of every parameter in a flat vector."""
        for p in self.replica.layout.parameters:
            yield p.name, flat[p.start : p.stop].reshape(p.spec.shape)


class Torch:
    """The same model in PyTorch, with Weft's initial weights."""

    def __init__(self, case: Case, weft: Weft) -> None:
        import torch

        torch.set_num_threads(1)
        self.module = case.torch_module(torch)
        self.parameters = list(self.module.parameters())
        with torch.no_grad():
            ours = weft.named(weft.replica.parameters)
            for theirs, (_, values) in zip(self.parameters, ours, strict=True):
                theirs.copy_(torch.from_numpy(values))
        self.optimizer = _torch_optimizer(torch, case.optimizer, self.parameters)
        self.inputs, self.targets = torch.from_numpy(case.inputs), torch.from_numpy(case.targets)
        self.loss_of: Any = torch.nn.functional.cross_entropy
        self.loss = float("nan")

    def gradients(self) -> None:
        """Forward and backward."""
        self.optimizer.zero_grad()
        logits = self.module(self.inputs)
        loss = self.loss_of(logits.flatten(0, -2), self.targets.flatten())
        loss.backward()
        self.loss = loss.item()

    def step(self) -> None:
        """A training step."""
        self.gradients()
        self.optimizer.step()


def _torch_optimizer(torch: Any, optimizer: Optimizer, parameters: list[Any]) -> Any:
    if isinstance(optimizer, AdamW):
        # Weft spares biases and norms the decay.
        groups = [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": optimizer.weight_decay},
            {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=RATE, fused=True)
    assert isinstance(optimizer, SGD)
    return torch.optim.SGD(parameters, lr=RATE, momentum=optimizer.momentum, fused=True)


def _classified(graph: Graph) -> Graph:
    return with_loss(graph, "softmax_cross_entropy", ArraySpec((), "int64"))


def dense(batch: int) -> Case:
    """784-1024-1024-1024-10."""
    layers: list[tuple[str, dict[str, Any]]] = []
    for _ in range(3):
        layers += [("dense", {"features": 1024}), ("relu", {})]
    layers.append(("dense", {"features": 10}))

    def module(torch: Any) -> Any:
        nn = torch.nn
        widths = [784, 1024, 1024, 1024]
        hidden = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
        return nn.Sequential(*hidden, nn.Linear(1024, 10))

    random = np.random.default_rng(batch)
    return Case(
        f"dense_{batch}",
        _classified(sequential((784,), layers)),
        module,
        SGD(momentum=0.9),
        random.standard_normal((batch, 784)).astype(np.float32),
        random.integers(0, 10, batch),
    )


def cnn(batch: int) -> Case:
    """Convolutions 32-64-pool-128-pool of 3x3, then dense 256-10, on images of 28x28."""
    layers: list[tuple[str, dict[str, Any]]] = []
    for channels in (32, 64, 128):
        layers += [("conv2d", {"channels": channels, "kernel_size": 3, "padding": 1}), ("relu", {})]
        if channels > 32:
            layers.append(("max_pool2d", {"kernel_size": 2}))
    layers += [("flatten", {}), ("dense", {"features": 256}), ("relu", {}), ("dense", {"features": 10})]

    def module(torch: Any) -> Any:
        nn = torch.nn
        return nn.Sequential(
            *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(128 * 7 * 7, 256), nn.ReLU(), nn.Linear(256, 10)),
        )

    random = np.random.default_rng(batch)
    return Case(
        "cnn",
        _classified(sequential((1, 28, 28), layers)),
        module,
        SGD(momentum=0.9),
        random.standard_normal((batch, 1, 28, 28)).astype(np.float32),
        random.integers(0, 10, batch),
    )


def transformer(batch: int) -> Case:
    """The packaged GPT with 4 layers, width 256 and 4 heads over bytes, context 128."""
    shape = Gpt(layers=4, width=256, heads=4, dropout=0.0)
    graph = gpt(shape, ArraySpec((128,), "int64"))
    random = np.random.default_rng(batch)
    text = random.integers(0, 256, (batch, 129))
    return Case(
        "gpt",
        with_loss(graph, "softmax_cross_entropy", ArraySpec((128,), "int64")),
        lambda torch: _torch_gpt(torch, layers=4, width=256, heads=4, context=128),
        AdamW(),
        np.ascontiguousarray(text[:, :-1]),
        np.ascontiguousarray(text[:, 1:]),
    )


def _torch_gpt(torch: Any, *, layers: int, width: int, heads: int, context: int) -> Any:
    nn = torch.nn

    class Block(nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.qkv = nn.LayerNorm(width), nn.Linear(width, 3 * width)
            self.project = nn.Linear(width, width)
            self.norm2, self.expand = nn.LayerNorm(width), nn.Linear(width, 4 * width)
            self.contract = nn.Linear(4 * width, width)

        def forward(self, h: Any) -> Any:
            shape = (*h.shape[:2], 3, heads, width // heads)
            q, k, v = self.qkv(self.norm1(h)).view(shape).permute(2, 0, 3, 1, 4)
            a = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            h = h + self.project(a.transpose(1, 2).reshape(h.shape))
            a = nn.functional.gelu(self.expand(self.norm2(h)), approximate="tanh")
            return h + self.contract(a)

    class Transformer(nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.bytes = nn.Embedding(256, width)
            self.positions = nn.Parameter(torch.empty(context, width))
            self.blocks = nn.Sequential(*(Block() for _ in range(layers)))
            self.norm, self.logits = nn.LayerNorm(width), nn.Linear(width, 256, bias=False)

        def forward(self, tokens: Any) -> Any:
            return self.logits(self.norm(self.blocks(self.bytes(tokens) + self.positions)))

        def parameters(self, recurse: bool = True) -> Iterator[Any]:
            # In Weft's order: a module's own parameters would come before those of its parts.
            yield from self.bytes.parameters()
            yield self.positions
            for part in (self.blocks, self.norm, self.logits):
                yield from part.parameters()

    return Transformer()


CASES: dict[str, Callable[[], Case]] = {
    "dense_32": lambda: dense(32),
    "dense_128": lambda: dense(128),
    "dense_512": lambda: dense(512),
    "cnn": lambda: cnn(64),
    "gpt": lambda: transformer(16),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help="only these"
    )
    parser.add_argument(
        "--seconds", type=amount, default=5.0, metavar="N", help="time to spend on each side of a case"
    )


def main(arguments: argparse.Namespace) -> dict[str, Figure]:
    limit_threads(1)
    beside_torch = find_spec("torch") is not None
    if not beside_torch:
        print("PyTorch is not installed: Weft is measured alone")
    figures: dict[str, Figure] = {}
    for name in arguments.cases:
        figures |= _measure(CASES[name](), arguments.seconds, beside_torch=beside_torch)
    ratios = [figures[key] for key in figures if key.startswith("dense") and key.endswith("_over_torch")]
    if ratios:
        figures = {"dense_over_torch": max(ratios, key=lambda figure: figure.value), **figures}
    return figures


def _measure(case: Case, seconds: float, *, beside_torch: bool) -> dict[str, Figure]:
    weft = Weft(case)
    sides: dict[str, Weft | Torch] = {"weft": weft}
    weft.gradients()
    if beside_torch:
        sides["torch"] = torch = Torch(case, weft)
        torch.gradients()
        _check_equal(case.name, weft, torch)
    steps = {name: timed(side.step) for name, side in sides.items()}
    slowest = max(step() for _ in range(2) for step in steps.values())
    samples = measure(steps, repetitions=max(5, round(seconds / slowest)))
    figures = {f"{case.name}_{name}_ms": Figure.of(s, "ms", 1e3) for name, s in samples.items()}
    if beside_torch:
        check(
            abs(weft.loss - torch.loss) <= 2e-3 * abs(torch.loss),
            f"{case.name}: after {weft.steps} steps Weft's loss is {weft.loss}, PyTorch's {torch.loss}",
        )
        figures = {f"{case.name}_over_torch": ratio(samples["weft"], samples["torch"]), **figures}
        del torch
    del weft, sides, steps
    figures[f"{case.name}_weft_peak_mib"] = _peak(lambda: Weft(case))
    if beside_torch:
        initial = Weft(case)
        figures[f"{case.name}_torch_peak_mib"] = _peak(lambda: Torch(case, initial))
    return figures


def _check_equal(name: str, weft: Weft, torch: Torch) -> None:
    """Losses within 1e-5, every gradient within 1e-3 of its norm (float32 in another order)."""
    check(
        abs(weft.loss - torch.loss) <= 1e-5 * abs(torch.loss),
        f"{name}: Weft's loss is {weft.loss}, PyTorch's {torch.loss}",
    )
    for (parameter, ours), theirs in zip(weft.named(weft.replica.gradients), torch.parameters, strict=True):
        wanted = theirs.grad.numpy()
        apart = float(np.linalg.norm(ours - wanted) / np.linalg.norm(wanted))
        check(apart <= 1e-3, f"{name}: the gradient of {parameter} is {apart:.1e} of its norm from PyTorch's")


def _peak(build: Callable[[], Weft | Torch]) -> Figure:
    """What a side adds to the resident set at its highest, in MiB."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what the other side freed goes back to the system first
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from here
    side = build()
    side.step()
    side.step()
    return Figure.of([_resident("VmHWM") - before], "MiB")


def _resident(field: str) -> float:
    """A line of /proc/self/status in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {field}")
