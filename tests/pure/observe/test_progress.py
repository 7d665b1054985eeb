from __future__ import annotations

import fcntl
import io
import os
import re
import struct
import termios
from collections.abc import Iterator
from contextlib import closing, suppress

import pytest

from weft.runtime.observe.bars import fitting
from weft.runtime.observe.progress import Progress
from weft.runtime.observe.screen import Screen
from weft.runtime.observe.terminal import Terminal


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def lines(
    steps: int, seconds_per_step: float, *, evaluate_every: int = 0, epoch: int | None = None
) -> list[str]:
    """What a job of that pace prints where there is no terminal."""
    stream, clock = io.StringIO(), Clock()
    with Progress(steps, "digits", stream=stream, find=lambda: None, clock=clock) as progress:
        for step in range(1, steps + 1):
            clock.now_s += seconds_per_step
            progress.step(step, 1 / step, 5120.0, epoch=1)
            if evaluate_every and step % evaluate_every == 0:
                progress.evaluation("validation", 0.25, 0.9)
    assert "\x1b" not in stream.getvalue()
    assert "\r" not in stream.getvalue()
    return stream.getvalue().splitlines()


def test_lines_are_plain_and_about_one_a_second() -> None:
    assert lines(10, 0.3) == [
        "step 1/10  epoch 1  loss 1.0000  5,120 samples/s",
        "step 5/10  epoch 1  loss 0.2000  5,120 samples/s  2 s left",
        "step 9/10  epoch 1  loss 0.1111  5,120 samples/s  1 s left",
        "step 10/10  epoch 1  loss 0.1000  5,120 samples/s",
    ]


def test_the_last_step_is_shown_once() -> None:
    assert [line.split()[1] for line in lines(3, 2.0)] == ["1/3", "2/3", "3/3"]


def test_every_evaluation_has_a_line() -> None:
    shown = [line for line in lines(12, 0.01, evaluate_every=4) if "validation" in line]
    assert shown == [f"step {step}/12  validation  loss 0.2500  accuracy 0.9000" for step in (4, 8, 12)]


def test_a_job_of_eight_hours_leaves_hundreds_of_lines_not_thousands() -> None:
    assert 300 < len(lines(28_800, 1.0)) < 600


def test_time_left_follows_the_pace_of_late() -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress(1000, "digits", stream=stream, find=lambda: None, clock=clock) as progress:
        for step in range(1, 201):
            clock.now_s += 10.0 if step <= 100 else 1.0
            progress.step(step, 0.5, 100.0)
        progress.note("still at it")
        assert stream.getvalue().splitlines()[-2].endswith("13 min 20 s left")


def test_a_run_that_ends_early_has_no_time_left() -> None:
    """One that a signal had stopped ended with "22 min left"."""
    stream, clock = io.StringIO(), Clock()
    with Progress(1000, "digits", stream=stream, find=lambda: None, clock=clock) as progress:
        for step in range(1, 7):
            clock.now_s += 2.0  # each has a line at once
            progress.step(step, 0.5, 100.0, ending=step > 4)
    *before, one, last = stream.getvalue().splitlines()
    assert one == "step 5/1,000  loss 0.5000  100 samples/s"
    assert last == "step 6/1,000  loss 0.5000  100 samples/s"
    assert before[-1].endswith("left")


def test_a_run_that_is_closed_before_its_end_has_no_time_left() -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress(1000, "digits", stream=stream, find=lambda: None, clock=clock) as progress:
        for step in range(1, 7):
            clock.now_s += 0.6
            progress.step(step, 0.5, 100.0)
    *before, last = stream.getvalue().splitlines()
    assert last == "step 6/1,000  loss 0.5000  100 samples/s"
    assert before[-1].endswith("left")


def test_a_note_and_a_loss_that_is_not_a_number_are_printed_as_they_are() -> None:
    stream = io.StringIO()
    with Progress(5, "digits", stream=stream, find=lambda: None) as progress:
        progress.note("resumed from [step 3]")
        progress.step(1, float("nan"), 10.0)
        progress.evaluation("test", 0.5)
    assert stream.getvalue().splitlines() == [
        "resumed from [step 3]",
        "step 1/5  loss nan  10.0 samples/s",
        "step 1/5  test  loss 0.5000",
    ]


