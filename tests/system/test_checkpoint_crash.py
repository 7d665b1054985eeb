"""A process that is killed while it writes a checkpoint, at every point of the writing, loses nothing."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from tests.launch import run
from weft.runtime.train.checkpoint import checkpoints, latest, load

# Saves step 1 and 2, then is killed at call COUNT of FUNCTION while saving step 3.
WRITER = """
import builtins, os, signal, sys
from pathlib import Path
import numpy as np
from weft.runtime.train.checkpoint import Snapshot, save

folder, function, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
snapshot = lambda step: Snapshot(step, {name: np.full(500_000, step, "f4") for name in "ab"}, {"step": step})
for step in (1, 2):
    save(folder, snapshot(step))

def deadly(original):
    def wrapper(*arguments, **keys):
        global count
        count -= 1
        if count == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **keys)
    return wrapper

class Dying:
    def __init__(self, *arguments):
        self.file = opened(*arguments)
        self.flush, self.fileno = self.file.flush, self.file.fileno
    def write(self, data):
        half = len(data) // 2
        self.file.write(data[:half])
        self.file.flush()
        deadly(self.file.write)(data[half:])
    def __enter__(self):
        return self
    def __exit__(self, *_):
        self.file.close()

opened = open
if function == "write":
    builtins.open = Dying
else:
    module, name = (Path, function) if function == "unlink" else (os, function)
    setattr(module, name, deadly(getattr(module, name)))
save(folder, snapshot(3))
"""


@pytest.mark.parametrize(
    ("function", "count", "newest"),
    [
        ("write", 1, 2),
        ("write", 2, 2),
        ("write", 3, 2),
        ("fsync", 1, 2),
        ("replace", 1, 2),
        ("fsync", 2, 3),
        ("unlink", 1, 3),
    ],
)
def test_killed_at(function: str, count: int, newest: int, tmp_path: Path) -> None:
    result = run([sys.executable, "-c", WRITER, tmp_path, function, str(count)], timeout=60)
    assert result.returncode == -signal.SIGKILL, result.stderr
    snapshot = load(latest(tmp_path))
    assert (snapshot.step, snapshot.progress) == (newest, {"step": newest})
    assert all((tensor == newest).all() for tensor in snapshot.tensors.values())
    assert [load(path).step for path in checkpoints(tmp_path)] == sorted(range(1, newest + 1), reverse=True)
