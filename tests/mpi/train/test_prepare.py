"""What ranks find in their data before the first step, and whose word they take."""

from __future__ import annotations

import importlib
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI

from tests.mpi.train.fleets import RANK, dense, fleet
from weft.runtime.errors import MachineError, Mistake
from weft.runtime.message import World, run
from weft.runtime.train import examine
from weft.runtime.train.data import npz
from weft.runtime.train.data.section import NpzData
from weft.runtime.train.prepare import prepare
from weft.runtime.train.replica import Replica
from weft.runtime.train.schema import Job


def of_archive(folder: Path, name: str, damage: bytes = b"") -> Job:
    """A job whose data rank 0 has stored, the last of its targets overwritten."""
    path = folder / f"{name}.npz"
    if RANK == 0:
        np.savez(path, x=np.ones((90, 1, 8, 8), np.float32), y=np.arange(90) % 10)
        content = path.read_bytes()
        at = content.index(b"PK\1\2") - 8
        path.write_bytes(content[: at - len(damage)] + damage + content[at:])
    data = NpzData(source="npz", path=str(path))
    return dense(folder, name).model_copy(update={"data": data})


@pytest.mark.mpi
def test_one_rank_of_a_node_compares_an_archive_with_its_checksums(folder, monkeypatch):
    compared = []
    monkeypatch.setattr(npz, "_read_through", lambda archive, member: compared.append(member.filename))
    job = of_archive(folder, "sound")

    async def main(world: World) -> int:
        await world.barrier(what="the archive")
        (ready,) = await prepare(world, [job], [None])
        assert len(ready.data.train) == 63
        return world.node_rank

    assert compared == ([] if run(main) else ["x.npy", "y.npy"])


@pytest.mark.mpi
def test_an_archive_that_several_jobs_share_is_compared_once(folder, monkeypatch):
    compared = []
    monkeypatch.setattr(npz, "_read_through", lambda archive, member: compared.append(member.filename))
    one = of_archive(folder, "shared")
    jobs = [one, one.model_copy(update={"name": "other"})]

    async def main(world: World) -> int:
        await world.barrier(what="the archive")
        assert len(await prepare(world, jobs, [None, None])) == 2
        return world.node_rank

    assert compared == ([] if run(main) else ["x.npy", "y.npy"])


@pytest.mark.mpi
def test_damage_is_told_with_what_is_wrong_with_other_jobs(folder):
    """It alone was told; who had mended it heard of the next mistake."""
    damaged, other = of_archive(folder, "damaged", damage=b"\xff" * 8), of_archive(folder, "sound")
    misnamed = other.data.model_copy(update={"targets": "z"})
    jobs = [damaged, other.model_copy(update={"data": misnamed})]

    async def main(world: World) -> None:
        await world.barrier(what="the archives")
        with pytest.raises(Mistake) as found:
            await prepare(world, jobs, [None, None])
        first, second = str(found.value).splitlines()
        assert "damaged.npz: is not a whole .npz file: Bad CRC-32" in first
        assert "sound.npz: holds no array 'z'" in second

    run(main)


@pytest.mark.mpi
@pytest.mark.parametrize("reading", ["compare", "_read"])
def test_a_rank_that_reads_answers_meanwhile(reading, folder, monkeypatch):
    """The others told of it as one that does not answer, and it heard nothing of one that had failed."""
    job, answers = of_archive(folder, "large"), []
    read = getattr(examine, reading)

    async def main(world: World) -> int:
        def slow(*given, **resumed):
            answered = threading.Event()
            world.loop.call_soon_threadsafe(answered.set)
            answers.append(answered.wait(10))
            return read(*given, **resumed)

        monkeypatch.setattr(examine, reading, slow)
        await world.barrier(what="the archive")
        await prepare(world, [job], [None])
        return world.node_rank

    reads = run(main) == 0 or reading == "_read"
    assert answers == [True] * reads


@pytest.mark.mpi
def test_a_damaged_archive_is_called_damaged_by_all_ranks_and_read_by_none(folder, monkeypatch):
    """To ranks that compare no checksums its targets were only odd: so odd that memory could run out."""
    job = of_archive(folder, "damaged", damage=b"\xff" * 8)
    read = []
    monkeypatch.setattr(npz, "_mapped", lambda path, member: read.append(member.filename))

    async def main(world: World) -> None:
        await world.barrier(what="the archive")
        with pytest.raises(Mistake, match=r"damaged.npz: is not a whole .npz file: Bad CRC-32"):
            await prepare(world, [job], [None])

    run(main)
    assert not read
    assert not (folder / "runs").exists()


@pytest.mark.mpi
def test_weights_of_a_checkpoint_that_do_not_fit_are_said_in_a_sentence(folder, monkeypatch):
    """It was a traceback, of memory that making them had left."""
    job = dense(folder, steps=1)
    ran = fleet([job])

    def full(*_: object) -> None:
        raise MemoryError("none is left")

    async def main(world: World) -> None:
        monkeypatch.setattr(Replica, "restore", full)
        with pytest.raises(MachineError, match=r"dense: [\d,]+ parameters .* fit into memory: none is left"):
            await prepare(world, [job], [ran.ready[0].folder.path])

    run(main)


OF_ITSELF = """
from pathlib import Path
from tests.mpi.train.fleets import fleet, made
from weft.runtime.graph import Builder

def net(sample):
    b = Builder()
    x = b.input("x", sample.shape, sample.dtype)
    return b.build(b("dense", b("flatten", x), features=10))

train = {"steps": 1, "batch": 32, "micro_batch": 8, "optimizer": {"name": "sgd", "rate": 0.1}}
job = made(Path(%r), "own", {"source": "digits"}, {"python": "of_itself:net"}, train)
(result,) = fleet([job]).results
"""


@pytest.mark.mpi
def test_a_program_that_runs_when_it_is_imported_may_name_its_own_function(folder, monkeypatch):
    """The thread that examines jobs waited for the import that waited for it: all ranks, for ever."""
    if RANK == 0:
        (folder / "of_itself.py").write_text(OF_ITSELF % str(folder))
    MPI.COMM_WORLD.Barrier()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setitem(sys.modules, "of_itself", None)
    del sys.modules["of_itself"]
    assert importlib.import_module("of_itself").result.steps == 1
