"""Several runs in one table, the best first: what sets their jobs apart, and how they ended.

               rate    steps  validation loss  validation accuracy  test loss  test accuracy
mlp-rate-0.03  0.03      400           0.1018               0.9611     0.0472         0.9833
mlp-rate-0.3   0.3       400           0.4127               0.8712     0.4410         0.8655
best by validation loss: runs/mlp-rate-0.03-20260314-150926
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .compare import UNKNOWN
from .folder import RunFolder
from .history import History, read_metrics
from .words import figure

LOSS: Final = "model.loss"
KEYS_SHOWN: Final = 4
LONGEST: Final = 20  # of a value, in characters
APART: Final = {"name", "run.folder"}
"""Keys in which runs always differ, or that say nothing of what they reached."""

UNENDED: Final = "not yet"
AMISS: Final = ("failed", "stopped", "outdone", UNENDED)
"""How ends begin of which a table of several runs tells."""

Key = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Standing:
    """A run: the keys of its job, and what it reached. Losses and accuracies are NaN where there are none."""

    label: str
    job: Mapping[str, Any]
    history: History
    path: Path

    def score(self, split: str, metric: str) -> float:
        """That of the split's last evaluation, or of the one whose checkpoint [train] best has kept."""
        rows = self.history.evaluated(split)
        if not rows:
            return math.nan
        best = self.job.get("train.best.metric") if split == "validation" else None
        chosen = rows[-1]
        if best == "loss":
            chosen = min(rows, key=lambda row: _or_worst(row.get("loss", math.nan)))
        elif best == "accuracy":
            chosen = max(rows, key=lambda row: -_or_worst(-row.get("accuracy", math.nan)))
        return float(chosen.get(metric, math.nan))

    @property
    def end(self) -> str:
        """Why it ended, in a few words: of a failure what failed is told elsewhere."""
        row = self.history.end
        return str(row.get("reason", "")).partition(":")[0] if row else UNENDED

    @property
    def rank(self) -> tuple[float, float]:
        """Ascending from the best: by the loss of validation, and where there is none by that of training."""
        steps = self.history.steps
        last = float(steps.loss[-1]) if len(steps) else math.nan
        return _or_worst(self.score("validation", "loss")), _or_worst(last)


def standings(paths: Sequence[Path]) -> str:
    """The table of the runs in these folders; Mistake where one holds none."""
    return table(ranked(paths))


def ranked(paths: Sequence[Path]) -> list[Standing]:
    """The runs in these folders, the best first; Mistake where one holds none."""
    folders = [RunFolder.open(path) for path in paths]
    names = [folder.name for folder in folders]
    labels = [
        name if names.count(name) == 1 else folder.path.resolve().name
        for name, folder in zip(names, folders, strict=True)
    ]
    runs = [
        Standing(label, job_keys(folder.job), read_metrics(folder.metrics), folder.path)
        for label, folder in zip(labels, folders, strict=True)
    ]
    return sorted(runs, key=lambda run: run.rank)


def table(ordered: Sequence[Standing]) -> str:
    """One line a run, the best first. A column of which nothing is known is left out."""
    differing = keys_apart([run.job for run in ordered])
    shown, more = differing[:KEYS_SHOWN], differing[KEYS_SHOWN:]
    columns = [("", [run.label for run in ordered])]
    columns += [(_short(key, differing), [_cell(run.job.get(key)) for run in ordered]) for key in shown]
    columns.append(
        ("steps", [f"{run.history.steps.last:,}" if run.history.steps else "0" for run in ordered])
    )
    for split in ("validation", "test"):
        for metric, write in (("loss", figure), ("accuracy", "{:.4f}".format)):
            scores = [run.score(split, metric) for run in ordered]
            if not all(map(math.isnan, scores)):
                cells = [UNKNOWN if math.isnan(score) else write(score) for score in scores]
                columns.append((f"{split} {metric}", cells))
    ends = [run.end for run in ordered]
    if any(end.startswith(AMISS) for end in ends):
        columns.append(("end", ends))
    widths = [max(map(len, (head, *cells))) for head, cells in columns]
    lines = [[head for head, _ in columns], *map(list, zip(*(cells for _, cells in columns), strict=True))]
    text = "\n".join(
        "  ".join([f"  {line[0]:<{widths[0]}}", *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in lines
    )
    best = _best(ordered[0])
    if any(key.startswith(LOSS) for key in differing):
        best = "  none is the best: they have different losses ([model] loss), whose numbers do not compare"
    parts = [text, f"  they differ in {', '.join(more)}, too" if more else "", best]
    return "\n".join(filter(None, parts))


def _best(first: Standing) -> str:
    evaluated, trained = map(math.isfinite, first.rank)
    by = "validation loss" if evaluated else "the loss of its last step"
    return f"  best by {by}: {first.path}" if evaluated or trained else ""


def job_keys(path: Path) -> dict[str, Any]:
    """The values of a stored job by their dotted keys; none where it is missing or cannot be read.

    A loss that is given by its name alone is under the key that the name of one with attributes has.
    """
    try:
        found = _flat(tomllib.loads(path.read_text("utf-8")))
    except (OSError, ValueError):
        return {}
    return {f"{LOSS}.name" if key == LOSS else key: value for key, value in found.items()}


def keys_apart(jobs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys that not all of the jobs have with one value, in the order of the first that has them."""
    known = [job for job in jobs if job]
    keys = dict.fromkeys(key for job in known for key in job if key not in APART)
    return [key for key in keys if any(job.get(key) != known[0].get(key) for job in known)]


def _flat(values: Any, above: Key = ()) -> dict[str, Any]:
    inner = values.items() if isinstance(values, dict) else enumerate(values)
    found: dict[str, Any] = {}
    for key, value in inner:
        path = (*above, str(key))
        if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(v, dict) for v in value)):
            found |= _flat(value, path)
        else:
            found[".".join(path)] = value
    return found


def _short(key: str, among: Sequence[str]) -> str:
    """The last part of a key, and of a name what it is of; or all of it where another one ends alike."""
    last, *others = (each.removesuffix(".name").rpartition(".")[2] for each in (key, *among))
    return key if others.count(last) > 1 else last


def _cell(value: Any) -> str:
    text = UNKNOWN if value is None else str(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _or_worst(value: float) -> float:
    return math.inf if math.isnan(value) else value
