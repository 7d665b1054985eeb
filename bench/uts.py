"""Unbalanced tree search on the pool: a tree whose shape nobody knows before, with published counts.

mpirun -n 2 python -m bench uts --tree T1

rate_over_ceiling    nodes a second over those of as many plain loops at once as there are cores for ranks
nodes, leaves, depth of the tree, which must be those published, or there are no figures
rate_m, ceiling_m    million nodes a second
steals, tasks, far   of all ranks, in the last repetition; far: tasks that came from another node
busiest_share        of the tree's nodes, by one rank

A node's children follow from SHA-1 of its own 20 bytes: T1 is geometric (3,305,118 of 4,130,071 nodes are
leaves), T3 binomial, where one child of the root has 58% of the nodes. The ceiling is measured in the same
run: as many ranks as there are cores walk the whole tree at once, each alone, in the fastest plain loop that
we know. Specification: Olivier et al., "UTS: An Unbalanced Tree Search Benchmark", LCPC 2006.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from functools import partial
from hashlib import sha1
from math import floor, log
from struct import Struct

import numpy as np
from numpy.typing import NDArray

from bench._core import allowed_cores, dealt, neighbours
from bench.harness import Figure, check, interleaved, positive, ratio
from weft.runtime.errors import Mistake
from weft.runtime.message import World, run
from weft.runtime.work.pool import Pool

STATE = Struct(">I")
GRAIN = 5_000  # nodes that a task visits: about 3 ms
PARTS = 8  # into which what it has not visited is divided
NODE_S = 0.5e-6  # what a node takes, about
ENDLESS = 2**60
CHUNK = 200  # nodes a task begins with at most: 4.8 KB


@dataclass(frozen=True, slots=True)
class Tree:
    """The parameters of a tree; `counts` are nodes, leaves and depth, where they are known."""

    seed: int
    b0: int
    depth: int = 0  # geometric, FIXED: children above this depth only
    q: float = 0.0  # binomial, unless 0: `m` children with this probability
    m: int = 0
    counts: tuple[int, int, int] | None = None

    @property
    def root(self) -> bytes:
        return sha1(bytes(16) + STATE.pack(self.seed)).digest()


TREES = {
    "T1": Tree(19, 4, depth=10, counts=(4_130_071, 3_305_118, 10)),
    "T3": Tree(42, 2000, q=0.124875, m=8, counts=(4_112_897, 3_599_034, 1572)),
}
"""As published with the benchmark."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--tree", choices=sorted(TREES), default="T1", help="(T1)")
    add("--geometric", metavar="SEED,B0,DEPTH", help="a tree of this kind, as T1 is 19,4,10")
    add("--binomial", metavar="SEED,B0,Q,M", help="a tree of this kind, as T3 is 42,2000,0.124875,8")
    add("--repetitions", type=positive, default=3, metavar="N", help="rounds")
    add("--grain", type=positive, default=GRAIN, metavar="N", help=f"nodes a task visits ({GRAIN})")


def constants(text: str, names: str) -> list[str]:
    """An option's, as many as there are names."""
    if len(found := text.split(",")) != len(names.split(",")):
        raise ValueError(f"{text!r} is not {names}")
    return found


def chosen(args: argparse.Namespace) -> Tree:
    """The tree that the options name; one without published counts is held to the plain loop's."""
    tree = TREES[args.tree]
    try:
        if args.geometric:
            seed, b0, depth = constants(args.geometric, "SEED,B0,DEPTH")
            tree = Tree(int(seed), int(b0), depth=int(depth))
        if args.binomial:
            seed, b0, q, m = constants(args.binomial, "SEED,B0,Q,M")
            tree = Tree(int(seed), int(b0), q=float(q), m=int(m))
            if not 0 < tree.q * tree.m < 1:
                raise ValueError(
                    f"Q times M is {tree.q * tree.m:g}; above 0 and below 1 such a tree has an end"
                )
        if not 1 <= tree.b0 <= len(INDICES) or not 0 <= tree.m <= len(INDICES):
            raise ValueError(f"a node has from 1 to {len(INDICES):,} children")
    except ValueError as error:
        raise Mistake(f"the tree's constants are wrong: {error}; see python -m bench uts --help") from error
    return tree


Nodes = list[tuple[bytes, int]]


