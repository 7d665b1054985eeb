"""[serve] of a job file: the model is asked while it is trained; and classes of requests, for all servers.

    [serve]
    repository = "models"            # models that are served beside it
    port = 8000
    [serve.classes.interactive]
    deadline_ms = 50

The job's model is served under the job's name, as its newest checkpoint has it; the version is the step.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from .section import Count, Name, Positive, Section, nearest, problem


def host_name(text: str) -> str:
    """A host's name alone, or * for any; raises a problem that says what else it is."""
    if text != "*" and not re.fullmatch(r"[A-Za-z0-9_.-]+", text):
        raise problem(f"must be a host's name alone, such as gpu7.example.org, or *; not {text!r:.80}")
    return text


HostName = Annotated[str, AfterValidator(host_name)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Port = Annotated[int, Field(ge=0, le=65535)]


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
    """What holds for all models of a server: its classes, and what some clients are promised."""

    classes: Annotated[dict[str, ClassSettings], Field(min_length=1)] = Field(
        default_factory=lambda: {
            "interactive": ClassSettings(deadline_ms=50.0, priority=1),
            "standard": ClassSettings(deadline_ms=200.0, priority=2),
            "batch": ClassSettings(deadline_ms=2000.0, priority=3),
        }
    )
    default_class: Name = Field("standard", validate_default=True)
    guarantees: dict[str, GuaranteeSettings] = Field(default_factory=dict)  # by client
    queue: Count = 4096  # requests of a class that may wait

    @field_validator("default_class")
    @classmethod
    def _is_there(cls, name: str, info: ValidationInfo) -> str:
        classes = info.data.get("classes", {name: None})
        if name not in classes:
            raise problem(f"must name a class{nearest(name, classes)}; there are {', '.join(classes)}")
        return name


class ServeSection(ServerSettings):
    """What is served while the job trains, and where."""

    repository: Name | None = None
    host: Name = "127.0.0.1"
    port: Port = 8000
    allowed_hosts: list[HostName] = Field(default_factory=list)  # names that browsers may ask under
    policy: Name | None = None
    max_batch: Count = 32
    after: Literal["serve", "end"] = "serve"  # when training has ended: until a signal comes, or not at all
