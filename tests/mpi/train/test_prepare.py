"""What ranks find in their data before the first step, and whose word they take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.mpi.train.fleets import RANK, dense
from weft.runtime.errors import Mistake
from weft.runtime.message import World, run
from weft.runtime.train.data import npz
from weft.runtime.train.data.section import NpzData
from weft.runtime.train.prepare import prepare
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
    monkeypatch.setattr(npz, "_require_sound", lambda archive, member: compared.append(member.filename))
    job = of_archive(folder, "sound")

    async def main(world: World) -> int:
        await world.barrier(what="the archive")
        (ready,) = await prepare(world, [job], [None])
        assert len(ready.data.train) == 63
        return world.node_rank

    assert compared == ([] if run(main) else ["x.npy", "y.npy"])


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
