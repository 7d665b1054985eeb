"""Which question a method and a path are.

GET  v2 · v2/health/live · v2/health/ready · v2/models/NAME[/versions/V][/ready · /config · /stats]
     v2/models/stats · metrics · status · /
POST v2/models/NAME[/versions/V]/infer · v2/repository/index · v2/repository/models/NAME/load · …/unload
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Final
from urllib.parse import unquote

from .problem import Problem


class Action(StrEnum):
    """What is asked."""

    PAGE = "page"
    STATUS = "status"
    METRICS = "metrics"
    LIVE = "live"
    READY = "ready"
    SERVER = "server"
    MODEL = "model"
    MODEL_READY = "model ready"
    CONFIG = "config"
    STATISTICS = "statistics"
    INFER = "infer"
    INDEX = "index"
    LOAD = "load"
    UNLOAD = "unload"


@dataclass(frozen=True, slots=True)
class Route:
    """A question, and the model it is about ("" for none or all)."""

    action: Action
    model: str = ""
    version: str = ""


_FIXED: Final = {
    (): Action.PAGE,
    ("status",): Action.STATUS,
    ("metrics",): Action.METRICS,
    ("v2",): Action.SERVER,
    ("v2", "health", "live"): Action.LIVE,
    ("v2", "health", "ready"): Action.READY,
    ("v2", "models", "stats"): Action.STATISTICS,
    ("v2", "repository", "index"): Action.INDEX,
}
_OF_MODEL: Final = {
    "": Action.MODEL,
    "ready": Action.MODEL_READY,
    "config": Action.CONFIG,
    "stats": Action.STATISTICS,
    "infer": Action.INFER,
}
_ABSOLUTE: Final = re.compile(r"^https?://[^/]*", re.IGNORECASE)
"""A target may name the server, too: RFC 9112, 3.2.2."""

_OF_REPOSITORY: Final = {"load": Action.LOAD, "unload": Action.UNLOAD}
_POSTED: Final = {Action.INFER, Action.INDEX, Action.LOAD, Action.UNLOAD}


@lru_cache(maxsize=1024)  # callers ask the same again: 0.1 us instead of 8
def route(method: str, target: str) -> Route:
    """What is asked; 404 where nothing is there, 405 where it is asked the other way."""
    path = _ABSOLUTE.sub("", target.partition("?")[0]) or "/"
    found = _find(tuple(unquote(part) for part in path.strip("/").split("/")) if path != "/" else ())
    if found is None:
        raise Problem(404, f"there is nothing at {path[:200]}")
    allowed = "POST" if found.action in _POSTED else "GET"
    if method != allowed and (method, allowed) != ("HEAD", "GET"):
        raise Problem(405, f"{path[:200]} is for {allowed}, not {method}", headers={"Allow": allowed})
    return found


def _find(parts: tuple[str, ...]) -> Route | None:
    version = ""
    match parts:
        case _ if parts in _FIXED:
            return Route(_FIXED[parts])
        case ("v2", "models", model, "versions", version, *rest):
            action = _OF_MODEL.get("/".join(rest))
        case ("v2", "models", model, *rest):
            action = _OF_MODEL.get("/".join(rest))
        case ("v2", "repository", "models", model, last):
            action = _OF_REPOSITORY.get(last)
        case _:
            return None
    return Route(action, model, version) if action else None
