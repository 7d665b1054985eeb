"""The README's programs, commands and job files work as they stand there.

Blocks are told by their language and by a comment before them:

    <!-- file: hello.py -->          the block is this file in the folder in which the commands run
    ```python
    <!-- not run: installs Weft -->  nothing is done with the block; the reason is required
    ```console
    ```console                       its lines behind `$ ` are run, one after the other; the rest is output
    ```toml                          a job file: it must load
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.launch import ROOT, environment, python, run
from weft.runtime.train.job import load_job

README = ROOT / "README.md"
BLOCK = re.compile(
    r"(?:^<!-- (?P<note>file|not run): (?P<text>.+?) -->\n+)?^```(?P<language>\w+)\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: language, text, line in the README, the file it is, whether it runs."""

    language: str
    body: str
    line: int
    file: str | None
    runs: bool


def blocks(text: str) -> list[Block]:
    return [
        Block(
            match["language"],
            match["body"],
            text[: match.start("language")].count("\n") + 1,
            match["text"] if match["note"] == "file" else None,
            match["note"] != "not run",
        )
        for match in BLOCK.finditer(text)
    ]


def commands(body: str) -> list[str]:
    """The lines behind `$ `, without trailing comments; a backslash joins the next line."""
    joined = body.replace("\\\n", " ")
    return [line[2:].split("  #")[0].strip() for line in joined.splitlines() if line.startswith("$ ")]


def of(*languages: str) -> list[Block]:
    return [block for block in blocks(README.read_text()) if block.runs and block.language in languages]


def line(block: Block) -> str:
    return f"line {block.line}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder with the README's files."""
    made = tmp_path_factory.mktemp("readme")
    for block in blocks(README.read_text()):
        if block.file:
            (made / block.file).write_text(block.body)
    return made


@pytest.mark.parametrize("block", of("console"), ids=line)
def test_commands_succeed(block: Block, folder: Path):
    found = commands(block.body)
    assert found, "a console block without `$ ` lines runs nothing; mark it as `text` or `not run`"
    settings = environment("mpich", {"PATH": f"{python('mpich').parent}:{os.environ['PATH']}"})
    for command in found:
        result = run(["bash", "-euo", "pipefail", "-c", command], timeout=180, env=settings, cwd=folder)
        assert result.returncode == 0, f"$ {command}\n{result.stdout}\n{result.stderr}"


@pytest.mark.parametrize("block", of("python"), ids=line)
def test_programs_are_files_that_a_command_runs(block: Block):
    assert block.file, "give the block a <!-- file: NAME.py --> before it"
    compile(block.body, block.file, "exec")
    everything = "\n".join(command for other in of("console") for command in commands(other.body))
    module = f"{block.file.removesuffix('.py')}:"  # as in --set model.python=my_model:build
    assert block.file in everything or module in everything, f"no command of the README runs {block.file}"


@pytest.mark.parametrize("block", of("toml"), ids=line)
def test_job_files_load(block: Block, tmp_path: Path):
    path = tmp_path / (block.file or "job.toml")
    path.write_text(block.body)
    load_job(str(path))


def test_blocks_are_told_by_language_and_comment():
    text = (
        "# A\n\n<!-- file: a.py -->\n```python\nx = 1\n```\n\n"
        "<!-- not run: installs -->\n```console\n$ make demo\n```\n"
        "```console\n$ ls \\\n  -l  # comment\nout\n```\n"
    )
    assert [(b.language, b.line, b.file, b.runs) for b in blocks(text)] == [
        ("python", 4, "a.py", True),
        ("console", 9, None, False),
        ("console", 12, None, True),
    ]
    assert commands(blocks(text)[2].body) == ["ls    -l"]
