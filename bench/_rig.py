"""Running a bench on emulated hosts: its options, the job whose first rank reports, and its link's bytes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.harness import positive, several
from bench.hosts import Hosts
from bench.network import HostsError
from weft.runtime.message.mpi import launched_as


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say where a bench runs."""
    add = parser.add_argument
    add("--rate", default="1gbit", help="of every link, each way: 100mbit, 2.5gbit, unlimited (1gbit)")
    add("--hosts", type=positive, default=2, metavar="N", help="how many (2)")
    add(
        "--ranks-per-host",
        type=several(positive),
        default="1",
        metavar="N[,N...]",
        help="on every host, or on each (1)",
    )
    add("--no-rig", action="store_true", help="on the ranks of the launcher that runs this, if one does")


def wanted(args: argparse.Namespace) -> bool:
    """Whether to make hosts: not on ranks that are launched already, each of which would make its own."""
    return not args.no_rig and launched_as() is None


def again(args: argparse.Namespace, expect_bytes: int) -> int:
    """Run this bench with --no-rig on hosts, each of which is to move so many bytes; returns its status."""
    ppn = args.ranks_per_host
    rate = None if args.rate == "unlimited" else args.rate
    command = [sys.executable, "-m", "bench", *sys.argv[1:], "--no-rig"]
    try:
        with Hosts(args.hosts, rate) as hosts:
            job = hosts.run(command, ppn=ppn[0] if len(ppn) == 1 else ppn, expect_bytes=expect_bytes)
    except ValueError as mistake:
        print(f"{args.name}: {mistake}", file=sys.stderr)
        return 2
    except HostsError as error:
        print(
            f"{args.name}: {error}\n(mpirun -n 2 python -m bench {args.name} --no-rig needs no hosts)",
            file=sys.stderr,
        )
        return 1
    print(f"{args.name}: {job.moved()} (link {args.rate})", file=sys.stderr)
    return job.returncode


def link_bytes() -> int:
    """What this host has sent and received over the link so far; 0 where there is no rig."""
    for line in Path("/proc/self/net/dev").read_text().splitlines():
        name, _, counts = line.partition(":")
        if name.strip() == "eth0":
            numbers = counts.split()
            return int(numbers[0]) + int(numbers[8])
    return 0
