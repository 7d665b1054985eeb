"""From a pair of arrays to `Data`: checked, split, normalised, classes counted.

All sources but text end here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from ....kernels.loss import Predicts
from ...errors import DataError
from .. import order
from .samples import Affine, Data, Rows, split, wide
from .section import Normalise
from .stored import BLOCK_BYTES, AnyArray, Array, Joined, blocks, located, number_at, reshaped

FLOAT32_MAX = np.finfo(np.float32).max

CLASSES_ARE = 'classes are 0, 1, …; for numbers use [model] loss = "mean_squared_error"'

BOUNDS = {
    "labels": (
        0,
        1,
        "is no label; labels are 0 or 1, or probabilities between. Of -1 and 1 store targets > 0; for numbers"
        ' of classes use [model] loss = "softmax_cross_entropy"',
    ),
    "values": (-FLOAT32_MAX, FLOAT32_MAX, "is no float32; clean it"),
}
"""The least and the greatest target that there may be, and what to say of others."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Inputs and targets, and what errors call each of them."""

    inputs: Array
    targets: Array
    inputs_name: str
    targets_name: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What the job says about any pair of arrays."""

    seed: int
    validation: float
    test: float
    predicts: Predicts
    normalise: Normalise | Affine = "none"
    normalise_targets: bool = False
    shape: Sequence[int] | None = None
    labels: tuple[str, ...] = ()


def joined(pairs: Sequence[Pair], inputs_name: str, targets_name: str) -> Pair:
    """One pair of all of them, in this order; the names are those of all together.

    DataError, naming the file, where samples of one differ from those of the first.
    """
    if len(pairs) == 1:
        return pairs[0]
    inputs = one_array([pair.inputs for pair in pairs], [pair.inputs_name for pair in pairs], "inputs")
    targets = one_array([pair.targets for pair in pairs], [pair.targets_name for pair in pairs], "targets")
    for pair in pairs:
        _require_one_target_each(pair)
    return Pair(inputs, targets, inputs_name, targets_name)


def one_array(arrays: Sequence[Array], names: Sequence[str], what: str) -> Array:
    """Arrays of several files one behind the other; `what` is what errors call that of a sample.

    DataError, naming the file, where samples of one differ from those of the first.
    """
    first = arrays[0]
    if len(arrays) == 1:
        return first
    for array, name in zip(arrays, names, strict=True):
        require_numbers(array.dtype, name)
        if array.ndim == 0:
            raise DataError(f"{name}: holds no samples; its shape is ()")
        if (first.shape[1:], first.dtype) != (array.shape[1:], array.dtype):
            raise DataError(
                f"{name}: a sample's {what} are {array.dtype} of shape {array.shape[1:]}, but "
                f"{first.dtype} of {first.shape[1:]} in {names[0]}; store all parts alike, or leave "
                "this one out of what the pattern matches"
            )
    return Joined(arrays, names)


def require_numbers(dtype: np.dtype[Any], name: str) -> None:
    """DataError where an array holds something else, with what to do about it."""
    if dtype.kind in "biuf":
        return
    remedies = {
        "c": "; store real and imaginary parts as two channels or features",
        "V": "; store its fields as one array of numbers",
        "M": "; store times as numbers, such as seconds",
        "m": "; store times as numbers, such as seconds",
    }
    raise DataError(f"{name}: holds {dtype} where numbers are needed{remedies.get(dtype.kind, '')}")


def _require_one_target_each(pair: Pair) -> None:
    if len(pair.inputs) != len(pair.targets):
        raise DataError(
            f"{pair.inputs_name} holds {len(pair.inputs)} samples but {pair.targets_name} "
            f"{len(pair.targets)}; the first axis of both counts the samples"
        )


def as_data(pair: Pair, own_test: Pair | None, plan: Plan) -> Data:
    """Split `pair` by seed; `own_test`, where the source has one, is the test set whole."""
    pair = _checked(pair, plan)
    classes = _classes(pair) if plan.predicts == "classes" else None
    fraction = 0.0 if own_test else plan.test
    parts = split(len(pair.inputs), plan.seed, plan.validation, fraction, pair.inputs_name)
    affine, outcome = _affine(pair, parts[0], plan.normalise), Affine()
    if plan.normalise_targets:
        outcome = _standard(pair.targets, pair.targets_name, parts[0])

    def sample(pair: Pair, rows: order.Indices) -> Rows:
        return Rows(pair.inputs, pair.targets, rows, classes, affine, pair.inputs_name, outcome)

    if own_test is None:
        train, validation, test = (sample(pair, rows) for rows in parts)
        return Data(train, validation, test, affine, plan.labels, outcome)
    own_test = _checked(own_test, plan)
    if classes is not None:
        classes = max(classes, _classes(own_test))
    for what, ours, theirs in (
        ("inputs", pair.inputs, own_test.inputs),
        ("targets", pair.targets, own_test.targets),
    ):
        if ours.shape[1:] != theirs.shape[1:]:
            raise DataError(
                f"{getattr(own_test, what + '_name')}: a sample's {what} have shape {theirs.shape[1:]}, "
                f"but {ours.shape[1:]} in {getattr(pair, what + '_name')}; they must agree"
            )
    train, validation = (sample(pair, rows) for rows in parts[:2])
    every = np.arange(len(own_test.inputs), dtype=np.int64)
    return Data(train, validation, sample(own_test, every), affine, plan.labels, outcome)


def _checked(pair: Pair, plan: Plan) -> Pair:
    """The pair with at least one axis per input, and targets as the loss takes them."""
    inputs, targets = pair.inputs, pair.targets
    for array, name in ((inputs, pair.inputs_name), (targets, pair.targets_name)):
        require_numbers(array.dtype, name)
        if array.ndim == 0 or len(array) == 0:
            raise DataError(f"{name}: holds no samples; its shape is {array.shape}")
        if array.size == 0:
            raise DataError(f"{name}: its samples hold no numbers; its shape is {array.shape}")
    _require_one_target_each(pair)
    if plan.shape is not None:
        if prod(plan.shape) != prod(inputs.shape[1:]):
            raise DataError(
                f"{pair.inputs_name}: a sample has shape {inputs.shape[1:]}, which does not fit into "
                f"[data] shape = {list(plan.shape)}"
            )
        inputs = reshaped(inputs, plan.shape)
    elif inputs.ndim == 1:
        inputs = reshaped(inputs, (1,))
    if plan.predicts != "classes":
        lowest, highest, otherwise = BOUNDS[plan.predicts]
        for start, block in blocks(targets):
            if not (block.min() >= lowest and block.max() <= highest):  # no copy: targets may be images
                _require((block >= lowest) & (block <= highest), block, start, pair, otherwise)
        return replace(pair, inputs=inputs, targets=reshaped(targets, (1,)) if targets.ndim == 1 else targets)
    pair = replace(pair, inputs=inputs, targets=_whole_numbers(pair))
    if targets.ndim == 2 and targets.shape[1] == 1:
        return replace(pair, targets=reshaped(pair.targets, ()))
    return pair


def _whole_numbers(pair: Pair) -> Array:
    """The targets, as integers."""
    targets = pair.targets
    if targets.dtype.kind != "f":
        return targets
    numbers = np.empty(targets.shape, np.int32)
    for start, block in blocks(targets):
        whole = block == np.floor(block)  # NaN differs from itself
        _require(
            whole & (abs(block) < np.float32(1 << 31)), block, start, pair, f"is no class; {CLASSES_ARE}"
        )
        numbers[start : start + len(block)] = block
    return numbers


def _require(good: AnyArray, block: AnyArray, start: int, pair: Pair, what: str) -> None:
    """Raise DataError for the first target that is not good, of the block that starts at this sample."""
    odd = np.flatnonzero(~good)
    if len(odd):
        row, value = start + int(odd[0]) // prod(block.shape[1:]), block.flat[odd[0]]
        sample, name = located(pair.targets, row, pair.targets_name)
        raise DataError(f"{name}: target {value} of sample {sample} {what}")


def _classes(pair: Pair) -> int:
    reach = [(int(block.min()), int(block.max())) for _, block in blocks(pair.targets)]
    lowest, highest = min(low for low, _ in reach), max(high for _, high in reach)
    if lowest < 0 or highest >= 1 << 31:
        raise DataError(f"{pair.targets_name}: targets reach from {lowest} to {highest}; {CLASSES_ARE}")
    return highest + 1


def _affine(pair: Pair, rows: order.Indices, normalise: Normalise | Affine) -> Affine:
    if isinstance(normalise, Affine):
        return normalise
    dtype = pair.inputs.dtype
    if normalise == "range" and dtype.kind == "u":
        return Affine(scale=1.0 / np.iinfo(dtype).max)
    return _standard(pair.inputs, pair.inputs_name, rows) if normalise == "standard" else Affine()


def _standard(array: Array, name: str, rows: order.Indices) -> Affine:
    """Mean 0 and deviation 1. Of the training samples only: test samples must not be known.

    Images and volumes by channel, others by feature.
    """
    feature_axis = 1 if array.ndim in (4, 5) else array.ndim - 1
    axes = tuple(axis for axis in range(array.ndim) if axis != feature_axis)
    step = max(1, BLOCK_BYTES // (8 * prod(array.shape[1:])))
    chunks = [rows[start : start + step] for start in range(0, len(rows), step)]
    count = len(rows) * prod(array.shape[1:]) // array.shape[feature_axis]
    with np.errstate(over="ignore", invalid="ignore"):  # every rank printed NumPy's warning above our error
        mean = sum(array[chunk].sum(axes, np.float64, keepdims=True) for chunk in chunks) / count
        squares = sum(np.square(array[chunk] - mean).sum(axes, keepdims=True) for chunk in chunks) / count
    if not np.isfinite(squares).all():
        raise _abnormal(array, name, chunks)
    # A column of equal numbers stays as large as it is; rounding makes its deviation a little more than zero.
    one = array[rows[:1]][tuple(slice(None if axis == feature_axis else 1) for axis in range(array.ndim))]
    varies = np.logical_or.reduce([(array[chunk] != one).any(axes, keepdims=True) for chunk in chunks])[0]
    deviation = np.sqrt(squares[0])
    scale = 1.0 / np.where(varies & (deviation > 0.0), deviation, 1.0)
    return Affine(mean[0], scale, wide(array.dtype))


def _abnormal(array: Array, name: str, chunks: Sequence[order.Indices]) -> DataError:
    """Why samples have no mean and deviation: the first number of theirs that is none, or is too large."""
    for chunk in chunks:
        if len(odd := np.argwhere(~np.isfinite(array[chunk]))):
            sample, *place = odd[0].tolist()
            number = number_at(array, int(chunk[sample]), place)
            row, name = located(array, int(chunk[sample]), name)
            found = f"sample {row} holds {number}"
            break
    else:
        found = "it holds numbers too large to be squared"
    return DataError(f"{name}: {found}, so that nothing can be normalised; clean it")
