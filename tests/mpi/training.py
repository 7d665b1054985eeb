"""Training on the ranks of the test run, without launching anything."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256

import numpy as np
import pytest
from mpi4py import MPI

from weft.kernels.device import Device
from weft.kernels.lane import Task
from weft.runtime.exchange import NodeMemory, Portion
from weft.runtime.exchange.node import owned
from weft.runtime.graph.backward import Phase
from weft.runtime.graph.program import Program, Step
from weft.runtime.message import World, run
from weft.runtime.message.communicator import Communicator
from weft.runtime.train import oracle
from weft.runtime.train.data import Data, load_data
from weft.runtime.train.loop import TrainingLoop
from weft.runtime.train.model import build
from weft.runtime.train.prepare import make_replica, share_memory
from weft.runtime.train.replica import Replica
from weft.runtime.train.schema import Job
from weft.runtime.work import Compute

Spans = list[tuple[str, str, int, int, dict[str, object]]]


@dataclass
class Team:
    """The world as the training loop sees it."""

    world: World
    stopping: bool = False

    @property
    def rank(self) -> int:
        return self.world.rank

    @property
    def size(self) -> int:
        return self.world.size

    def position(self, text: str) -> None:
        self.world.position(text)


@dataclass
class Trained:
    """What a training loop left behind."""

    losses: list[float] = field(default_factory=list)
    spans: Spans = field(default_factory=list)
    steps: int = 0
    parameters: np.ndarray = field(default_factory=lambda: np.zeros(0))
    plan: tuple[int, ...] = ()
    portions: tuple[Portion, ...] = ()
    shared: bool = False

    @property
    def division(self) -> list[list[int]]:
        """By step: the micro-batches that this rank has computed, in its order."""
        found: list[list[int]] = [[] for _ in range(self.steps)]
        for _, name, _, _, info in self.spans:
            if name == "tally":
                found[info["step"]].append(info["micro_batch"])
        return found


class Held:
    """A communicator whose transfers end, by the test's wish, only after certain kernels have run here."""

    def __init__(self, comm: Communicator) -> None:
        self.comm = comm
        self.rank, self.size = comm.rank, comm.size
        self.until: Callable[[str], tuple[str, int] | None] = lambda what: None
        self._ran: dict[tuple[str, int], asyncio.Event] = defaultdict(asyncio.Event)

        self.started = threading.Event()

    def has_run(self, name: str, step: int) -> None:
        """Called on the loop: kernel `name` of step `step` has run."""
        self._ran[name, step].set()

    def broadcast(self, array, root=0, **telling):
        return self.comm.broadcast(array, root, **telling)

    def allreduce(self, array, op="sum", **telling):
        return self._held(self.comm.allreduce(array, op, **telling), telling["what"])

    def alltoall(self, array, into, **telling):
        return self._held(self.comm.alltoall(array, into, **telling), telling["what"])

    def allgather(self, share, array, **telling):
        return self._held(self.comm.allgather(share, array, **telling), telling["what"])

    async def duplicate(self, name):
        return await self.comm.duplicate(name)

    def _held(self, operation, what: str):
        if "portion 0" in what:
            self.started.set()
        return asyncio.ensure_future(self._hold(operation, what))

    async def _hold(self, operation, what: str) -> None:
        await operation
        if (kernel := self.until(what)) is not None:
            await self._ran[kernel].wait()


def each_way(name: str, cases: Mapping[str, object]) -> pytest.MarkDecorator:
    """Parametrizes with the cases, as `name`, and ways to exchange, as `inside`.

    On one node each case has one of the two, in turn, and on an even number of ranks the other than on an odd
    one; on several nodes each has both.
    """
    return pytest.mark.parametrize(
        (name, "inside"),
        [
            pytest.param(case, inside, id=f"{inside}-{words}")
            for number, (words, case) in enumerate(cases.items())
            for inside in ways(number)
        ],
    )


def ways(number: int) -> Sequence[str]:
    """In which of the two ways case `number` exchanges on so many ranks."""
    if "+" in os.environ.get("WEFT_NODES", ""):
        return ("shared", "flat")
    return (("shared", "flat")[(number + MPI.COMM_WORLD.Get_size()) % 2],)


