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
from typing import TypeVar

from pydantic import Field

from ..errors import JobError
from ..train.section import Count, Name, Positive, Section
from ..train.sentences import parse, validated
from ..train.serving import ServerSettings, Share

__all__ = ["ModelSettings", "ServerSettings", "Variant", "read_settings"]


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
    together: bool = False  # a single sample is computed by all of its node's ranks that have nothing to do
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
