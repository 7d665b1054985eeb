"""From a request to its answer: who may ask, what is asked, and the service that knows.

    HttpRequest ─> site, token ─> route ─> read (requests) ─> Service ─> write (answers) ─> HttpResponse

Knows no socket: connection.py reads and writes, and cancels `answer` when the caller leaves.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable, Set
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from ..request import ModelInfo, Reason, Service
from . import documents, metrics
from .answers import write_answer
from .compression import WORTHWHILE_BYTES, acceptable, compress, inflate
from .messages import BINARY, HttpRequest, HttpResponse
from .problem import Problem, problem_of, shown, unavailable, wrong
from .requests import HEADER_LENGTH, read_call, read_json_object
from .routes import Action, Route, route
from .settings import HttpSettings
from .sites import Sites

PAGE: Final = Path(__file__).with_name("page.html")
OPEN: Final = {Action.PAGE, Action.LIVE, Action.READY}  # without a token; the page itself holds nothing
# Nothing from elsewhere: the page is one file.
PAGE_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; frame-ancestors 'none'",
}


class Front:
    """Answers requests; `unexpected` is told of errors that are no caller's fault."""

    def __init__(
        self, service: Service, settings: HttpSettings, unexpected: Callable[[Exception], None]
    ) -> None:
        self._service = service
        self._settings = settings
        self._unexpected = unexpected
        self.sites = Sites(settings)
        self._infers = 0
        self.draining = False

    async def answer(self, request: HttpRequest) -> HttpResponse:
        """The answer, whatever happens; only cancelling ends it without one."""
        try:
            response = await self._answer(request)
            encoding = (
                acceptable(request.header("accept-encoding")) if "accept-encoding" in request.headers else ""
            )
            return await _compressed(response, encoding) if encoding else response
        except Exception as error:
            problem = problem_of(error)
            if problem.status == 500:
                self._unexpected(error)
            return HttpResponse.of(problem)

    def admit(self, request: HttpRequest) -> None:
        """Raise Problem where a body behind this head would be in vain.

        What is open to all has no body, and who has no token gets no memory for one.
        """
        self._admit(request, frozenset())

    async def _answer(self, request: HttpRequest) -> HttpResponse:
        asked = self._admit(request, OPEN)
        if asked.action is Action.INFER:
            return await self._infer(request, asked)
        if request.body:
            request = replace(request, body=await self._body(request))
        return await self._other(request, asked)

    # -- who may ask --------------------------------------------------------------------------------------

    def _admit(self, request: HttpRequest, without_token: Set[Action]) -> Route:
        self.sites.admit(request)
        asked = route(request.method, request.target)
        if self._settings.token and asked.action not in without_token:
            self._admit_token(request)
        return asked

    def _admit_token(self, request: HttpRequest) -> None:
        scheme, _, token = request.header("authorization").partition(" ")
        # Beyond ASCII some clients send UTF-8 (curl), others Latin-1 (Python's own), as headers are read.
        sent, wanted = token.strip(" \t"), self._settings.token.encode()
        matches = any(hmac.compare_digest(sent.encode(form), wanted) for form in ("latin-1", "utf-8"))
        if scheme.lower() != "bearer" or not matches:
            told = "a bearer token is wanted: send the server's as Authorization: Bearer TOKEN"
            raise Problem(401, told, headers={"WWW-Authenticate": "Bearer"})

    # -- inference ----------------------------------------------------------------------------------------

    async def _infer(self, request: HttpRequest, asked: Route) -> HttpResponse:
        if self.draining:
            raise unavailable("the server is about to end", Reason.DRAINING, closes=True)
        if self._infers >= self._settings.max_requests:
            raise unavailable(
                f"{self._infers} requests are being answered, which is the limit", Reason.QUEUE_FULL
            )
        datatypes = self._service.datatypes(asked.model, asked.version)
        self._infers += 1
        try:
            length, limit = _length(request.header(HEADER_LENGTH.lower())), self._settings.max_json_bytes
            # No name for the body: it goes where arrays had to be copied from it.
            call = read_call(
                await self._body(request), length, asked.model, asked.version, limit, request.arrival_s
            )
            result = await self._service.infer(call.request)
        finally:
            self._infers -= 1
        pieces, binary = write_answer(call, result, datatypes)
        parts = [next(pieces)]
        for piece in pieces:
            parts.append(piece)
            await asyncio.sleep(0)
        if not binary:
            return HttpResponse(200, parts)
        length = sum(map(len, parts))
        return HttpResponse(200, [*parts, *binary], BINARY, {HEADER_LENGTH: str(length)})

    async def _body(self, request: HttpRequest) -> bytes:
        """The request's body, decompressed."""
        encoding = request.header("content-encoding").strip().lower()
        if encoding in ("", "identity"):
            return request.body
        # In a thread, where zlib lets the loop run: of however few bytes there may come as many as allowed.
        coming = inflate(request.body, encoding, self._settings.max_body_bytes)
        pieces = []
        while piece := await asyncio.to_thread(next, coming, b""):
            request.hold(len(piece))
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    # -- all else -----------------------------------------------------------------------------------------

    async def _other(self, request: HttpRequest, asked: Route) -> HttpResponse:
        service, model, version = self._service, asked.model, asked.version
        match asked.action:
            case Action.LIVE:
                return HttpResponse.json({"live": True})
            case Action.READY:
                ready = service.ready and not self.draining
                return HttpResponse.json({"live": True, "ready": ready}, 200 if ready else 503)
            case Action.SERVER:
                return HttpResponse.json(documents.server())
            case Action.MODEL:
                return HttpResponse.json(documents.model(service.model(model, version)))
            case Action.MODEL_READY:
                info = service.model(model, version)
                content = {"name": info.name, "ready": info.ready}
                return HttpResponse.json(content, 200 if info.ready else 503)
            case Action.CONFIG:
                return HttpResponse.json(documents.config(service.model(model, version)))
            case Action.STATISTICS:
                return HttpResponse.json(documents.statistics(service.statistics(model, version)))
            case Action.INDEX:
                content = read_json_object(request.body, self._settings.max_json_bytes)
                models = await service.index()
                return HttpResponse.json(documents.index(models, ready=content.get("ready") is True))
            case Action.LOAD:
                await service.load(model, self._config(request))
                return HttpResponse.json({})
            case Action.UNLOAD:
                await service.unload(model)
                return HttpResponse.json({})
            case Action.METRICS:
                text = metrics.exposition(service.statistics(), service.status())
                return HttpResponse(200, (text.encode(),), metrics.CONTENT_TYPE)
            case Action.STATUS:
                more = {"ready": service.ready, "models": [_row(info) for info in await service.index()]}
                return HttpResponse.json({**service.status(), **more})
            case _:
                return HttpResponse(200, (PAGE.read_bytes(),), "text/html; charset=utf-8", PAGE_HEADERS)

    def _config(self, request: HttpRequest) -> dict[str, Any] | None:
        """The configuration in a load request: a string of JSON in its parameters."""
        parameters = read_json_object(request.body, self._settings.max_json_bytes).get("parameters") or {}
        if not isinstance(parameters, dict):
            raise wrong(f"parameters is a JSON object, not {shown(parameters)}")
        if files := [name for name in parameters if name.startswith("file:")]:
            raise wrong(f"{files[0][:200]!r}: models are read from the repository, not from a request")
        text = parameters.get("config")
        if text is None:
            return None
        if not isinstance(text, str):
            raise wrong(f"parameters.config is text that is JSON, not {shown(text)}")
        limit = self._settings.max_json_bytes
        return read_json_object(text.encode(errors="replace"), limit, "parameters.config")


def _length(text: str) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise wrong(f"{HEADER_LENGTH} is a number of bytes, not {text[:40]!r}")
    return int(text)


async def _compressed(response: HttpResponse, encoding: str) -> HttpResponse:
    """The answer in a form that the caller accepts, where that is shorter to send."""
    if sum(map(len, response.body)) < WORTHWHILE_BYTES:
        return response
    body = await asyncio.to_thread(compress, response.body, encoding)
    headers = {**response.headers, "Content-Encoding": encoding, "Vary": "Accept-Encoding"}
    return replace(response, body=(body,), headers=headers)


def _row(info: ModelInfo) -> dict[str, Any]:
    """A model for the status page."""
    return {"name": info.name, "version": info.version, "ready": info.ready, "reason": info.reason}
