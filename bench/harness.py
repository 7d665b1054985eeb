"""What every bench shares: interleaved repetitions, figures, the machine's description, table and JSON.

    samples = measure({"weft": timed(step), "torch": timed(torch_step)}, repetitions=7)
    check(close(a, b), "weft and torch disagree: ...")
    return {"dense_over_torch": ratio(samples["weft"], samples["torch"])}

Candidates are measured in turn, one repetition of each a round, because a shared machine drifts by tens of
percent within minutes: a ratio of neighbours in time holds where a ratio of two blocks does not. For the same
reason a figure is a median with the least and the greatest value beside it, and never a mean.

Imports nothing heavy: a bench sets its thread counts before NumPy loads.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from weft.runtime.launcher import launcher_rank

T = TypeVar("T")

CORES = len(os.sched_getaffinity(0))
"""Of this process, as it was started: many a bench binds itself to one."""

LAUNCHED = ("PMI", "OMPI_", "PRTE_", "HYD", "MPI_LOCAL")
"""How the names begin of what launchers tell ranks."""

SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
"""In which of these they tell how many ranks there are.

Not SLURM_NTASKS, which a batch script has without srun: one process was told of as "mpirun -n 8".
"""


class WrongResultError(Exception):
    """The result that was timed is wrong, so its time means nothing."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured quantity: the median of its repetitions, their least and greatest value."""

    value: float
    unit: str
    min: float
    max: float

    @classmethod
    def of(cls, samples: Sequence[float], unit: str, scale: float = 1.0) -> Figure:
        """Median, least and greatest of `samples`, each multiplied by `scale` (1e6 for seconds as us)."""
        if not samples:
            raise ValueError("a figure needs at least one sample")
        return cls(statistics.median(samples) * scale, unit, min(samples) * scale, max(samples) * scale)


def ratio(over: Sequence[float], under: Sequence[float]) -> Figure:
    """`over` divided by `under`, round by round, so that what slowed a whole round cancels out."""
    return Figure.of([a / b for a, b in zip(over, under, strict=True)], "x")


def check(condition: bool, message: str) -> None:
    """Raise WrongResultError unless `condition`; the bench then ends non-zero and writes no figures."""
    if not condition:
        raise WrongResultError(message)


def interleaved(names: Sequence[str], repetitions: int, warmup: int = 1) -> Iterator[tuple[str, bool]]:
    """Yield (name, counts): every name once a round, every second round backwards, `warmup` rounds first.

    For benches that await what they measure; `counts` is False in the warm-up. The order is the same on every
    rank, so a candidate may be a collective.
    """
    for number in range(warmup + repetitions):
        for name in names if number % 2 == 0 else reversed(names):
            yield name, number >= warmup


def measure(
    candidates: Mapping[str, Callable[[], float]], repetitions: int, warmup: int = 1
) -> dict[str, list[float]]:
    """Call every candidate in turn, `repetitions` times; each returns what it measured (see `timed`)."""
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    for name, counts in interleaved(list(candidates), repetitions, warmup):
        value = candidates[name]()
        if counts:
            samples[name].append(value)
    return samples


def timed(function: Callable[[], object], calls: int = 1) -> Callable[[], float]:
    """A candidate for `measure`: the seconds one call of `function` took, averaged over `calls` in a row."""

    def run() -> float:
        start = time.perf_counter()
        for _ in range(calls):
            function()
        return (time.perf_counter() - start) / calls

    return run


def positive(text: str) -> int:
    """An option's whole number of 1 or more: of nothing a bench has no figures, after minutes perhaps."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
    return number


def portion_bytes(text: str) -> int:
    """An option's bytes of a portion, of which a job's [exchange] takes 1024 or more."""
    if (number := positive(text)) < 1024:
        raise argparse.ArgumentTypeError(f"{text!r}: a portion has 1024 bytes or more")
    return number


def amount(text: str) -> float:
    """An option's number above 0, of seconds, say. At -1 requests a second arrivals would have no end."""
    if (number := _finite(text)) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return number


def amount_or_none(text: str) -> float:
    """An option's number of 0 or more."""
    if (number := _finite(text)) < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of 0 or more")
    return number


def _finite(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        return -math.inf
    return number if math.isfinite(number) else -math.inf


def several(kind: Callable[[str], T]) -> Callable[[str], list[T]]:
    """An option's list, with commas between."""

    def parse(text: str) -> list[T]:
        return [kind(each) for each in text.split(",")]

    return parse


def require(bench: str, modules: Mapping[str, str]) -> None:
    """End, on every rank and before MPI starts, unless these modules are there; each with what brings it."""
    for module, package in modules.items():
        if find_spec(module) is None:
            raise SystemExit(f"{bench}: {module} is not installed: pip install '{package}'")


def launched_rank() -> int:
    """This process's rank by the launcher's environment, before MPI is up; 0 without a launcher."""
    return launcher_rank() or 0


def unlaunched() -> dict[str, str]:
    """The environment for a process beside the ranks, which is not to take itself for one of them."""
    return {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHED)}


