"""A Slurm cluster of two nodes on one machine: its own munged, slurmctld and two slurmd, in one folder.

    with Cluster(folder) as cluster:
        cluster.command("sbatch", "--wait", "job.sh")

Both nodes are this machine, but Slurm hands MPI a process mapping of two, so that ranks on n1 and n2 share no
window and talk over the network, as they would on two machines. Ports, sockets, keys and spools are private:
several clusters, and a cluster that the machine belongs to, do not notice each other.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.launch import descendants, environment, requires, run

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "sinfo", "scontrol", "scancel")
NODES = ("n1", "n2")
START_LIMIT_S = 60.0


def require_slurm() -> None:
    """Skip (under CI: fail) where a cluster cannot be started."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    requires(not missing, f"Slurm lacks {', '.join(missing)}: apt-get install slurm-wlm munge")
    requires(os.geteuid() == 0, "slurmd must be root")


class Cluster:
    """Two nodes, one partition; started on entry, ended with everything it ran on exit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []
        self.conf = folder / "slurm.conf"

    def __enter__(self) -> Cluster:
        for name in ("munge", "state", "log", *(f"spool-{node}" for node in NODES)):
            (self.folder / name).mkdir(mode=0o700, parents=True)
        # munged insists that nobody else can write anywhere on the way to its key and socket.
        self.folder.chmod(0o755)
        key = self.folder / "munge" / "key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        self.conf.write_text(self._configuration())
        try:
            self._start(
                "munged",
                "--foreground",
                "--force",  # warns of folders that others can write to (a world-writable /tmp) but starts
                f"--socket={self._socket}",
                f"--key-file={key}",
                *(f"--{name}-file={self.folder}/munge/{name}" for name in ("pid", "seed", "log")),
            )
            self._wait_for("munged's socket", self._socket.exists)
            self._start("slurmctld", "-D", "-f", str(self.conf))
            for node in NODES:
                self._start("slurmd", "-D", "-N", node, "-f", str(self.conf), name=f"slurmd-{node}")
            self._wait_for("both nodes to be idle", lambda: self._states() == ["idle", "idle"])
        except BaseException as error:
            error.add_note(self.logs())
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if len(self.processes) > 1:  # slurmctld, which knows the jobs, was started
            self.command("scancel", "--full", "--user=root")
            with contextlib.suppress(TimeoutError):
                self._wait_for("jobs to end", lambda: not self.command("squeue", "-h").stdout.strip(), 20)
        below = [pid for process in self.processes for pid in descendants(process.pid)]
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for pid in [*below, *self._steps()]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.processes.clear()

    def command(
        self,
        *arguments: str | Path,
        timeout: float = 60.0,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run one of Slurm's commands against this cluster."""
        return run(
            arguments, timeout=timeout, env={**self._environment(), **(env or {})}, cwd=cwd, tell=self.logs
        )

    def submit(
        self,
        script: Path,
        *options: str | Path,
        arguments: Sequence[str] = (),
        timeout: float,
        cwd: Path,
        env: Mapping[str, str],
        meanwhile: Callable[[str], object] = lambda number: None,
    ) -> Job:
        """`sbatch OPTIONS SCRIPT ARGUMENTS`, and wait for the end of the job; call `meanwhile` until then."""
        submitted = self.command("sbatch", "--parsable", *options, script, *arguments, cwd=cwd, env=env)
        assert submitted.returncode == 0, f"{submitted}\n{self.logs()}"
        number = submitted.stdout.strip()
        ended = re.compile(r"JobState=(?!PENDING|CONFIGURING|RUNNING|COMPLETING)(\w+)")
        shown = ""

        def has_ended() -> bool:
            nonlocal shown
            meanwhile(number)
            shown = self.command("scontrol", "show", "job", number).stdout
            return ended.search(shown) is not None

        try:
            self._wait_for(f"job {number} to end", has_ended, timeout)
        except TimeoutError as error:
            error.add_note(f"{shown}\n{_output(shown)}\n{self.logs()}")
            self.command("scancel", "--full", number)  # the next job needs the nodes
            raise
        fields = dict(re.findall(r"(\w+)=(\S*)", shown))
        return Job(fields["JobState"], _output(shown), fields["NodeList"], shown)

    def logs(self) -> str:
        """The last lines of every daemon."""
        return "\n".join(
            f"===== {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-40:])
            for path in sorted((self.folder / "log").iterdir())
        )

    def tasks(self, number: str, rank: int) -> list[int]:
        """The processes of a rank of a job that runs."""
        return self._with(
            f"SLURM_CONF={self.conf}", f"SLURM_JOB_ID={number}", f"SLURM_PROCID={rank}", "SLURM_STEP_ID=0"
        )

    # Inside

    @property
    def _socket(self) -> Path:
        return self.folder / "munge" / "socket"

    def _environment(self) -> dict[str, str]:
        kept = {k: v for k, v in environment("mpich").items() if not k.startswith(("SLURM_", "SBATCH_"))}
        return {**kept, "SLURM_CONF": str(self.conf)}

    def _configuration(self) -> str:
        host = socket.gethostname().partition(".")[0]
        ports = free_ports(1 + len(NODES))
        # Each node claims as many processors as the machine has: the two share them, nobody measures here.
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={os.cpu_count()}"
            for node, port in zip(NODES, ports[1:], strict=True)
        )
        return f"""
ClusterName=weft
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={self._socket},cred_expire=5
StateSaveLocation={self.folder}/state
SlurmdSpoolDir={self.folder}/spool-%n
SlurmctldPidFile={self.folder}/slurmctld.pid
SlurmdPidFile={self.folder}/slurmd-%n.pid
SlurmctldLogFile={self.folder}/log/slurmctld.log
SlurmdLogFile={self.folder}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=pmi2
ReturnToService=2
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0
KillWait=5
{nodes}
PartitionName=all Nodes={",".join(NODES)} Default=YES MaxTime=INFINITE State=UP
"""

    def _start(self, *command: str, name: str | None = None) -> None:
        with (self.folder / "log" / f"{name or command[0]}.out").open("wb") as out:
            self.processes.append(
                subprocess.Popen(
                    command,
                    env=self._environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )

    def _states(self) -> list[str]:
        return self.command("sinfo", "--noheader", "--Node", "--format=%T").stdout.split()

    def _steps(self) -> list[int]:
        """Step daemons of this cluster that outlived their slurmd; they left its process tree long ago."""
        return self._with(f"SLURM_CONF={self.conf}")

    def _with(self, *variables: str) -> list[int]:
        """Processes, but this one, with all these in their environment."""
        wanted = {variable.encode() for variable in variables}
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit() and int(folder.name) != os.getpid():
                with contextlib.suppress(OSError):
                    if wanted <= set((folder / "environ").read_bytes().split(b"\0")):
                        found.append(int(folder.name))
        return found

    def _wait_for(self, what: str, holds: Callable[[], bool], limit_s: float = START_LIMIT_S) -> None:
        deadline = time.monotonic() + limit_s
        while not holds():
            dead = [process for process in self.processes if process.poll() is not None]
            if dead:
                raise RuntimeError(
                    f"waiting for {what}: {dead[0].args} ended with status {dead[0].returncode}"
                )
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {limit_s:.0f} s for {what}")
            time.sleep(0.1)


@dataclass(frozen=True, slots=True)
class Job:
    """What became of a job: its state, what it printed, the nodes it had, and all that scontrol says."""

    state: str
    output: str
    nodes: str
    shown: str


def _output(shown: str) -> str:
    """What a job printed so far, from scontrol's description of it."""
    path = re.search(r"StdOut=(\S+)", shown)
    return Path(path[1]).read_text() if path and Path(path[1]).exists() else ""


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
