"""METG of the peers, for metg.py: `python -m bench._metg_peers dask WIDTH STEPS REPETITIONS` prints JSON.

Each as its documentation has it. Dask and Ray: a local cluster of WIDTH processes of one thread, or WIDTH
CPUs; a task is submitted with the futures that it needs, as its graph is. charm4py: see _metg_charm4py.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.metg import GRAPHS, metg, neighbours, plain, spin, turn_s

KERNELS_S = tuple(125e-6 * 2**n for n in range(12))  # 0.125 ms to 0.26 s, by twos as Weft's

Outputs = Sequence[Sequence[int]]


def point(turns: int, step: int, place: int, width: int, *needs: tuple[int, int]) -> tuple[int, int]:
    if needs and [tuple(need) for need in needs] != [(step - 1, each) for each in neighbours(place, width)]:
        raise ValueError(f"point {place} of step {step} got {needs}")
    spin(turns)
    return step, place


def sweeps(
    run: Callable[[int], Outputs],
    alone: Callable[[int], Sequence[float]],
    kernels_s: Sequence[float],
    width: int,
    steps: int,
    repetitions: int,
) -> list[float]:
    """METG in seconds, again and again.

    `run` runs a graph with kernels of so many turns, for its outputs; `alone` runs `plain`, the peak, in all
    of the peer's processes at once, as metg.py does on our ranks: cores may share what they compute with.
    """
    turn = turn_s()
    expected = [(step, place) for step in range(steps) for place in range(width)]
    found = []
    for number in range(repetitions + 1):
        rates: list[tuple[float, float]] = []
        for kernel_s in kernels_s[:1] if number == 0 else kernels_s:  # the first warms up
            turns = round(kernel_s / turn)
            plain_s = max(alone(turns))
            start = time.perf_counter()
            got = run(turns)
            rates.append((plain_s / (time.perf_counter() - start), kernel_s))
            if [tuple(each) for each in got] != expected:
                raise ValueError("an output is not its task's")
            if rates[-1][0] >= 0.5:
                break
        if number:
            found.append(metg(rates))
    return found


def submitting(
    submit: Callable[..., Any],
    gather: Callable[[list[Any]], list[Any]],
    width: int,
    steps: int,
    repetitions: int,
) -> dict[str, list[float]]:
    """METG where tasks are submitted one after the other, with the futures that they need."""

    def run(graph: str, turns: int) -> Outputs:
        rows: list[list[Any]] = []
        for step in range(steps):
            before = rows[-1] if rows and graph == "stencil" else []
            rows.append([])
            for place in range(width):
                needs = [before[each] for each in neighbours(place, width)] if before else []
                rows[-1].append(submit(point, turns, step, place, width, *needs))
        return gather([future for row in rows for future in row])

    def alone(turns: int) -> list[float]:
        return gather([submit(plain, turns, steps) for _ in range(width)])

    return {
        graph: sweeps(partial(run, graph), alone, KERNELS_S, width, steps, repetitions) for graph in GRAPHS
    }


def dask(width: int, steps: int, repetitions: int) -> dict[str, list[float]]:
    import distributed

    peer: Any = distributed  # untyped
    with (
        peer.LocalCluster(
            n_workers=width, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        peer.Client(cluster) as client,
    ):
        submit = partial(client.submit, pure=False)
        return submitting(submit, client.gather, width, steps, repetitions)


def ray(width: int, steps: int, repetitions: int) -> dict[str, list[float]]:
    import ray

    peer: Any = ray
    peer.init(num_cpus=width, include_dashboard=False, log_to_driver=False)
    remote = {function: peer.remote(function) for function in (point, plain)}

    def submit(function: Callable[..., Any], *args: Any) -> Any:
        return remote[function].remote(*args)

    try:
        return submitting(submit, peer.get, width, steps, repetitions)
    finally:
        peer.shutdown()


def charm4py(width: int, steps: int, repetitions: int) -> dict[str, list[float]]:
    """Its processes are started by its own launcher: one more for the pool, whose first only schedules."""
    found = {}
    with TemporaryDirectory() as folder:
        for graph, processes in (("trivial", width + 1), ("stencil", width + 1), ("chares", width)):
            path = Path(folder) / graph
            program = ["-m", "bench._metg_charm4py", graph, width, steps, repetitions, path]
            launcher = [sys.executable, "-m", "charmrun.start", f"+p{processes}", "++local"]
            subprocess.run([*launcher, *map(str, program)], stdout=sys.stderr, check=True)
            found[graph] = json.loads(path.read_text())
    return found


if __name__ == "__main__":
    name, *numbers = sys.argv[1:]
    print(json.dumps({"dask": dask, "ray": ray, "charm4py": charm4py}[name](*map(int, numbers))))
