"""Emulated hosts: MPI sees nodes, the wire is used and counted, and nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import network
from bench.harness import WrongResultError
from bench.hosts import Hosts, Job
from bench.network import burst_bytes, missing, remove_leftovers
from tests.launch import ROOT, descendants, environment, python, requires, run

RIG = ["-m", "bench.hosts"]

PLACES = """
import os, socket
from mpi4py import MPI

world = MPI.COMM_WORLD
node = world.Split_type(MPI.COMM_TYPE_SHARED)
cores = sorted(os.sched_getaffinity(0))
line = f"rank {world.rank} on {socket.gethostname()} among {node.size} cores {cores}"
for place in world.gather(line) or []:
    print(place, flush=True)
"""

ALLREDUCE = """
import numpy
from mpi4py import MPI

array = numpy.full(1_000_000, MPI.COMM_WORLD.rank + 1, numpy.float32)
MPI.COMM_WORLD.Allreduce(MPI.IN_PLACE, array)
assert (array == 3).all()
"""

# One write a line, or the launcher mixes what two ranks say.
WAIT = """
import signal, sys
# sigwait, not pause: a signal that comes just before pause() would be waited for in vain.
signals = {signal.SIGINT, signal.SIGTERM}
signal.pthread_sigmask(signal.SIG_BLOCK, signals)
from mpi4py import MPI

MPI.COMM_WORLD.Barrier()
sys.stdout.write("ready\\n")
sys.stdout.flush()
sys.stdout.write(f"told {int(signal.sigwait(signals))}\\n")
"""


NAMES = """
import socket, sys

known = [socket.gethostbyname(name) for name in ("n1", "n2")]
interfaces = [name for _, name in socket.if_nameindex()]
sys.stdout.write(" ".join([*known, *interfaces]) + "\\n")
"""


@pytest.fixture(autouse=True)
def _hosts_can_be_had() -> None:
    lacking = missing()
    requires(lacking is None, str(lacking))


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    lacking = missing()
    requires(lacking is None, str(lacking))
    with Hosts(2, rate="1gbit") as made:
        yield made


def left_of(pid: int) -> list[str]:
    """Namespaces and folders of the rigs of process `pid`."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return re.findall(rf"weft-hosts-{pid}-\S*", "\n".join([listed, *os.listdir(tempfile.gettempdir())]))


@contextlib.contextmanager
def started() -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """The rig in a process of its own, its two ranks waiting for a signal; and the processes below it."""
    command = [sys.executable, *RIG, "--", "python", "-c", WAIT]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=ROOT, env=environment("mpich"), stdout=pipe, stderr=pipe, text=True
    ) as rig:
        try:
            assert [rig.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
            yield rig, descendants(rig.pid)
        finally:
            rig.kill()


def alive(pids: list[int]) -> list[int]:
    """Those of `pids` that run; an orphan may stay a zombie for as long as init likes."""
    found = []
    for pid in pids:
        with contextlib.suppress(FileNotFoundError):
            if ") Z" not in Path(f"/proc/{pid}/stat").read_text():
                found.append(pid)
    return found


@pytest.mark.parametrize("vendor", ["mpich", "openmpi"])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--hosts", "2"], ["n1 among 1", "n2 among 1"]),
        (["--hosts", "3"], ["n1 among 1", "n2 among 1", "n3 among 1"]),
        (["--hosts", "2", "--ranks-per-host", "2,1"], ["n1 among 2", "n1 among 2", "n2 among 1"]),
    ],
    ids=["two hosts", "three hosts on a switch", "two ranks on one host and one on the other"],
)
def test_mpi_takes_each_host_for_a_node(vendor, options, expected):
    command = [python(vendor), *RIG, *options, "--expect-bytes", "1000", "--", "python", "-c", PLACES]
    result = run(command, env=environment(vendor), cwd=ROOT)
    assert result.returncode == 0, result
    cores = sorted(os.sched_getaffinity(0))
    assert result.stdout.splitlines() == [
        f"rank {rank} on {place} cores [{cores[rank % len(cores)]}]" for rank, place in enumerate(expected)
    ]
    for host in {place[:2] for place in expected}:
        assert re.search(rf"{host} sent \d+\.\d+ MB, received \d+\.\d+ MB", result.stderr), result.stderr


def test_a_job_is_told_the_command_that_makes_its_hosts():
    program = "import os; os.write(1, os.environ['WEFT_BENCH_HOSTS'].encode() + b'\\n')"
    with Hosts(2, rate="100mbit", latency="20ms") as made:
        job = made.run(["python", "-c", program], env=environment("mpich"), capture=True, timeout=60)
    assert job.stdout.splitlines() == ["--hosts 2 --rate 100mbit --ranks-per-host 1 --latency 20ms"] * 2


