"""`python -m bench` lists the benches; `python -m bench NAME [--json FILE]` runs one.

Under mpirun every rank runs the bench and rank 0 reports. A bench whose result is wrong ends with status 1,
and all its ranks with it.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import pkgutil
import signal
import sys
import traceback
from difflib import get_close_matches
from pathlib import Path

import bench
from bench._help import Options, columns, fitted
from bench.harness import SIZES, WrongResultError, launched_rank, readable, report, writable
from weft.runtime.errors import Mistake

NOT_BENCHES = {"harness", "hosts", "__main__"}
FILES = (("json", writable, "written"), ("picture", writable, "written"), ("model", readable, "read"))
"""Options of benches that name a file, which rank 0 alone writes or reads: on its host."""


def benches() -> dict[str, str]:
    """Name and first line of every bench, read without importing it (some import a whole peer)."""
    found = {}
    for module in pkgutil.iter_modules(bench.__path__):
        if module.name in NOT_BENCHES or module.name.startswith("_") or module.ispkg:
            continue
        tree = ast.parse((Path(bench.__path__[0]) / f"{module.name}.py").read_text())
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
            found[module.name] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line; the chosen bench's module adds its own options."""
    known = benches()
    listing = "\n".join(f"  {name:<12} {line}" for name, line in sorted(known.items()))
    parser = Options(
        prog="python -m bench",
        description="Microbenchmarks of Weft; each checks the result it times.",
        epilog=f"benches:\n{listing}\n\n`python -m bench NAME --help` tells a bench's options.",
    )
    if not arguments or arguments[0] not in known:
        parser.add_argument("name", metavar="NAME", help="one of the benches below")
        if arguments and arguments[0] == "hosts":
            parser.error("hosts is a program of its own: python -m bench.hosts --help")
        if arguments and arguments[0].startswith("-") and arguments[0] not in ("-h", "--help"):
            parser.error(f"options stand behind the bench's name: python -m bench NAME {arguments[0]} …")
        if arguments and arguments[0] not in ("-h", "--help"):
            near = "".join(f"; did you mean {name}?" for name in get_close_matches(arguments[0], known, 1))
            names = fitted(f"  {', '.join(sorted(known))}", columns())
            parser.error(f"there is no bench {arguments[0]!r}{near}; there are\n{names}")
        return parser.parse_args(["--help"])  # prints it, and ends
    module = importlib.import_module(f"bench.{arguments[0]}")
    chosen = Options(
        prog=f"python -m bench {arguments[0]}",
        description=module.__doc__,
    )
    chosen.add_argument("--json", type=Path, metavar="FILE", help="write the figures and the machine here")
    if hasattr(module, "add_arguments"):
        module.add_arguments(chosen)
    chosen.set_defaults(module=module, name=arguments[0])
    return chosen.parse_args(arguments[1:])


def main(arguments: list[str]) -> int:
    """Run one bench; returns the exit status."""
    options = parse(arguments)
    for option, look, done in FILES:
        path = getattr(options, option, None)
        if not isinstance(path, Path) or launched_rank():
            continue
        try:
            look(path)  # now, and not when all is measured
        except OSError as error:
            told = f"{options.name}: --{option} {path} cannot be {done}: {error.strerror}"
            print(told, file=sys.stderr, flush=True)
            return _end_all(2)
    try:
        figures = options.module.main(options)
    except KeyboardInterrupt:
        return _end_all(128 + signal.SIGINT)
    except Mistake as mistake:
        print(f"{options.name}: {mistake}", file=sys.stderr, flush=True)
        return _end_all(2)
    except WrongResultError as failure:
        print(f"{options.name}: wrong result: {failure}", file=sys.stderr, flush=True)
        return _end_all(1)
    except Exception:
        traceback.print_exc()
        return _end_all(1)
    if launched_rank() == 0:
        report(options.name, figures, options.json)
    return 0


def _end_all(status: int) -> int:
    """End the other ranks too: they may wait in a collective for this one."""
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is not None and mpi.Is_initialized():
        if not mpi.Is_finalized() and mpi.COMM_WORLD.size > 1:
            sys.stderr.flush()
            mpi.COMM_WORLD.Abort(status)
    elif any(int(os.environ.get(variable, 1)) > 1 for variable in SIZES):
        # The others wait in MPI_Init, where launchers leave them for good when a rank that was not there
        # ends with a status (MPICH 5.0.2, Open MPI 5.0.11); of one that a signal ended they end the job.
        sys.stderr.flush()
        os.kill(os.getpid(), signal.SIGTERM)
    return status


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
