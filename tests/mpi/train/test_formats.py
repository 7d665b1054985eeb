"""Training in fewer bytes: the oracle's bits with NumPy's encodings, and the accuracy of exact training."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
from mpi4py import MPI

from tests.formats import WIRES, NumpyFormat, in_order
from tests.mpi import training
from tests.mpi.train.test_same_answer import ROWS, STEPS, made
from tests.mpi.training import Bench, Trained, allreduce, each_way, everyones, portioned, require_equal_bits
from weft.kernels.device import Device, Event
from weft.runtime.exchange.node import owned
from weft.runtime.train.job import load_job
from weft.runtime.train.loop import TUNED_STEPS
from weft.runtime.train.order import micro_batches
from weft.runtime.train.replica import Replica
from weft.runtime.train.schema import Job
from weft.runtime.train.tally import Tally, measure

CHANGES = {
    "batch norm and dropout": {},
    "clipping": {"clip_norm": 0.5},
    "fewer micro-batches than ranks": {"batch": 9, "micro_batch": 6},
    "blocks of rows": {"layers": ROWS, "portion_bytes": 8192, "credit": 3},
    "blocks of rows with adamw and clipping": {
        "layers": ROWS,
        "portion_bytes": 16384,
        "clip_norm": 0.5,
        "optimizer": {"name": "adamw", "rate": 0.01},
    },
}

# Formats are an odd number: so each of them, and each change, comes in both ways to exchange.
CASES = {f"{name}, {wire}": (changes, wire) for (name, changes), wire in product(CHANGES.items(), WIRES)}


def nodes() -> list[list[int]]:
    """The ranks of each node, as the runtime finds them."""
    node = MPI.COMM_WORLD.Split_type(MPI.COMM_TYPE_SHARED)
    first = everyones(np.array([node.allreduce(MPI.COMM_WORLD.rank, MPI.MIN)])).ravel()
    node.Free()
    return [[int(rank) for rank in np.flatnonzero(first == leader)] for leader in np.unique(first)]


def summing(job: Job, replica: Replica, trained: Trained) -> Callable[[np.ndarray], None]:
    """The oracle's all-reduce: the format, in NumPy, on what every rank holds."""
    size, wire, keep = replica.layout.size, job.exchange.wire, job.exchange.keep or 0.01
    statistics = np.zeros(size, bool)
    for run in replica.layout.runs(0, size):
        statistics[run.start : run.stop] = run.role == "statistic"
    groups = nodes() if trained.shared else [[rank] for rank in range(MPI.COMM_WORLD.size)]
    if len(groups) == 1:  # nothing travels
        return portioned(trained.portions, trained.shared)
    owners = min(len(group) for group in groups) if trained.shared else 1
    formats = [NumpyFormat(wire, len(groups), size, statistics, keep) for _ in range(owners)]

    def add_up(array: np.ndarray) -> None:
        if array.dtype != np.float32:
            allreduce(array)
            return
        all_ranks = everyones(array)
        for owner, its_format in enumerate(formats):
            # Of each node the rank that owns these slices, in the order of the ranks.
            order = sorted(groups, key=lambda group: group[owner])
            held = np.array([in_order(all_ranks[group]) for group in order])
            spans = [owned(portion, owner, owners) for portion in trained.portions]
            total = its_format.add_up(held, spans)
            for span in spans:
                array[span] = total[span]

    return add_up


@pytest.mark.mpi
@each_way("case", CASES)
def test_every_rank_ends_with_the_oracles_bits(case, inside):
    changes, wire = case
    keep = {"keep": 0.05} if wire == "top_k" else {}
    bench = Bench(made(**changes, inside=inside, wire=wire, **keep))
    trained = bench.train()
    require_equal_bits(trained.parameters)
    losses, weights = bench.oracle(trained, summing(bench.job, bench.replica(), trained))
    np.testing.assert_array_equal(trained.losses, losses)
    np.testing.assert_array_equal(trained.parameters, weights)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("wire", WIRES)
