"""Emulated hosts on one machine: network namespaces, joined by a link of a given rate.

    n1 eth0 ─tbf────tbf─ eth0 n2          two hosts: one pair of virtual interfaces

    n1 eth0 ─tbf────tbf─ n1 ┐
    n2 eth0 ─tbf────tbf─ n2 ├ bridge      more: one pair each, to a switch
    n3 eth0 ─tbf────tbf─ n3 ┘

A host has an interface, a host name, /etc/hosts and /dev/shm of its own, so that MPI takes it for a node;
cores, memory and files are the machine's. Each end of a link is a token bucket (tc's tbf): both directions
have the full rate at once, as on Ethernet.

Nothing outside is touched: interfaces are born inside the namespaces and die with them. All that is made is
named weft-hosts-PID-…; by that the next run knows, and removes, what a killed one left behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Self

PROGRAMS = {
    "iproute2": ("ip", "tc"),
    "util-linux": ("unshare", "setpriv", "taskset"),
    "mount": ("mount",),
    "hostname": ("hostname",),
}
# All that building hosts takes, in namespaces that end with the command.
PROBE = (
    "hostname probe && mount -t tmpfs tmpfs /dev/shm && ip link add eth0 type veth peer name eth1 && "
    "ip link add switch type bridge && tc qdisc add dev eth0 root tbf rate 1gbit burst 256kb latency 50ms"
)
OURS = re.compile(r"(weft-hosts-(\d+)-\w{8})(?:-\w+)?")  # one network, its process; which namespace of it
# A command on a host; called as launchers call rsh: [OPTION...] HOST LINE, the line being for a shell.
ENTER = """#!/bin/sh
while [ "${{1#-}}" != "$1" ]; do shift; done
host=$1
shift
exec ip netns exec {name}-"$host" unshare --uts sh -c '
    hostname "$0" && mount -t tmpfs tmpfs /dev/shm && mount --bind {folder}/hosts /etc/hosts &&
    exec sh -c "$1"' "$host" "$*"
"""
LATENCY = "50ms"
KILL_S = 10.0  # for killed processes to be gone


class HostsError(Exception):
    """Hosts cannot be had here; the message says what is missing."""


class Stopped(SystemExit):
    """A signal asked for the end: raised where it arrives, so that everything is removed on the way out."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


class Network:
    """`count` hosts n1, n2, …, while the context lasts.

    `rate` is as tc writes it ("100mbit"); None leaves the link as fast as the kernel makes it. `latency` is
    tbf's: how long a packet may wait in the link's queue before it is dropped. It delays no packet by itself;
    that takes netem, which the kernels this was made on do not have.
    """

    def __init__(self, count: int, rate: str | None = None, latency: str = LATENCY) -> None:
        if count < 2:
            raise ValueError(f"{count} host(s): a link has two ends, so at least 2")
        self.names = [f"n{i}" for i in range(1, count + 1)]
        self.addresses = [f"10.77.{i // 250}.{i % 250 + 1}" for i in range(count)]
        self.rate, self.latency = rate, latency
        self._limit: list[str] = []
        if rate is not None:
            self._limit = ["rate", rate, "burst", str(burst_bytes(rate)), "latency", latency]
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if lacking := missing():
            raise HostsError(lacking)
        self.folder = Path(tempfile.mkdtemp(prefix=f"weft-hosts-{os.getpid()}-"))
        self.namespaces = [f"{self.folder.name}-{name}" for name in self.names]
        try:
            if threading.current_thread() is threading.main_thread():
                for number in (signal.SIGTERM, signal.SIGHUP):  # SIGINT raises KeyboardInterrupt already
                    if signal.getsignal(number) == signal.SIG_DFL:
                        self._handlers[number] = signal.signal(number, _stop)
            with signals_wait():
                remove_leftovers()
                self._build()
                self._write()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every process on the hosts and remove them."""
        try:
            with signals_wait():
                _remove(self.folder.name)
        finally:
            while self._handlers:
                signal.signal(*self._handlers.popitem())

    def enter(self, host: str, line: str) -> list[str]:
        """The command that runs the shell's `line` on `host`, in the same process."""
        return [str(self.folder / "enter"), host, line]

    def kill(self) -> None:
        """Kill all that runs on the hosts, daemons included."""
        with signals_wait():
            _kill(self.namespaces)

    def counters(self) -> list[tuple[int, int]]:
        """Bytes sent and received by each host's interface.

        The kernel passes TCP through virtual interfaces in packets of up to 64 KiB and counts those; tbf
        reckons with the headers of every 1500 bytes of them, as a wire would: 4.6% more.
        """
        shown = [_tool("ip", "-n", space, "-s", "-j", "link", "show", "eth0") for space in self.namespaces]
        counts = [json.loads(text)[0]["stats64"] for text in shown]
        return [(count["tx"]["bytes"], count["rx"]["bytes"]) for count in counts]

    def _build(self) -> None:
        hosts, switch = self.namespaces, f"{self.folder.name}-switch"
        for space in hosts if len(hosts) == 2 else [*hosts, switch]:
            _tool("ip", "netns", "add", space)
        if len(hosts) == 2:
            links = [((hosts[0], "eth0"), (hosts[1], "eth0"))]
        else:
            _tool("ip", "-n", switch, "link", "add", "bridge", "up", "type", "bridge")
            links = [((host, "eth0"), (switch, name)) for host, name in zip(hosts, self.names, strict=True)]
        for near, far in links:
            peer = ("peer", "name", far[1], "netns", far[0])
            _tool("ip", "-n", near[0], "link", "add", "name", near[1], "type", "veth", *peer)
            for space, end in (near, far):
                if self._limit:
                    _tool("tc", "-n", space, "qdisc", "add", "dev", end, "root", "tbf", *self._limit)
                if space == switch:
                    _tool("ip", "-n", space, "link", "set", end, "master", "bridge")
                _tool("ip", "-n", space, "link", "set", end, "up")
        for host, address in zip(hosts, self.addresses, strict=True):
            _tool("ip", "-n", host, "address", "add", f"{address}/16", "dev", "eth0")
            _tool("ip", "-n", host, "link", "set", "lo", "up")

    def _write(self) -> None:
        table = ["127.0.0.1 localhost"]
        for address, name in zip(self.addresses, self.names, strict=True):
            # Once more as gloo's IPv6 sockets see it: else PyTorch complains at every connection.
            table += [f"{address} {name}", f"::ffff:{address} {name}"]
        (self.folder / "hosts").write_text("\n".join([*table, ""]))
        (self.folder / "tmp").mkdir()
        self.script("enter", ENTER.format(name=self.folder.name, folder=self.folder))

    def script(self, name: str, text: str) -> str:
        """Write an executable beside the network's other files; returns its path."""
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o700)
        return str(path)


