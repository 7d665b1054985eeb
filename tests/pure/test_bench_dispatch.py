"""The bench of decisions: figures, and none from a policy that loses a request or from too short a queue."""

from __future__ import annotations

import pytest

from bench.__main__ import main
from bench.dispatch import Events
from bench.harness import WrongResultError
from weft.runtime.serve.policy import Weft


def test_events_are_timed_while_the_queue_is_full_and_every_request_comes_out():
    events = Events(queued=700, seed=0)
    events.run(100)
    events.finish()
    assert len(events.sends) + len(events.others) >= 100
    assert events.sends
    assert events.learns


def test_a_request_that_a_policy_loses_gives_no_figures(monkeypatch):
    put = Weft._put

    def lose(self, group, job, due_s):
        if job.number != 300:
            put(self, group, job, due_s)

    monkeypatch.setattr(Weft, "_put", lose)
    events = Events(queued=700, seed=0)
    events.run(100)
    with pytest.raises(WrongResultError, match="1 requests are lost, 300 the first of them"):
        events.finish()


def test_a_queue_that_a_batch_empties_is_refused(capsys):
    assert main(["dispatch", "--queued", "100"]) == 2
    assert "dispatch: --queued is 100; give 700 or more" in capsys.readouterr().err
