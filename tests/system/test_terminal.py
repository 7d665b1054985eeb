"""The bar under real launchers, on a pseudo-terminal: what /proc shows of them is theirs to say."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import termios
import threading
from pathlib import Path

import pytest

from tests.launch import VENDORS, environment, launcher, python

PROGRAM = """
import os, sys
from weft.runtime.observe.progress import Progress
if os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK")) == "0":
    with Progress(2, "digits") as progress:
        progress.step(1, 0.5, 100.0)
        progress.step(2, 0.25, 100.0)
    print("stored")
"""


def run(vendor: str, shell_suffix: str, tmp_path: Path) -> str:
    """What a person sees who types the launcher's command and `shell_suffix` on a terminal 100 wide."""
    (tmp_path / "program.py").write_text(PROGRAM)
    command = " ".join([*launcher(2, vendor), str(python(vendor)), "program.py", shell_suffix])
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    seen = bytearray()

    def read() -> None:
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # EIO: nobody has the terminal open any more
                return
            seen.extend(part)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        env = environment(vendor, {"TERM": "xterm-256color"})
        env.pop("NO_COLOR", None)
        status = subprocess.run(
            ["sh", "-c", command],
            cwd=tmp_path,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
            timeout=60,
            start_new_session=True,
        ).returncode
    finally:
        os.close(theirs)
        reader.join()
        os.close(ours)
    assert status == 0, seen.decode()
    return seen.decode()


@pytest.mark.parametrize("vendor", VENDORS)
def test_the_launchers_terminal_gets_the_bar(vendor: str, tmp_path: Path) -> None:
    content = run(vendor, "", tmp_path)
    assert "\x1b[2K" in content
    assert "━ 2/2" in content.replace("\x1b[39m", "").replace("\x1b[0m", "")
    assert content.rstrip().endswith("stored")


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_file_gets_lines_without_control_codes(vendor: str, tmp_path: Path) -> None:
    run(vendor, "> log", tmp_path)
    assert (tmp_path / "log").read_text().splitlines() == [
        "step 1/2  loss 0.5000  100 samples/s",
        "step 2/2  loss 0.2500  100 samples/s",
        "stored",
    ]
