"""A whole graph's schedule: the decisions are those of `choose`, nobody starves, and few are looked at."""

from __future__ import annotations

from bisect import insort
from operator import attrgetter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.runtime.errors import Mistake
from weft.runtime.graph.candidates import Thresholds
from weft.runtime.graph.combine import combine
from weft.runtime.graph.ready import Deferred, choose, regained, without
from weft.runtime.graph.schedule import Schedule
from weft.runtime.graph.tasks import Capacity, TaskGraph, TaskSpec
from weft.runtime.graph.virtual import Run, simulate

from .task_graphs import any_tasks, chain


class Plain:
    """The oracle: `choose` on everybody, at every start."""

    def __init__(self, tasks, whole, patience):
        self._tasks, self._whole, self._patience = tasks, whole, patience
        self._free = list(whole)
        self._waits = {task.name: len(task.needs) for task in tasks.tasks}
        self._ready = sorted((task for task in tasks.tasks if not task.needs), key=attrgetter("priority"))
        self._deferred: tuple[Deferred, ...] = ()
        self._started = 0

    def start(self):
        choice = choose(
            self._ready,
            self._deferred,
            self._free,
            self._whole,
            started=self._started,
            patience=self._patience,
        )
        self._deferred = choice.deferred
        del self._ready[: choice.taken]
        self._started += len(choice.start)
        for task, device in choice.start:
            self._free[device] = without(self._free[device], task)
        return choice.start

    def ended(self, task, device):
        self._free[device] = regained(self._free[device], task)
        for reader in self._tasks.readers[task.name]:
            self._waits[reader] -= 1
            if self._waits[reader] == 0:
                insort(self._ready, self._tasks.by_name[reader], key=attrgetter("priority"))


WHOLE = [
    [Capacity(3, 700), Capacity(2, 2000, "cuda"), Capacity(2, 2000)],
    [Capacity(2, 500), Capacity(2, 500), Capacity(2, 600, "cuda"), Capacity(4, 1000, "cuda")],
    [Capacity(8, 700, "cuda"), Capacity(8, 700)],
]


@st.composite
def crowds(draw):
    """Many ready tasks that demand much, of several priorities; some free others."""
    random = Random(draw(st.integers(0, 1 << 30)))
    return TaskGraph(
        tuple(
            TaskSpec(
                f"t{n}",
                needs={f"t{random.randrange(n)}": 0} if n and random.random() < 0.3 else {},
                scratch_bytes=random.choice((10, 200, 400, 500)),
                lanes=random.choice((1, 1, 2)),
                device=random.choice((None, None, "cpu", "cuda")),
                priority=random.randrange(4),
            )
            for n in range(draw(st.integers(1, 80)))
        )
    )


@given(st.one_of(any_tasks(), crowds()), st.integers(0, 20), st.integers(0, 1 << 30), st.sampled_from(WHOLE))
def test_s4_5_it_decides_as_one_who_looks_at_everybody(tasks, patience, seed, whole):
    random = Random(seed)
    schedule, plain = Schedule(tasks, whole, patience=patience), Plain(tasks, whole, patience)
    running = []
    while True:
        started = schedule.start()
        assert started == plain.start()
        running += started
        if not running:
            return
        for _ in range(random.choice((1, 1, 1, 3))):
            if running:
                ended = running.pop(random.randrange(len(running)))
                schedule.ended(*ended)
                plain.ended(*ended)


@pytest.mark.parametrize("priorities", [1, 1000], ids=["alike", "each of its own"])
def test_s4_5_a_decision_looks_at_few_of_thousands_that_wait_for_memory(priorities, monkeypatch):
    """4,000 took 5.9 s when every one that waited was tried at every start."""
    looks = 0
    fits = Capacity.fits

    def counting(self, task):
        nonlocal looks
        looks += 1
        return fits(self, task)

    monkeypatch.setattr(Capacity, "fits", counting)
    tasks = TaskGraph(
        tuple(TaskSpec(f"t{n}", scratch_bytes=6 + n % 5, priority=n % priorities) for n in range(2000))
    )
    runs = simulate(tasks, [Capacity(lanes=8, memory_bytes=10), Capacity(lanes=8, memory_bytes=10)])
    assert len(runs) == 2000
    assert looks < 20 * 2000


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            Capacity(4, 100),
            r"Capacity\(lanes=4, .*\) stands alone; give a list of what there is, \[Capacity\(",
        ),
        ([Capacity("4", 8)], r"Capacity\(lanes='4', .*: lanes and memory_bytes are numbers, 0 or more"),
        ([Capacity(4, "8")], r"memory_bytes='8', .*: lanes and memory_bytes are numbers, 0 or more"),
        ([4], r"4 is no Capacity; give a list of these, \[Capacity\(lanes=4, memory_bytes=8 << 30\)\]"),
    ],
)
def test_what_there_is_is_a_list_of_capacities(given, words):
    with pytest.raises(Mistake, match=words):
        Schedule(chain(2), given)
    with pytest.raises(Mistake, match=words):
        combine(chain(2), given, Thresholds())


