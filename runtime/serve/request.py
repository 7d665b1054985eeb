"""What a request asks for and what it gets: plain data that the HTTP front, client and dispatcher share.

    InferRequest ── Service.infer ──> InferResult, or one of the errors below

Arrays have the batch on axis 0. Times are seconds; a deadline counts from arrival to answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from numpy.typing import NDArray

from ..errors import Mistake, WeftError

Array = NDArray[Any]


class Reason(StrEnum):
    """Why a request is not answered; the label of its counters."""

    IMPOSSIBLE = "impossible"  # no resource can meet it even when idle
    OVERLOAD = "overload"  # what is queued already would make it late
    QUEUE_FULL = "queue_full"
    EXPIRED = "expired"  # was accepted, and can't be met any more
    NO_WORKER = "no_worker"  # no rank can serve the model now
    DRAINING = "draining"  # the server is about to end
    CANCELLED = "cancelled"  # the caller has left


class Refused(WeftError):
    """The request is not answered: `reason` says why in a word, the message with the numbers."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class UnknownModel(Mistake):
    """No such model or version here; names what there is."""


class WrongInput(Mistake):
    """Inputs that the model does not take, or an output that it lacks; names it and what is wanted."""


@dataclass(frozen=True, slots=True)
class Qos:
    """What a request asks for beside its answer. None: as the model's settings say."""

    service_class: str | None = None
    deadline_s: float | None = None  # from arrival to answer
    priority: int | None = None  # 1 first, as in Triton; of the class unless given
    accuracy: float | None = None  # floor: variants below it are not used
    cost: float | None = None  # ceiling: variants above it are not used
    best_effort: bool = False  # rather late than refused
    client: str = ""  # whose throughput guarantee it counts for


ORDINARY = Qos()
"""What asks for nothing."""


@dataclass(frozen=True, slots=True)
class InferRequest:
    """One call: inputs by the model's names, all with the same number of samples on axis 0."""

    model: str
    inputs: Mapping[str, Array]
    outputs: Sequence[str] = ()  # wanted; none named: all
    version: str = ""  # "" is the newest
    qos: Qos = ORDINARY
    id: str = ""
    arrival_s: float | None = None  # by `time.monotonic()`, where that was before it could be read


@dataclass(frozen=True, slots=True)
class InferResult:
    """The answer, and what it took."""

    model: str  # the variant that answered
    version: str
    outputs: Mapping[str, Array]
    resource: str  # who computed: "rank 2 cpu"
    queue_s: float
    compute_s: float
    batch: int  # samples that were computed together
    labels: tuple[str, ...] = ()  # names of the classes, in the order of its output; none where it has none


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A model's input or output: OIP's datatype, and the shape with -1 for an axis of any extent."""

    name: str
    datatype: str  # "FP32"
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is told of a model's version."""

    name: str
    versions: tuple[str, ...]  # all that are loaded
    version: str  # this one
    platform: str  # "weft_onnx", "weft_checkpoint"
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    max_batch: int
    ready: bool
    reason: str = ""  # why it is not ready; of one that is, what of its settings comes to nothing
    config: Mapping[str, Any] = field(default_factory=dict)  # Triton's model configuration, as JSON has it
    labels: tuple[str, ...] = ()  # names of the classes that its output tells apart


@dataclass(slots=True)
class Durations:
    """Triton's statistics of one kind: how many, and nanoseconds in sum."""

    count: int = 0
    ns: int = 0


@dataclass(slots=True)
class ModelStatistics:
    """Triton's statistics of a model's version since it was loaded."""

    inference_count: int = 0  # samples
    execution_count: int = 0  # batches
    last_inference_ms: int = 0  # of the epoch
    success: Durations = field(default_factory=Durations)
    fail: Durations = field(default_factory=Durations)
    queue: Durations = field(default_factory=Durations)
    compute: Durations = field(default_factory=Durations)
    batches: dict[int, Durations] = field(default_factory=dict)  # by batch size
    refused: dict[str, int] = field(default_factory=dict)  # by Reason


def printable(text: str) -> str:
    """The text as JSON and a terminal take it: the name of a file in it may not be UTF-8."""
    return text.encode(errors="backslashreplace").decode()


class Service(Protocol):
    """What the HTTP front needs of the dispatcher; all on the loop's thread."""

    @property
    def ready(self) -> bool:
        """Whether a worker can serve."""

    async def index(self) -> Sequence[ModelInfo]:
        """Every model and version in the repository, loaded or not."""

    def model(self, name: str, version: str = "") -> ModelInfo:
        """One of them, loaded; UnknownModel."""

    def datatypes(self, name: str, version: str = "") -> Mapping[str, str]:
        """The OIP datatypes of its outputs, by name; UnknownModel. Asked with every inference."""

    def statistics(self, name: str = "", version: str = "") -> Mapping[tuple[str, str], ModelStatistics]:
        """By (model, version); UnknownModel."""

    async def infer(self, request: InferRequest) -> InferResult:
        """Answer; Refused, UnknownModel, WrongInput, RequestError. Cancelling withdraws the request."""

    async def load(self, name: str, config: Mapping[str, Any] | None = None) -> None:
        """Read a model of the repository, anew where it is loaded; returns when all workers have it."""

    async def unload(self, name: str) -> None:
        """Forget a model when what it has accepted is answered."""

    def status(self) -> Mapping[str, Any]:
        """For the status page and metrics, as JSON has it.

        {"uptime_s", "draining", "ranks",
        "workers": [{"resource", "state", "models", "busy_share", "queued"}],
        "queues": [{"class", "queued", "oldest_s"}],
        "classes": [{"class", "on_time", "late", "failed", "refused": {reason: n}, "p50_ms", "p99_ms"}],
        "profiles": [{"resource", "model", "batch", "p50_ms", "p99_ms", "per_s", "error"}]}
        """
