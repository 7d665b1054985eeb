"""Combining: who is a candidate, what becomes one, and that nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.runtime.errors import Mistake
from weft.runtime.graph.candidates import Thresholds, first_candidates, second_candidates
from weft.runtime.graph.combine import Combined, combine
from weft.runtime.graph.tasks import Capacity, TaskGraph, TaskSpec
from weft.runtime.graph.virtual import simulate

from .task_graphs import ROOM, US, any_tasks, chain, edges, graph, hub, stencil, tree

CAPACITIES = [
    (Capacity(1, 700),),
    (Capacity(2, 400), Capacity(1, 900, "cuda")),
    (Capacity(2, 10_000), Capacity(1, 300), Capacity(2, 10_000, "cuda")),
]
thresholds = st.builds(
    Thresholds,
    neighbours=st.sampled_from([2, 4, 100]),
    small_s=st.sampled_from([0.0, 10 * US, 200 * US, 2.0]),
    workers=st.sampled_from([1, 3]),
    lanes=st.sampled_from([1, 2]),
    memory_bytes=st.sampled_from([300, 10_000]),
)


def groups(combined: Combined) -> list[str]:
    """What has become one, as words."""
    return sorted(" ".join(members) for members in combined.members.values())


@pytest.mark.parametrize(
    ("counted", "few", "expected"),
    [
        ("inputs", 1, "a b"),  # neither needs anything
        ("inputs", 2, "a b c e f g"),
        ("outputs", 1, "e f g"),
        ("outputs", 2, "a b d e f g"),
        ("both", 2, "a b e f g"),
        ("both", 4, "a b d e f g"),
        ("both", 5, "a b c d e f g"),
        ("both", 0, ""),
    ],
)
def test_s4_1_tasks_with_fewer_neighbours_than_the_threshold_are_first_candidates(counted, few, expected):
    tasks = graph("a>c>e c>f c>d>g b>d")
    assert first_candidates(tasks, Thresholds(neighbours=few, counted=counted)) == set(expected.split())


DEMANDS = {
    "a small one is a candidate": (TaskSpec("t", seconds=US), True),
    "one that costs nothing is": (TaskSpec("t", seconds=0.0), True),
    "one that takes as long as the threshold is not": (TaskSpec("t", seconds=10 * US), False),
    "one whose cost nobody knows is not": (TaskSpec("t"), False),
    "one that wants more lanes is not": (TaskSpec("t", seconds=US, lanes=2), False),
    "one with as much memory as the threshold is": (TaskSpec("t", seconds=US, scratch_bytes=100), True),
    "one with more memory is not": (TaskSpec("t", seconds=US, scratch_bytes=101), False),
    "one that only a device that is not there could run is not": (
        TaskSpec("t", seconds=US, device="cuda"),
        False,
    ),
}


@pytest.mark.parametrize(("task", "candidate"), DEMANDS.values(), ids=DEMANDS)
def test_s4_2_first_candidates_are_filtered_by_what_they_demand(task, candidate):
    found = second_candidates(
        TaskGraph((task,)), {"t"}, [Capacity(4, 1000)], Thresholds(small_s=10 * US, memory_bytes=100)
    )
    assert (found == {"t"}) is candidate


def test_s4_2_only_first_candidates_are_looked_at():
    assert second_candidates(graph("a>b"), {"b"}, [ROOM], Thresholds()) == {"b"}


SHAPES = {
    "a chain becomes one": (chain(5), ["c0 c1 c2 c3 c4"]),
    "a chain stops at a large task": (graph("a>b>L>c>d", L=1.0), ["L", "a b", "c d"]),
    "a large chain stays": (graph("a>b>c", seconds=1.0), ["a", "b", "c"]),
    "a hub stays, its readers become one": (
        hub(8),
        ["hub", "join", "leaf0 leaf1 leaf2 leaf3 leaf4 leaf5 leaf6 leaf7"],
    ),
    "a diamond becomes one": (graph("a>b>d a>c>d"), ["a b c d"]),
    "a diamond with a way past it becomes one": (graph("a>b>d a>c>d a>d"), ["a b c d"]),
    "a residual block becomes one": (graph("L>a>b>add L>add", L=1.0), ["L", "a b add"]),
    "what is read twice on the way becomes one": (graph("a>b>L a>L", L=1.0), ["L", "a b"]),
    "a tree becomes one": (tree(3), ["t6 t5 t4 t3 t2 t1 t0"]),
    "tasks without edges become one": (graph("a b c"), ["a b c"]),
    "branches that each hang on a large task stay apart": (
        graph("L>a>M N>b>O", L=1.0, M=1.0, N=1.0, O=1.0),
        ["L", "M", "N", "O", "a", "b"],
    ),
    "what only one reader waits for becomes one, whenever its needs are done": (
        graph("L>a>c M>b>c", L=1.0, M=2.0),
        ["L", "M", "a b c"],
    ),
    "what starts much earlier does not wait for what another reader wants too": (
        graph("L>a x>a x>b a>M b>N", L=1.0, M=1.0, N=1.0),
        ["L", "M", "N", "a", "b", "x"],
    ),
}


@pytest.mark.parametrize(("tasks", "expected"), SHAPES.values(), ids=SHAPES)
def test_s4_4_what_becomes_one(tasks, expected):
    assert groups(combine(tasks, [ROOM], Thresholds())) == sorted(expected)


def test_s4_4_thousands_of_small_tasks_become_one():
    combined = combine(chain(3000), [ROOM], Thresholds())
    (only,) = combined.tasks.tasks
    assert only.name == "c0+2999"
    assert only.seconds == pytest.approx(3000 * US)
    assert only.memory_bytes == 16  # two outputs at a time


@pytest.mark.parametrize(
    "tasks", [hub(200), stencil(40, 20), tree(9), graph(" ".join(f"a{i}" for i in range(300)))]
)
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_s4_4_several_workers_are_left_with_work_for_each(tasks, workers):
    limits = Thresholds.measured(10 * US, workers=workers)
    combined = combine(tasks, [ROOM], limits)
    assert len(combined.tasks.tasks) < len(tasks.tasks) / 2
    assert end_s(combined.tasks, workers) < end_s(tasks, workers) / 2


def test_s4_4_independent_tasks_are_combined_up_to_what_is_small():
    tasks = graph(" ".join(f"a{i}" for i in range(100)), seconds=10 * US)
    combined = combine(tasks, [ROOM], Thresholds(small_s=100 * US))
    assert sorted(len(members) for members in combined.members.values()) == [10] * 10


@pytest.mark.parametrize("large", [0.0, 0.1], ids=["all small", "some large"])
@pytest.mark.parametrize("workers", [1, 2, 4, 16])
def test_s4_4_jobs_of_any_shape_take_no_longer_combined(workers, large):
    """In virtual time, where scheduling a task takes its lane 10 us. The median: one job with large tasks
    may draw a worse order, as it may when any task is left out (Graham's anomalies)."""
    ratios = []
    for seed in range(6):
        random = Random(seed)
        tasks = []
        for i in range(120):
            near = range(max(0, i - random.choice((4, 30, 120))), i)
            needs = random.sample(near, min(len(near), random.choice((0, 1, 1, 2, 3))))
            seconds = 5e-3 if random.random() < large else random.choice((1, 10, 50)) * US
            tasks.append(TaskSpec(f"t{i}", seconds, {f"t{need}": 8 for need in needs}, 8))
        before = TaskGraph(tuple(tasks))
        after = combine(before, [ROOM], Thresholds.measured(10 * US, workers=workers)).tasks
        ratios.append(end_s(after, workers) / end_s(before, workers))
    assert median(ratios) <= (0.9 if workers <= 4 and not large else 1.0)


def end_s(tasks: TaskGraph, workers: int) -> float:
    return max(run.end_s for run in simulate(tasks, [ROOM] * workers, overhead_s=10 * US))


@pytest.mark.parametrize(
    ("workers", "cost_us", "left"),
    [
        (4, 5, 4),  # 60 us: a group for each worker
        (4, 0.5, 1),  # 6 us: less than scheduling a second group
        (4, 50, 6),  # 600 us: groups of what is small
        (16, 5, 12),  # fewer tasks than workers: as they are
    ],
)
def test_s4_4_a_group_is_left_for_each_worker_that_it_pays_to_start(workers, cost_us, left):
    tasks = graph(" ".join(f"L>a{i}>M" for i in range(12)), seconds=cost_us * US, L=1.0, M=1.0)
    combined = combine(tasks, [ROOM], Thresholds(small_s=100 * US, overhead_s=10 * US, workers=workers))
    assert len(combined.tasks.tasks) == 2 + left


def test_s4_4_a_combined_demand_is_held_to_the_device():
    # Each holds 100 bytes of arguments to its group's end, two of them 8 of an input and twice 8 of output.
    tasks = TaskGraph(tuple(replace(task, argument_bytes=100) for task in chain(6).tasks))
    assert groups(combine(tasks, [Capacity(1, 224)], Thresholds())) == ["c0 c1", "c2 c3", "c4 c5"]
    smaller = Capacity(1, 223)
    for devices in ([smaller], [smaller, ROOM], [ROOM, smaller]):
        assert groups(combine(tasks, devices, Thresholds())) == ["c0 c1", "c2", "c3", "c4", "c5"]


KEPT_APART = {
    "priorities": TaskSpec("b", US, {"a": 8}, priority=1),
    "devices": TaskSpec("b", US, {"a": 8}, device="cuda"),
}


@pytest.mark.parametrize("other", KEPT_APART.values(), ids=KEPT_APART)
def test_s4_4_what_differs_is_not_combined(other):
    tasks = TaskGraph((TaskSpec("a", US, output_bytes=8, device="cpu"), other))
    devices = [ROOM, Capacity(1, 1 << 20, "cuda")]
    assert groups(combine(tasks, devices, Thresholds())) == ["a", "b"]
    alike = TaskGraph((tasks.by_name["a"], replace(other, priority=0, device=None)))
    (both,) = combine(alike, devices, Thresholds()).tasks.tasks
    assert (both.name, both.device) == ("a+1", "cpu")


def test_s4_4_a_result_is_not_held_back_by_what_comes_after_it():
    tasks = chain(4)
    waited_for = TaskGraph(tuple(replace(task, result=task.name == "c1") for task in tasks.tasks))
    combined = combine(waited_for, [ROOM], Thresholds())
    assert groups(combined) == ["c0 c1", "c2 c3"]
    assert combined.tasks.by_name["c0+1"].result


def test_s4_4_a_result_is_not_held_back_by_what_its_reader_needs_besides():
    tasks = graph("L>a>c M>b>c c>N", L=1.0, M=2.0, N=1.0)
    assert groups(combine(tasks, [ROOM], Thresholds())) == ["L", "M", "N", "a b c"]
    waited_for = TaskGraph(tuple(replace(task, result=task.name == "a") for task in tasks.tasks))
    assert groups(combine(waited_for, [ROOM], Thresholds())) == ["L", "M", "N", "a", "b", "c"]


def test_s4_3_metadata_of_the_combined_is_that_of_one_task():
    tasks = TaskGraph(
        (
            TaskSpec("in", 1.0, output_bytes=100),
            TaskSpec("a", 1 * US, {"in": 100}, 40, argument_bytes=5),
            TaskSpec("b", 2 * US, {"a": 40, "in": 60}, 20, scratch_bytes=30),
            TaskSpec("c", 3 * US, {"b": 20}, 10),
            TaskSpec("out", 1.0, {"c": 10}),
        )
    )
    combined = combine(tasks, [ROOM], Thresholds())
    target = combined.tasks.by_name["a+2"]
    assert target.seconds == pytest.approx(6 * US)
    assert target.needs == {"in": 100}  # the same output, once
    assert target.output_bytes == 10
    assert combined.tasks.by_name["out"].needs == {"a+2": 10}
    # While b runs: the inputs of all three, a's output, b's scratch and b's output. b's memory, and so on,
    # added up would be 355.
    assert target.memory_bytes == 105 + 40 + 30 + 20
    assert combined.reads("a+2") == ("in",)
    assert combined.leaves("a+2") == ("c",)


def test_s4_3_every_rank_gets_the_same_groups():
    tasks = stencil(12, 6)
    assert combine(tasks, [ROOM], Thresholds(workers=3)) == combine(tasks, [ROOM], Thresholds(workers=3))


def test_s4_3_names_of_the_combined_are_new():
    combined = combine(graph("a>b a+1", **{"a+1": 1.0}), [ROOM], Thresholds())
    assert combined.members == {"a+1+": ("a", "b"), "a+1": ("a+1",)}


@given(any_tasks(), st.sampled_from(CAPACITIES), thresholds)
def test_s4_3_outside_edges_are_kept_and_none_is_added(tasks, capacities, limits):
    combined = combine(tasks, capacities, limits)
    home = {member: name for name, members in combined.members.items() for member in members}
    assert sorted(home) == sorted(tasks.by_name)
    assert sum(map(len, combined.members.values())) == len(tasks.tasks)
    kept = {(home[need], home[reader]) for need, reader in edges(tasks) if home[need] != home[reader]}
    assert set(edges(combined.tasks)) == kept
    place = {task.name: index for index, task in enumerate(combined.tasks.tasks)}  # so it has no cycle
    assert all(place[need] < place[reader] for need, reader in kept)
    assert combined.tasks.messages <= tasks.messages


@given(any_tasks(), st.sampled_from(CAPACITIES), thresholds)
def test_s4_2_only_candidates_are_combined(tasks, capacities, limits):
    combined = combine(tasks, capacities, limits)
    candidates = second_candidates(tasks, first_candidates(tasks, limits), capacities, limits)
    for name, members in combined.members.items():
        if len(members) > 1:
            assert candidates.issuperset(members)
        else:  # as it was, but for the names of what it needs
            alone, before = combined.tasks.by_name[name], tasks.by_name[name]
            assert replace(alone, needs={}) == replace(before, needs={})
            assert sum(alone.needs.values()) == sum(before.needs.values())


@given(any_tasks(), st.sampled_from(CAPACITIES), thresholds)
def test_s4_4_a_combined_demand_fits_every_device_that_all_members_fit(tasks, capacities, limits):
    combined = combine(tasks, capacities, limits)
    for name, members in combined.members.items():
        target = combined.tasks.by_name[name]
        own = [tasks.by_name[member] for member in members]
        if len(members) == 1:
            continue
        fitting = [capacity for capacity in capacities if all(map(capacity.fits, own))]
        assert fitting
        assert all(capacity.fits(target) for capacity in fitting)
        assert held(combined, name) <= target.memory_bytes <= sum(task.memory_bytes for task in own)
        assert target.seconds == pytest.approx(sum(task.seconds for task in own))
        assert {task.priority for task in own} == {target.priority}
        assert target.result == any(task.result for task in own)
        assert target.output_bytes == sum(tasks.by_name[each].output_bytes for each in combined.leaves(name))


def held(combined: Combined, target: str) -> int:
    """The most bytes that a target's serial run holds at once, looked up array by array."""
    tasks, members = combined.original.by_name, combined.members[target]
    given_bytes = sum(tasks[member].argument_bytes for member in members)
    for need in combined.reads(target):
        read = sum(tasks[member].needs.get(need, 0) for member in members)
        given_bytes += min(read, tasks[need].output_bytes)
    most = 0
    for now, member in enumerate(members):
        live = [
            tasks[each].output_bytes
            for index, each in enumerate(members)
            if index <= now
            and (
                each in combined.leaves(target)
                or each == member
                or any(each in tasks[later].needs for later in members[now:])
            )
        ]
        most = max(most, given_bytes + sum(live) + tasks[member].scratch_bytes)
    return most


@given(any_tasks(), st.sampled_from(CAPACITIES), thresholds)
def test_s4_4_results_are_unchanged(tasks, capacities, limits):
    """Run target by target, with nothing at hand but what the target reads, they give the same numbers."""
    combined = combine(tasks, capacities, limits)

    def run(name: str, known: dict[str, int]) -> int:
        needs = tasks.by_name[name].needs
        return (7 * sum(known[need] for need in needs) + 3 * len(needs) + int(name[1:])) % 1_000_003

    wanted: dict[str, int] = {}
    for task in tasks.tasks:
        wanted[task.name] = run(task.name, wanted)

    left: dict[str, int] = {}
    for target in combined.tasks.tasks:
        local = {need: left[need] for need in combined.reads(target.name)}
        for member in combined.members[target.name]:
            local[member] = run(member, local)
        left.update({name: local[name] for name in combined.leaves(target.name)})
    assert left == {name: wanted[name] for name in left}
    ends = {task.name for task in tasks.tasks if task.result or not tasks.readers[task.name]}
    assert ends <= set(left)


def test_s4_2_thresholds_follow_from_the_measured_overhead():
    limits = Thresholds.measured(5 * US, share=0.1, neighbours=3, workers=4)
    assert (limits.small_s, limits.overhead_s) == (pytest.approx(50 * US), 5 * US)
    assert (limits.neighbours, limits.workers) == (3, 4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"neighbours": -1}, "neighbours is -1"),
        ({"small_s": float("nan")}, "small_s is nan"),
        ({"counted": "all"}, "inputs, outputs or both"),
        ({"workers": 0}, "workers is 0"),
        ({"workers": "2"}, "workers is '2'; give a number, 1 or more"),
        ({"small_s": "1e-3"}, "small_s is '1e-3'; give a number, 0 or more"),
    ],
)
def test_s4_2_a_threshold_that_means_nothing_is_refused(wrong, message):
    with pytest.raises(Mistake, match=message):
        Thresholds(**wrong)


def test_s4_2_a_share_that_means_nothing_is_refused():
    with pytest.raises(Mistake, match="share is 0"):
        Thresholds.measured(US, share=0)
