"""What a failed job prints, as tables of reports."""

from __future__ import annotations

import asyncio

import pytest

from weft.runtime.errors import DataError, MachineError, PeerFailure
from weft.runtime.message.failure import (
    TEXT_BYTES,
    Report,
    follows_peer_failure,
    ranks_text,
    render,
    report_of,
    shortened,
)


def raised(error: BaseException, context: BaseException | None = None) -> BaseException:
    """`error` as an except clause would see it, perhaps raised while `context` was handled."""
    try:
        if context is None:
            raise error
        try:
            raise context
        except BaseException:
            raise error  # noqa: B904
    except BaseException as caught:
        return caught


PEER = PeerFailure(3, 4, "n2", "Traceback ...")


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        pytest.param(
            ZeroDivisionError("division by zero"), 1, "ZeroDivisionError: division by zero", id="any error"
        ),
        pytest.param(MachineError("no GPU"), 3, "no GPU", id="the machine's fault"),
        pytest.param(DataError("a.npz is damaged"), 2, "a.npz is damaged", id="a mistake is its message"),
        pytest.param(SystemExit(7), 7, "sys.exit(7)", id="an exit with a status"),
        pytest.param(SystemExit("why"), 1, "sys.exit('why')", id="an exit with a text"),
        pytest.param(SystemExit(256), 1, "sys.exit(256)", id="an exit whose byte is 0 is no success"),
        pytest.param(SystemExit(-1), 255, "sys.exit(-1)", id="an exit with a negative status"),
        pytest.param(SystemExit(2**40 + 5), 5, f"sys.exit({2**40 + 5})", id="an exit beyond all statuses"),
        pytest.param(
            ExceptionGroup("g", [DataError("a.npz is damaged")]),
            2,
            "a.npz is damaged",
            id="a group's mistake",
        ),
        pytest.param(
            ExceptionGroup("g", [DataError("a.npz is damaged"), KeyError("x")]),
            1,
            "KeyError: 'x'\n    +------------------------------------",
            id="a group with another error, too",
        ),
    ],
)
def test_a_report_has_status_and_text(error: BaseException, status: int, text: str) -> None:
    report = report_of(raised(error), 1, 4, "n1", "main")
    assert (report.rank, report.size, report.host, report.where) == (1, 4, "n1", "main")
    assert report.status == status
    assert report.text.endswith(text)


def test_what_is_not_wefts_fault_comes_without_its_traceback() -> None:
    assert report_of(raised(ValueError("x")), 0, 1, "n1", "main").text.startswith("Traceback")
    assert report_of(raised(DataError("x")), 0, 1, "n1", "main").text == "x"
    assert report_of(raised(MachineError("x"), OSError("y")), 0, 1, "n1", "main").text == "x"


def test_what_a_mistake_was_raised_in_is_told_with_it() -> None:
    """A pool notes which task it was: the message alone was that of any."""
    error = DataError("a.npz is damaged")
    error.add_note("(in task 'load' of the pool)")
    assert report_of(raised(error), 0, 1, "n1", "main").text == (
        "a.npz is damaged\n(in task 'load' of the pool)"
    )


def test_a_group_of_mistakes_comes_without_its_traceback() -> None:
    group = ExceptionGroup("g", [ExceptionGroup("g", [DataError("x")]), MachineError("y")])
    assert report_of(raised(group), 0, 1, "n1", "main").plain
    assert report_of(raised(group), 0, 1, "n1", "main").text == "x"


def test_what_an_error_ended_is_cut_to_fit_a_message() -> None:
    assert len(report_of(raised(ValueError("x")), 0, 1, "n1", "task 'x'" * 100_000).where) <= TEXT_BYTES


def report(rank: int, text: str, size: int = 4, host: str = "n1", plain: bool = False) -> Report:
    return Report(rank, size, host, "main", text, 1, plain)


@pytest.mark.parametrize(
    ("reports", "printed"),
    [
        pytest.param(
            [report(2, "Traceback\nValueError: x")],
            "weft: rank 2 of 4 on n1 failed in main:\nTraceback\nValueError: x",
            id="one rank",
        ),
        pytest.param(
            [report(r, "T\nE", host=f"n{r // 2}") for r in (3, 0, 1)],
            "weft: ranks 0-1, 3 of 4 on n0, n1 failed in main:\nT\nE",
            id="the same on several ranks",
        ),
        pytest.param(
            [report(0, "T\nE: 0"), report(1, "T\nE: 1")],
            "weft: rank 0 of 4 on n1 failed in main:\nT\nE: 0\n"
            "weft: rank 1 of 4 on n1 failed in main:\nT\nE: 1",
            id="different ones",
        ),
        pytest.param(
            [report(r, "unknown key 'epoch'", plain=True) for r in range(4)],
            "weft: unknown key 'epoch'",
            id="everybody's mistake",
        ),
        pytest.param(
            [report(2, "a.npz is missing", plain=True)],
            "weft: a.npz is missing (rank 2 of 4 on n1)",
            id="the mistake of one rank",
        ),
        pytest.param(
            [report(1, "sys.exit(7)")], "weft: rank 1 of 4 on n1 failed in main: sys.exit(7)", id="an exit"
        ),
    ],
)
def test_reports_are_printed_grouped_by_text(reports: list[Report], printed: str) -> None:
    assert render(reports) == printed


@pytest.mark.parametrize(
    ("ranks", "text"),
    [
        ([0], "rank 0"),
        ([2, 1], "ranks 1-2"),
        ([0, 1, 2, 5, 7, 8], "ranks 0-2, 5, 7-8"),
    ],
    ids=["one", "a run", "runs and single ones"],
)
def test_ranks_are_named_in_runs(ranks: list[int], text: str) -> None:
    assert ranks_text(ranks) == text


@pytest.mark.parametrize(
    ("error", "follows"),
    [
        pytest.param(raised(PEER), True, id="the failure of a peer itself"),
        pytest.param(raised(KeyError("x"), PEER), True, id="an error while handling it"),
        pytest.param(raised(asyncio.CancelledError()), True, id="a cancelled task"),
        pytest.param(BaseExceptionGroup("g", [PEER, raised(PEER)]), True, id="a group of nothing else"),
        pytest.param(
            BaseExceptionGroup("g", [PEER, KeyError("x")]), False, id="a group with an error of its own"
        ),
        pytest.param(raised(KeyError("x")), False, id="an error of its own"),
    ],
)
def test_a_rank_that_fails_because_another_failed_is_not_reported(
    error: BaseException, follows: bool
) -> None:
    assert follows_peer_failure(error) is follows


def test_a_traceback_too_long_for_a_message_keeps_both_ends() -> None:
    text = shortened("start\n" + "é" * TEXT_BYTES + "\nend")
    assert len(text.encode()) <= TEXT_BYTES
    assert text.startswith("start\n")
    assert text.endswith("\nend")
    assert "[...]" in text
    assert shortened("short") == "short"
