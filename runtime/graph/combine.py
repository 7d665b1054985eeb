"""Small tasks become few before they are scheduled: a second graph whose tasks are groups of the first's.

    count neighbours ──> first candidates ──> demand fits ──> second candidates ──> groups ──> target tasks

After US patent 11,385,931. The second dependency relationship is the first, seen from the groups: every edge
between two groups is kept, none is added, and there is no cycle (groups.py says why).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .candidates import Thresholds, first_candidates, second_candidates
from .groups import Group, Groups
from .tasks import Capacity, TaskGraph, TaskSpec, devices


@dataclass(frozen=True)
class Combined:
    """The second graph, what its tasks are made of, and the first graph.

    `members`: for every task of `tasks` those of `original`, in the order in which they run.
    """

    tasks: TaskGraph
    members: Mapping[str, tuple[str, ...]]
    original: TaskGraph

    def reads(self, target: str) -> tuple[str, ...]:
        """The original tasks whose outputs must be there before `target` starts."""
        own = set(self.members[target])
        needs = (need for member in self.members[target] for need in self.original.by_name[member].needs)
        return tuple(need for need in dict.fromkeys(needs) if need not in own)

    def leaves(self, target: str) -> tuple[str, ...]:
        """Its members whose outputs are wanted when it has run (an output that nobody reads is taken to be
        wanted); the others' memory is free again, and need never have left the rank."""
        own = set(self.members[target])
        readers = self.original.readers
        return tuple(
            member
            for member in self.members[target]
            if not readers[member]
            or self.original.by_name[member].result
            or not own.issuperset(readers[member])
        )


def combine(tasks: TaskGraph, capacities: Sequence[Capacity], thresholds: Thresholds) -> Combined:
    """Combine what is small. What a combined task demands fits every device that all its members fit.

    Its metadata is for placing it as a whole: seconds are its members' sum; memory is the most that it holds
    while they run one after the other, all its inputs there from the first on; an edge carries what the
    members' edges carried, the same output once. Its members share one priority. Its name is that of its
    first member and the number of the others: "conv+2".
    """
    capacities = devices(capacities)
    first = first_candidates(tasks, thresholds)
    second = second_candidates(tasks, first, capacities, thresholds)
    groups = Groups(tasks, second, capacities, thresholds)
    while groups.chains() | groups.waves("needs") | groups.waves("readers"):
        pass
    named = _named(groups.all, set(tasks.by_name))
    specs = tuple(_spec(group, name, tasks, groups, named) for group, name in named.items())
    members = {name: tuple(group.members) for group, name in named.items()}
    return Combined(TaskGraph(specs), members, tasks)


def _named(groups: Sequence[Group], taken: set[str]) -> dict[Group, str]:
    named: dict[Group, str] = {}
    for group in groups:
        name = group.members[0]
        if len(group.members) > 1:
            name = f"{name}+{len(group.members) - 1}"
            while name in taken:
                name += "+"
        named[group] = name
    return named


def _spec(group: Group, name: str, tasks: TaskGraph, groups: Groups, named: Mapping[Group, str]) -> TaskSpec:
    alone = len(group.members) == 1
    needs: dict[str, int] = {}
    for need, nbytes in group.inputs.items():
        target = named[groups.of(need)]
        needs[target] = needs.get(target, 0) + nbytes
    return TaskSpec(
        name,
        seconds=tasks.by_name[name].seconds if alone else group.seconds,
        needs=needs,
        output_bytes=group.output_bytes,
        argument_bytes=group.argument_bytes,
        scratch_bytes=group.scratch_bytes,
        lanes=group.lanes,
        device=group.device,
        priority=group.priority,
        result=group.result,
    )
