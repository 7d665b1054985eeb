"""weft.toml: how a repository's models are served, one file for the server and one beside each model.

models/weft.toml

    default_class = "standard"
    [classes.interactive]
    deadline_ms = 50
    priority = 1
    [classes.standard]
    deadline_ms = 200
    priority = 2
    [guarantees.payments]            # for requests that name this client
    per_s = 200

models/digits/weft.toml

    max_batch = 64
    default_class = "interactive"
    accuracy = 0.99
    cost = 1.0
    variants = [{ model = "digits-small", accuracy = 0.97, cost = 0.2 }]

These classes are the files' documentation: a field's name is the key, its type and bounds what is allowed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import Field, model_validator

from ..errors import JobError
from ..train.section import Count, Name, Positive, Section, problem
from ..train.sentences import parse, validated

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class ClassSettings(Section):
    """A class of requests: what one gets that names the class and nothing else."""

    deadline_ms: Positive | None = None  # from arrival to answer; None: as soon as can be
    priority: Count = 1  # 1 first, as in Triton; among equals what is due first
    share: Share = 0.05  # of the time that higher classes must leave it, if it wants it
    patience_ms: Positive = 2000.0  # a request without deadline is served as if it had this one


class GuaranteeSettings(Section):
    """What a client is served before all others, as long as it asks for no more."""

    per_s: Positive  # samples
    burst: Positive = 32.0  # samples at once


class ServerSettings(Section):
    """models/weft.toml"""

    default_class: Name = "standard"
    classes: Annotated[dict[str, ClassSettings], Field(min_length=1)] = Field(
        default_factory=lambda: {
            "interactive": ClassSettings(deadline_ms=50.0, priority=1),
            "standard": ClassSettings(deadline_ms=200.0, priority=2),
            "batch": ClassSettings(deadline_ms=2000.0, priority=3),
        }
    )
    guarantees: dict[str, GuaranteeSettings] = Field(default_factory=dict)  # by client
    queue: Count = 4096  # requests of a class that may wait

    @model_validator(mode="after")
    def _default_is_there(self) -> ServerSettings:
        if self.default_class not in self.classes:
            there = ", ".join(self.classes)
            raise problem(f"is no class; there are {there}", ("default_class",))
        return self


class Variant(Section):
    """Another model of the repository that may answer for this one: same inputs and outputs."""

    model: Name
    accuracy: Share | None = None  # None: as its own settings say
    cost: Positive | None = None


class ModelSettings(Section):
    """models/NAME/weft.toml"""

    max_batch: Count = 32  # samples computed together, and the most that a request may have
    default_class: Name | None = None  # None: the server's
    deadline_ms: Positive | None = None  # of requests that name none; None: the class's
    accuracy: Share | None = None
    cost: Positive | None = None
    variants: list[Variant] = Field(default_factory=list)
    versions: list[Count] | None = None  # to load; None: all
    sizes: dict[str, Count] = Field(default_factory=dict)  # axes that an ONNX file leaves open, by name


Root = TypeVar("Root", bound=Section)


def read_settings(root: type[Root], path: Path) -> Root:
    """The settings in a file, or the defaults where there is none; JobError naming every problem."""
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return root()
    except UnicodeDecodeError as error:
        raise JobError(f"{path}: not TOML: byte {error.start} is not UTF-8") from None
    except OSError as error:
        raise JobError(f"{path}: cannot be read: {error.strerror}") from None
    values, origins = parse(text, str(path))
    return validated(root, values, origins, str(path))
