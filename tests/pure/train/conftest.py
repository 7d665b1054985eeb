"""A working folder with the files that sources.py names."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pure.train.sources import store


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    store(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path
