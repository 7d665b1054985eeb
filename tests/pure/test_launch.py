"""What the tests' own launching does beside starting ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import launch


def test_only_what_ended_launchers_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    monkeypatch.setattr(launch.tempfile, "gettempdir", lambda: str(tmp_path))
    for name in (f"ompi.{ended.pid}", f"ompi.{os.getpid()}", "ompi.host.0", "other"):
        (tmp_path / name / "0").mkdir(parents=True)
    launch.remove_session_folders_left_behind()
    assert {path.name for path in tmp_path.iterdir()} == {f"ompi.{os.getpid()}", "ompi.host.0", "other"}
