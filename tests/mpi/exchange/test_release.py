"""What a training run has taken it gives back: shared memory, communicators, descriptors."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from tests.mpi.exchange.test_delays import tiny
from tests.mpi.training import Bench


def held() -> Counter[str]:
    """Open descriptors, and files that are mapped and shared between processes."""
    rights = [line.split()[1] for line in Path("/proc/self/maps").read_text().splitlines()]
    shared = sum(right.endswith("s") for right in rights)
    return Counter({"mapped": shared, "descriptors": len(os.listdir("/proc/self/fd"))})


@pytest.mark.mpi
@pytest.mark.parametrize("inside", ["shared", "flat"])
def test_a_third_run_holds_what_the_first_held(inside):
    bench, left = Bench(tiny(4, inside=inside)), []

    def train():
        bench.train(arrange=lambda training, replica, world: left.append(world.selector))
        return held()

    first = train()  # what MPI keeps for the next window or communicator
    train()
    assert train() == first
    for selector in left:
        assert selector.communicators == []
        assert selector.outstanding() == []
