"""The lane: order, dependencies, gates, failures."""

import threading

import numpy as np
import pytest

from weft.kernels.lane import Group, Lane, Task, gate

LIMIT_S = 30


class Log:
    """Names of tasks in the order they ran; `done` is set by the one called "last"."""

    def __init__(self):
        self.names = []
        self.done = threading.Event()

    def task(self, name, needs=(), priority=0, group=None):
        def run():
            self.names.append(name)

        notify = (lambda _: self.done.set()) if name == "last" else None
        return Task(name, run, needs, priority=priority, notify=notify, group=group)

    def wait(self):
        assert self.done.wait(LIMIT_S), f"ran only {self.names}"
        return self.names


def test_tasks_run_after_what_they_need():
    log = Log()
    a = log.task("a")
    b = log.task("b", [a])
    last = log.task("last", [a, b])
    with Lane() as lane:
        lane.submit([last, b, a])
        assert log.wait() == ["a", "b", "last"]


def test_what_overflows_is_infinite_without_a_warning():
    log, large = Log(), np.full(3, 3e38, np.float32)
    with Lane() as lane:
        square = Task("square", lambda: np.multiply(large, large, out=large))
        lane.submit([square, log.task("last", [square])])
        log.wait()
    assert np.isinf(large).all()


def test_what_overflows_in_a_callers_task_is_infinite_without_a_warning():
    large = np.full(3, 3e38, np.float32)
    with Lane() as lane:
        assert lane.run_if_idle(Task("square", lambda: np.multiply(large, large, out=large)))
    assert np.isinf(large).all()


def test_the_urgent_go_first_and_equals_in_the_order_of_submission():
    log = Log()
    start = gate("start")
    first = [
        log.task(name, [start], priority)
        for name, priority in [("low", 2), ("one", 1), ("two", 1), ("top", 0)]
    ]
    with Lane() as lane:
        lane.submit([start, *first, log.task("last", first, 3)])
        lane.finish(start)
        assert log.wait() == ["top", "one", "two", "low", "last"]


def test_a_gate_holds_until_somebody_opens_it():
    log = Log()
    arrived = gate("arrived")
    free = log.task("free")
    with Lane() as lane:
        lane.submit([log.task("last", [arrived, free]), arrived, free])
        lane.submit([log.task("other", [free])])
        lane.finish(arrived)
        assert sorted(log.wait()) == ["free", "last", "other"]
        assert log.names.index("free") < log.names.index("last")


def test_needs_may_have_finished_long_ago():
    log = Log()
    a = log.task("a")
    with Lane() as lane:
        lane.submit([a])
        barrier = threading.Event()
        lane.submit([Task("b", barrier.set, [a])])
        assert barrier.wait(LIMIT_S)
        lane.submit([log.task("last", [a])])
        assert log.wait() == ["a", "last"]


def test_a_long_chain_runs_without_recursion():
    log = Log()
    tasks = [log.task("0")]
    for number in range(1, 5000):
        tasks.append(log.task(str(number), tasks[-1:]))
    tasks.append(log.task("last", tasks[-1:]))
    with Lane() as lane:
        lane.submit(tasks)
        assert len(log.wait()) == 5001


def test_the_first_failure_is_told_once_and_nothing_runs_after_it():
    told = []
    failed = threading.Event()

    def tell(error):
        told.append(error)
        failed.set()

    log = Log()
    bad = Task("bad", fail)
    with Lane(failed=tell) as lane:
        lane.submit([bad, log.task("after", [bad]), Task("worse", fail, priority=1)])
        assert failed.wait(LIMIT_S)
    assert [str(error) for error in told] == ["in a kernel"]
    assert log.names == []


def fail():
    raise ZeroDivisionError("in a kernel")


def test_a_group_fails_alone_and_whoever_waits_for_its_tasks_goes_on():
    told, spans = [], []
    log = Log()
    ill, well = Group("ill", told.append), Group("well")
    bad = Task("bad", fail, group=ill)
    never = log.task("never", [bad], group=ill)
    with Lane(spans=lambda task, start, end: spans.append(task.name)) as lane:
        lane.submit([bad, never, Task("worse", fail, [never], group=ill)])
        lane.submit([log.task("other model", group=well), log.task("no group", [never])])
        lane.submit([log.task("last", priority=1, group=well)])
        assert log.wait() == ["other model", "no group", "last"]
    assert [str(error) for error in told] == ["in a kernel"]
    assert (str(ill.error), well.error) == ("in a kernel", None)
    assert spans == ["other model", "no group", "last"]


