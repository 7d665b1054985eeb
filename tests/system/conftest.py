"""What tests of whole runs start from."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.small import JOB


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(JOB)
    return path