@pytest.fixture
def screen() -> Iterator[tuple[Terminal, int]]:
    """A terminal of the kernel's, 90 columns wide, and the end from which its content is read."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 90, 0, 0))
    stream = os.fdopen(theirs, "w", encoding="utf-8")
    yield Terminal(stream), ours
    with suppress(OSError):
        stream.close()
    os.close(ours)


def drawn(screen: tuple[Terminal, int], monkeypatch: pytest.MonkeyPatch, **environment: str) -> str:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm-256color", **environment}.items():
        monkeypatch.setenv(name, value)
    terminal, ours = screen
    clock = Clock()
    with closing(Progress(4, "digits", find=lambda: terminal, clock=clock)) as progress:
        for step in (1, 2, 3):
            clock.now_s += 1.0
            progress.step(step, 0.5 / step, 5120.0, 1)
            progress.evaluation("validation", 0.3, 0.9 + step / 100)
        progress.note("a note that stays")
        print("a print of the program")
    content = bytearray()
    with suppress(OSError):  # EIO: all has been read and nobody has the terminal open
        while True:
            content += os.read(ours, 65536)
    return content.decode()


def test_a_terminal_gets_one_line_that_is_drawn_again(
    screen: tuple[Terminal, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = drawn(screen, monkeypatch)
    assert "\x1b[?25l" not in content  # an aborted job could not bring the cursor back
    assert "\x1b[1A" not in content  # the bar never moves up into what others printed
    plain = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", content)
    frames = re.split(r"[\r\n]+", plain)
    assert "a note that stays" in frames
    assert "a print of the program" in frames
    assert frames[-1] == ""  # the shell's prompt starts on a line of its own
    last = frames[-2]
    assert len(last) == 90
    assert re.fullmatch(
        r"digits [━╸╺]+ 3/4  epoch 1  loss 0\.1667  5,120 samples/s  validation 0\.930  in 3 s", last
    )


@pytest.mark.parametrize(("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_no_color_is_honoured(
    screen: tuple[Terminal, int],
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    coloured: bool,
) -> None:
    content = drawn(screen, monkeypatch, **environment)
    assert (re.search(r"\x1b\[(3[1-7]|9\d|38)", content) is not None) == coloured


def test_lines_of_several_models_begin_with_their_names() -> None:
    stream, clock = io.StringIO(), Clock()
    screen = Screen(stream, lambda: None)
    one = Progress(2, "digits", screen=screen, named=True, clock=clock)
    other = Progress(3, "mlp", screen=screen, named=True, clock=clock)
    with one, other:
        one.step(1, 0.5, 100.0)
        other.step(1, 0.25, 50.0)
        other.evaluation("validation", 0.5)
        one.step(2, 0.4, 100.0)
        screen.status("shown on terminals only")
        other.note("a note")
        other.step(2, 0.2, 50.0)
    screen.close()
    assert stream.getvalue().splitlines() == [
        "digits: step 1/2  loss 0.5000  100 samples/s",
        "mlp: step 1/3  loss 0.2500  50.0 samples/s",
        "mlp: step 1/3  validation  loss 0.5000",
        "digits: step 2/2  loss 0.4000  100 samples/s",
        "a note",
        "mlp: step 2/3  loss 0.2000  50.0 samples/s",
    ]


def test_several_models_have_a_bar_each_and_a_line_below(
    screen: tuple[Terminal, int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal, ours = screen
    shared = Screen(find=lambda: terminal)
    shared.status("2 models train")
    clock = Clock()
    one = Progress(4, "digits", screen=shared, clock=clock)
    other = Progress(8, "mlp", screen=shared, clock=clock)
    for step in (1, 2, 3, 4):
        clock.now_s += 1.0
        other.step(step, 0.25, 50.0)
        one.step(step, 0.5, 100.0)
        if step == 2:
            shared.note("a note that stays")
            shared.error("an error that stays")
    one.close()
    shared.status("")
    other.close("failed after")
    shared.close()
    content = bytearray()
    with suppress(OSError):
        while True:
            content += os.read(ours, 65536)
    assert capsys.readouterr().err == "an error that stays\n"
    rows = on_screen(content.decode())
    assert rows[0] == "a note that stays"
    assert re.fullmatch(r"digits [━╸╺]+ 4/4  loss 0\.5000  100 samples/s  in 4 s", rows[1])
    assert re.fullmatch(r"mlp    [━╸╺]+ 4/8  loss 0\.2500  50\.0 samples/s  failed after 4 s", rows[2])
    assert "".join(rows[3:]) == ""


def on_screen(content: str) -> list[str]:
    """The lines that a terminal shows in the end, of the few codes that bars use."""
    rows, row, column = [""], 0, 0
    for code, number, letter, text in re.findall(r"(\x1b\[([\d;?]*)([A-Za-z]))|([^\x1b])", content):
        if code and letter == "A":
            row -= int(number or 1)
        elif code and letter == "K":
            rows[row] = "" if number == "2" else rows[row][:column]
        elif text == "\r":
            column = 0
        elif text == "\n":
            row, column = row + 1, 0
            rows += [""] * (row + 1 - len(rows))
        elif text:
            rows[row] = rows[row][:column].ljust(column) + text + rows[row][column + 1 :]
            column += 1
    return [line.rstrip() for line in rows]


FIELDS = {
    "epoch": "epoch 4",
    "loss": "loss 0.0421",
    "rate": "5,120 samples/s",
    "evaluation": "validation 0.982",
    "left": "12 s left",
}
FITTING = {
    "everything fits": (200, ["epoch 4", "loss 0.0421", "5,120 samples/s", "validation 0.982", "12 s left"]),
    "the epoch goes first": (62, ["loss 0.0421", "5,120 samples/s", "validation 0.982", "12 s left"]),
    "then the unit is shortened": (55, ["loss 0.0421", "5,120/s", "validation 0.982", "12 s left"]),
    "then the evaluation goes": (40, ["loss 0.0421", "5,120/s", "12 s left"]),
    "the loss stays longest": (14, ["loss 0.0421"]),
    "nothing fits": (3, []),
}


@pytest.mark.parametrize(("room", "shown"), FITTING.values(), ids=FITTING.keys())
def test_fitting(room: int, shown: list[str]) -> None:
    assert fitting(FIELDS, room) == shown
