"""A rank's part of its node's cores: how many threads its BLAS may use.

Left alone, OpenBLAS starts a thread for every core in every rank, and they spin waiting for each other: one
image through resnet50 on two ranks, a core each, took 2.2 times as long.
"""

from __future__ import annotations

import os

import numpy as np

from ...kernels import blas
from ..message import World

MOST_CORES = 8192  # that Linux numbers; those of a machine may have gaps


async def share_cores(world: World) -> None:
    """Give BLAS this rank's part of the node's cores: all of them for one rank, one each for many.

    Collective over the node. A launcher that binds ranks to cores leaves each rank a set of its own, so what
    counts is the union over the node. Libraries that are loaded later keep what threads they choose.
    """
    allowed, own = np.zeros(MOST_CORES, np.uint8), list(os.sched_getaffinity(0))
    allowed[own] = 1
    await world.node.allreduce(allowed, "max", what="cores of the node")
    blas.limit_threads(max(1, min(len(own), int(allowed.sum()) // world.node_size)))
