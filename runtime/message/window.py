"""Memory that all ranks of a node see: one MPI-3 shared window with a segment for each of them.

    window = await Window.allocate(world.node, nbytes)  # every rank of the node, each with its own size
    mine = window.array(world.node_rank, "float32", (1000,))
    mine[:] = 1
    await window.fence()                                # everyone has written, everyone sees it
    other = window.array(1, "float32", (1000,))         # rank 1's segment: the same bytes, no copy
    await window.close()

Segments are zeroed and start at multiples of 64 bytes, so that a counter in its own 64-byte line shares
it with nobody. A counter has one writer. A word that several write is an `AtomicWord`, and written by nothing
else (atomics.py).

Both MPIs take the window's name out of /dev/shm as soon as all ranks of the node have attached, so it goes
with the processes, however they end.
"""

from __future__ import annotations

import asyncio
import math
import operator
import os
import resource
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np
from mpi4py import MPI
from numpy.typing import DTypeLike, NDArray

from ..errors import MachineError, Mistake
from .communicator import Communicator
from .meeting import Meeting

if TYPE_CHECKING:
    from .atomics import AtomicWord

LINE_BYTES = 64
WORD_BYTES = 8
SHARED_MEMORY = "/dev/shm"  # where MPICH and Open MPI put it on Linux
NOBODY_KNOWS_BYTES = 2**62  # where there is no such folder


class Window:
    """A shared window; made by `Window.allocate`, used with `async with` or closed by `close`."""

    def __init__(
        self,
        node: Communicator,
        sizes: NDArray[np.int64],
        number: int,
        word: type[AtomicWord],
        barrier: Callable[[], None],
    ) -> None:
        self._word, self._barrier = word, barrier
        # Apart, each segment starts on a page of its own: near the rank that touches it first.
        info = MPI.Info.Create({"alloc_shared_noncontig": "true"})
        size = rounded_up(max(int(sizes[node.rank]), 1) + LINE_BYTES)
        self._win = MPI.Win.Allocate_shared(size, 1, info=info, comm=node.quiet)
        info.Free()
        self._win.Lock_all(MPI.MODE_NOCHECK)  # MPI wants an epoch around Sync
        self._node = node
        #: What tells it from all others, alike on all its ranks: it was made by which collective of whom.
        self.key = (node.group, number)
        #: The ranks' meeting to close it, once that has begun here.
        self.meeting: Meeting[None] | None = None
        #: Called when `close` begins here, by whomever: for what works on its memory, as a board does.
        self.at_close: list[Callable[[], None]] = []
        self._sizes = sizes
        self._segment(node.rank)[:] = 0  # the owner's first touch, before anybody else can write
        self._win.Sync()
        node.quiet.Barrier()
        self._win.Sync()
        self._segments = [self._segment(rank) for rank in range(node.size)]

    @classmethod
    async def allocate(
        cls,
        node: Communicator,
        nbytes: int,
        *,
        what: str = "a shared window",
        keep: Callable[[Window], None] | None = None,
    ) -> Window:
        """A window with `nbytes` for this rank; collective over the node communicator.

        MachineError, on all ranks, when the node has too little shared memory. `what` reports call it. `keep`
        gets it, too, even where nobody waits for it any more: it is to be closed before MPI ends.
        """
        if not isinstance(nbytes, SupportsIndex) or operator.index(nbytes) < 0:
            raise Mistake(f"a window of {nbytes!r} bytes was asked for; give a whole number, 0 or more")
        # Not above: numba comes with it, half of a rank's start, and who only sends messages makes no window.
        # Before ranks meet: in MPI all would wait for the one that still imports.
        from .atomics import AtomicWord, barrier

        # The pages come with the first touch: too few of them would be a SIGBUS, not an error. All decide by
        # the same numbers: one that found too little left the others in MPI for ever.
        asked = np.empty((node.size, 3), np.int64)
        mine = np.array([nbytes, room_bytes(), mappable_bytes()], np.int64)
        arrival = node.allgather(mine, asked, what=f"allocation of {what}")
        number = arrival.needs.number

        def made() -> Window:
            check_room(int(asked[:, 0].sum()), node.size, int(asked[:, 1].min()))
            check_mappable(asked[:, 0].tolist(), dict(zip(node.ranks, asked[:, 2].tolist(), strict=True)))
            window = cls(node, asked[:, 0].copy(), number, AtomicWord, barrier)
            if keep is not None:
                keep(window)
            return window

        return await asyncio.shield(node.meet(arrival, made))

    def _segment(self, rank: int) -> NDArray[np.uint8]:
        buffer, _ = self._win.Shared_query(rank)
        memory: NDArray[np.uint8] = np.frombuffer(buffer.cast("B"), np.uint8)
        skip = -memory.ctypes.data % LINE_BYTES  # the same in all processes, for pages are aligned
        segment: NDArray[np.uint8] = memory[skip : skip + int(self._sizes[rank])]
        return segment

    def nbytes(self, rank: int) -> int:
        """Size of the segment of the node's rank `rank`."""
        return int(self._sizes[rank])

    def array(
        self, rank: int, dtype: DTypeLike, shape: int | tuple[int, ...], offset_bytes: int = 0
    ) -> NDArray[Any]:
        """An array in the segment of the node's rank `rank`, from byte `offset_bytes` on. A view."""
        self._check_open()
        kind = np.dtype(dtype)
        shape = (shape,) if isinstance(shape, int) else shape
        if not 0 <= rank < len(self._sizes):
            raise Mistake(f"there is no rank {rank!r} on this node: it has 0 to {len(self._sizes) - 1}")
        if min(shape, default=0) < 0:
            raise Mistake(f"an array of shape {shape} in a window: there is no negative length")
        nbytes = kind.itemsize * math.prod(shape)
        if offset_bytes < 0 or offset_bytes + nbytes > self.nbytes(rank):
            raise Mistake(
                f"an array of {kind} {shape} from byte {offset_bytes} on ends at {offset_bytes + nbytes}; "
                f"the window's segment of rank {rank} has {self.nbytes(rank)} bytes"
            )
        return self._segments[rank][offset_bytes : offset_bytes + nbytes].view(kind).reshape(shape)

    def atomic(self, rank: int, offset_bytes: int) -> AtomicWord:
        """The 64-bit word at byte `offset_bytes` (a multiple of 8) of the segment of node rank `rank`."""
        if offset_bytes % WORD_BYTES:
            raise Mistake(f"an atomic word at byte {offset_bytes}: it must be at a multiple of {WORD_BYTES}")
        return self._word(self.array(rank, np.int64, 1, offset_bytes))

    def sync(self) -> None:
        """A memory barrier: earlier stores of this thread come before its later ones, for everyone."""
        self._barrier()

    async def fence(self, *, among: Communicator | None = None) -> None:
        """Everyone's stores before it are seen by everyone after it; collective over the node.

        Or over `among`, which has the node's ranks among others: for who meets while others use the node's.
        """
        self._check_open()
        self._win.Sync()
        await (among or self._node).barrier(what="fence of a shared window")
        self._win.Sync()

    async def close(self) -> None:
        """Give the memory back, when every rank of the node has called it. Its arrays become invalid.

        Cancelling ends the waiting only: the others count on this rank, and block in MPI until it is there.
        """
        if self.meeting is None:
            for end in self.at_close:
                end()
            arrival = self._node.barrier(what="close of a shared window")
            self.meeting = self._node.meet(arrival, self._free)
        await asyncio.shield(self.meeting)

    def _free(self) -> None:
        self._segments = []
        self._win.Unlock_all()
        self._win.Free()

    @property
    def closed(self) -> bool:
        """Whether it has been given back."""
        return bool(self._win == MPI.WIN_NULL)

    def _check_open(self) -> None:
        if self.closed:
            raise Mistake("this window is closed, and its memory given back: make another")

    async def __aenter__(self) -> Window:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error the others may never come here: their memory goes with their processes.
        if error is None:
            await self.close()