def installed(bench: str, peers: Mapping[str, str]) -> list[str]:
    """Those of `peers`, names and modules, that can be imported; rank 0 says which are left out."""
    found = [name for name, module in peers.items() if find_spec(module) is not None]
    if (lacking := [name for name in peers if name not in found]) and launched_rank() == 0:
        print(f"{bench}: not installed, so left out: {', '.join(lacking)}", file=sys.stderr, flush=True)
    return found


def machine() -> dict[str, Any]:
    """The machine and the software a figure was measured with."""
    description: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cores": CORES,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "ranks": 1,
    }
    # Only what the bench itself loaded is described: importing MPI here would start it.
    if "mpi4py.MPI" in sys.modules:
        mpi = sys.modules["mpi4py.MPI"]
        description["mpi"] = _one_line(mpi.Get_library_version())
        if mpi.Is_initialized() and not mpi.Is_finalized():
            description["ranks"] = mpi.COMM_WORLD.size
    for variable in SIZES:
        if variable in os.environ:
            description["ranks"] = int(os.environ[variable])
            break
    if "numpy" in sys.modules:
        description["blas"] = _blas()
    for package in ("mpi4py", "numpy", "numba", "torch", "onnxruntime", "cupy"):
        if package in sys.modules:
            description[package] = getattr(sys.modules[package], "__version__", metadata.version(package))
    return description


def report(bench: str, figures: Mapping[str, Figure], json_path: Path | None) -> None:
    """Print the table and, when asked, write the JSON file; both hold the same values."""
    from rich.console import Console
    from rich.table import Table

    about = machine()
    launcher = ["mpirun", "-n", str(about["ranks"])] if about["ranks"] > 1 else []
    if "WEFT_BENCH_HOSTS" in os.environ:
        launcher = ["python", "-m", "bench.hosts", *os.environ["WEFT_BENCH_HOSTS"].split(), "--"]
    command = shlex.join([*launcher, "python", "-m", "bench", *sys.argv[1:]])
    table = Table(title=f"bench {bench}")
    for heading in ("figure", "value", "unit", "min", "max"):
        table.add_column(heading, justify="left" if heading in ("figure", "unit") else "right")
    for name, figure in figures.items():
        numbers = [shown(number) for number in (figure.value, figure.min, figure.max)]
        table.add_row(name, numbers[0], figure.unit, *numbers[1:])
    console = Console()
    console.print(table)
    told = f"python -m bench {bench} --help tells what each figure is"
    console.print(told, highlight=False, soft_wrap=True)
    console.print(command, highlight=False, soft_wrap=True)
    console.print(", ".join(f"{k} {v}" for k, v in about.items()), highlight=False, soft_wrap=True)
    if json_path is not None:
        document = {
            "bench": bench,
            "figures": {
                name: {"value": _json(f.value), "unit": f.unit, "min": _json(f.min), "max": _json(f.max)}
                for name, f in figures.items()
            },
            "machine": about,
            "command": command,
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        json_path.write_text(json.dumps(document, indent=2) + "\n")


def shown(number: float) -> str:
    """A figure as the table has it: 15,123 requests a second are read at once, 1.512e+04 are not."""
    return f"{number:,.0f}" if abs(number) >= 9999.5 else f"{number:,.4g}"


def readable(path: Path) -> None:
    """Raise the OSError that reading it will raise."""
    path.open("rb").close()


def writable(path: Path) -> None:
    """Raise the OSError that writing there will raise; leaves nothing behind."""
    new = not os.path.lexists(path)  # a link that leads nowhere yet is left, too
    with path.open("ab"):
        pass
    if new:
        path.unlink()


def _json(number: float) -> float | None:
    """JSON has no infinity, which is after how many runs combining pays where it does not."""
    return number if math.isfinite(number) else None


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _blas() -> str:
    from threadpoolctl import threadpool_info

    found = [library for library in threadpool_info() if library["user_api"] == "blas"]
    if not found:
        return "unknown"
    # SciPy's and PyTorch's wheels bring others.
    used = next((library for library in found if "numpy" in library["filepath"]), found[0])
    parts = (used["internal_api"], used["version"], used.get("architecture", ""))
    text = " ".join(filter(None, parts)) + f", {used['num_threads']} thread(s)"
    blas = sys.modules.get("weft.kernels.blas")
    library = blas.onednn.load() if blas is not None and blas.WIDE else None
    return text + (f", oneDNN {library.version}" if library is not None else "")


def _one_line(text: str) -> str:
    lines = [" ".join(line.split()) for line in text.strip("\0 \n").splitlines()[:1]]
    return lines[0] if lines else "unknown"
