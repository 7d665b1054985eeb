"""Kernels by name, as job files and model builders ask for them: `kernel("dense", features=10)`."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

from .activation import GELU, Dropout, ReLU, Sigmoid, Tanh
from .attention import Attention
from .batch_norm import BatchNorm
from .conv import Conv2d
from .embedding import Embedding, PositionEmbedding
from .kernel import Kernel
from .layer_norm import LayerNorm
from .linear import Dense
from .loss import MeanSquaredError, SoftmaxCrossEntropy
from .pool import AveragePool2d, GlobalAveragePool2d, MaxPool2d
from .shape import Add, Concat, Flatten, Reshape

KERNELS: dict[str, type[Kernel]] = {
    kind.name: kind
    for kind in (
        Dense,
        Conv2d,
        MaxPool2d,
        AveragePool2d,
        GlobalAveragePool2d,
        ReLU,
        GELU,
        Tanh,
        Sigmoid,
        Dropout,
        Add,
        Concat,
        Reshape,
        Flatten,
        BatchNorm,
        LayerNorm,
        Attention,
        Embedding,
        PositionEmbedding,
        SoftmaxCrossEntropy,
        MeanSquaredError,
    )
}
"""Every kernel type by its `name`."""


def kernel(name: str, **attributes: Any) -> Kernel:
    """The kernel `name` with these attributes; a ValueError names what is unknown, missing or wrong."""
    kind = KERNELS.get(name)
    if kind is None:
        raise ValueError(f"unknown kernel {name!r}; there are {', '.join(sorted(KERNELS))}")
    allowed = {field.name: field for field in fields(kind) if field.init}
    unknown = [attribute for attribute in attributes if attribute not in allowed]
    if unknown:
        takes = f"takes {', '.join(allowed)}" if allowed else "takes no attributes"
        raise ValueError(f"{name}: unknown attribute {', '.join(unknown)}; it {takes}")
    missing = [key for key, field in allowed.items() if field.default is MISSING and key not in attributes]
    if missing:
        raise ValueError(f"{name}: {', '.join(missing)} is not given")
    return kind(**attributes)
