"""What the tests of serving share: small models in a repository, and what they should answer."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tests.pure.graph.onnx_files import file, node
from weft.runtime.message import World

WIDTH = 4


def weights(seed: int, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((width, 3), np.float32)


def expected(samples: np.ndarray, seed: int) -> np.ndarray:
    """What the model of this seed answers."""
    return np.maximum(samples @ weights(seed, samples.shape[1]), 0)


def close_to(seed: int, given: np.ndarray, answer: np.ndarray) -> None:
    """Fail unless `answer` is the model's."""
    np.testing.assert_allclose(answer, expected(given, seed), rtol=1e-5, atol=1e-6)


def dense(seed: int, width: int = WIDTH) -> onnx.ModelProto:
    """relu(pixels @ weights) -> scores"""
    return file(
        [node("MatMul", "pixels w", "hidden"), node("Relu", "hidden", "scores")],
        {"pixels": ("batch", width)},
        ["scores"],
        {"w": weights(seed, width)},
    )


def bfloat16() -> onnx.ModelProto:
    """What nobody here can compute."""
    kind = onnx.TensorProto.BFLOAT16
    tensors = [onnx.helper.make_tensor_value_info(name, kind, ["batch", WIDTH]) for name in ("x", "y")]
    return onnx.helper.make_model(
        onnx.helper.make_graph([node("Identity", "x", "y")], "g", *[[t] for t in tensors])
    )


def put(root: Path, name: str, version: int, model: onnx.ModelProto | bytes) -> None:
    """Store a model in a repository."""
    folder = root / name / str(version)
    folder.mkdir(parents=True, exist_ok=True)
    data = model if isinstance(model, bytes) else model.SerializeToString()
    (folder / "model.onnx").write_bytes(data)


def samples(count: int, seed: int = 0, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, width), np.float32)


async def shared(world: World, path: Path, make: Callable[[Path], object]) -> Path:
    """A folder that rank 0 fills and all ranks see."""
    told = np.zeros(1024, np.uint8)
    if world.rank == 0:
        path.mkdir(parents=True, exist_ok=True)
        make(path)
        text = str(path).encode()
        told[: len(text)] = np.frombuffer(text, np.uint8)
    await world.broadcast(told)
    return Path(told.tobytes().rstrip(b"\0").decode())


Main = Callable[[World], Coroutine[Any, Any, None]]
