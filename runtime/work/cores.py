"""A rank's part of its node's cores: how many threads its BLAS may use.

Left alone, OpenBLAS starts a thread for every core in every rank, and they spin waiting for each other: one
image through resnet50 on two ranks, a core each, took 2.2 times as long.
"""

from __future__ import annotations

import os

from ...kernels import blas
from ..message import World


def share_cores(world: World) -> None:
    """Give BLAS this rank's part of the node's cores: all of them for one rank, one each for many.

    Libraries that are loaded later keep what threads they choose.
    """
    own = len(os.sched_getaffinity(0))  # a launcher may have bound each rank to some
    blas.limit_threads(max(1, min(own, world.node_cores // world.node_size)))
