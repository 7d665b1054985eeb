"""What numba has compiled, kept on disk: numba's cache, for many ranks that start at once.

    dispatcher._cache = FromFirstCall(function) ──first call──> _Kept ──> _Files
                                                     └──numba has changed──> numba's FunctionCache

All of numba that it does not promise to keep is used here alone. Where a numba lacks some of it, its own
cache takes the place of this one: slower to start from, and with the faults that are told below.
"""

# numba's caches are untyped.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import cached_property
from hashlib import blake2b
from typing import Any, cast

from numba.core.caching import FunctionCache, IndexDataCacheFile, NullCache
from numba.core.runtime.nrt import rtsys


class FromFirstCall(NullCache):
    """The `_Kept` of a function, made when that is first called.

    numba tries, for each function apart, whether its folder can be written: by a file. Kernels are 70 such
    functions, of which a rank calls a dozen, and 1,000 ranks may start at once from one disk.
    """

    def __init__(self, body: Callable[..., Any]) -> None:
        self._body = body

    @cached_property
    def made(self) -> FunctionCache | NullCache:
        """What keeps it, or nothing where no folder can be written: neither the source's, nor the user's."""
        return _unless_unwritable(_Kept, self._body)

    @property
    def cache_path(self) -> Any:
        return self.made.cache_path

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        return self._tried("load_overload", sig, target_context)

    def save_overload(self, sig: Any, data: Any) -> None:
        self._tried("save_overload", sig, data)

    def _tried(self, method: str, *given: Any) -> Any:
        """What Weft's cache does; where numba lacks what that needs, numba's own does it from then on."""
        try:
            return getattr(self.made, method)(*given)
        except (AttributeError, TypeError):
            self.made = _unless_unwritable(FunctionCache, self._body)
            return getattr(self.made, method)(*given)


def _unless_unwritable(kind: type[FunctionCache], body: Callable[..., Any]) -> FunctionCache | NullCache:
    with contextlib.suppress(RuntimeError):
        return kind(body)
    return NullCache()


class _Kept(FunctionCache):
    """numba's cache, but what it holds is had without what only compiling needs.

    numba makes its compiler ready before each look into a cache, for which it imports 200 modules (scipy is
    among them). The first kernel of every process took 0.7 s, and takes 0.06 s without. Where the cache holds
    nothing, the compiler makes itself ready.
    """

    def __init__(self, body: Callable[..., Any]) -> None:
        super().__init__(body)
        stamp = self._impl.locator.get_source_stamp()
        self._cache_file = _Files(self._cache_path, self._impl.filename_base, stamp)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        rtsys.initialize(target_context)  # with which compiled code allocates
        with self._guard_against_spurious_io_errors():
            return self._load_overload(sig, target_context)

    def save_overload(self, sig: Any, data: Any) -> None:
        # A kernel that is compiled needs no disk: a full one, or a quota, ended the job.
        with contextlib.suppress(OSError):
            super().save_overload(sig, data)


class _Files(IndexDataCacheFile):
    """numba's files of a function, but each overload's is named by what it is.

    numba numbers them: ranks that compiled two overloads at once, or one on two kinds of processor, both
    wrote the first, and whose index came last led, for every later process, to the other's code. And a file
    that was cut short (a machine went down) ended all of these: whatever reading one raises, nothing is kept.
    """

    def load(self, key: Any) -> Any:
        with contextlib.suppress(Exception):
            return super().load(key)
        return None

    def _load_index(self) -> dict[Any, str]:
        with contextlib.suppress(Exception):
            return cast("dict[Any, str]", super()._load_index())
        return {}

    def save(self, key: Any, data: Any) -> None:
        digest = blake2b(repr(key).encode(), digest_size=7).digest()
        name, known = self._data_name(int.from_bytes(digest)), self._load_index()
        if known.get(key) != name:
            self._save_index({**known, key: name})
        self._save_data(name, data)
