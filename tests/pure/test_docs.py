"""What the pages say is there: links and their headings, files, names to import, commands of the benches."""

from __future__ import annotations

import importlib
import re
import shlex
import types
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

from bench.__main__ import parse

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]

FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^]]+\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
FILE = re.compile(r"(?:runtime|kernels|bench|tests|docs|hostfiles)/[\w./-]+\.\w+")


def prose(page: Path) -> str:
    """The page without its blocks."""
    return FENCE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """What a link's `#…` may be: headings as GitHub turns them into fragments."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dangling(page: Path) -> Iterator[str]:
    """The page's links that lead nowhere."""
    for link in LINK.findall(prose(page)):
        if "://" in link:
            continue
        path, _, heading = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (heading and heading not in anchors(target)):
            yield link


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_link_leads_somewhere(page):
    assert list(dangling(page)) == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_file_that_is_named_is_there(page):
    named = [text for text in CODE.findall(prose(page)) if FILE.fullmatch(text)]
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_a_link_to_no_heading_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Who's `here`\n\n[a](#whos-here) [b](#there) [c](none.md) [d](page.md)\n")
    assert list(dangling(page)) == ["#there", "none.md"]


def test_every_page_is_on_the_readmes_list():
    listed = (ROOT / "README.md").read_text().partition("\n## Documentation\n")[2].partition("\n## ")[0]
    assert [name for name in NAMES if name.startswith("docs/") and f"({name})" not in listed] == []


def importable() -> dict[str, set[str]]:
    """The names that docs/python.md lists, by module."""
    found: dict[str, set[str]] = {}
    for row in (ROOT / "docs/python.md").read_text().splitlines():
        cells = row.split(" | ")
        if len(cells) == 3 and (module := re.fullmatch(r"`(weft\.[\w.]+)` \|", cells[2])):
            found.setdefault(module[1], set()).update(CODE.findall(cells[1]))
    return found


def test_what_programs_may_import_is_there_and_documented():
    assert "weft.runtime.message" in importable()
    for module, names in importable().items():
        found = importlib.import_module(module)
        assert [name for name in names if not hasattr(found, name)] == [], module
        assert [name for name in names if not (name == "ANY" or getattr(found, name).__doc__)] == [], module


@pytest.mark.parametrize("package", ["message", "work.pool", "work.neurons", "graph", "graph.onnx"])
def test_what_a_package_for_programs_exports_is_on_the_page(package):
    module = importlib.import_module(f"weft.runtime.{package}")
    exported = {name for name in module.__all__ if not isinstance(getattr(module, name), types.ModuleType)}
    assert exported - importable()[module.__name__] == set()


def bench_commands() -> list[list[str]]:
    """The arguments of every `python -m bench NAME …` of the pages."""
    commands = [re.findall(r"python -m bench ([a-z][^\n`#)]*)", page.read_text()) for page in PAGES]
    return [shlex.split(command) for command in dict.fromkeys(chain.from_iterable(commands))]


@pytest.mark.parametrize("arguments", bench_commands(), ids=" ".join)
def test_every_command_of_a_bench_is_understood(arguments):
    assert parse(arguments).name == arguments[0]
