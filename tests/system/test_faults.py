"""Nothing hangs: every way to fail ends all ranks, soon, with one readable report and a status.

The programs are in faulty.py. Open MPI runs those where its launcher plays a part.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import launch

FAULTY = Path(__file__).with_name("faulty.py")
HOST = socket.gethostname()
RANKS = 3
LIMIT_S = 60.0  # 5 s are promised where each rank has a core; here they share two with whatever else runs

VENDORS = pytest.mark.parametrize("vendor", launch.VENDORS)


class Job:
    """A faulty program under a launcher (or alone: 0 ranks), its events and its end."""

    def __init__(self, vendor: str, ranks: int, case: str, folder: Path) -> None:
        self.folder = folder
        self._pipe = folder / "events"
        os.mkfifo(self._pipe)
        # Both ends: so the pipe stays open while no rank has it open.
        self._events = os.open(self._pipe, os.O_RDWR)
        self._text = ""
        program = [str(launch.python(vendor)), str(FAULTY), case, str(folder)]
        self.process = subprocess.Popen(
            [*(launch.launcher(ranks, vendor) if ranks else []), *program],
            env=launch.environment(vendor),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self.out = self.err = ""
        self.pids: list[int] = []

    def wait_for(self, what: str, count: int) -> float:
        """Wait for `count` events of that kind; the time of the last one."""
        limit = time.monotonic() + LIMIT_S
        while True:
            lines = [line.split() for line in self._text.splitlines(keepends=True) if line.endswith("\n")]
            found = [line for line in lines if line[0] == what]
            self.pids = [int(line[2]) for line in lines]
            if len(found) >= count:
                return max(float(line[3]) for line in found)
            if not select.select([self._events], [], [], max(0.0, limit - time.monotonic()))[0]:
                pytest.fail(f"{count} ranks to say {what!r} within {LIMIT_S} s, heard {found}\n{self.end()}")
            self._text += os.read(self._events, 65536).decode()

    def end(self) -> int:
        """Wait for the end; the status. Kills what does not end."""
        try:
            self.out, self.err = self.process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            self.out, self.err = launch._end(self.process)
            pytest.fail(f"did not end within {LIMIT_S} s\n--- stdout\n{self.out}\n--- stderr\n{self.err}")
        return self.process.returncode

    def clean_ranks(self) -> list[int]:
        return sorted(int(path.name.removeprefix("clean-")) for path in self.folder.glob("clean-*"))

    def close(self) -> None:
        os.close(self._events)
        if self.process.poll() is None:
            launch._end(self.process)

    def left_segments(self) -> list[str]:
        names = [name for path in self.folder.glob("segments-*") for name in path.read_text().split()]
        return [name for name in names if Path(name).exists()]


@contextlib.contextmanager
def job(vendor: str, ranks: int, case: str, folder: Path) -> Iterator[Job]:
    running = Job(vendor, ranks, case, folder)
    try:
        yield running
        assert running.left_segments() == []
    finally:
        running.close()


TRACEBACK = "ZeroDivisionError: the test's own"
LAST = f"weft: rank {RANKS - 1} of {RANKS} on {HOST} failed in"
MISTAKE = "weft: job.toml, line 3: unknown key 'epoch'"

# case, status, lines of the report, number of tracebacks, whether the other ranks could clean up
WAYS = {
    "main_raises": (1, [f"{LAST} main:", TRACEBACK], 1, True),
    "background_task_raises": (1, [f"{LAST} background task 'worker':", TRACEBACK], 1, True),
    "forgotten_task_raises": (1, [f"{LAST} task 'forgotten':", TRACEBACK], 1, True),
    "callback_raises": (1, [f"{LAST} a callback of the event loop:", TRACEBACK], 1, True),
    "thread_raises": (1, [f"{LAST} main:", TRACEBACK], 1, True),
    "message_handler_raises": (1, [f"{LAST} a callback of the event loop:", TRACEBACK], 1, True),
    "all_raise": (1, [f"ValueError: of rank {rank}" for rank in range(RANKS)], RANKS, False),
    "all_make_the_same_mistake": (2, [MISTAKE], 0, False),
    "one_makes_a_mistake": (2, [f"{MISTAKE} (rank {RANKS - 1} of {RANKS} on {HOST})"], 0, True),
    "machine_lacks_something": (3, [f"weft: no GPU (rank {RANKS - 1} of {RANKS} on {HOST})"], 0, True),
    "task_exits_as_if_all_were_done": (1, [f"{LAST} run(main), outside of main: sys.exit(0)"], 0, False),
    "one_exits": (7, [f"{LAST} main: sys.exit(7)"], 0, True),
    "peer_is_blocked": (1, [f"{LAST} main:", TRACEBACK], 1, False),
    "peer_holds_the_interpreter": (1, [f"{LAST} main:", TRACEBACK], 1, False),
    "peer_does_not_finish_cleaning_up": (1, [f"{LAST} main:", TRACEBACK], 1, True),
    "peers_are_in_task_groups": (1, [f"{LAST} main:", TRACEBACK], 1, True),
    "last_one_raises_late": (1, [f"{LAST} main:", TRACEBACK], 1, False),
    "main_leaves_a_send": (2, [], 0, False),
    "task_resists": (2, [], 0, False),
}
UNDER_OPENMPI = (
    "main_raises",
    "callback_raises",
    "all_make_the_same_mistake",
    "one_exits",
    "peer_is_blocked",
    "peer_holds_the_interpreter",
    "last_one_raises_late",
)


@pytest.mark.parametrize(
    ("vendor", "case"),
    [("mpich", case) for case in WAYS] + [("openmpi", case) for case in UNDER_OPENMPI],
    ids=lambda value: value.replace("_", " "),
)
def test_a_failure_ends_all_ranks_with_one_report(vendor: str, case: str, tmp_path: Path) -> None:
    status, lines, tracebacks, clean = WAYS[case]
    with job(vendor, RANKS, case, tmp_path) as failing:
        failing.wait_for("fails", 1)
        assert failing.end() == status, failing.err
    reported = failing.err.splitlines()
    for line in lines:
        assert reported.count(line) == 1, failing.err
    assert failing.err.count("Traceback (most recent call last)") == tracebacks, failing.err
    if case == "main_leaves_a_send":
        assert "still under way: send to rank 0 (tag 0) on 'world'" in failing.err
    if case == "task_resists":
        assert "still under way: task 'stubborn', which does not end when cancelled" in failing.err
    if clean:
        others = list(range(RANKS - 1))
        assert [rank for rank in failing.clean_ranks() if rank in others] == others
        for rank in others:
            assert f"rank {rank} hears of rank {RANKS - 1}" in failing.out


@VENDORS
def test_a_failed_rank_that_can_say_nothing_is_told_by_another(vendor: str, tmp_path: Path) -> None:
    with job(vendor, RANKS, "failed_one_holds_the_interpreter", tmp_path) as failing:
        failing.wait_for("fails", 1)
        assert failing.end() in (1, 9), failing.err  # MPICH may return that of the ranks it kills
    for line in (f"{LAST} background task 'worker':", TRACEBACK):
        assert failing.err.splitlines().count(line) == 1, failing.err


@VENDORS
def test_a_killed_rank_ends_all(vendor: str, tmp_path: Path) -> None:
    with job(vendor, RANKS, "one_is_killed", tmp_path) as killed:
        killed.wait_for("fails", 1)
        assert killed.end() == {"mpich": 9, "openmpi": 137}[vendor]


@VENDORS
def test_a_killed_launcher_ends_all(vendor: str, tmp_path: Path) -> None:
    with job(vendor, RANKS, "main_knows_no_stop", tmp_path) as orphaned:
        orphaned.wait_for("ready", RANKS)
        ranks = [os.pidfd_open(pid) for pid in orphaned.pids]
        orphaned.process.kill()
        for rank in ranks:
            assert select.select([rank], [], [], LIMIT_S)[0], "a rank outlives its launcher"
            os.close(rank)
        orphaned.end()


@VENDORS
def test_without_a_failure_nothing_is_said_or_left(vendor: str, tmp_path: Path) -> None:
    with job(vendor, RANKS, "all_is_well", tmp_path) as well:
        assert well.end() == 0
        assert (well.out, well.err) == ("", "")


@VENDORS
@pytest.mark.parametrize(
    ("case", "status"),
    [("all_is_well", 0), ("main_raises", 1), ("one_makes_a_mistake", 2), ("one_exits", 7)],
    ids=lambda value: str(value).replace("_", " "),
)
def test_a_rank_alone_needs_no_launcher(vendor: str, case: str, status: int, tmp_path: Path) -> None:
    with job(vendor, 0, case, tmp_path) as alone:
        assert alone.end() == status, alone.err
    assert alone.err.count("Traceback") == (case == "main_raises")


# -- stops -----------------------------------------------------------------------------------------------

# Which signal, what it gives time for, and the status: Open MPI's launcher has its own for the first two.
STOPS = {
    ("mpich", signal.SIGINT): 130,
    ("mpich", signal.SIGTERM): 143,
    ("mpich", signal.SIGUSR1): 138,
    ("openmpi", signal.SIGINT): 1,
    ("openmpi", signal.SIGTERM): 1,
    ("openmpi", signal.SIGUSR1): 138,
}


@pytest.mark.parametrize(
    "case", ["main_knows_no_stop", "main_stops_by_itself"], ids=lambda c: c.replace("_", " ")
)
@pytest.mark.parametrize(("vendor", "number"), STOPS, ids=lambda v: v if isinstance(v, str) else v.name)
def test_a_signal_to_the_launcher_stops_all_ranks(
    vendor: str, number: signal.Signals, case: str, tmp_path: Path
) -> None:
    with job(vendor, RANKS, case, tmp_path) as stopping:
        stopping.wait_for("ready", RANKS)
        stopping.process.send_signal(number)
        assert stopping.end() == STOPS[vendor, number], stopping.err
    assert stopping.clean_ranks() == list(range(RANKS))
    assert "Traceback" not in stopping.err


def test_ctrl_c_while_ranks_start_ends_those_that_are_in_mpi_already(tmp_path: Path) -> None:
    with job("mpich", RANKS, "one_has_not_started_mpi", tmp_path) as starting:
        starting.wait_for("ready", RANKS)
        time.sleep(0.5)  # for them to come there: nobody sees it; too early, Python itself ends them
        with launch.no_segments_left(starting.pids):
            starting.process.send_signal(signal.SIGINT)
            assert starting.end() != 0


def test_a_stop_that_leaves_a_collective_half_done_ends_all_ranks_too(tmp_path: Path) -> None:
    with job("mpich", RANKS, "stop_breaks_a_collective", tmp_path) as stopping:
        stopping.wait_for("ready", RANKS)
        stopping.process.send_signal(signal.SIGTERM)
        assert stopping.end() == 143, stopping.err


@VENDORS
def test_a_signal_to_one_rank_stops_all_ranks(vendor: str, tmp_path: Path) -> None:
    with job(vendor, RANKS, "main_stops_by_itself", tmp_path) as stopping:
        stopping.wait_for("ready", RANKS)
        os.kill(stopping.pids[-1], signal.SIGTERM)
        assert stopping.end() == 143, stopping.err
    assert stopping.clean_ranks() == list(range(RANKS))
    assert stopping.err.count("weft: SIGTERM: stopping; once more to end at once") == 1


def test_a_second_signal_ends_at_once_what_does_not_stop(tmp_path: Path) -> None:
    with job("mpich", RANKS, "main_ignores_stops", tmp_path) as stubborn:
        stubborn.wait_for("ready", RANKS)
        stubborn.process.send_signal(signal.SIGTERM)
        first = stubborn.wait_for("asked", RANKS)
        # Not sooner: what comes within half a second is taken for the same signal, sent twice.
        time.sleep(max(0.0, first + 1.0 - time.monotonic()))
        stubborn.process.send_signal(signal.SIGTERM)
        assert stubborn.end() in (143, 9)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_rank_alone_stops_on_a_signal(number: signal.Signals, tmp_path: Path) -> None:
    with job("mpich", 0, "main_stops_by_itself", tmp_path) as alone:
        alone.wait_for("ready", 1)
        alone.process.send_signal(number)
        assert alone.end() == 128 + number
    assert alone.clean_ranks() == [0]


# -- stalls, nodes, and no MPI -----------------------------------------------------------------------------


@VENDORS
def test_a_rank_whose_loop_is_blocked_is_named_while_the_others_wait(vendor: str, tmp_path: Path) -> None:
    with job(vendor, RANKS, "one_is_late", tmp_path) as late:
        assert late.end() == 0
    assert 'in "all-reduce of portion 3" for' in late.err
    assert f"  rank {RANKS - 1} ({HOST}), which does not answer: its event loop is blocked" in late.err


PORTION = "m: step 3, portion 2 (dense_1 rows 0-255)"


@VENDORS
def test_a_rank_that_is_late_for_a_portion_is_named_with_it(vendor: str, tmp_path: Path) -> None:
    """Within how many seconds, tests/pure/exchange/test_exchange.py adds up."""
    with job(vendor, 2, "one_is_late_for_a_portion", tmp_path) as late:
        assert late.end() == 0
    assert f"weft: rank 0 ({HOST}) has waited " in late.err
    assert f's in "{PORTION}" for\n  rank 1 ({HOST}), which does not answer: its event loop' in late.err


@VENDORS
@pytest.mark.parametrize(
    ("case", "position"),
    [
        ("a_portion_never_comes", 'has not called it; it is at "the end of main"'),
        ("a_counter_never_comes", 'is at "step 3: reading data"'),
    ],
    ids=["a portion", "a counter"],
)
def test_what_never_comes_is_told_once_with_who_owes_it(
    vendor: str, case: str, position: str, tmp_path: Path
) -> None:
    with job(vendor, RANKS, case, tmp_path) as stalled:
        stalled.wait_for("told", 1)
        # The portion is missing for ever: MPICH's ranks are ended by the stop that finds it so.
        stalled.process.send_signal(signal.SIGTERM)
        assert stalled.end() == STOPS[vendor, signal.SIGTERM], stalled.err
    assert stalled.err.count("has waited") == 1
    assert f's in "{PORTION}" for\n  rank {RANKS - 1} ({HOST}), which {position}' in stalled.err


@VENDORS
def test_an_order_that_differs_ends_the_job_and_names_both_portions(vendor: str, tmp_path: Path) -> None:
    with job(vendor, RANKS, "the_order_differs", tmp_path) as mixed:
        mixed.wait_for("fails", RANKS)
        assert mixed.end() == 2, mixed.err
    assert (
        f"weft: rank {RANKS - 1} ({HOST}) called \"{PORTION}\" as collective 1 on 'world/m', "
        f'where rank 0 ({HOST}) called "m: step 3, portion 3 (dense_0)": all ranks must call the same'
    ) in mixed.err


@VENDORS
def test_pools_that_are_opened_at_once_in_two_orders_end_the_job(vendor: str, tmp_path: Path) -> None:
    """Ranks were in MPI for what each took for its own, with their loops: nobody told anything."""
    with job(vendor, RANKS, "pools_are_opened_in_two_orders", tmp_path) as mixed:
        mixed.wait_for("fails", RANKS)
        assert mixed.end() == 2, mixed.err
    assert (
        "weft: \"duplicate as 'weft other'\" was called as collective 1 on 'channels', "
        "where rank 0 called \"duplicate as 'weft one'\": all ranks must call the same"
    ) in mixed.err


def test_a_collective_of_unequal_sizes_ends_the_job_even_if_main_is_over(tmp_path: Path) -> None:
    """With MPICH, which adds up what there is; Open MPI may raise an error of its own."""
    with job("mpich", RANKS, "the_sizes_differ", tmp_path) as mixed:
        mixed.wait_for("fails", RANKS)
        assert mixed.end() == 2, mixed.err
    assert (
        f'weft: rank {RANKS - 1} ({HOST}) called "{PORTION}" with 80 bytes, and rank 0 ({HOST}) with 72: '
        "all ranks must give a collective arrays of one size"
    ) in mixed.err


@pytest.mark.parametrize(
    ("case", "last", "others"),
    [
        pytest.param("the_types_differ", "<i8", "<f8", id="integers and floats"),
        pytest.param("the_orders_of_arrays_differ", "<f8 in Fortran order", "<f8", id="another order"),
    ],
)
def test_a_collective_of_unequal_types_ends_the_job(
    case: str, last: str, others: str, tmp_path: Path
) -> None:
    """Of as many bytes, MPI adds them up, and every rank has another sum."""
    with job("mpich", RANKS, case, tmp_path) as mixed:
        mixed.wait_for("fails", RANKS)
        assert mixed.end() == 2, mixed.err
    assert (
        f'weft: rank {RANKS - 1} ({HOST}) called "{PORTION}" with {last}, and rank 0 ({HOST}) with {others}: '
        "all ranks must give a collective arrays of one type and order"
    ) in mixed.err


@pytest.mark.parametrize(
    ("setting", "nodes"),
    [
        pytest.param({}, ((0, 1, 2, 3),), id="one node"),
        pytest.param({"MPIR_CVAR_NUM_CLIQUES": "2"}, ((0, 2), (1, 3)), id="two nodes of two"),
        pytest.param({"MPIR_CVAR_NOLOCAL": "1"}, ((0,), (1,), (2,), (3,)), id="each rank its own node"),
    ],
)
def test_ranks_are_grouped_by_node(
    setting: dict[str, str], nodes: tuple[tuple[int, ...], ...], tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "events")
    result = launch.mpiexec(4, [FAULTY, "all_is_well", tmp_path], vendor="mpich", env=setting)
    assert result.returncode == 0, result.stderr
    for rank in range(4):
        assert (tmp_path / f"nodes-{rank}").read_text() == repr(nodes)


def test_messages_windows_and_worlds_pass_their_tests_across_nodes() -> None:
    tests = launch.ROOT / "tests" / "mpi" / "message"
    result = launch.mpiexec(
        4,
        ["-m", "pytest", "-q", tests],
        vendor="mpich",
        env={"MPIR_CVAR_NUM_CLIQUES": "2"},
        cwd=launch.ROOT,
        timeout=400,  # half a minute where each rank has a core
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_without_an_mpi_library_the_message_names_the_remedies() -> None:
    env = {**launch.environment("mpich"), "MPI4PY_LIBMPI": "/nonexistent/libmpi.so"}
    result = launch.run([launch.python("mpich"), "-c", "import weft.runtime.message"], env=env)
    assert result.returncode != 0
    for word in ("MachineError: no MPI library was found", "weft[mpich]", "weft[openmpi]", "system's MPI"):
        assert word in result.stderr


def test_a_main_that_is_no_coroutine_function_is_told_so() -> None:
    code = "from weft.runtime.message import run; run(lambda world: None)"
    result = launch.run([launch.python("mpich"), "-c", code], env=launch.environment("mpich"))
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith(
        "weft: run(main) awaits what main(world) returns, which was None: make main"
    )


def test_importing_weft_does_not_start_mpi_or_load_what_few_ranks_need() -> None:
    code = (
        "import sys, weft.runtime.message; from mpi4py import MPI; assert not MPI.Is_initialized()\n"
        "assert 'numba' not in sys.modules  # that of windows, half of a rank's start\n"
        "import weft.runtime.serve.program, weft.runtime.train.fleet\n"
        "assert not {'rich', 'matplotlib', 'sklearn'} & set(sys.modules)"
    )
    result = launch.run([launch.python("mpich"), "-c", code], env=launch.environment("mpich"))
    assert result.returncode == 0, result.stderr


def test_a_program_that_starts_mpi_first_is_told_where_that_loses_messages() -> None:
    code = "import sys\nfrom mpi4py import MPI\nfrom weft.runtime.message import run\n"
    # In one write: print() makes two when unbuffered, between which the launcher may pass on another rank's.
    code += "async def main(world): sys.stdout.write('ran\\n')\nrun(main)"
    env = {"MPIR_CVAR_NUM_CLIQUES": "2"}
    result = launch.mpiexec(2, ["-c", code], vendor="mpich", env={**env, "MPIR_CVAR_CH4_NETMOD": "ofi"})
    assert (result.returncode, result.stdout) == (0, "ran\nran\n"), result.stderr
    result = launch.mpiexec(2, ["-c", code], vendor="mpich", env={**env, "MPIR_CVAR_CH4_NETMOD": "ucx"})
    assert result.returncode == 2, result.stderr
    assert "import weft.runtime.message before mpi4py.MPI" in result.stderr
    assert result.stdout == ""


def test_a_launcher_of_another_mpi_is_found_out(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "events")
    command = [*launch.launcher(2, "mpich"), launch.python("openmpi"), FAULTY, "all_is_well", tmp_path]
    result = launch.run(command, env=launch.environment("mpich"))
    assert result.returncode == 3, result.stderr
    assert result.stderr.count("mpirun belongs to another MPI") == 1


# Each rank says which segments it has when MPI has started.
BEFORE_MAIN = {
    "another launcher's": """
        from weft.runtime.message import mpi, run
        check = mpi.check_launcher
        def told(size):
            sys.stdout.write(" ".join(mpi.mapped_segments()) + "\\n")
            check(size)
        mpi.check_launcher = told
    """,
    "a program's that starts MPI first": """
        from mpi4py import MPI
        from weft.runtime.message import mpi, run
        sys.stdout.write(" ".join(mpi.mapped_segments()) + "\\n")
    """,
}


@pytest.mark.parametrize("whose", BEFORE_MAIN)
def test_what_ends_ranks_before_main_leaves_no_segment(whose: str) -> None:
    """Open MPI's of ranks that it has not started, and MPICH's of the nodes of which rank 0 is none."""
    code = f"import sys\n{textwrap.dedent(BEFORE_MAIN[whose])}\nasync def main(world): ...\nrun(main)"
    python = launch.python("openmpi" if whose == "another launcher's" else "mpich")
    nodes = {"MPIR_CVAR_NUM_CLIQUES": "2", "MPIR_CVAR_CH4_NETMOD": "ucx"}
    result = launch.run(
        [*launch.launcher(2, "mpich"), python, "-c", code], env=launch.environment("mpich", nodes)
    )
    assert result.returncode in (2, 3), result.stderr
    segments = result.stdout.split()
    assert len(set(segments)) == 2, result.stdout
    assert [name for name in segments if Path(name).exists()] == []
