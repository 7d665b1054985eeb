"""The nap policy in virtual time."""

from __future__ import annotations

import pytest

from weft.runtime.message.nap import NapPolicy

POLICY = NapPolicy()


def wait(until_s: float, *, awaited: bool = True, computing: bool = False) -> tuple[float, list[float]]:
    """Look and nap until something ends at `until_s`: when that was noticed, and the naps taken."""
    look_s = 2e-6  # what one look costs
    now, naps = 0.0, []
    while now < until_s:
        nap = POLICY.nap(now, awaited=awaited, computing=computing)
        naps.append(nap)
        now += nap + look_s
    return now, naps


@pytest.mark.parametrize("until_s", [1e-6, 20e-6, 90e-6])
def test_an_answer_of_an_awake_peer_is_noticed_at_once(until_s: float) -> None:
    noticed, naps = wait(until_s)
    assert noticed - until_s <= 2e-6
    assert not any(naps)


@pytest.mark.parametrize("until_s", [0.5e-3, 3e-3, 20e-3, 1.0])
@pytest.mark.parametrize("awaited", [True, False], ids=["awaited", "standing"])
def test_a_wait_grows_by_a_twentieth_at_most(until_s: float, awaited: bool) -> None:
    noticed, _ = wait(until_s, awaited=awaited)
    assert noticed - until_s <= 0.05 * until_s + POLICY.shortest_s


@pytest.mark.parametrize(
    ("awaited", "computing", "longest_s"),
    [
        pytest.param(True, False, 1e-3, id="an awaited message is noticed within 1 ms"),
        pytest.param(False, False, 4e-3, id="a message nobody waits for within 4 ms"),
        pytest.param(True, True, 1e-3, id="bulk moves every 1 ms while a kernel runs"),
        pytest.param(False, True, 4e-3, id="a kernel with nothing outstanding is left alone"),
    ],
)
def test_no_wait_ever_grows_by_more_than_the_longest_nap(
    awaited: bool, computing: bool, longest_s: float
) -> None:
    _, naps = wait(10.0, awaited=awaited, computing=computing)
    assert max(naps) == longest_s


def test_a_kernel_is_never_disturbed_by_spinning() -> None:
    _, naps = wait(0.01, computing=True)
    assert min(naps) == POLICY.computing_s


def test_looks_grow_rare() -> None:
    looks = [len(wait(seconds)[1]) for seconds in (0.01, 0.1, 1.0)]
    assert looks[0] < 150
    assert looks[1] - looks[0] < 150
    assert looks[2] < 1.1 * 1000 + looks[0]
