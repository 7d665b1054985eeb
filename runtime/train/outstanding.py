"""Which portions of a step's gradient still wait for kernels that were put out for other ranks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence


class Outstanding:
    """One step's, on the loop. Kernels and portions go by their numbers."""

    def __init__(self) -> None:
        self._missing: dict[int, set[int]] = defaultdict(set)  # kernels, by portion
        self._then: dict[int, list[Callable[[], None]]] = defaultdict(list)

    def put_out(self, kernel: int, portions: Sequence[int]) -> None:
        """A kernel is put out: these portions are not whole until it is done."""
        for portion in portions:
            self._missing[portion].add(kernel)

    def done(self, kernel: int) -> None:
        """It is done, here or elsewhere."""
        for portion, missing in self._missing.items():
            missing.discard(kernel)
            if not missing:
                for callback in self._then.pop(portion, []):
                    callback()

    def when(self, portion: int, callback: Callable[[], None]) -> None:
        """Call back once nothing of a portion is missing, behind the last call of `put_out` for it."""
        if self._missing[portion]:
            self._then[portion].append(callback)
        else:
            callback()