def peak(runs: tuple[Run, ...], device: int, demand: str) -> int:
    """The most that was demanded of a device at once."""
    own = [run for run in runs if run.device == device]
    return max(
        (
            sum(getattr(other.task, demand) for other in own if other.start_s <= run.start_s < other.end_s)
            for run in own
        ),
        default=0,
    )


@given(any_tasks(), st.integers(0, 5))
def test_s4_5_everything_runs_once_after_its_needs_and_within_the_devices(tasks, patience):
    whole = [Capacity(3, 700), Capacity(2, 2000, "cuda"), Capacity(2, 2000)]
    runs = simulate(tasks, whole, overhead_s=1e-6, patience=patience)
    ran = {run.task.name: run for run in runs}
    assert len(runs) == len(ran) == len(tasks.tasks)
    for run in runs:
        assert all(ran[need].end_s <= run.start_s for need in run.task.needs)
        assert run.task.device in (None, whole[run.device].device)
    for device, capacity in enumerate(whole):
        assert peak(runs, device, "lanes") <= capacity.lanes
        assert peak(runs, device, "memory_bytes") <= capacity.memory_bytes


@pytest.mark.parametrize("patience", [0, 3, 16])
def test_s4_5_a_large_task_does_not_starve_behind_small_ones_that_always_fit(patience):
    # Three lanes, and small tasks that end one by one, so that there are never three lanes free at once.
    small = [TaskSpec(f"small{i}", seconds=1 + i % 3 / 3) for i in range(300)]
    large = TaskSpec("large", seconds=1.0, lanes=3)
    runs = simulate(TaskGraph((*small[:3], large, *small[3:])), [Capacity(3, 0)], patience=patience)
    before = [run.task.name for run in runs].index("large")
    assert 3 + patience <= before <= 3 + patience + 1
    forever = simulate(TaskGraph((*small[:3], large, *small[3:])), [Capacity(3, 0)], patience=10_000)
    assert forever[-1].task.name == "large"  # so it is patience that ends


def test_s4_5_urgent_tasks_that_keep_coming_do_not_starve_a_deferred_one():
    urgent = [
        TaskSpec(f"u{lane}_{i}", 1 + lane / 3, {f"u{lane}_{i - 1}": 0} if i else {})
        for lane in range(2)
        for i in range(100)
    ]
    runs = simulate(
        TaskGraph((*urgent, TaskSpec("large", 1.0, lanes=3, priority=5))), [Capacity(3, 0)], patience=8
    )
    assert [run.task.name for run in runs].index("large") <= 12


def test_s4_5_independent_tasks_are_pulled_forward_in_the_time_that_would_be_lost():
    first = [
        TaskSpec(name, 1.0, needs, lanes=2) for name, needs in (("a", {}), ("b", {"a": 0}), ("c", {"b": 0}))
    ]
    other = [TaskSpec(name, 1.0, priority=1) for name in "def"]
    runs = simulate(TaskGraph((*first, *other)), [Capacity(3, 0)])
    assert max(run.end_s for run in runs) == 3.0  # a, b and c fill it; d, e and f run beside them
    assert {run.task.name: run.start_s for run in runs} == {"a": 0, "b": 1, "c": 2, "d": 0, "e": 1, "f": 2}


def test_s4_5_the_clock_counts_seconds_and_overhead():
    runs = simulate(chain(4), [Capacity(1, 1 << 10)], overhead_s=9e-6)
    assert runs[-1].end_s == pytest.approx(4 * 10e-6)