def burst_bytes(rate: str) -> int:
    """What a link may send at once after a rest: 2 ms of its rate, but one packet of 64 KiB in any case."""
    parts = re.fullmatch(r"(\d+\.?\d*)([kmg])bit", rate)
    if parts is None or float(parts[1]) == 0:
        raise ValueError(f"rate {rate!r}: write it as 100mbit or 2.5gbit, or unlimited")
    bytes_per_s = float(parts[1]) * {"k": 1e3, "m": 1e6, "g": 1e9}[parts[2]] / 8
    return max(int(bytes_per_s * 0.002), 80_000)


def missing() -> str | None:
    """What this machine lacks for hosts, and the remedy; None if nothing. Leaves nothing behind."""
    if os.geteuid() != 0:
        return "hosts are network namespaces, which only root may make: run this as root"
    for package, programs in PROGRAMS.items():
        if lacking := [program for program in programs if shutil.which(program) is None]:
            told = f"{' and '.join(lacking)} not found in PATH: apt-get install {package}"
            return f"{told}, or PATH=$PATH:/usr/sbin if it is there"  # which `su` leaves out
    command = ["unshare", "--net", "--uts", "--mount", "sh", "-c", PROBE]
    probe = subprocess.run(command, capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        return (
            "namespaces, virtual interfaces or tc's tbf are not permitted or not in this kernel (a container "
            f"needs CAP_SYS_ADMIN and CAP_NET_ADMIN): {' '.join(probe.stderr.split())}"
        )
    return None


def remove_leftovers() -> None:
    """Remove the networks of processes that are no more."""
    names = [*_listed(), *os.listdir(tempfile.gettempdir())]
    for rig, pid in {match.groups() for name in names if (match := OURS.fullmatch(name))}:
        if not Path("/proc", pid).exists():
            with contextlib.suppress(HostsError):  # another run may be removing them as well
                _remove(rig)


def _remove(rig: str) -> None:
    spaces = [space for space in _listed() if space.startswith(f"{rig}-")]
    _kill(spaces)
    for space in spaces:
        _tool("ip", "netns", "delete", space)
    shutil.rmtree(Path(tempfile.gettempdir(), rig), ignore_errors=True)


def _listed() -> list[str]:
    return [line.split()[0] for line in _tool("ip", "netns", "list").splitlines() if line.strip()]


def _kill(namespaces: Sequence[str]) -> None:
    deadline = time.monotonic() + KILL_S
    while pids := [int(pid) for space in namespaces for pid in _tool("ip", "netns", "pids", space).split()]:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise HostsError(f"processes {pids} do not end and keep {', '.join(namespaces)} alive")
        time.sleep(0.01)


def _tool(*command: str) -> str:
    # In a session of its own: a terminal's Ctrl-C must not end the `ip` that is cleaning up.
    done = subprocess.run(command, capture_output=True, text=True, check=False, start_new_session=True)
    if done.returncode != 0:
        raise HostsError(f"`{shlex.join(command)}` failed: {done.stderr.strip()}")
    return done.stdout


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


@contextlib.contextmanager
def signals_wait() -> Iterator[None]:
    """A signal that comes meanwhile is raised at the end. Only the main thread is ever interrupted by one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.signal(number, lambda n, _: came.append(n)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])