def read(job: Job) -> Data:
    """The job's data; read once, for most tests have the same."""
    key = f"{job.seed} {job.data.model_dump_json()}"
    if key not in READ:
        READ[key] = load_data(job.data, job.seed)
    return READ[key]


READ: dict[str, Data] = {}


class Bench:
    """A job with its data; makes replicas and trains them."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.data = read(job)
        self.graph = build(job.model, self.data)
        self.rank, self.size = MPI.COMM_WORLD.Get_rank(), MPI.COMM_WORLD.Get_size()

    def replica(self) -> Replica:
        train = self.job.train
        return Replica(self.graph, train.optimizer.build(), Device(), train.micro_batch, self.job.seed)

    def train(
        self,
        before_step: Callable[[int, Team], None] = lambda step, team: None,
        hold: Callable[[str], tuple[str, int] | None] = lambda what: None,
        wait_in: str | None = None,
        arrange: Callable[[TrainingLoop, Replica, World], None] = lambda training, replica, world: None,
        boundary: Callable[[int], bool] | None = None,
        pause: Collection[int] = (),
    ) -> Trained:
        """Run the real training loop on all ranks.

        `before_step` is called when a step's losses are known; `hold` names, for what travels, the kernel and
        step before which it shall not arrive; the weight gradient of node `wait_in` waits on the lane until
        the first portion is on its way. `arrange` may tamper with what is about to run. After each number of
        steps in `pause` all comes to rest, and `boundary` tells whether that is the end.
        """
        trained = run(
            lambda world: self.train_in(world, before_step, hold, wait_in, arrange, boundary, pause)
        )
        assert trained is not None
        return trained

    def oracle(
        self, trained: Trained, add_up: oracle.Allreduce | None = None
    ) -> tuple[list[float], np.ndarray]:
        """Losses and weights of the oracle, which computes what each rank of `trained` did: the same
        micro-batches, blocks of rows, and order of additions."""
        replica, rows = self.replica(), defaultdict(list)
        for portion in trained.portions:
            if portion.rows is not None:
                rows[portion.nodes[0]].append(portion.rows)
        add_up = add_up or portioned(trained.portions, trained.shared)
        losses = oracle.train(
            self.job, self.data, replica, trained.steps, add_up, rows=rows, division=trained.division
        )
        return losses, replica.parameters

    async def train_in(
        self,
        world: World,
        before_step=lambda step, team: None,
        hold=lambda what: None,
        wait_in=None,
        arrange=lambda training, replica, world: None,
        boundary=None,
        pause=(),
    ) -> Trained:
        """`train` in a world that is there already."""
        held = Held(await world.duplicate("training"))
        held.until = hold
        device, job = Device(), self.job
        memory = await share_memory(world, job, self.graph, device)
        team, result = Team(world), Trained(shared=memory is not None)
        replica = make_replica(job, self.graph, device, memory, world.size)
        if memory is not None:
            await memory.fence()
            hold_peers(memory, held)
        if wait_in is not None:
            hold_lane(replica, held.started, wait_in)

        def on_step(share, tally) -> None:
            result.losses.append(tally.loss)
            before_step(share.step + 1, team)

        def on_span(task: Task, start: int, end: int) -> None:
            result.spans.append(("compute", task.name, start, end, task.info or {}))
            world.loop.call_soon_threadsafe(held.has_run, task.name, (task.info or {}).get("step"))

        async def at_pause(done: int) -> bool:
            return boundary is not None and boundary(done)

        async with Compute(replica.device, spans=on_span) as compute:
            world.selector.computing = lambda: compute.busy
            training = TrainingLoop(
                team, held, job, self.data, replica, compute, on_step=on_step, memory=memory,
                wire=lambda name, start, end, facts: result.spans.append(("wire", name, start, end, facts)),
            )  # fmt: skip
            arrange(training, replica, world)
            try:
                result.steps = await training.run(0, at_pause, set(pause))
            finally:
                world.selector.computing = lambda: False
        result.parameters = replica.parameters.copy()
        result.plan = training.exchange.plan.order
        result.portions = tuple(training.exchange._portions)
        return result


def hold_peers(memory: NodeMemory, held: Held) -> None:
    """What travels between nodes is held, too."""
    if memory.peers is not None:
        other = Held(memory.peers)
        other.until = lambda what: held.until(what)
        other._ran, other.started = held._ran, held.started
        memory.peers = other


def hold_lane(replica: Replica, started: threading.Event, node: str) -> None:
    """Have the weight gradient of `node` wait, on the lane, until `started`."""

    def before(step: Step, rows: slice | None) -> None:
        if step.node == node and step.phase is Phase.WEIGHT_GRADIENT:
            assert started.wait(30), "the first portion did not leave while backward went on"

    disturb(replica, before)


def disturb(replica: Replica, before: Callable[[Step, slice | None], None]) -> None:
    """Have `before` run on the lane ahead of every kernel of training, told its rows where it is a block."""
    make, other, seen = replica.training, replica.other, set()

    def disturbed(step: Step) -> Step:
        def run(**rows: slice) -> None:
            before(step, rows.get("rows"))
            step.run(**rows)

        return replace(step, run=run)

    def once(program: Program) -> Program:
        if program not in seen:
            seen.add(program)
            for part in ("forward", "backward", "backward_more"):
                setattr(program, part, tuple(map(disturbed, getattr(program, part))))
        return program

    replica.training = lambda batch: once(make(batch))  # type: ignore[method-assign]
    replica.other = lambda rank, batch: once(other(rank, batch))  # type: ignore[method-assign]


def until(condition: Callable[[], bool]) -> None:
    """Hold the lane until other ranks have come there, as their words in shared memory tell."""
    never = threading.Event()
    for _ in range(300_000):
        if condition():
            return
        never.wait(1e-4)  # (so that they have the core)
    raise AssertionError("30 s have passed, and the other ranks have not done what this one waits for")


def allreduce(array: np.ndarray) -> None:
    """The oracle's: blocking."""
    MPI.COMM_WORLD.Allreduce(MPI.IN_PLACE, array)


