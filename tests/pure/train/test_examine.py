"""What a machine cannot give, of what a job names."""

from __future__ import annotations

import errno

import numpy as np
import pytest

from weft.runtime.errors import MachineError
from weft.runtime.train import examine
from weft.runtime.train.data import Loader
from weft.runtime.train.job import load_job

UNREAD = {
    "more than there is memory": (
        MemoryError("Unable to allocate 9.1 TiB"),
        "digits: its data does not fit into memory: Unable to allocate 9.1 TiB; what np.save and np.savez "
        "have written is mapped and not read",
    ),
    "more than there is memory, for Python itself": (
        MemoryError(),
        "digits: its data does not fit into memory: none is left; ",
    ),
    "what a disk fails to give": (
        OSError(errno.EIO, "Input/output error", "/data/x.npy"),
        r"digits: its data cannot be read: \[Errno 5\] Input/output error: '/data/x.npy'",
    ),
}


@pytest.mark.parametrize(("error", "said"), UNREAD.values(), ids=UNREAD)
def test_data_is_not_read(error, said):
    """It came with a traceback, as a mistake of Weft does."""

    class Unable(Loader):
        def load(self, *_):
            raise error

    with pytest.raises(MachineError, match=f"^{said}"):
        examine.examine(load_job("digits"), None, Unable())


def test_jobs_that_train_together_share_their_data():
    """Of forty models of a sweep each read and held the whole set."""
    jobs = [load_job("digits", [f"seed={seed}"]) for seed in (0, 1, 1)]
    first, other, again = examine._examined(jobs, [None] * 3, [None] * 3)
    assert np.shares_memory(first.data.train.content()[0], other.data.train.content()[0])
    assert other.data is again.data