def rounded_up(nbytes: int) -> int:
    """The next multiple of a line."""
    return -(-nbytes // LINE_BYTES) * LINE_BYTES


def room_bytes() -> int:
    """What is left of this machine's shared memory."""
    try:
        state = os.statvfs(SHARED_MEMORY)
    except OSError:
        return NOBODY_KNOWS_BYTES
    return state.f_bavail * state.f_frsize


def check_room(nbytes: int, ranks: int, free_bytes: int | None = None) -> None:
    """Raise MachineError when the node's shared memory cannot hold `nbytes` more.

    It has `free_bytes`: None for what this rank sees now.
    """
    free_bytes = room_bytes() if free_bytes is None else free_bytes
    if nbytes > free_bytes:
        raise MachineError(
            f"shared memory is too small: the {ranks} ranks of this node want {nbytes / 2**20:.0f} MiB, "
            f"{SHARED_MEMORY} has {free_bytes / 2**20:.0f} MiB left. In a container give it more "
            "(docker run --shm-size=...); otherwise use fewer ranks on a node or a smaller model"
        )


def mappable_bytes() -> int:
    """How much more memory this process may map, as `ulimit -v` has it."""
    limit_bytes = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit_bytes == resource.RLIM_INFINITY:
        return NOBODY_KNOWS_BYTES
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return max(0, limit_bytes - pages * os.sysconf("SC_PAGE_SIZE"))


def check_mappable(sizes: Sequence[int], left_bytes: Mapping[int, int]) -> None:
    """Raise MachineError when a rank of the world may not map segments of these sizes: each maps all.

    MPICH 5.0.2 ended the job with the assertion of a barrier then, and no word of memory.
    """
    nbytes = sum(rounded_up(size + LINE_BYTES) for size in sizes)
    rank, least_bytes = min(left_bytes.items(), key=lambda item: item[1])
    if nbytes > least_bytes:
        raise MachineError(
            f"rank {rank} may map too little memory: the {len(sizes)} ranks of its node want to share "
            f"{nbytes / 2**20:.0f} MiB, and `ulimit -v` leaves it {least_bytes / 2**20:.0f} MiB. Raise that "
            "limit; otherwise use fewer ranks on a node or a smaller model"
        )
