"""METG of Dask and Ray, for metg.py: `python -m bench._metg_peers dask WIDTH STEPS` prints JSON; no peer: 3.

Each as its documentation has it: a local cluster of WIDTH processes of one thread (Dask), WIDTH CPUs (Ray); a
task is submitted with the futures that it needs, as its graph is.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from bench.metg import GRAPHS, PEER_KERNELS_S, metg, neighbours, plain, spin, turn_s


def point(turns: int, step: int, place: int, width: int, *needs: tuple[int, int]) -> tuple[int, int]:
    if needs and list(needs) != [(step - 1, each) for each in neighbours(place, width)]:
        raise ValueError(f"point {place} of step {step} got {needs}")
    spin(turns)
    return step, place


def figures(
    submit: Callable[..., Any], gather: Callable[[list[Any]], list[Any]], width: int, steps: int
) -> dict[str, float]:
    turn = turn_s()
    found = {}
    for graph in GRAPHS:
        rates = []
        for kernel_s in (PEER_KERNELS_S[0], *PEER_KERNELS_S):  # the first warms up
            turns = round(kernel_s / turn)
            plain_s = plain(turns, steps)
            start = time.perf_counter()
            rows: list[list[Any]] = []
            for step in range(steps):
                before = rows[-1] if rows and graph == "stencil" else []
                rows.append([])
                for place in range(width):
                    needs = [before[each] for each in neighbours(place, width)] if before else []
                    rows[-1].append(submit(turns, step, place, width, *needs))
            got = gather([future for row in rows for future in row])
            efficiency = plain_s / (time.perf_counter() - start)
            expected = [(step, place) for step in range(steps) for place in range(width)]
            if [tuple(each) for each in got] != expected:
                raise ValueError("an output is not its task's")
            rates.append((efficiency, kernel_s))
            if efficiency > 0.6:
                break
        found[graph] = metg(rates[1:])
    return found


def dask(width: int, steps: int) -> dict[str, float]:
    import distributed

    peer: Any = distributed  # untyped
    with (
        peer.LocalCluster(
            n_workers=width, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        peer.Client(cluster) as client,
    ):
        return figures(lambda *args: client.submit(point, *args, pure=False), client.gather, width, steps)


def ray(width: int, steps: int) -> dict[str, float]:
    import ray

    peer: Any = ray
    peer.init(num_cpus=width, include_dashboard=False, log_to_driver=False)
    remote = peer.remote(point)
    try:
        return figures(remote.remote, peer.get, width, steps)
    finally:
        peer.shutdown()


if __name__ == "__main__":
    name, width, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    try:
        found = {"dask": dask, "ray": ray}[name](width, steps)
    except ImportError:
        raise SystemExit(3) from None
    print(json.dumps(found))
