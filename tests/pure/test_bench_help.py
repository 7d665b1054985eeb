"""The help of the benches is as wide as the terminal is, and still a list of names and what they mean."""

from __future__ import annotations

import pytest

from bench import __main__ as command
from bench._help import fitted

FITTED = {
    "a name's meaning stays behind the name": (
        "rtt_us  a request of 8 bytes, received and replied to by the other rank",
        "rtt_us  a request of 8 bytes, received\n        and replied to by the other rank",
    ),
    "a meaning of two lines is filled anew": (
        "rtt_us  a request of 8 bytes, received\n        and replied to",
        "rtt_us  a request of 8 bytes, received\n        and replied to",
    ),
    "names follow each other": (
        "rtt_us  a request\nraw_us  in mpi4py",
        "rtt_us  a request\nraw_us  in mpi4py",
    ),
    "lines that are full are joined": (
        "word " * 17 + "word\nnext word",
        "word word word word word word word word\n" * 2 + "word word next word",
    ),
    "commands stay apart": ("python -m bench serve\npython -m bench serve --seeds 1",) * 2,
    "a meaning without room begins at the left": (
        "python -m bench steal --kernels 9  # two ranks of a node",
        "python -m bench steal --kernels 9  # two\n    ranks of a node",
    ),
    "paragraphs stay apart": ("one\n\n    two\n    three",) * 2,
}


@pytest.mark.parametrize(("text", "expected"), FITTED.values(), ids=FITTED)
def test_fitted(text: str, expected: str) -> None:
    assert fitted(text, 40) == expected


@pytest.mark.parametrize("name", ["dispatch", "pingpong", "policy", "steal", "uts"])
def test_the_help_of_a_bench_is_as_wide_as_the_terminal(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        command.main([name, "--help"])
    assert [line for line in capsys.readouterr().out.splitlines() if len(line) > 80] == []


def test_an_unknown_bench_is_told_with_the_nearest_and_a_list_that_fits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        command.main(["pinpong"])
    lines = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert "there is no bench 'pinpong'; did you mean pingpong?; there are" in lines[1]
    assert lines[-1].endswith("uts")
    assert all(len(line) <= 80 for line in lines[2:])