def test_an_all_reduce_of_4_mb_moves_4_mb_each_way(hosts):
    job = hosts.run(["python", "-c", ALLREDUCE], env=environment("mpich"), timeout=60, expect_bytes=8_000_000)
    assert isinstance(job, Job)
    assert job.returncode == 0
    for moved in (*job.sent, *job.received):
        assert 4_000_000 <= moved < 8_000_000, job.moved()


def test_a_job_that_keeps_off_the_wire_is_a_wrong_result(hosts):
    with pytest.raises(
        WrongResultError, match=r"a host moved \d+ bytes over its link, 4000000 were expected"
    ):
        hosts.run(["python", "-c", ""], env=environment("mpich"), timeout=60, expect_bytes=4_000_000)


def test_hosts_know_each_other_and_nothing_else(hosts):
    job = hosts.run(["python", "-c", NAMES], env=environment("mpich"), capture=True, timeout=60)
    assert len(job.stdout.splitlines()) == 2
    for line in job.stdout.splitlines():
        assert re.fullmatch(rf"{' '.join(hosts.addresses)} lo eth0", line), line


def test_the_exit_status_is_passed_on_and_nothing_left():
    program = "from mpi4py import MPI; MPI.COMM_WORLD.Barrier(); raise SystemExit(3)"
    with Hosts(2) as hosts:
        assert hosts.namespaces[0] in left_of(os.getpid())
        job = hosts.run(["python", "-c", program], env=environment("mpich"), capture=True, timeout=60)
    assert job.returncode == 3, job
    assert not [name for name in left_of(os.getpid()) if hosts.folder.name in name]


def test_a_job_over_its_time_is_killed():
    with pytest.raises(subprocess.TimeoutExpired), Hosts(3, rate="1gbit") as hosts:
        hosts.run(["python", "-c", WAIT], env=environment("mpich"), capture=True, timeout=2)
    assert not [name for name in left_of(os.getpid()) if hosts.folder.name in name]
    assert not descendants(os.getpid())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_reaches_the_ranks_and_nothing_is_left_after(number):
    with started() as (rig, below):
        assert left_of(rig.pid)
        rig.send_signal(number)
        out, err = rig.communicate(timeout=60)
    assert out.count(f"told {number.value}\n") == 2, (out, err)
    assert rig.returncode == 128 + number, err
    assert left_of(rig.pid) == []
    assert alive(below) == []


def test_the_next_run_removes_what_a_killed_one_left():
    with started() as (rig, below):
        rig.kill()
        rig.communicate(timeout=60)
    assert left_of(rig.pid)
    remove_leftovers()
    assert left_of(rig.pid) == []
    assert alive(below) == []


def test_hosts_in_use_are_no_leftovers(hosts):
    remove_leftovers()
    assert set(hosts.namespaces) <= set(left_of(os.getpid()))


def test_missing_programs_are_named_with_their_package(tmp_path):
    result = run(
        [sys.executable, *RIG, "--", "python"], env=environment("mpich", {"PATH": str(tmp_path)}), cwd=ROOT
    )
    assert result.returncode == 1
    told = "apt-get install iproute2, or PATH=$PATH:/usr/sbin if it is there"
    assert result.stderr == f"hosts: ip and tc not found in PATH: {told}\n"


def test_a_user_who_is_not_root_is_told_so(monkeypatch):
    monkeypatch.setattr(network.os, "geteuid", lambda: 1000)
    assert "root" in str(missing())


def test_a_container_without_the_capability_is_told_so():
    setpriv = ["setpriv", "--bounding-set", "-sys_admin"]
    result = run([*setpriv, sys.executable, *RIG, "--", "python"], env=environment("mpich"), cwd=ROOT)
    assert result.returncode == 1
    assert "needs CAP_SYS_ADMIN" in result.stderr
    assert "Operation not permitted" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--hosts", "1"], "a link has two ends"),
        (["--rate", "fast"], "rate 'fast': write it as"),
        (["--ranks-per-host", "1,2,3"], "one number, or one for each of the 2 hosts"),
        (["--ranks-per-host", "0"], "argument --ranks-per-host/--ppn: '0' is no whole number of 1 or more"),
        (["--ranks-per-host", "1,x"], "argument --ranks-per-host/--ppn: 'x' is no whole number"),
        (["--expect-bytes", "inf"], "argument --expect-bytes: 'inf' is no number"),
    ],
    ids=" ".join,
)
def test_a_wrong_option_is_explained(options, message):
    result = run([sys.executable, *RIG, *options, "--", "python"], env=environment("mpich"), cwd=ROOT)
    assert result.returncode == 2
    assert message in result.stderr


@pytest.mark.parametrize(
    ("rate", "expected"), [("100mbit", 80_000), ("1gbit", 250_000), ("2.5gbit", 625_000)]
)
def test_a_link_sends_2_ms_at_once_or_one_large_packet(rate, expected):
    assert burst_bytes(rate) == expected
