"""The nap policy in virtual time."""

from __future__ import annotations

import pytest

from weft.runtime.message.nap import NapPolicy

POLICY = NapPolicy()


def wait(
    until_s: float,
    *,
    awaited: bool = False,
    expecting: bool = True,
    computing: bool = False,
    rung: bool = False,
    watched: bool = False,
) -> tuple[float, list[float]]:
    """Look and nap until something ends at `until_s`: when that was noticed, and the naps taken."""
    look_s = 2e-6  # what one look costs
    now, naps = 0.0, []
    while now < until_s:
        nap = POLICY.nap(
            now, awaited=awaited, expecting=expecting, computing=computing, rung=rung, watched=watched
        )
        naps.append(nap)
        now += nap + look_s
    return now, naps


@pytest.mark.parametrize("until_s", [1e-6, 20e-6, 90e-6])
def test_an_answer_of_an_awake_peer_is_noticed_at_once(until_s: float) -> None:
    noticed, naps = wait(until_s)
    assert noticed - until_s <= 2e-6
    assert not any(naps)


@pytest.mark.parametrize(
    ("situation", "spin_s"), [("awaited", 1e-3), ("watched", 1e-3), ("expecting", 500e-6)]
)
def test_what_somebody_waits_for_is_noticed_at_once_for_a_while(situation: str, spin_s: float) -> None:
    _, naps = wait(0.99 * spin_s, **{"expecting": False, situation: True})
    assert not any(naps)
    _, naps = wait(1.1 * spin_s, **{"expecting": False, situation: True})
    assert naps[-1] >= POLICY.shortest_s


@pytest.mark.parametrize("until_s", [0.5e-3, 3e-3, 20e-3, 1.0])
@pytest.mark.parametrize("situation", ["awaited", "expecting", "rung"])
def test_a_wait_grows_by_a_twentieth_at_most(until_s: float, situation: str) -> None:
    noticed, _ = wait(until_s, **{"expecting": False, situation: True})
    assert noticed - until_s <= 0.05 * until_s + POLICY.shortest_s


@pytest.mark.parametrize(
    ("longest_s", "situation"),
    [
        pytest.param(1e-3, {"awaited": True, "rung": True}, id="an operation under way is noticed in 1 ms"),
        pytest.param(1e-3, {"awaited": True, "computing": True}, id="also while a kernel runs"),
        pytest.param(1e-3, {"expecting": True}, id="so is a message somebody waits for"),
        pytest.param(4e-3, {"expecting": False}, id="one nobody waits for in 4 ms"),
        pytest.param(4e-3, {"expecting": False, "computing": True}, id="also while a kernel runs"),
        pytest.param(20e-3, {"rung": True}, id="a rank that can be woken sleeps longer"),
        pytest.param(20e-3, {"rung": True, "computing": True}, id="and leaves a kernel alone"),
        pytest.param(20e-3, {"rung": True, "watched": True}, id="who publishes a counter rings"),
    ],
)
def test_no_wait_grows_by_more_than_the_longest_nap(longest_s: float, situation: dict[str, bool]) -> None:
    _, naps = wait(10.0, **situation)
    assert max(naps) == longest_s


def test_a_kernel_is_never_disturbed_by_spinning() -> None:
    _, naps = wait(0.1, awaited=True, computing=True)
    assert min(naps) == POLICY.computing_shortest_s
    assert naps[20:] == [POLICY.computing_s] * (len(naps) - 20)


@pytest.mark.parametrize(("pace_s", "nap_s"), [(0.0, 200e-6), (2e-3, 500e-6), (9e-3, 1e-3)])
def test_beside_a_kernel_the_first_nap_is_a_quarter_of_what_operations_lately_took(pace_s, nap_s):
    situation = {"awaited": True, "expecting": False, "computing": True, "rung": False}
    assert POLICY.nap(0.0, **situation, pace_s=pace_s) == pytest.approx(nap_s)


def test_ranks_that_share_cores_leave_theirs_to_whoever_is_to_publish() -> None:
    crowded = NapPolicy(crowded=True)
    situation = {"expecting": True, "computing": False, "rung": True, "watched": True}
    assert crowded.nap(0.0, awaited=False, **situation) == crowded.rung_s
    assert crowded.nap(0.0, awaited=True, **situation) == 0.0
    assert POLICY.nap(0.0, awaited=False, **situation) == 0.0


@pytest.mark.parametrize(("expecting", "spinning"), [(False, 50), (True, 250)])
def test_looks_grow_rare(expecting: bool, spinning: int) -> None:
    looks = [len(wait(seconds, expecting=expecting)[1]) for seconds in (0.01, 0.1, 1.0)]
    assert looks[0] < 100 + spinning
    assert looks[1] - looks[0] < 150
    assert looks[2] < 1.1 * 1000 + looks[0]
