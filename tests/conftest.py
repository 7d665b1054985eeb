"""What every test run shares: which tests are for ranks, which may be skipped, Hypothesis, numba's cache."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from tests import ranks
from tests.launch import ROOT

HERE = Path(__file__).parent
LAUNCHED = any(name in os.environ for name in ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK"))
CI = os.environ.get("CI") == "true"

# Compiled kernels outlive the run and are shared by all ranks and processes. numba reads this at its import.
os.environ.setdefault("NUMBA_CACHE_DIR", str(ROOT / "build" / "numba"))

# pytest numbers its temporary folders and removes old ones; ranks that did so in one place at once came upon
# what another had just removed (a ResourceWarning at the end of a run that had passed).
if LAUNCHED:
    place = os.environ.get("PMI_RANK") or os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ["PMIX_RANK"]
    own = Path(tempfile.gettempdir()) / f"pytest-rank-{place}"
    own.mkdir(exist_ok=True)
    os.environ["PYTEST_DEBUG_TEMPROOT"] = str(own)

# A shell's background job begins with Ctrl-C ignored, and so do its children: tests send it to theirs.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if not LAUNCHED:  # ranks draw no examples, and its import takes each of them 0.3 s
    from hypothesis import settings

    # The machine is shared, so an example's time says nothing.
    settings.register_profile("weft", deadline=None, derandomize=True, database=None)
    settings.load_profile("weft")


@pytest.hookimpl(trylast=True)  # after pytest made its terminal reporter, which ranks take over
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "limit(seconds): time limit of a test on ranks, in place of 120 s")
    if LAUNCHED:
        config.option.with_mpi = True  # pytest-mpi's: runs what is marked mpi, heeds min_size
        ranks.configure(config)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    # Without a launcher they run through test_under_mpiexec.py; alone only where somebody asks for it.
    if collection_path == HERE / "mpi" and not config.getoption("--with-mpi"):
        return True
    return None


# Under CI a skip is a failure: everything is installed there, so a skip is a test that no longer runs.

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


def no_skip(report: Report, path: Path) -> Report:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    may = hasattr(report, "wasxfail") or HERE / "gpu" in path.parents or "empty parameter set" in reason
    # Ranks skip what needs more of them, and Open MPI's environment has no PyTorch.
    if CI and not LAUNCHED and report.skipped and not may:
        report.outcome = "failed"
        report.longrepr = f"skipped under CI, where everything must run: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    return no_skip((yield), item.path)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    return no_skip((yield), getattr(collector, "path", HERE))
