"""Kernels by name, as job files and model builders ask for them: `kernel("dense", features=10)`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, fields
from functools import cache
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from .activation import GELU, Dropout, ReLU, Sigmoid, Softplus, Tanh
from .arithmetic import Arithmetic, ArithmeticNumber, ArithmeticWeight, Constant
from .attention import Attention
from .batch_norm import BatchNorm, InstanceNorm
from .choice import Compare, CompareNumber, Where
from .conv import Conv2d, Conv2dAdd
from .conv3d import Conv3d, ConvTranspose3d
from .conv_transpose import ConvTranspose2d
from .embedding import Embedding, PositionEmbedding
from .function import ArcTan, Cast, Cos, Erf, Exp, Log, Rounded, Sin, Sqrt
from .kernel import Kernel
from .label_loss import BinaryCrossEntropy
from .layer_norm import LayerNorm
from .linear import Dense
from .loss import Loss, SoftmaxCrossEntropy
from .matmul import MatMul
from .piecewise import ELU, Clip, LeakyReLU
from .pool import AveragePool2d, GlobalAveragePool2d, MaxPool2d
from .probability import LogSoftmax, Softmax
from .ranking import ArgMax, CumulativeSum, TopK, TopKIndices
from .rearrange import Pad, Slice, Take, Transpose
from .recurrent import GRU, LSTM, RNN
from .reduce import ReduceL2, ReduceMax, ReduceMean, ReduceSum
from .resample import Resample
from .response_norm import ResponseNorm
from .shape import Add, Concat, Flatten, Reshape
from .value_loss import AbsoluteError, Huber, MeanSquaredError

KERNELS: dict[str, type[Kernel]] = {
    kind.name: kind
    for kind in (
        Dense,
        Conv2d,
        Conv2dAdd,
        ConvTranspose2d,
        Conv3d,
        ConvTranspose3d,
        MaxPool2d,
        AveragePool2d,
        GlobalAveragePool2d,
        ReLU,
        LeakyReLU,
        ELU,
        Clip,
        GELU,
        Tanh,
        Sigmoid,
        Softplus,
        Sqrt,
        Exp,
        Log,
        Sin,
        Cos,
        ArcTan,
        Erf,
        Rounded,
        Cast,
        Softmax,
        LogSoftmax,
        Dropout,
        Add,
        Arithmetic,
        ArithmeticWeight,
        ArithmeticNumber,
        Constant,
        Compare,
        CompareNumber,
        Where,
        MatMul,
        ReduceMean,
        ReduceSum,
        ReduceMax,
        ReduceL2,
        ArgMax,
        TopK,
        TopKIndices,
        CumulativeSum,
        Concat,
        Reshape,
        Flatten,
        Transpose,
        Slice,
        Take,
        Pad,
        Resample,
        BatchNorm,
        InstanceNorm,
        LayerNorm,
        ResponseNorm,
        Attention,
        RNN,
        LSTM,
        GRU,
        Embedding,
        PositionEmbedding,
        SoftmaxCrossEntropy,
        BinaryCrossEntropy,
        MeanSquaredError,
        AbsoluteError,
        Huber,
    )
}
"""Every kernel type by its `name`."""

LOSSES: dict[str, type[Loss]] = {name: kind for name, kind in KERNELS.items() if issubclass(kind, Loss)}
"""Those that training puts behind a model."""


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
    hints = _hints(kind)
    for attribute, value in attributes.items():
        if not _fits(value, hints[attribute]):
            wanted = _words(hints[attribute])
            raise ValueError(f"{name}: {attribute} is {value!r}; give {wanted}")
    return kind(**attributes)


_hints = cache(get_type_hints)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value, as a job file may give it, is of the kind that an attribute's annotation names."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) in (Sequence, tuple):
        return isinstance(value, list | tuple) and all(_fits(each, get_args(hint)[0]) for each in value)
    if get_args(hint):  # a union
        return any(_fits(value, each) for each in get_args(hint))
    if hint is float:
        hint = int | float
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _words(hint: Any) -> str:
    """An annotation for people."""
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if get_origin(hint) in (Sequence, tuple):
        return f"a list of {_words(get_args(hint)[0]).removeprefix('a whole ')}s"
    if get_args(hint):
        return " or ".join(_words(each) for each in get_args(hint))
    words = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "a text",
        NoneType: "nothing",
    }
    return words[hint]