def test_tasks_of_a_failed_group_are_still_notified_and_wait_for_their_gates():
    log = Log()
    ill = Group("ill")
    ill.fail(ValueError("outside of the lane"))
    told, arrived = threading.Event(), gate("arrived")
    with Lane() as lane:
        waiting = Task("waiting", fail, [arrived], notify=lambda _: told.set(), group=ill)
        lane.submit([arrived, waiting, log.task("last")])
        log.wait()
        assert not told.is_set()
        lane.finish(arrived)
        assert told.wait(LIMIT_S)


def test_the_first_error_of_a_group_is_the_one_that_is_kept():
    told = []
    group = Group("ill", told.append)
    group.fail(ValueError("first"))
    group.fail(ValueError("second"))
    assert [str(error) for error in told] == [str(group.error)] == ["first"]


def test_what_ends_the_process_ends_the_lane_in_a_group_too():
    told = threading.Event()

    def leave():
        raise SystemExit

    with Lane(failed=lambda error: told.set()) as lane:
        lane.submit([Task("leaves", leave, group=Group("well"))])
        assert told.wait(LIMIT_S)


def test_an_idle_lane_lets_a_caller_run_a_task_and_goes_on_with_what_came_meanwhile():
    log, threads = Log(), []
    with Lane() as lane:

        def short():
            lane.submit([log.task("last")])  # waits until this has ended
            threads.append(threading.current_thread())
            assert log.names == []

        assert lane.run_if_idle(Task("short", short))
        assert log.wait() == ["last"]
    assert threads == [threading.current_thread()]


def test_a_busy_lane_lets_no_caller_run_a_task():
    begun, end = threading.Event(), threading.Event()

    def long():
        begun.set()
        assert end.wait(LIMIT_S)

    log = Log()
    with Lane() as lane:
        lane.submit([Task("long", long)])
        assert begun.wait(LIMIT_S)
        assert not lane.run_if_idle(log.task("refused"))
        end.set()
        lane.submit([log.task("last")])
        assert log.wait() == ["last"]


def test_what_a_callers_task_raises_is_the_callers_and_the_lane_goes_on():
    log = Log()
    with Lane() as lane:
        with pytest.raises(ZeroDivisionError):
            lane.run_if_idle(Task("wrong", lambda: 1 // 0))
        lane.submit([log.task("last")])
        assert log.wait() == ["last"]


def test_spans_tell_what_ran_and_when():
    spans = []
    log = Log()
    with Lane(spans=lambda task, start, end: spans.append((task.name, start, end))) as lane:
        a = log.task("a")
        lane.submit([a, log.task("last", [a])])
        log.wait()
    assert [name for name, _, _ in spans] == ["a", "last"]
    assert spans[0][1] <= spans[0][2] <= spans[1][1] <= spans[1][2]


def test_closing_ends_the_thread_and_drops_what_has_not_run():
    started, go = threading.Event(), threading.Event()
    log = Log()

    def block():
        started.set()
        assert go.wait(LIMIT_S)

    lane = Lane()
    running = Task("running", block)
    lane.submit([running, log.task("dropped", [running])])
    assert started.wait(LIMIT_S)
    closing = threading.Thread(target=lane.close)
    closing.start()
    go.set()
    closing.join(LIMIT_S)
    assert not closing.is_alive()
    assert set(log.names) <= {"dropped"}


class Slow:
    """An emulated device: an event passes when the test says so."""

    def __init__(self):
        self.passed = False
        self.thread = None

    def activate(self):
        self.thread = threading.current_thread()

    def record(self):
        device = self

        class Event:
            @property
            def done(self):
                return device.passed

        return Event()


def test_on_a_device_that_lags_a_task_is_told_when_its_event_has_passed():
    device, told, launched = Slow(), threading.Event(), threading.Event()
    with Lane(device) as lane:
        first = Task("first", lambda: None, notify=lambda _: told.set())
        second = Task("second", launched.set, [first])  # follows in stream order: need not wait
        lane.submit([first, second])
        assert launched.wait(LIMIT_S)
        assert not told.is_set()
        device.passed = True
        assert told.wait(LIMIT_S)
    assert device.thread is not None


@pytest.mark.parametrize("threads", [1, 4])
def test_gates_may_be_opened_from_any_thread(threads):
    log = Log()
    gates = [gate(str(number)) for number in range(200)]
    with Lane() as lane:
        lane.submit([*gates, log.task("last", gates)])
        workers = [
            threading.Thread(target=lambda part=gates[n::threads]: [lane.finish(g) for g in part])
            for n in range(threads)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(LIMIT_S)
        assert log.wait() == ["last"]


def test_a_device_that_cannot_be_used_is_a_failure_of_the_lane():
    class Broken:
        def activate(self):
            raise OSError("no such device")

        def record(self):
            return None

    failures = []
    told = threading.Event()

    def failed(error):
        failures.append(error)
        told.set()

    with Lane(Broken(), failed=failed):
        assert told.wait(LIMIT_S)
    assert str(failures[0]) == "no such device"
