"""From a pair of arrays to `Data`: checked, split, normalised, classes counted.

All sources but text end here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from ...errors import DataError
from .. import order
from .samples import Affine, AnyArray, Data, Rows, split, wide
from .section import Normalise

CHUNK_BYTES = 64 << 20
"""How much of a memory-mapped array is read at once for its statistics."""

FLOAT32_MAX = np.finfo(np.float32).max

CLASSES_ARE = 'classes are 0, 1, …; for numbers use [model] loss = "mean_squared_error"'


@dataclass(frozen=True, slots=True)
class Pair:
    """Inputs and targets, and what errors call each of them."""

    inputs: AnyArray
    targets: AnyArray
    inputs_name: str
    targets_name: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What the job says about any pair of arrays."""

    seed: int
    validation: float
    test: float
    regression: bool
    normalise: Normalise | Affine = "none"
    normalise_targets: bool = False
    shape: Sequence[int] | None = None
    labels: tuple[str, ...] = ()


def as_data(pair: Pair, own_test: Pair | None, plan: Plan) -> Data:
    """Split `pair` by seed; `own_test`, where the source has one, is the test set whole."""
    pair = _checked(pair, plan)
    classes = None if plan.regression else _classes(pair)
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
        if array.dtype.kind not in "biuf":
            raise DataError(f"{name}: holds {array.dtype} where numbers are needed")
        if array.ndim == 0 or len(array) == 0:
            raise DataError(f"{name}: holds no samples; its shape is {array.shape}")
        if array.size == 0:
            raise DataError(f"{name}: its samples hold no numbers; its shape is {array.shape}")
    if len(inputs) != len(targets):
        raise DataError(
            f"{pair.inputs_name} holds {len(inputs)} samples but {pair.targets_name} {len(targets)}; "
            "the first axis of both counts the samples"
        )
    if plan.shape is not None:
        if prod(plan.shape) != prod(inputs.shape[1:]):
            raise DataError(
                f"{pair.inputs_name}: a sample has shape {inputs.shape[1:]}, which does not fit into "
                f"[data] shape = {list(plan.shape)}"
            )
        inputs = inputs.reshape(len(inputs), *plan.shape)
    elif inputs.ndim == 1:
        inputs = inputs.reshape(-1, 1)
    if plan.regression:
        if not max(abs(targets.min()), abs(targets.max())) <= FLOAT32_MAX:  # no copy: targets may be images
            _require(abs(targets) <= FLOAT32_MAX, targets, pair.targets_name, "is no float32; clean it")
        return replace(pair, inputs=inputs, targets=targets.reshape(-1, 1) if targets.ndim == 1 else targets)
    if targets.ndim == 2 and targets.shape[1] == 1:
        targets = targets[:, 0]
    return replace(pair, inputs=inputs, targets=_whole_numbers(targets, pair.targets_name))


def _whole_numbers(targets: AnyArray, name: str) -> AnyArray:
    if targets.dtype.kind != "f":
        return targets
    whole = targets == np.floor(targets)  # NaN differs from itself
    _require(whole & (abs(targets) < np.float32(1 << 31)), targets, name, f"is no class; {CLASSES_ARE}")
    return targets.astype(np.int32)


def _require(good: AnyArray, targets: AnyArray, name: str, what: str) -> None:
    """Raise DataError for the first target that is not good."""
    odd = np.flatnonzero(~good)
    if len(odd):
        sample, value = odd[0] // prod(targets.shape[1:]), targets.flat[odd[0]]
        raise DataError(f"{name}: target {value} of sample {sample} {what}")


def _classes(pair: Pair) -> int:
    lowest, highest = int(pair.targets.min()), int(pair.targets.max())
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


def _standard(array: AnyArray, name: str, rows: order.Indices) -> Affine:
    """Mean 0 and deviation 1. Of the training samples only: test samples must not be known.

    Images by channel, others by feature.
    """
    feature_axis = 1 if array.ndim == 4 else array.ndim - 1
    axes = tuple(axis for axis in range(array.ndim) if axis != feature_axis)
    step = max(1, CHUNK_BYTES // (8 * prod(array.shape[1:])))
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


def _abnormal(array: AnyArray, name: str, chunks: Sequence[order.Indices]) -> DataError:
    """Why samples have no mean and deviation: the first number of theirs that is none, or is too large."""
    for chunk in chunks:
        if len(odd := np.argwhere(~np.isfinite(array[chunk]))):
            sample, *place = odd[0].tolist()
            found = f"sample {chunk[sample]} holds {array[(chunk[sample], *place)]}"
            break
    else:
        found = "it holds numbers too large to be squared"
    return DataError(f"{name}: {found}, so that nothing can be normalised; clean it")
