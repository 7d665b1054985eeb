"""A good job file, for tests to change, and what is read of one and said about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from weft.runtime.errors import JobError
from weft.runtime.train.job import Job, load_job

GOOD = """\
seed = 1
[data]
source = "digits"
[model]
layers = [
    { kernel = "flatten" },
    { kernel = "dense", features = 10 },
]
[train]
batch = 64
epochs = 2
optimizer = { name = "sgd", rate = 0.1 }
"""


def load(folder: Path, text: str, *overrides: str) -> Job:
    path = folder / "my.toml"
    path.write_text(text)
    return load_job(str(path), overrides)


def problems(folder: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(JobError) as caught:
        load(folder, text, *overrides)
    return str(caught.value).replace(f"{folder}/", "").splitlines()


def job_file(folder: Path, name: str, text: str = GOOD) -> str:
    path = folder / f"{name}.toml"
    path.write_text(text)
    return str(path)
