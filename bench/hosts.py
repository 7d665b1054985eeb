"""MPI jobs on emulated hosts, over a link of a given rate, with proof that it was used.

    python -m bench.hosts --hosts 2 --rate 1gbit -- python -m bench overlap

    with Hosts(2, rate="1gbit") as hosts:
        job = hosts.run(["python", "program.py"], expect_bytes=4_000_000)

Rank i runs on core i modulo the number of cores. Ranks of different hosts are joined by TCP alone, those of
one host by shared memory. What each host sent and received is read from its interface and told at the end,
on stderr. Needs root and Linux (network.py); mpiexec is MPICH's or Open MPI's.

Allreduce of 4 MB on 2 ranks, MPICH 5.0.2, medians of 11, on 2 cores with nothing else to do:

    rate        100mbit   500mbit   1gbit   2.5gbit   10gbit   unlimited
    the wire    334.7     66.9      33.5    13.4      3.3      ms: 4 MB and its headers, each way
    measured    335.0     66.9      33.4    13.3      3.3      3.2 ms

With Open MPI 5.0.11 48 ms at 1gbit. MPICH on three hosts 115 ms: it folds the odd rank in before and out
after, through one rank that sends 8 MB. While the machine had 20 runnable threads, 4 MB took one to three
seconds: measure alone.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench._help import Options
from bench.harness import WrongResultError, amount_or_none, check, positive, several
from bench.network import LATENCY, HostsError, Network, Stopped

# Ranks of one kernel find ways past the link unless told: 7 GB/s "over" 1 Gbit/s.
LINK_ONLY = {
    "UCX_TLS": "tcp,self",
    "FI_PROVIDER": "tcp",
    "OMPI_MCA_pml": "ob1",
    "OMPI_MCA_btl": "tcp,self,sm",  # sm serves the ranks of one host
    "OMPI_MCA_btl_tcp_if_include": "eth0",
    "GLOO_SOCKET_IFNAME": "eth0",
}
LAUNCHERS = {
    "HYDRA_LAUNCHER": "rsh",
    "HYDRA_IFACE": "eth0",
    "PRTE_MCA_plm": "ssh",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_osc": "^ucx",  # else it complains about a component it then does not use
    # 4 MB on three ranks of two cores: 34 to 48 ms instead of 712 (MPICH: 37 either way).
    "OMPI_MCA_mpi_yield_when_idle": "1",
}
# The launchers' own binding puts the first rank of every host on the first core.
PIN = """#!/bin/sh
rank=${{PMI_RANK:-$OMPI_COMM_WORLD_RANK}}
exec taskset --cpu-list "$(echo {cores} | cut -d ' ' -f $((rank % {count} + 1)))" "$@"
"""
GRACE_S = 30.0  # from a signal until what still runs is killed: Slurm's KillWait


class Job(subprocess.CompletedProcess[str]):
    """A finished job: status, output where captured, and the bytes that each host sent and received."""

    sent: list[int]
    received: list[int]

    def moved(self) -> str:
        """The bytes in words, host by host."""
        counts = enumerate(zip(self.sent, self.received, strict=True), 1)
        return "; ".join(f"n{i} sent {a / 1e6:.3f} MB, received {b / 1e6:.3f} MB" for i, (a, b) in counts)


class Hosts(Network):
    """A network whose hosts run MPI jobs."""

    def run(
        self,
        command: Sequence[str | Path],
        *,
        ppn: int | Sequence[int] = 1,
        env: Mapping[str, str] | None = None,
        capture: bool = False,
        timeout: float | None = None,
        expect_bytes: int = 0,
    ) -> Job:
        """Run `command` as a job of `ppn` ranks a host, or of a number for each host; status 0 or not.

        `mpiexec` and `python` are those of the running Python's environment, else the PATH's. Raises
        WrongResultError if the job succeeded although some host moved less than `expect_bytes`, sent and
        received together; subprocess.TimeoutExpired after `timeout` seconds; HostsError without an mpiexec.
        A signal goes to the job, and is raised here when the job has ended or GRACE_S later.
        """
        counts = [ppn] * len(self.names) if isinstance(ppn, int) else list(ppn)
        if len(counts) != len(self.names) or min(counts) < 1:
            raise ValueError(
                f"{counts} ranks per host: give one number, or one for each of the {len(self.names)} hosts"
            )
        environment = self._environment(os.environ if env is None else env, counts)
        line = shlex.join([*self._launcher(environment, counts), *map(str, command)])
        before = self.counters()
        process = subprocess.Popen(
            # Should this process be killed, the launcher gets SIGTERM and ends its ranks.
            ["setpriv", "--pdeathsig", "TERM", *self.enter("n1", f"exec {line}")],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if capture else None,
            stderr=subprocess.PIPE if capture else None,
            text=True,
            errors="replace",
            start_new_session=True,  # a terminal's Ctrl-C comes once, from here
        )
        try:
            out, err = process.communicate(timeout=timeout)
        except (KeyboardInterrupt, Stopped) as stop:
            process.send_signal(stop.number if isinstance(stop, Stopped) else signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
            raise
        finally:
            process.kill()
            self.kill()
            process.communicate()  # closes its pipes
        job = Job(list(map(str, command)), process.returncode, out, err)
        after = self.counters()
        job.sent = [b[0] - a[0] for a, b in zip(before, after, strict=True)]
        job.received = [b[1] - a[1] for a, b in zip(before, after, strict=True)]
        least = min(a + b for a, b in zip(job.sent, job.received, strict=True))
        if job.returncode == 0:
            check(
                least >= expect_bytes,
                f"a host moved {least} bytes over its link, {expect_bytes} were expected: {job.moved()}",
            )
        return job

    def _environment(self, base: Mapping[str, str], counts: Sequence[int]) -> dict[str, str]:
        enter = str(self.folder / "enter")
        ppn = ",".join(map(str, counts if len(set(counts)) > 1 else counts[:1]))
        options = f"--hosts {len(self.names)} --rate {self.rate or 'unlimited'} --ranks-per-host {ppn}"
        if self.latency != LATENCY:
            options += f" --latency {self.latency}"
        return {
            **base,
            **LINK_ONLY,
            **LAUNCHERS,
            "HYDRA_LAUNCHER_EXEC": enter,
            "PRTE_MCA_plm_ssh_agent": enter,
            "PATH": f"{Path(sys.executable).parent}:{base.get('PATH', os.defpath)}",
            "TMPDIR": str(self.folder / "tmp"),
            # Benches report it with their command.
            "WEFT_BENCH_HOSTS": options,
        }

    def _launcher(self, environment: Mapping[str, str], counts: Sequence[int]) -> list[str]:
        mpiexec = shutil.which("mpiexec", path=environment["PATH"])
        if mpiexec is None:
            raise HostsError(f"no mpiexec beside {sys.executable} or on the PATH: pip install 'weft[mpich]'")
        version = subprocess.run([mpiexec, "--version"], capture_output=True, text=True, check=True).stdout
        hosts = ",".join(f"{name}:{count}" for name, count in zip(self.names, counts, strict=True))
        options = ["-hosts", hosts, "-localhost", "n1"]
        if "Open MPI" in version:
            options = ["--host", hosts, "--bind-to", "none"]
        cores = sorted(os.sched_getaffinity(0))
        pin = PIN.format(cores=" ".join(map(str, cores)), count=len(cores))
        return [mpiexec, *options, "-n", str(sum(counts)), self.script("pin", pin)]


def main(arguments: list[str]) -> int:
    """The command line. Returns the job's status, 128 + signal after a signal, 1 where bytes are missing."""
    parser = Options(
        prog="python -m bench.hosts",
        usage="%(prog)s [--hosts N] [--rate RATE] [options] -- COMMAND",
        description=__doc__,
    )
    add = parser.add_argument
    add("--hosts", type=positive, default=2, metavar="N", help="how many (2)")
    add("--rate", default="1gbit", help="of every link, each way: 100mbit, 2.5gbit, unlimited (1gbit)")
    add(
        "--ranks-per-host",
        "--ppn",  # as launchers say
        type=several(positive),
        default="1",
        metavar="N[,N...]",
        help="ranks on every host, or on each (1)",
    )
    add("--latency", default=LATENCY, metavar="TIME", help=f"longest wait in a link's queue ({LATENCY})")
    add(
        "--expect-bytes",
        type=amount_or_none,
        default=0,
        metavar="N",
        help="fail if a host moved less than this",
    )
    split = arguments.index("--") if "--" in arguments else len(arguments)
    options, command = parser.parse_args(arguments[:split]), arguments[split + 1 :]
    if not command:
        parser.error("no command: write it behind --, as in -- python -m bench pingpong")
    rate = None if options.rate == "unlimited" else options.rate
    try:
        with Hosts(options.hosts, rate, options.latency) as hosts:
            each = options.ranks_per_host
            ppn = each[0] if len(each) == 1 else each
            job = hosts.run(command, ppn=ppn, expect_bytes=int(options.expect_bytes))
    except ValueError as mistake:
        parser.error(str(mistake))
    except (HostsError, WrongResultError) as error:
        print(f"hosts: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    print(f"hosts: {job.moved()} (link {options.rate})", file=sys.stderr)
    return job.returncode if job.returncode >= 0 else 128 - job.returncode


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
