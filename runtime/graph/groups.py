"""Groups in the making: which tasks are combined, and what a group demands.

Two kinds of groups are made, and both leave an acyclic graph acyclic, whatever has been combined before:

    in a row      Only b needs a, and what else b needs a needs too. A circle through "ab" would leave it from
                  b, for a has no other reader, and come back to a or b: it was a circle before. (Or against
                  the arrows: b needs only a, and who else needs a needs b too.)
    in a wave     The wave of a task is the length of the longest way to it, so every edge leads to a later
                  wave. Tasks of one wave combined, every edge still does. (Against the arrows: the same.)

What is in a row could not have run at once: it loses nothing by being combined, and grows without limit. What
is in one wave could: there only what shares neighbours is combined, and groups stay small. All is done in the
order of the tasks, so every rank that combines the same graph gets the same groups.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from .candidates import Thresholds
from .tasks import Capacity, TaskGraph, TaskSpec


@dataclass(slots=True, eq=False)
class Group:
    """Tasks that run one after the other, and their demand as that of one task."""

    members: list[str]
    candidate: bool  # whether it may be combined
    inputs: dict[str, int]  # bytes of each outside task's output
    outward: dict[str, None]  # members that outside tasks need
    seconds: float
    argument_bytes: int
    input_bytes: int  # of outside tasks
    scratch_bytes: int
    output_bytes: int
    lanes: int
    device: str | None
    priority: int
    result: bool
    homes: tuple[int, ...]  # the capacities that all members fit
    start_s: float = 0.0  # the earliest possible, by the estimates

    @property
    def working_bytes(self) -> int:
        """The most that it holds beside its inputs."""
        return self.scratch_bytes + self.output_bytes


Neighbours = dict[Group, None]
"""In the order in which they were found; a set has an order of its own on every rank."""


class Groups:
    """Who is in which group; at first each task is alone.

    A group's memory is counted as if its two parts were two tasks: what the second part reads of the first is
    held to the second's end. So it is known from the two parts' numbers, however long they are, and is never
    more than the members' sum.
    """

    def __init__(
        self,
        tasks: TaskGraph,
        candidates: frozenset[str],
        capacities: Sequence[Capacity],
        thresholds: Thresholds,
    ) -> None:
        self._tasks, self._capacities, self._thresholds = tasks, capacities, thresholds
        self._position = {task.name: index for index, task in enumerate(tasks.tasks)}
        self._group = {task.name: self._alone(task, task.name in candidates) for task in tasks.tasks}
        self._groups = dict.fromkeys(self._group.values())

    @property
    def all(self) -> tuple[Group, ...]:
        """Those there are."""
        return tuple(self._groups)

    def of(self, name: str) -> Group:
        """The group that a task is in."""
        return self._group[name]

    def needs(self, group: Group) -> Neighbours:
        """The groups that it needs."""
        return {self._group[need]: None for need in group.inputs}

    def readers(self, group: Group) -> Neighbours:
        """The groups that need it."""
        readers = self._tasks.readers
        found = {self._group[reader]: None for member in group.outward for reader in readers[member]}
        found.pop(group, None)
        return found

    def chains(self) -> bool:
        """Combine what is in a row; whether there was anything."""
        before = len(self._groups)
        for group in self.all:
            # A result that somebody waits for is not held back by what comes after it.
            while group in self._groups and group.candidate and not group.result:
                following = self._next(group)
                if following is None or not self._join(group, following):
                    break
        return len(self._groups) < before

    def waves(self, shared: Literal["needs", "readers"]) -> bool:
        """Combine what shares needs (or readers) and is in one wave; whether there was anything.

        Wave by wave, along the arrows (or against them), so that what a wave needs has been combined already:
        one sweep coarsens a tree or a stencil of any depth.
        """
        before = len(self._groups)
        ahead = self.readers if shared == "needs" else self.needs
        follow = {group: ahead(group) for group in self._groups}
        waits = dict.fromkeys(follow, 0)
        for followers in follow.values():
            for each in followers:
                waits[each] += 1
        wave = [group for group, count in waits.items() if count == 0]
        while wave:
            for related in self._by_needs(wave) if shared == "needs" else self._by_readers(wave):
                self._fill(related)
            following = []
            for group in wave:
                for each in follow[group]:
                    waits[each] -= 1
                    if waits[each] == 0:
                        following.append(each)
            wave = following
        return len(self._groups) < before

    # Below: who is combined.

    def _next(self, group: Group) -> Group | None:
        """The group that is in a row with this one and comes after it."""
        needs, readers = self.needs(group).keys(), self.readers(group).keys()
        for each in readers:
            if not each.candidate:
                continue
            others = self.needs(each).keys() - {group}
            only_reader = len(readers) == 1 and others <= needs
            if only_reader or (not others and readers - {each} <= self.readers(each).keys()):
                return each
        return None

    def _by_needs(self, wave: list[Group]) -> list[list[Group]]:
        """Candidates of a wave in runs: neighbours in a run need the same, or partly the same and start at
        about the same time, so that in a group nobody waits long for what only another member needs."""
        keyed = []
        for group in wave:
            needs = self.needs(group)
            group.start_s = max((need.start_s + need.seconds for need in needs), default=0.0)
            if group.candidate:
                key = (group.homes, group.priority, self._places(needs), self._places(self.readers(group)))
                keyed.append((key, needs, group))
        keyed.sort(key=lambda each: each[0])
        runs = [[keyed[0][2]]] if keyed else []
        for (key, needs, group), (next_key, next_needs, following) in pairwise(keyed):
            near = abs(following.start_s - group.start_s) <= self._thresholds.small_s
            some = near and needs.keys() & next_needs.keys()
            if key[:2] != next_key[:2] or not (needs == next_needs or some):
                runs.append([])
            runs[-1].append(following)
        return runs

    def _by_readers(self, wave: list[Group]) -> list[list[Group]]:
        """Candidates of a wave by their readers, which wait for all of them anyway. Not those that have none
        or are results: whoever waits for those would wait for the needs of the others too."""
        found: dict[object, list[Group]] = {}
        for group in wave:
            if group.candidate and not group.result and (readers := self.readers(group)):
                found.setdefault((group.homes, group.priority, frozenset(readers)), []).append(group)
        return list(found.values())

    def _places(self, groups: Neighbours) -> list[int]:
        """For sorting: what has the same neighbours comes to stand together."""
        return sorted(self._position[group.members[0]] for group in groups)

    def _fill(self, run: list[Group]) -> None:
        """Combine neighbours of a run into groups of about the same cost."""
        limits = self._thresholds
        total_s = sum(group.seconds for group in run)
        if total_s <= limits.overhead_s:
            count = 1  # to start a second one would take longer than to wait for the first
        else:
            count = max(limits.workers, math.ceil(total_s / limits.small_s - 1e-9))  # 10.000000001 is ten
        done_s = 0.0
        into, into_place = run[0], -1
        for group in run:
            middle_s = done_s + group.seconds / 2
            done_s += group.seconds
            place = int(middle_s / total_s * count) if count > 1 else 0
            if place != into_place or not self._join(into, group):
                into, into_place = group, place

    # Below: what a group demands.

    def _alone(self, task: TaskSpec, candidate: bool) -> Group:
        return Group(
            members=[task.name],
            candidate=candidate,
            inputs=dict(task.needs),
            outward=dict.fromkeys([task.name] if self._tasks.readers[task.name] else []),
            seconds=math.inf if task.seconds is None else task.seconds,
            argument_bytes=task.argument_bytes,
            input_bytes=sum(task.needs.values()),
            scratch_bytes=task.scratch_bytes,
            output_bytes=task.output_bytes,
            lanes=task.lanes,
            device=task.device,
            priority=task.priority,
            result=task.result,
            homes=tuple(i for i, capacity in enumerate(self._capacities) if capacity.fits(task)),
        )

    def _join(self, a: Group, b: Group) -> bool:
        """Let b's tasks run behind a's, in one group, if the demand allows it."""
        homes = tuple(home for home in a.homes if home in b.homes)
        if a.priority != b.priority or not homes:
            return False
        inner = [need for need in b.inputs if self._group[need] is a]
        ended = [need for need in inner if not self._read_elsewhere(need, a, b)]
        freed = sum(self._output_bytes(need) for need in ended)  # no result is: nothing is put behind it
        output_bytes = a.output_bytes + b.output_bytes - freed
        working_bytes = max(a.working_bytes, a.output_bytes + b.working_bytes)
        inputs = {
            need: min(a.inputs.get(need, 0) + nbytes, self._output_bytes(need))
            for need, nbytes in b.inputs.items()
            if self._group[need] is not a
        }
        input_bytes = a.input_bytes + sum(inputs.values()) - sum(a.inputs.get(need, 0) for need in inputs)
        argument_bytes = a.argument_bytes + b.argument_bytes
        room = min(self._capacities[home].memory_bytes for home in homes)
        if argument_bytes + input_bytes + working_bytes > min(room, self._thresholds.memory_bytes):
            return False

        for member in b.members:
            self._group[member] = a
        for need in ended:
            del a.outward[need]
        a.members += b.members
        a.inputs |= inputs
        a.outward |= b.outward
        a.seconds += b.seconds
        a.argument_bytes, a.input_bytes = argument_bytes, input_bytes
        a.scratch_bytes, a.output_bytes = working_bytes - output_bytes, output_bytes
        a.lanes, a.device = max(a.lanes, b.lanes), a.device or b.device
        a.homes, a.result = homes, a.result or b.result
        a.start_s = max(a.start_s, b.start_s)
        del self._groups[b]
        return True

    def _read_elsewhere(self, member: str, a: Group, b: Group) -> bool:
        return any(self._group[reader] not in (a, b) for reader in self._tasks.readers[member])

    def _output_bytes(self, name: str) -> int:
        return self._tasks.by_name[name].output_bytes
