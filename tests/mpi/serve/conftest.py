"""What the tests of serving on several ranks share."""

import pytest


@pytest.fixture(autouse=True)
def _a_slow_rank_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine keeps a rank, or its lane, from its core for longer than a server waits for either: what
    it had goes to others, counts as failed, and where there are none callers are refused. Tests of that are
    in pure/serve."""
    monkeypatch.setattr("weft.runtime.serve.watch.SILENT_S", 30.0)
    monkeypatch.setattr("weft.runtime.serve.dispatcher.STUCK_S", 30.0)
