"""What a policy decides about: service classes, models and their variants, jobs, batches. Plain data.

    InferRequest ── the dispatcher ──> Job ── Policy ──> Batch of jobs, for one resource and one model

Times are seconds on one clock, whichever it is; a policy never reads it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any


@dataclass(frozen=True, slots=True)
class ServiceClass:
    """Requests that are served alike."""

    name: str
    priority: int = 1  # 1 first, as in Triton
    deadline_s: float = inf  # of requests that name none
    share: float = 0.05  # of the resources' time that higher classes leave it, if it wants it
    patience_s: float = 2.0  # a job without deadline is served as if it had this one


@dataclass(frozen=True, slots=True)
class Model:
    """One model as loaded, and what it is among its family's variants."""

    name: str
    max_batch: int = 32  # samples
    accuracy: float = 0.0  # as its settings tell; compared with floors only
    cost: float = 0.0  # likewise, with ceilings


@dataclass(frozen=True, slots=True)
class Guarantee:
    """Samples a second that a client is served before all others, as long as it sends no more."""

    client: str
    per_s: float
    burst: float = 32.0  # samples at once


@dataclass(frozen=True, slots=True)
class Settings:
    """What does not change from job to job."""

    classes: Sequence[ServiceClass]
    families: Mapping[str, Sequence[Model]]  # what a request may name: its variants
    guarantees: Sequence[Guarantee] = ()
    max_queue: int = 4096  # jobs of a class
    horizon_s: float = 2e-3  # a batch is committed so long before its resource is free


@dataclass(slots=True, eq=False)
class Job:
    """A request, as far as it matters when and where it is computed."""

    number: int  # unique; in the order of arrival
    family: str
    arrival_s: float
    deadline_s: float  # absolute; inf where there is none
    service_class: str
    samples: int = 1
    client: str = ""
    accuracy: float | None = None  # floor
    cost: float | None = None  # ceiling
    best_effort: bool = False  # rather late than refused
    priority: int | None = None  # of its class, unless given
    place: Any = field(default=None, repr=False)  # where it waits: the policy's own
    left: bool = field(default=False, repr=False)  # nobody waits for it any more


@dataclass(slots=True, eq=False)
class Batch:
    """Jobs to be computed together: the decision."""

    number: int
    resource: str
    model: str
    jobs: list[Job]
    samples: int
    start_s: float  # when its resource is expected to begin it
    expected_s: float  # how long it is expected to take
    probe: bool = field(default=False)  # sent to learn how fast its resource is now
    retries: Batch | None = None  # the batch that failed, and that its one job was in
    held: bool = False  # it failed, and that is held against its resource
