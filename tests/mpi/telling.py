"""What a rank tells of its waits, for tests that hold whichever rank is slow as well.

A wait is told once, and then not again for a minute: a report that came before all was as the test wants it
would be the only one.
"""

from __future__ import annotations

import pytest

from weft.runtime.message import stall

LONG_S = 60.0


class Said(list[str]):
    """The reports of this rank, which looks at its waits while `looks` is set: not at the start."""

    looks = False

    def naming(self, rank: int) -> list[str]:
        """Those that name `rank` among the ranks that are waited for."""
        return [text for text in self if f"\n  rank {rank} (" in text]


def listen(monkeypatch: pytest.MonkeyPatch) -> Said:
    """Instead of on stderr; and whoever is asked may take its time to answer."""
    said, look = Said(), stall.Stalls._look

    def look_if_wanted(stalls: stall.Stalls) -> None:
        if said.looks:
            look(stalls)
        else:
            stalls._look_later()

    monkeypatch.setattr(stall.Stalls, "_look", look_if_wanted)
    monkeypatch.setattr(stall, "say", said.append)
    monkeypatch.setattr(stall, "ANSWER_S", LONG_S)
    monkeypatch.setattr(stall, "ANSWER_SHARE", LONG_S)
    return said
