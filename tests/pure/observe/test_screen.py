from __future__ import annotations

import errno
import io
import os
import subprocess
import sys

from tests.launch import environment
from weft.runtime.observe import Screen


class Closed(io.StringIO):
    """A pipe whose reader has gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def test_a_run_goes_on_where_nobody_reads_what_it_says(capsys):
    screen = Screen(Closed())
    screen.note("step 1")
    screen.note("step 2")
    screen.close()
    said = "weft: what the run says cannot be printed: Broken pipe; it goes on without\n"
    assert capsys.readouterr() == ("", said)


def test_a_process_whose_reader_has_gone_ends_well():
    program = (
        "import sys\n"
        "from weft.runtime.observe import Screen\n"
        "screen = Screen()\n"
        "sys.stdin.read()\n"  # until the reader has gone
        "screen.note('step 1'); screen.note('step 2'); print('the end')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment("mpich"),
        text=True,
    )
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err.count("\n")) == (0, 1), err
