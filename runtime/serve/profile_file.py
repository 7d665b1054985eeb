"""Profiles on disk: read when the server starts, written when it ends and every minute in which they changed.

A server that is killed loses what it learned in its last minute.
"""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import Any

from ..errors import Mistake
from ..message.failure import say
from .profile import Profiles
from .watch import Background

EVERY_S = 60.0


class ProfileFile:
    """One file, of one server."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # Two servers of one repository wrote into the same part, and the next one read half of each.
        self._part = f"{token_hex(4)}.part"
        self._ended = asyncio.Event()
        self._keeping: asyncio.Task[None] | None = None
        self._written: list[dict[str, Any]] = []
        self._warned = False

    def read(self) -> Profiles:
        """What is stored, nothing where there is no file; Mistake for a file that holds no profiles."""
        path = self._path
        try:
            profiles = Profiles.from_list(json.loads(path.read_text("utf-8")))
        except FileNotFoundError:
            profiles = Profiles()
        except OSError as error:
            raise Mistake(
                f"{path}: cannot be read: {error.strerror}; name another file with --profiles"
            ) from None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise Mistake(
                f"{path}: holds no profiles ({type(error).__name__}: {error}); remove it, or name another "
                "file with --profiles"
            ) from error
        self._written = profiles.to_list()
        return profiles

    def keep(self, profiles: Profiles, background: Background) -> None:
        """Write them from now on, in a task that runs beside the server."""
        self._keeping = background(self._keep(profiles), "profiles")

    async def close(self) -> None:
        """Write them for the last time."""
        self._ended.set()
        if self._keeping is not None:
            await self._keeping

    async def _keep(self, profiles: Profiles) -> None:
        ended = False
        while not ended:
            with suppress(TimeoutError):
                async with asyncio.timeout(EVERY_S):
                    await self._ended.wait()
            ended = self._ended.is_set()  # before the write, in which more may be learned
            now = profiles.to_list()
            if now == self._written:
                continue
            try:
                await asyncio.to_thread(self._write, now)
                self._written = now
            except OSError as error:
                self._warn(error)

    def _write(self, profiles: list[dict[str, Any]]) -> None:
        """Whole or not at all; OSError."""
        temporary = self._path.with_name(f".{self._path.name}.{self._part}")
        temporary.write_text(json.dumps(profiles, indent=1), "utf-8")
        os.replace(temporary, self._path)

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            say(
                f"weft: warning: {self._path} cannot be written ({error.strerror}): profiles "
                "are measured anew next time; name another file with --profiles"
            )
        self._warned = True
