"""Graphs of tasks: their order, what is refused, and a model as one."""

from __future__ import annotations

import pytest
from hypothesis import given

from weft.kernels.kernel import ArraySpec, Cost
from weft.runtime.errors import GraphError
from weft.runtime.graph import Builder, sequential, with_loss
from weft.runtime.graph.tasks import Capacity, Rates, TaskGraph, TaskSpec, of_model

from .task_graphs import any_tasks, chain, edges, graph


@given(any_tasks())
def test_tasks_stand_behind_what_they_need_in_whatever_order_they_are_given(tasks):
    place = {task.name: index for index, task in enumerate(tasks.tasks)}
    assert all(place[need] < place[reader] for need, reader in edges(tasks))
    assert sorted(edges(tasks)) == sorted(
        (need, reader) for need, readers in tasks.readers.items() for reader in readers
    )
    assert TaskGraph(tasks.tasks).tasks == tasks.tasks  # what is in order stays as it is


WRONG = {
    "a circle of two": ("x a>b>a", ["a -> b -> a"]),
    "a circle with a way in and a way out": ("in>a>b>c>a c>out", ["circle", "b -> c"]),
    "a task that needs itself": ("a>a", ["a -> a"]),
    "a long circle": (">".join("abcdefghijklmnop") + ">a", ["more ...", "remove one"]),
}


@pytest.mark.parametrize(("given_edges", "words"), WRONG.values(), ids=WRONG)
def test_s4_3_a_cyclic_graph_is_refused_and_its_cycle_named(given_edges, words):
    with pytest.raises(GraphError) as caught:
        graph(given_edges)
    for word in words:
        assert word in str(caught.value)
    assert "in ->" not in str(caught.value)
    assert "out" not in str(caught.value)


def test_tasks_come_as_anything_that_can_be_gone_through():
    assert TaskGraph(TaskSpec(name) for name in "ab") == TaskGraph((TaskSpec("a"), TaskSpec("b")))


BAD = {
    "two of a name": ([TaskSpec("a"), TaskSpec("a")], "two tasks are called 'a'"),
    "a need that is no task": ([TaskSpec("a", needs={"b": 0})], "needs 'b', which is no task"),
    "more read than written": (
        [TaskSpec("a", output_bytes=8), TaskSpec("b", needs={"a": 9})],
        "'b' reads 9 bytes of 'a', whose output has 8",
    ),
    "needs without bytes": (
        [TaskSpec("a"), TaskSpec("b", needs=["a"])],
        r"'b' needs \['a'\]; give the bytes that it reads of each, as in needs={'load': 800}",
    ),
    "seconds that are text": ([TaskSpec("a", seconds="3")], "seconds='3'.*: seconds and bytes are numbers"),
    "seconds that are an empty text": ([TaskSpec("a", seconds="")], "seconds and bytes are numbers"),
    "bytes that are text": ([TaskSpec("a", output_bytes="8")], "output_bytes='8'.*numbers, 0 or more"),
    "lanes that are text": ([TaskSpec("a", lanes="1")], "lanes 1 or more"),
    "a priority that is text": ([TaskSpec("a", priority="high")], "the priority is a number"),
    "needs whose bytes are text": (
        [TaskSpec("a", output_bytes=8), TaskSpec("b", needs={"a": "8"})],
        "'b' reads '8' bytes of 'a'; give a number, 0 or more",
    ),
    "bytes below 0": ([TaskSpec("a", scratch_bytes=-1)], "0 or more"),
    "no lane": ([TaskSpec("a", lanes=0)], "lanes 1 or more"),
}


@pytest.mark.parametrize(("tasks", "message"), BAD.values(), ids=BAD)
def test_what_is_wrong_is_named(tasks, message):
    with pytest.raises(GraphError, match=message):
        TaskGraph(tuple(tasks))


def test_a_long_chain_needs_no_recursion():
    assert chain(3000).messages == 2999


def test_a_demand_is_arguments_inputs_scratch_and_output():
    task = TaskSpec("a", needs={"b": 1, "c": 2}, argument_bytes=4, scratch_bytes=8, output_bytes=16, lanes=2)
    assert task.memory_bytes == 31
    assert Capacity(2, 31).fits(task)
    assert not Capacity(1, 31).fits(task)
    assert not Capacity(2, 30).fits(task)


def test_a_device_that_is_named_is_the_only_one_that_fits():
    assert Capacity(1, 0, "cuda").fits(TaskSpec("anywhere"))
    assert not Capacity(1, 0, "cuda").fits(TaskSpec("there", device="cpu"))


def test_s4_5_a_model_becomes_one_task_a_kernel():
    builder = Builder()
    x = builder.input("x", (4, 8, 8))
    conv = builder("conv2d", x, channels=4, kernel_size=3, padding=1, name="conv", tags={"device": "cpu"})
    relu = builder("relu", conv, name="relu", tags={"priority": 2})
    both = builder("add", relu, x, name="both")
    tasks = of_model(builder.build(builder("flatten", both, name="flat"), conv), 2, Rates(1e9, 1e9))
    image = 2 * 4 * 8 * 8 * 4
    found = tasks.by_name
    assert list(found) == ["conv", "relu", "both", "flat"]
    assert list(edges(tasks)) == [("conv", "relu"), ("relu", "both"), ("both", "flat")]
    assert all(task.output_bytes == image for task in tasks.tasks)
    assert [task.argument_bytes for task in tasks.tasks] == [image, 0, image, 0]  # x, and x again
    assert found["both"].needs == {"relu": image}
    assert [task.name for task in tasks.tasks if task.result] == ["conv", "flat"]
    assert (found["conv"].device, found["relu"].device, found["relu"].priority) == ("cpu", None, 2)
    assert found["conv"].seconds > found["relu"].seconds > found["flat"].seconds == 0
    assert found["conv"].seconds >= 2 * (2 * 4 * 8 * 8) * (4 * 3 * 3) / 1e9


def test_s4_5_a_loss_is_a_task_too():
    model = with_loss(sequential((8,), [("dense", {"features": 3})]), "mean_squared_error", ArraySpec((3,)))
    tasks = of_model(model, 5, Rates(1e9, 1e9))
    assert list(edges(tasks)) == [("dense_1", "loss")]
    assert tasks.by_name["loss"].argument_bytes == 5 * 3 * 4  # the targets
    assert all(task.result for task in tasks.tasks)


def test_a_kernel_takes_its_arithmetic_or_its_bytes_whichever_is_longer():
    rates = Rates(flops_per_s=1e9, bytes_per_s=1e8, call_s=1e-6)
    assert rates.seconds(Cost(5e6, 0, 0, 1e3)) == pytest.approx(1e-6 + 5e-3)
    assert rates.seconds(Cost(5e3, 0, 0, 1e6)) == pytest.approx(1e-6 + 1e-2)