def test_encoding_and_decoding_have_spans_of_their_own(wire):
    trained = Bench(made(inside="flat", wire=wire)).train()
    compute = [(name, info) for track, name, _, _, info in trained.spans if track == "compute"]
    travelled = {(i["step"], i["portion"]) for track, _, _, _, i in trained.spans if track == "wire"}
    for phase in ("encode", "decode"):
        names = [name for name, info in compute if info.get("phase") == phase]
        assert len(names) == len(travelled) == STEPS * len(trained.portions)
        assert names[0].endswith(f".{phase}")


@pytest.mark.mpi(min_size=2)
def test_the_trace_tells_the_bytes_that_travel():
    def nbytes(wire: str) -> int:
        trained = Bench(made(ROWS, inside="flat", portion_bytes=8192, wire=wire)).train()
        return sum(info["bytes"] for track, *_, info in trained.spans if track == "wire")

    exact, half, sparse = nbytes("float32"), nbytes("float16"), nbytes("top_k")
    assert 0.5 <= half / exact < 0.52  # statistics and their lines
    assert 0.02 <= sparse / exact < 0.05


# The packaged job of 20 epochs, shortened; long enough for its settings to be tuned, and so cut anew on the
# way. A hundredth of each portion takes longer, and is sent from portions of one size, for which elements are
# sent depends on it.
DIGITS = {
    "float16": ["train.epochs=7"],
    "bfloat16": ["train.epochs=7"],
    "top_k": ["train.epochs=24", "exchange.portion_bytes=65536", "exchange.credit=4"],
}


def accuracy(bench: Bench, parameters: np.ndarray) -> float:
    """On the test set."""
    replica, samples = bench.replica(), bench.data.test
    replica.parameters[...] = parameters
    parts = micro_batches(np.arange(len(samples)), bench.job.train.micro_batch)
    tally = Tally.of(len(parts), len(samples), len(samples))
    for index, part in enumerate(parts):
        program = replica.inference(len(part))
        replica.load(program, samples, part)
        for call in program.forward:
            call.run()
        tally.enter(index, *measure(program))
    return tally.accuracy


@pytest.mark.mpi(min_size=2)
@pytest.mark.limit(180)
@pytest.mark.skipif(MPI.COMM_WORLD.size != 2, reason="two ranks are enough: more have the oracle's bits")
@pytest.mark.parametrize("wire", WIRES)
def test_digits_reach_their_accuracy(wire):
    """float32 reaches 0.961 in 7 epochs and 0.983 in 20."""
    overrides = [*DIGITS[wire], f"exchange.wire={wire}", "exchange.inside=flat"]
    bench = Bench(load_job("digits", overrides))
    trained = bench.train()
    assert trained.steps > TUNED_STEPS
    require_equal_bits(trained.parameters)
    assert accuracy(bench, trained.parameters) >= 0.95


class Late(Device):
    """What leaves it is in host memory only when an event has passed, as with a GPU."""

    asynchronous = True

    def __init__(self) -> None:
        self.leaving: list[tuple[np.ndarray, np.ndarray]] = []

    def travelling(self, array: np.ndarray) -> np.ndarray:
        return np.full_like(array, np.nan)

    def copy_out(self, array: np.ndarray, host: np.ndarray) -> None:
        self.leaving.append((array, host))

    def copy_in(self, host: np.ndarray, array: np.ndarray) -> None:
        array[...] = host

    def record(self) -> Passing:
        return Passing(self)


class Passing(Event):
    """The copies before it are made when it is asked for the third time whether they are."""

    def __init__(self, device: Late) -> None:
        self.left = 3
        self.copies, device.leaving = device.leaving, []

    @property
    def done(self) -> bool:
        self.left -= 1
        if self.left == 0:
            for array, host in self.copies:
                host[...] = array
        return self.left <= 0

    def wait(self) -> None:
        while not self.done:
            pass


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("wire", WIRES)
def test_what_leaves_a_device_late_is_encoded_when_it_is_there(wire, monkeypatch):
    monkeypatch.setattr(training, "Device", Late)
    bench = Bench(made(wire=wire))
    trained = bench.train()
    assert not trained.shared
    monkeypatch.undo()
    losses, weights = bench.oracle(trained, summing(bench.job, bench.replica(), trained))
    np.testing.assert_array_equal(trained.losses, losses)
    np.testing.assert_array_equal(trained.parameters, weights)
