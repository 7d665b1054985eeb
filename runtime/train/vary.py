"""One job, several models: every combination of the values that `--vary KEY=VALUE,VALUE` gives.

--vary train.optimizer.rate=0.1,0.01 --vary seed=1,2

-rate-0.1-seed-1     train.optimizer.rate=0.1    seed=1
-rate-0.1-seed-2     train.optimizer.rate=0.1    seed=2
-rate-0.01-seed-1    train.optimizer.rate=0.01   seed=1
-rate-0.01-seed-2    train.optimizer.rate=0.01   seed=2
"""

from __future__ import annotations

import itertools
import re
import tomllib
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from ..errors import JobError
from .schema import ALTERNATIVES
from .toml import to_toml_value

LONGEST: Final = 24
"""Of a value in a name, in characters; longer ones, tables and lists are numbered."""

LONGEST_SUFFIX: Final = 100
"""Where a name would have a longer one, all are numbered: a folder's name has 255 bytes."""


class Variant(NamedTuple):
    """What one of the models has of its own: an ending of its name, and its overrides."""

    suffix: str
    overrides: tuple[str, ...]


def variants(variations: Sequence[str]) -> list[Variant]:
    """All combinations, the first key's values changing last; of no variations the one that changes nothing.

    Raises JobError where a variation is none, or gives something twice.
    """
    keys = [_key(variation) for variation in variations]
    if again := next((key for key in keys if keys.count(key) > 1), None):
        raise JobError(f"--vary {again} is given twice: give all its values at once, as {again}=1,2,3")
    axes = [_axis(variation) for variation in variations]
    found = [
        Variant("".join(one.suffix for one in chosen), tuple(itertools.chain(*(c.overrides for c in chosen))))
        for chosen in itertools.product(*axes)
    ]
    if max(len(variant.suffix) for variant in found) > LONGEST_SUFFIX:
        return [Variant(f"-{number}", variant.overrides) for number, variant in enumerate(found, 1)]
    return found


def displaced(overrides: Sequence[str], variations: Sequence[str]) -> Iterator[str]:
    """What to say of each of a job's overrides that a variation would leave nothing of.

    One that is for all jobs may give way to a variation of this one.
    """
    for override, variation in itertools.product(overrides, variations):
        given, varied = _decided(override), _decided(variation)
        if given[: len(varied)] == varied and (_is_for_one(override) or not _is_for_one(variation)):
            yield (
                f"--set {override}: comes to nothing, as --vary {variation} gives each model its own; leave "
                "one of the two out"
            )


def _decided(option: str) -> tuple[str, ...]:
    """The path of the key that an option gives; the same for keys of which only one can be given."""
    section, *inner = _key(option).split(".")
    if inner and inner[0] in (one_of := ALTERNATIVES.get(section, ())):
        inner[0] = " or ".join(one_of)
    return section, *inner


def _is_for_one(option: str) -> bool:
    return ":" in option.partition("=")[0]


def _axis(variation: str) -> list[Variant]:
    """One for each value of a single variation."""
    given, _, listed = variation.partition("=")
    values = _values(listed)
    if not _key(variation) or not all(values) or not values:
        raise JobError(
            f"--vary {variation}: must be section.key=value,value, as in --vary train.optimizer.rate=0.1,0.01"
        )
    if again := next((value for value in values if values.count(value) > 1), None):
        raise JobError(f"--vary {variation}: gives {again} twice; give each value once")
    last = _key(variation).rpartition(".")[2]
    return [
        Variant(f"-{last}-{_word(value) or number}", (f"{given}={value}",))
        for number, value in enumerate(values, 1)
    ]


def _key(variation: str) -> str:
    """The key that it varies, without the name of the job that it is for."""
    return variation.partition("=")[0].rpartition(":")[2].strip()


def _values(listed: str) -> list[str]:
    """Values with commas between them: TOML, or else plain words."""
    try:
        return [to_toml_value(value) for value in tomllib.loads(f"values = [{listed}]")["values"]]
    except tomllib.TOMLDecodeError:
        return [value.strip() for value in listed.split(",")]


def _word(value: str) -> str:
    """A value as it may stand in a name; nothing where it does not fit there."""
    if value[0] in "[{" or len(value) > LONGEST:
        return ""
    return re.sub(r"[^\w.]+", "-", value.replace("+", "")).strip("-.")  # 1e+20 is not 1e-20
