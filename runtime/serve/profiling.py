"""Profiles: measured before a model takes requests.

A model of which nothing is known gets a short look, so that its first requests are neither refused for a
guess nor accepted on one: a few single samples on every worker, and a batch that is as large as is soon done.
`weft serve --profile` measures all sizes that are powers of two.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Sequence

import numpy as np

from ..errors import WeftError
from .catalog import DTYPES, Served
from .link import Link
from .profile import Profiles
from .worker import Batch, Done

FIRST_LOOKS, FULL_LOOKS = 3, 2
ALONE_S, BESIDE_S = 0.5, 0.05
"""A batch of a look takes no longer, and where others are served meanwhile nobody waits longer for it: two of
0.3 s each made half of the requests with a deadline of 50 ms late, and so many of the next impossible."""

REPETITIONS = 20  # of --profile, for each size
LONGEST_S = 3.0  # of --profile, for one size on one worker


class Profiler:
    """Measures models on the links' workers into `profiles`."""

    def __init__(self, links: Sequence[Link], profiles: Profiles) -> None:
        self._links = links
        self._profiles = profiles
        self._numbers = itertools.count(-1, -1)  # never a number of the dispatcher's batches

    async def first_look(self, served: Served, within_s: float = ALONE_S) -> None:
        """A short look at a model on every worker that has no profile of it; WeftError if it fails."""

        async def look(link: Link) -> None:
            profile = self._profiles.of(link.resource, served.name, served.largest)
            if profile.results:
                return
            took_s = min([await self._measure(link, served, 1) for _ in range(FIRST_LOOKS)])
            size = min(served.largest, int(within_s / took_s))
            if size > 1:
                for _ in range(FULL_LOOKS):
                    await self._measure(link, served, size)

        await self._on_all(look)

    async def measure(self, served: Served) -> None:
        """All sizes that are powers of two, and the largest, on every worker."""

        async def look(link: Link) -> None:
            for size in sizes(served.largest):
                end_s = time.monotonic() + LONGEST_S
                for _ in range(REPETITIONS):
                    await self._measure(link, served, size)
                    if time.monotonic() > end_s:
                        break

        await self._on_all(look)

    async def _on_all(self, look: Callable[[Link], Awaitable[None]]) -> None:
        """On all workers at once, and to its end on each, so that a model can be unloaded then."""
        for result in await asyncio.gather(*map(look, self._links), return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    async def _measure(self, link: Link, served: Served, size: int) -> float:
        answered: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
        pieces = [[np.zeros((size, *info.shape[1:]), DTYPES[info.datatype])] for info in served.inputs]
        sent_s = time.monotonic()

        def answer(done: Done) -> None:
            if not answered.cancelled():  # by who gave up opening a server
                answered.set_result(done)

        link.run(Batch(next(self._numbers), served.key, size, pieces), answer)
        done = await answered
        now_s = time.monotonic()
        if done.error:
            raise WeftError(f"{served.name} cannot compute {size} samples on {link.resource}:\n{done.error}")
        self._profiles.of(link.resource, served.name, served.largest).measured(size, now_s - sent_s, now_s)
        return now_s - sent_s


def sizes(largest: int) -> list[int]:
    """Powers of two up to the largest batch, and that one."""
    return sorted({*(1 << power for power in range(largest.bit_length())), largest})


def table(profiles: Profiles) -> str:
    """Profiles for people."""
    lines = [f"{'resource':<14} {'model':<24} {'batch':>5} {'p50 ms':>9} {'p99 ms':>9} {'samples/s':>10}"]
    for (resource, model), profile in sorted(profiles.items(), key=lambda item: item[0][::-1]):
        for size in profile.sizes:
            p50, p99 = (1e3 * profile.percentile_s(size, share) for share in (0.5, 0.99))
            lines.append(
                f"{resource:<14} {model:<24} {size:>5} {p50:>9.3f} {p99:>9.3f} {profile.per_s(size):>10.0f}"
            )
    return "\n".join(lines)
