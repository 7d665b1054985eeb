"""The exception tree: whose fault it was decides the class, the message and the exit status.

    WeftError                      exit status 1
    ├── Mistake                    2   yours: a job file, a graph, an argument; says what is allowed
    │   ├── GraphError                 a model that cannot be built
    │   ├── JobError                   a job file with a wrong or unknown key (names file, line and key)
    │   ├── DataError                  data that is missing, damaged or of the wrong shape
    │   └── CheckpointError            a checkpoint that is damaged, foreign or of another model
    ├── PeerFailure                1   another rank failed; carries its rank, host and traceback
    ├── RequestError               1   another rank could not answer a request; the same of its handler
    ├── TaskError                  1   a task that was submitted to a pool raised; the same of where it ran
    └── MachineError               3   the environment: no MPI, no shared memory, no GPU, a full disk

Every message says what happened, the value that was seen, and what to do about it. Where a Mistake or a
MachineError ends the program it is all that is printed; anything else comes with its traceback.
"""

from __future__ import annotations


class WeftError(Exception):
    """Base of everything Weft raises on purpose."""

    exit_status = 1


class Mistake(WeftError):
    """Something the user can mend: wrong arguments, files or models."""

    exit_status = 2


class GraphError(Mistake):
    """A model that cannot be built; names the node."""


class JobError(Mistake):
    """A job file with a wrong or unknown key; names the file, the line and what is allowed."""


class DataError(Mistake):
    """Data that is missing, damaged or of the wrong shape; names the file."""


class CheckpointError(Mistake):
    """A checkpoint that is damaged, foreign, or belongs to another model; names the file."""


class PeerFailure(WeftError):
    """Another rank failed. Raised on every rank that was still well.

    `rank` is the failed rank in the world, `host` its host name, `traceback` its formatted traceback.
    """

    def __init__(self, rank: int, size: int, host: str, traceback: str) -> None:
        super().__init__(f"rank {rank} of {size} on host {host} failed:\n{traceback.rstrip()}")
        self.rank = rank
        self.host = host
        self.traceback = traceback


class RequestError(WeftError):
    """Another rank's handler raised while it answered a request; `rank`, `host` and `traceback` are its."""

    def __init__(self, channel: str, rank: int, host: str, trace: str) -> None:
        super().__init__(
            f"rank {rank} on host {host} failed to answer on channel {channel!r}:\n{trace.rstrip()}"
        )
        self.rank = rank
        self.host = host
        self.traceback = trace


class TaskError(WeftError):
    """A task raised: raised where its result is awaited. `rank`, `host` and `traceback` are where it ran."""

    def __init__(self, name: str, rank: int, host: str, trace: str) -> None:
        super().__init__(f"task {name!r} failed on rank {rank} on host {host}:\n{trace.rstrip()}")
        self.name = name
        self.rank = rank
        self.host = host
        self.traceback = trace


class MachineError(WeftError):
    """The machine lacks something: MPI, shared memory, a GPU, disk space."""

    exit_status = 3


def first_of(error: BaseException) -> BaseException:
    """The first exception of a group, however deep: the cause, and it alone is what a reader wants."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
