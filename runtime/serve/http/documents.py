"""What the protocol and Triton's extensions tell of server, models and statistics, as JSON has it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import metadata
from typing import Any, Final

from ..request import Durations, ModelInfo, ModelStatistics, TensorInfo

EXTENSIONS: Final = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "statistics",
)


def server() -> dict[str, Any]:
    """Server metadata."""
    return {"name": "weft", "version": _version(), "extensions": EXTENSIONS}


@cache
def _version() -> str:
    return metadata.version("weft")


def model(info: ModelInfo) -> dict[str, Any]:
    """Model metadata."""
    return {
        "name": info.name,
        "versions": list(info.versions),
        "platform": info.platform,
        "inputs": _tensors(info.inputs),
        "outputs": _tensors(info.outputs),
    }


def config(info: ModelInfo) -> dict[str, Any]:
    """Triton's model configuration: what the model brings, and at least what follows from its metadata.

    There the batch, which is on axis 0 of every tensor, is not one of the dimensions.
    """
    tensors = {
        key: [
            {
                "name": tensor.name,
                "data_type": f"TYPE_{_TRITONS.get(tensor.datatype, tensor.datatype)}",
                "dims": list(tensor.shape[1:]),
            }
            for tensor in given
        ]
        for key, given in (("input", info.inputs), ("output", info.outputs))
    }
    return {
        "name": info.name,
        "platform": info.platform,
        "max_batch_size": info.max_batch,
        **tensors,
        **info.config,
    }


def index(models: Iterable[ModelInfo], *, ready: bool) -> list[dict[str, Any]]:
    """The repository's index; `ready`: of those that can be asked only."""
    return [
        {
            "name": info.name,
            "version": info.version,
            "state": "READY" if info.ready else "UNAVAILABLE",
            "reason": info.reason,
        }
        for info in models
        if info.ready or not ready
    ]


def statistics(found: Mapping[tuple[str, str], ModelStatistics]) -> dict[str, Any]:
    """Triton's statistics. What it counts as preparing inputs and outputs is part of our compute."""
    return {"model_stats": [_statistics(name, version, of) for (name, version), of in found.items()]}


def _statistics(name: str, version: str, of: ModelStatistics) -> dict[str, Any]:
    return {
        "name": name,
        "version": version,
        "last_inference": of.last_inference_ms,
        "inference_count": of.inference_count,
        "execution_count": of.execution_count,
        "inference_stats": {
            "success": _durations(of.success),
            # As in the metrics: those that were refused, too, which took no time.
            "fail": _durations(Durations(of.fail.count + sum(of.refused.values()), of.fail.ns)),
            "queue": _durations(of.queue),
            "compute_input": _durations(Durations(of.compute.count)),
            "compute_infer": _durations(of.compute),
            "compute_output": _durations(Durations(of.compute.count)),
            "cache_hit": _durations(Durations()),
            "cache_miss": _durations(Durations()),
        },
        "batch_stats": [
            {
                "batch_size": size,
                "compute_input": _durations(Durations(durations.count)),
                "compute_infer": _durations(durations),
                "compute_output": _durations(Durations(durations.count)),
            }
            for size, durations in sorted(of.batches.items())
        ],
    }


def _durations(of: Durations) -> dict[str, int]:
    return {"count": of.count, "ns": of.ns}


def _tensors(of: Sequence[TensorInfo]) -> list[dict[str, Any]]:
    return [{"name": each.name, "datatype": each.datatype, "shape": list(each.shape)} for each in of]


_TRITONS: Final = {"BYTES": "STRING"}  # the protocol's datatypes that its configuration calls otherwise
