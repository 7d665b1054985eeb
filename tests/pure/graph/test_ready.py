"""One decision: what runs now and what waits, what is pulled forward, for whom a device is kept."""

from __future__ import annotations

import pytest

from weft.runtime.errors import GraphError
from weft.runtime.graph.ready import Deferred, choose, refuse_impossible
from weft.runtime.graph.tasks import Capacity, TaskSpec


def task(words: str) -> TaskSpec:
    """From "name lanes bytes", then the device and the priority where they matter."""
    name, lanes, nbytes, *more = words.split()
    device = next((word for word in more if not word.isdigit()), None)
    priority = next((int(word) for word in more if word.isdigit()), 0)
    return TaskSpec(name, 1.0, scratch_bytes=int(nbytes), lanes=int(lanes), device=device, priority=priority)


def capacities(words: str) -> list[Capacity]:
    """From "lanes bytes [device]", comma-separated."""
    parts = [each.split() for each in words.split(",")]
    return [Capacity(int(lanes), int(nbytes), *device) for lanes, nbytes, *device in parts]


WHOLE = "4 100"
CHOICES = {
    "all run where all fit": ("4 100", ["a 1 10", "b 2 20"], "a@0 b@0", ""),
    "what does not fit is deferred and what does is pulled forward": (
        "2 100",
        ["a 4 10", "b 1 10", "c 1 10"],
        "b@0 c@0",
        "a",
    ),
    "memory counts as lanes do": ("4 50", ["a 1 60", "b 1 30", "c 1 30", "d 1 20"], "b@0 d@0", "a c"),
    "what has started takes its room": ("4 100", ["a 3 10", "b 2 10", "c 1 10"], "a@0 c@0", "b"),
    "behind full lanes nobody is looked at": ("1 100", ["a 1 10", "b 1 10", "c 1 10"], "a@0", ""),
}


@pytest.mark.parametrize(("free", "ready", "start", "deferred"), CHOICES.values(), ids=CHOICES)
def test_s4_5_what_fits_runs_and_the_rest_is_deferred(free, ready, start, deferred):
    choice = choose(list(map(task, ready)), (), capacities(free), capacities(WHOLE), started=7)
    assert " ".join(f"{task.name}@{device}" for task, device in choice.start) == start
    assert " ".join(each.task.name for each in choice.deferred) == deferred
    assert choice.taken == len(choice.start) + len(choice.deferred)
    assert all((each.since, each.device) == (7, None) for each in choice.deferred)


DEVICES = {
    "a task runs on the kind it names": ("4 100, 4 100 cuda", ["a 1 10 cuda"], "a@1"),
    "any other on the tightest that fits": ("4 100, 2 100 cuda", ["a 1 10"], "a@1"),
    "the tightest in memory, of equal lanes": ("2 100, 2 50", ["a 1 10", "b 2 60"], "a@1 b@0"),
    "a full device does not keep another from what stands behind": (
        "0 100, 1 100 cuda",
        ["a 1 10 cpu", "b 1 10 cuda"],
        "b@1",
    ),
}


@pytest.mark.parametrize(("free", "ready", "start"), DEVICES.values(), ids=DEVICES)
def test_s4_5_each_runs_on_a_device_that_fits(free, ready, start):
    whole = capacities("4 100, 4 100 cuda")
    choice = choose(list(map(task, ready)), (), capacities(free), whole, started=0)
    assert " ".join(f"{task.name}@{device}" for task, device in choice.start) == start


def test_s4_5_a_deferred_task_is_before_others_of_its_priority_but_not_before_more_urgent_ones():
    large = Deferred(task("large 4 10 1"), since=0)
    ready = [task("urgent 1 10 0"), task("same 1 10 1")]
    free = whole = capacities("4 100")
    choice = choose(ready, [large], free, whole, started=1)
    assert [each.name for each, _ in choice.start] == ["urgent", "same"]
    assert choice.deferred == (large,)
    assert [each.name for each, _ in choose(ready[1:], [large], free, whole, started=1).start] == ["large"]


def test_s4_5_tasks_of_one_name_are_told_apart():
    whole = capacities("4 100")
    waiting = [Deferred(task("same 3 10"), since=0), Deferred(task("same 4 10"), since=1)]
    choice = choose([task("same 1 20")], waiting, whole, whole, started=2)
    assert [each.memory_bytes for each, _ in choice.start] == [10, 20]
    assert (choice.deferred, choice.taken) == ((waiting[1],), 1)


def test_s4_5_a_device_is_kept_for_who_was_overtaken_too_often():
    large, whole = Deferred(task("large 4 10"), since=10), capacities("4 100, 4 5")
    small = [task("small 1 10"), task("tiny 1 1")]
    patient = choose(small, [large], capacities("3 100, 4 5"), whole, started=25, patience=16)
    assert [each.name for each, _ in patient.start] == ["small", "tiny"]
    assert patient.deferred == (large,)
    late = choose(small, [large], capacities("3 100, 4 5"), whole, started=26, patience=16)
    assert late.start == ((small[1], 1),)  # on the other device, as nothing else runs on the kept one
    assert late.deferred == (Deferred(large.task, 10, device=0), Deferred(small[0], 26))
    freed = choose([], late.deferred, capacities("4 100, 4 5"), whole, started=27, patience=16)
    assert [each.name for each, _ in freed.start] == ["large"]


@pytest.mark.parametrize(("free", "kept"), [("1 100, 3 100", 1), ("3 100, 1 100", 0), ("3 20, 3 30", 1)])
def test_s4_5_the_emptiest_device_is_kept(free, kept):
    late = [Deferred(task("large 4 10"), since=0)]
    choice = choose([], late, capacities(free), capacities("4 100, 4 100"), started=16)
    assert [each.device for each in choice.deferred] == [kept]


def test_s4_5_who_was_deferred_first_is_kept_a_device_for_whatever_the_priority():
    whole = capacities("4 100")
    waiting = [Deferred(task("urgent 4 10 0"), since=2), Deferred(task("first 4 10 9"), since=1)]
    choice = choose([], waiting, capacities("3 100"), whole, started=50)
    assert {each.task.name: each.device for each in choice.deferred} == {"first": 0, "urgent": None}
    choice = choose([], choice.deferred, whole, whole, started=50)
    assert [each.name for each, _ in choice.start] == ["first"]
    assert [(each.task.name, each.device) for each in choice.deferred] == [("urgent", 0)]


def test_s4_5_a_task_that_fits_nowhere_is_refused():
    message = r"'huge' demands 1 lanes and 200 bytes on cuda.*cpu: 4 lanes, 100 bytes.*divide the task"
    with pytest.raises(GraphError, match=message):
        refuse_impossible([task("fits 1 1"), task("huge 1 200 cuda")], capacities(WHOLE))
    with pytest.raises(GraphError, match="huge"):
        choose([task("huge 1 200 cuda")], (), capacities(WHOLE), capacities(WHOLE), started=0)