def walk(tree: Tree, stack: Nodes, most: int) -> tuple[int, int, int]:
    """Visit at most so many nodes, depth first; returns how many, the leaves among them, and the depth.

    The fastest plain loop that we know: `stack` keeps what has not been visited.
    """
    nodes = leaves = deepest = 0
    pop, push, digest, pack = stack.pop, stack.append, sha1, INDICES
    if tree.q:
        below, m = int(tree.q * 2**31), range(tree.m)
        while stack and nodes < most:
            state, depth = pop()
            nodes += 1
            if depth > deepest:
                deepest = depth
            if depth == 0:
                children = range(tree.b0)
            elif (int.from_bytes(state[16:], "big") & 0x7FFFFFFF) < below:
                children = m
            else:
                leaves += 1
                continue
            depth += 1
            for i in children:
                push((digest(state + pack[i]).digest(), depth))
        return nodes, leaves, deepest
    scale = log(1 - 1 / (1 + tree.b0))
    while stack and nodes < most:
        state, depth = pop()
        nodes += 1
        if depth > deepest:
            deepest = depth
        count = 0
        if depth < tree.depth:
            u = (int.from_bytes(state[16:], "big") & 0x7FFFFFFF) / 2**31
            count = min(100, floor(log(1 - u) / scale))
        if count == 0:
            leaves += 1
            continue
        depth += 1
        for i in range(count):
            push((digest(state + pack[i]).digest(), depth))
    return nodes, leaves, deepest


INDICES = [STATE.pack(i) for i in range(1 << 12)]  # no node has more children


class Search:
    """The search on one rank: the function of its tasks, and what they found."""

    def __init__(self, tree: Tree, grain: int) -> None:
        self.tree, self.grain = tree, grain
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self.nodes = self.leaves = self.deepest = 0

    def visit(self, pool: Pool, depths: list[int], states: NDArray[np.uint8]) -> None:
        """Visit a part of the tree, and spawn what is left of it."""
        raw = states.tobytes()
        stack = [(raw[20 * i : 20 * i + 20], depth) for i, depth in enumerate(depths)]
        nodes, leaves, deepest = walk(self.tree, stack, self.grain)
        self.nodes += nodes
        self.leaves += leaves
        self.deepest = max(self.deepest, deepest)
        size = min(CHUNK, -(-len(stack) // PARTS))
        for first in range(0, len(stack), max(1, size)):
            spawn(pool, stack[first : first + size])


def spawn(pool: Pool, nodes: Nodes) -> None:
    states = np.frombuffer(b"".join(state for state, _ in nodes), np.uint8)
    pool.spawn("visit", [depth for _, depth in nodes], states)


def main(args: argparse.Namespace) -> dict[str, Figure]:
    return run(partial(measure, args)) or {}


async def measure(args: argparse.Namespace, world: World) -> dict[str, Figure]:
    """One rank's part of the bench."""
    tree = chosen(args)
    rates: dict[str, list[float]] = {"ceiling": [], "pool": []}  # whose counts come first
    search = Search(tree, args.grain)
    counts, expected, done, busiest = (0, 0, 0), (0, 0, 0), (0, 0, 0), 0
    functions = {"visit": search.visit}
    alone = await has_core(world)
    async with await Pool.open(world, functions, task_s=args.grain * NODE_S) as pool:
        for name, _ in interleaved(list(rates), args.repetitions, warmup=0):
            await world.barrier()
            start = time.perf_counter()
            if name == "ceiling":
                plain = walk(tree, [(tree.root, 0)], ENDLESS) if alone else (0, 0, 0)
                await world.barrier()
                rates[name].append(await over(world, plain[0]) / (time.perf_counter() - start))
                nodes, leaves, depth = [await over(world, n, "max") for n in plain]
                expected = tree.counts or (nodes, leaves, depth)
                check(not alone or plain == expected, f"a plain loop counted {plain}, not {expected}")
            else:
                search.forget()
                if world.rank == 0:
                    spawn(pool, [(tree.root, 0)])
                tally = await pool.run()
                rates[name].append(await over(world, search.nodes) / (time.perf_counter() - start))
                counts = (
                    await over(world, search.nodes),
                    await over(world, search.leaves),
                    await over(world, search.deepest, "max"),
                )
                busiest = await over(world, search.nodes, "max")
                steals, ran, far = tally.steals, tally.ran, tally.far
                done = await over(world, steals), await over(world, ran), await over(world, far)
                check(counts == expected, f"nodes, leaves and depth are {counts}, not {expected}")
    return {
        "rate_over_ceiling": ratio(rates["pool"], rates["ceiling"]),
        **{name: Figure.of([n], "") for name, n in zip(("nodes", "leaves", "depth"), counts, strict=True)},
        "rate_m": Figure.of(rates["pool"], "M/s", 1e-6),
        "ceiling_m": Figure.of(rates["ceiling"], "M/s", 1e-6),
        "steals": Figure.of([done[0]], ""),
        "tasks": Figure.of([done[1]], ""),
        "far": Figure.of([done[2]], ""),
        "busiest_share": Figure.of([busiest / counts[0]], ""),
    }


async def over(world: World, value: int, op: str = "sum") -> int:
    """A number of all ranks."""
    total = np.array([value], np.int64)
    await world.allreduce(total, op)
    return int(total[0])


async def has_core(world: World) -> bool:
    """Whether this is the first of the ranks that have its core, so that all of these can compute at once."""
    ranks = neighbours(world)
    cores = dealt(await allowed_cores(ranks))
    return cores[ranks.rank] not in cores[: ranks.rank]
