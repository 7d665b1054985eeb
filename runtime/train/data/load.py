"""From the [data] sections of jobs to samples.

    [data] ── files, names in them ──> Source, as it lies there ── seed, loss, split, normalise ──> Data

Models that train together mostly have one data set, and differ in their seed or their rate: what two jobs
have in common is read once and is in memory once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from ....kernels.registry import LOSSES
from ...errors import DataError
from . import digits, hdf5, idx, npy, npz, section, table, text
from .arrays import Pair, Plan, as_data
from .samples import Data

K = TypeVar("K")
V = TypeVar("V")

ARRANGING = {"validation", "test", "context", "shape", "normalise", "normalise_targets"}
"""Keys of [data] that decide nothing about what is read, but what is made of it."""


@dataclass(frozen=True, slots=True)
class Source:
    """What files of arrays hold: samples, a test set where it is one of its own, and names of classes."""

    pair: Pair
    own_test: Pair | None = None
    labels: tuple[str, ...] = ()


class Loader:
    """Loads the data of several jobs."""

    def __init__(self) -> None:
        self._texts: dict[str, text.Text] = {}
        self._sources: dict[str, Source] = {}
        self._data: dict[tuple[str, int, str], Data] = {}

    def load(self, data: section.DataSection, seed: int, loss: str) -> Data:
        """As `load_data`; what was loaded for another job is not loaded again."""
        key = data.model_dump_json(), seed, LOSSES[loss].predicts
        return _once(self._data, key, lambda: self._load(data, seed, loss))

    def _load(self, data: section.DataSection, seed: int, loss: str) -> Data:
        key = data.model_dump_json(exclude=ARRANGING)
        if isinstance(data, section.TextData):
            return text.windows(_once(self._texts, key, lambda: text.read(data)), data)
        return _arrange(_once(self._sources, key, lambda: _read(data)), data, seed, loss)


def _once(held: dict[K, V], key: K, make: Callable[[], V]) -> V:
    if key not in held:
        held[key] = make()
    return held[key]


def load_data(data: section.DataSection, seed: int, loss: str = "softmax_cross_entropy") -> Data:
    """Open the source and split it by seed; `loss` decides whether targets are classes, labels or values.

    Raises DataError naming the file, what was found in it and what to do.
    """
    return Loader().load(data, seed, loss)


def compare(data: section.DataSection, sound: npz.Sound) -> None:
    """Compare what `load_data` maps with its checksums, where it has any: DataError where it is damaged.

    One rank of a node is enough; several jobs give the same `sound`, and what they share is read once. Where
    there is nothing, or no such array, `load_data` says so.
    """
    if isinstance(data, section.NpzData):
        npz.compare(data, sound)


def _read(data: section.ArraySection) -> Source:
    match data:
        case section.DigitsData():
            return Source(digits.pair())
        case section.NpzData():
            return Source(*npz.pairs(data))
        case section.NpyData():
            return Source(*npy.pairs(data))
        case section.Hdf5Data():
            return Source(*hdf5.pairs(data))
        case section.IdxData():
            return Source(*idx.pairs(data))
        case section.CsvData():
            return Source(*table.pairs(data))


def _arrange(source: Source, data: section.ArraySection, seed: int, loss: str) -> Data:
    pair, labels = source.pair, source.labels
    predicts = LOSSES[loss].predicts
    if labels and predicts != "classes":
        raise DataError(
            f"{pair.targets_name}: holds names ({labels[0]!r}, …), and {loss} takes numbers; for names use "
            '[model] loss = "softmax_cross_entropy"'
        )
    targets = None if isinstance(data, section.DigitsData) else data.normalise_targets
    if targets and predicts != "values":
        raise DataError(
            f'[data] normalise_targets = "{targets}" is for values, and {loss} takes {predicts}: leave it '
            'out, or use [model] loss = "mean_squared_error"'
        )
    plan = Plan(
        seed=seed,
        validation=data.validation,
        test=data.test,
        predicts=predicts,
        normalise=digits.AFFINE if isinstance(data, section.DigitsData) else data.normalise,
        normalise_targets=targets is not None,
        shape=None if isinstance(data, section.DigitsData | section.CsvData) else data.shape,
        labels=labels,
    )
    return as_data(pair, source.own_test, plan)