def portioned(portions: Sequence[Portion], shared: bool) -> oracle.Allreduce:
    """The oracle's, in the exchange's order of additions: portion by portion, each waited for.

    With three or more ranks the order matters: `shared`, a node's ranks in their order, then all nodes; else
    as MPI adds up so many elements over so many ranks.
    """
    world = MPI.COMM_WORLD
    node = world.Split_type(MPI.COMM_TYPE_SHARED)
    owners = world.allreduce(node.size, MPI.MIN)
    peers = world.Split(min(node.rank, owners), world.rank)

    def over_nodes(array: np.ndarray) -> None:
        parts = np.empty((node.size, array.size), np.float32)
        node.Allgather(array, parts)
        array[:] = parts[0]
        for part in parts[1:]:
            array += part
        for portion in portions:
            for owner in range(owners):
                slice_ = array[owned(portion, owner, owners)]
                if node.rank == owner:
                    peers.Iallreduce(MPI.IN_PLACE, slice_).Wait()
                node.Bcast(slice_, owner)

    def add_up(array: np.ndarray) -> None:
        if array.dtype != np.float32:
            allreduce(array)
        elif shared:
            over_nodes(array)
        else:
            for portion in portions:
                world.Iallreduce(MPI.IN_PLACE, array[portion.start : portion.stop]).Wait()

    return add_up


def everyones(values: np.ndarray) -> np.ndarray:
    """What each rank holds, by rank."""
    found = np.zeros((MPI.COMM_WORLD.size, *values.shape), values.dtype)
    MPI.COMM_WORLD.Allgather(values, found)
    return found


def require_equal_bits(parameters: np.ndarray) -> None:
    """Every rank holds the same weights, to the bit."""
    digest = np.frombuffer(sha256(parameters.tobytes()).digest(), np.uint8).copy()
    assert (everyones(digest) == digest).all()
