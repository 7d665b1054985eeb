"""Graphs of tasks to combine and to schedule: the shapes by name, and any acyclic one."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import strategies as st

from weft.runtime.graph.tasks import Capacity, TaskGraph, TaskSpec

US = 1e-6
ROOM = Capacity(lanes=1, memory_bytes=1 << 20)


def graph(edges: str, *, seconds: float = US, nbytes: int = 8, **large: float) -> TaskGraph:
    """From "a>b b>c d": every task writes `nbytes`; those named in `large` take their own seconds."""
    needs: dict[str, dict[str, int]] = {}
    for each in edges.split():
        first, *others = each.split(">")
        needs.setdefault(first, {})
        for need, reader in zip([first, *others], others, strict=False):
            needs.setdefault(reader, {})[need] = nbytes
    return TaskGraph(
        tuple(
            TaskSpec(name, seconds=large.get(name, seconds), needs=own, output_bytes=nbytes)
            for name, own in needs.items()
        )
    )


def chain(length: int) -> TaskGraph:
    return graph(">".join(f"c{i}" for i in range(length)))


def hub(leaves: int) -> TaskGraph:
    """One task that many read, whose outputs one task joins."""
    return graph(" ".join(f"hub>leaf{i}>join" for i in range(leaves)))


def stencil(width: int, steps: int) -> TaskGraph:
    near = [(x, y) for x in range(width) for y in (x - 1, x, x + 1) if 0 <= y < width]
    return graph(" ".join(f"s{k}_{y}>s{k + 1}_{x}" for k in range(steps - 1) for x, y in near))


def tree(depth: int) -> TaskGraph:
    """Pairs are joined until one is left."""
    return graph(" ".join(f"t{i}>t{(i - 1) // 2}" for i in range(2**depth - 2, 0, -1)))


def edges(tasks: TaskGraph) -> Iterable[tuple[str, str]]:
    return ((need, task.name) for task in tasks.tasks for need in task.needs)


@st.composite
def any_tasks(draw: st.DrawFn, most: int = 24, devices: tuple[str | None, ...] = (None, "cpu", "cuda")):
    """Any acyclic graph, most tasks small, given in any order."""
    outputs = draw(st.lists(st.integers(0, 100), min_size=1, max_size=most))
    found = []
    for number, nbytes in enumerate(outputs):
        earlier = draw(st.lists(st.integers(0, number - 1), unique=True, max_size=4)) if number else []
        found.append(
            TaskSpec(
                f"t{number}",
                seconds=draw(st.sampled_from([0.0, US, 3 * US, 50 * US, 1.0, None])),
                needs={f"t{need}": draw(st.integers(0, outputs[need])) for need in earlier},
                output_bytes=nbytes,
                argument_bytes=draw(st.integers(0, 50)),
                scratch_bytes=draw(st.integers(0, 200)),
                lanes=draw(st.sampled_from([1, 1, 1, 2])),
                device=draw(st.sampled_from(devices)),
                priority=draw(st.sampled_from([0, 0, 0, 1])),
                result=draw(st.sampled_from([False, False, False, True])),
            )
        )
    return TaskGraph(tuple(draw(st.permutations(found))))
