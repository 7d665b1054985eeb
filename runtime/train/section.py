"""What every section of a job file is made of."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from .toml import Path

Count = Annotated[int, Field(ge=1)]
Amount = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Name = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """A table of the job file: unknown keys are refused, and "3" is not a number."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def problem(message: str, at: Path | None = None) -> PydanticCustomError:
    """A problem in our own words; `at` is the key it is about where that is not the field itself."""
    return PydanticCustomError("weft", "{message}", {"message": message, "at": at})


def nearest(name: str, choices: Iterable[str]) -> str:
    """A question about a misspelt name, or nothing."""
    close = difflib.get_close_matches(name, list(choices), n=1)
    return f"; did you mean {close[0]}?" if close else ""
