"""From the [data] section of a job to samples."""

from __future__ import annotations

from ...errors import DataError
from . import digits, idx, npy, npz, section, table, text
from .arrays import Pair, Plan, as_data
from .samples import Data


def compare(data: section.DataSection, sound: npz.Sound) -> None:
    """Compare what `load_data` maps with its checksums, where it has any: DataError where it is damaged.

    One rank of a node is enough; several jobs give the same `sound`, and what they share is read once. Where
    there is nothing, or no such array, `load_data` says so.
    """
    if isinstance(data, section.NpzData):
        npz.compare(data, sound)


def load_data(data: section.DataSection, seed: int, loss: str = "softmax_cross_entropy") -> Data:
    """Open the source and split it by seed; `loss` decides whether targets are classes or numbers.

    Raises DataError naming the file, what was found in it and what to do.
    """
    own_test: Pair | None = None
    labels: tuple[str, ...] = ()
    match data:
        case section.TextData():
            return text.load(data)
        case section.DigitsData():
            pair = digits.pair()
        case section.NpzData():
            pair, own_test = npz.pairs(data)
        case section.NpyData():
            pair, own_test = npy.pairs(data)
        case section.IdxData():
            pair, own_test = idx.pairs(data)
        case section.CsvData():
            pair, own_test, labels = table.pairs(data)
    regression = loss == "mean_squared_error"
    if labels and regression:
        raise DataError(f"{pair.targets_name}: holds names ({labels[0]!r}, …), which {loss} cannot approach")
    targets = None if isinstance(data, section.DigitsData) else data.normalise_targets
    if targets and not regression:
        raise DataError(
            f'[data] normalise_targets = "{targets}" is for numbers, and {loss} takes classes: leave it out, '
            'or use [model] loss = "mean_squared_error"'
        )
    plan = Plan(
        seed=seed,
        validation=data.validation,
        test=data.test,
        regression=regression,
        normalise=digits.AFFINE if isinstance(data, section.DigitsData) else data.normalise,
        normalise_targets=targets is not None,
        shape=data.shape if isinstance(data, section.NpzData | section.NpyData | section.IdxData) else None,
        labels=labels,
    )
    return as_data(pair, own_test, plan)
