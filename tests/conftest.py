"""What every test run shares: which tests belong to ranks, Hypothesis's profile, the numba cache."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

from tests import ranks
from tests.launch import ROOT

HERE = Path(__file__).parent
LAUNCHED = any(name in os.environ for name in ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK"))

# Compiled kernels outlive the run and are shared by all ranks and processes. numba reads this at its import.
os.environ.setdefault("NUMBA_CACHE_DIR", str(ROOT / "build" / "numba"))

# Ranks must draw the same examples, or their collectives do not match; the machine is shared, so an
# example's time says nothing.
settings.register_profile("weft", deadline=None, derandomize=True, database=None)
settings.load_profile("weft")


@pytest.hookimpl(trylast=True)  # after pytest made its terminal reporter, which ranks take over
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "limit(seconds): time limit of a test on ranks, in place of 60 s")
    if LAUNCHED:
        config.option.with_mpi = True  # pytest-mpi's: runs what is marked mpi, heeds min_size
        ranks.configure(config)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    # Without a launcher they run through test_under_mpiexec.py; alone only where somebody asks for it.
    if collection_path == HERE / "mpi" and not config.getoption("--with-mpi"):
        return True
    return None
