"""A request as the connection read it, and an answer as it will write it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from ..request import printable
from .problem import Problem

JSON: Final = "application/json"
BINARY: Final = "application/octet-stream"


def encode(content: Any) -> bytes:
    """JSON's bytes; an array is a list of its numbers."""
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One request, whole. Names of headers are in lower case; of a name that came twice the last counts."""

    method: str
    target: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    arrival_s: float | None = None  # when it was whole, by `time.monotonic()`
    #: Count bytes that the body takes beside its own until it is answered; Problem where there are too many.
    hold: Callable[[int], None] = lambda count: None

    def header(self, name: str) -> str:
        """The header's value, "" without one."""
        return self.headers.get(name, "")


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """One answer; its body in parts, so that nothing is copied to join them."""

    status: int
    body: Sequence[bytes] = ()
    content_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)
    closes: bool = False  # the connection ends behind it

    @classmethod
    def json(cls, content: Any, status: int = 200) -> HttpResponse:
        """An answer that is JSON."""
        return cls(status, (encode(content),))

    @classmethod
    def of(cls, problem: Problem) -> HttpResponse:
        """What the caller of a request without an answer is told."""
        content = {"error": printable(str(problem))} | ({"reason": problem.reason} if problem.reason else {})
        return cls(problem.status, (encode(content),), headers=problem.headers, closes=problem.closes)
