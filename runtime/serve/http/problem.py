"""What a caller is told of a request that is not answered: a status, `{"error": ...}`, when to try again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from ...errors import Mistake, RequestError, WeftError
from ..request import Reason, Refused, UnknownModel

# Those that another try may mend; a caller who asked for the impossible is not invited to ask again.
PASSING: Final = {Reason.OVERLOAD, Reason.QUEUE_FULL, Reason.NO_WORKER, Reason.DRAINING}
RETRY_AFTER_S: Final = 1
SHOWN: Final = 40  # characters of a value, at most


class Problem(WeftError):
    """A request that gets no answer but `status` and the message; `reason` in a word, where there is one.

    `closes`: what follows on this connection can't be told apart any more.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        reason: str = "",
        headers: Mapping[str, str] | None = None,
        closes: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.headers = dict(headers or {})
        self.closes = closes


def wrong(message: str) -> Problem:
    """The body says something that can't be: 400."""
    return Problem(400, message)


def unavailable(message: str, reason: str = "", *, closes: bool = False) -> Problem:
    """Not now, but soon perhaps: 503."""
    return Problem(503, message, reason=reason, headers={"Retry-After": str(RETRY_AFTER_S)}, closes=closes)


def shown(value: Any) -> str:
    """A value of a request for an error message: as its sender wrote it, if that is short."""
    match value:
        case None:
            return "nothing"  # null, or not there
        case dict():
            return "an object"
        case list() if len(value) > SHOWN // 2 or any(isinstance(each, list | dict) for each in value):
            return f"a list of {len(value)}"
        case str() if len(value) > SHOWN:
            return f"text of {len(value)} characters"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def problem_of(error: Exception) -> Problem:
    """What `error`, raised while a request was answered, is to its caller."""
    match error:
        case Problem():
            return error
        case Refused() if error.reason in PASSING:
            return unavailable(str(error), error.reason)
        case Refused():
            return Problem(503, str(error), reason=error.reason)
        case UnknownModel():
            return Problem(404, str(error))
        case Mistake():
            return wrong(str(error))
        case RequestError():
            # Its traceback is for the server's terminal, not for whoever may ask.
            return Problem(500, f"rank {error.rank} on host {error.host} failed to compute the answer")
        case _:
            return Problem(
                500, f"the server failed to answer ({type(error).__name__}); its terminal says more"
            )
