"""What a machine cannot give, of what a job names."""

from __future__ import annotations

import errno

import pytest

from weft.runtime.errors import MachineError
from weft.runtime.train import examine
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
def test_data_is_not_read(error, said, monkeypatch):
    """It came with a traceback, as a mistake of Weft does."""

    def load_data(*_):
        raise error

    monkeypatch.setattr(examine, "load_data", load_data)
    with pytest.raises(MachineError, match=f"^{said}"):
        examine.examine(load_job("digits"), None)
