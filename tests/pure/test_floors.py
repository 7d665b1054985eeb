"""The floors of the design: a file imports from its own floor or below, and some things only in one place.

Every import statement counts, also inside functions and under TYPE_CHECKING: a cycle that is hidden is one.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.launch import ROOT

# From the ground up. A name stands for the file or for all files of the package; the longest match counts.
FLOORS = [
    "kernels",
    "runtime.errors",
    "runtime.launcher",
    "runtime.graph",
    "runtime.message",
    "runtime.work",
    "runtime.exchange",
    "runtime.observe",
    "runtime.train",
    "runtime.serve",
    "runtime.cli",
]

# Who alone may import what.
ONLY_IN = {
    "mpi4py": "runtime.message",
    "cupy": "kernels.device",
    "cupyx": "kernels.device",
    "typer": "runtime.cli",
}

# What a floor does without: arithmetic and decisions are tested without a loop, a network or a disk.
NOT_IN = {
    "kernels": {"asyncio", "mpi4py", "msgpack", "socket", "subprocess"},
    "runtime.graph": {"asyncio", "mpi4py", "msgpack", "socket", "subprocess", "threading"},
}

# Arrays travel as raw buffers and headers as msgpack; nothing that is read may run code.
NOWHERE = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "shelve", "marshal"}

FOLDERS = ("runtime", "kernels")


@dataclass(frozen=True)
class Import:
    """One imported name: absolute and dotted, `runtime.…` and `kernels.…` for Weft's own."""

    name: str
    line: int
    relative: bool


def module_name(path: Path) -> str:
    """`runtime/graph/__init__.py` is `runtime.graph`."""
    parts = list(path.with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(module: str, source: str, *, package: bool) -> Iterator[Import]:
    """All imports of a module; `from a import b` yields `a.b`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, False)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = ["weft", *module.split("."), *([""] if package else [])]
                base = ".".join([*here[: -node.level], *([base] if base else [])]).removeprefix("weft.")
            for alias in node.names:
                yield Import(f"{base}.{alias.name}", node.lineno, bool(node.level))


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def floor(module: str, *, package: bool = False) -> int | None:
    """The number of the module's floor; a package's own `__init__` runs before any of its files, so it stands
    on the lowest of theirs."""
    matches = [entry for entry in FLOORS if within(module, entry)]
    if package:
        matches += [entry for entry in FLOORS if within(entry, module)]
        return min(map(FLOORS.index, matches), default=None)
    return FLOORS.index(max(matches, key=len)) if matches else None


def violations(path: Path, source: str) -> list[str]:
    """What the file at `path` (relative to the repository) imports against the rules."""
    module, package = module_name(path), path.name == "__init__.py"
    own = path.parts[0] in FOLDERS
    here = floor(module, package=package) if own else None
    found = []
    for imported in imports(module, source, package=package):
        where, top = f"{path}:{imported.line}", imported.name.partition(".")[0]
        if not imported.relative and top in FOLDERS:
            found.append(f"{where}: bare import of {imported.name} makes a second copy of the module")
        if not own:
            continue
        if not imported.relative and top == "weft":
            found.append(f"{where}: {imported.name}: the packages import each other relatively")
        if top in NOWHERE:
            found.append(f"{where}: {top} must not be used")
        for external, place in ONLY_IN.items():
            if top == external and not within(module, place):
                found.append(f"{where}: {external} is imported only in {place}")
        for place, banned in NOT_IN.items():
            if within(module, place) and top in banned:
                found.append(f"{where}: {place} does without {top}")
        if imported.relative and top in FOLDERS:
            there = floor(imported.name)
            if module == "runtime":
                found.append(
                    f"{where}: runtime/__init__.py runs before everything and imports nothing of Weft"
                )
            elif there is not None and (here is None or there > here):
                found.append(
                    f"{where}: {module} imports {imported.name} from a floor above: {FLOORS[there]} is above "
                    f"{FLOORS[here] if here is not None else 'no known floor (add it to FLOORS)'}"
                )
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and own:
            refused = isinstance(node.value, ast.Constant) and node.value.value is False
            if not refused:
                found.append(f"{path}:{node.value.lineno}: allow_pickle must be False")
    return found


def files(*folders: str) -> list[Path]:
    return sorted(
        path.relative_to(ROOT)
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        if "__pycache__" not in path.parts
    )


@pytest.mark.parametrize("path", files(*FOLDERS, "bench", "tests"), ids=str)
def test_file_keeps_to_its_floor(path: Path):
    assert violations(path, (ROOT / path).read_text()) == []


def test_no_two_files_import_each_other():
    known = {module_name(path): path for path in files(*FOLDERS)}
    uses: dict[str, set[str]] = {}
    for module, path in known.items():
        package = path.name == "__init__.py"
        found = set()
        for imported in imports(module, (ROOT / path).read_text(), package=package):
            # `from .graph import Graph` yields runtime.graph.graph.Graph: its longest known prefix is it.
            name = imported.name
            while name and name not in known:
                name = name.rpartition(".")[0]
            found.add(name)
        uses[module] = found - {"", module}
    assert cycles(uses) == []


def cycles(uses: dict[str, set[str]]) -> list[str]:
    """Every cycle met by a walk over `uses`, written out."""
    found: list[str] = []
    done: set[str] = set()

    def walk(module: str, way: list[str]) -> None:
        if module in way:
            found.append(" -> ".join([*way[way.index(module) :], module]))
        elif module not in done:
            for used in sorted(uses.get(module, ())):
                walk(used, [*way, module])
            done.add(module)

    for module in sorted(uses):
        walk(module, [])
    return found


def test_r6_the_top_level_is_as_agreed():
    agreed = ("pyproject.toml", "runtime", "kernels", "tests", "bench", "hostfiles", "README.md")
    assert [name for name in agreed if not (ROOT / name).exists()] == []


def test_r6_the_packages_of_pyproject_are_the_folders_there_are():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = project["tool"]["setuptools"]["packages"]
    there = [f"weft.{module_name(path)}" for path in files(*FOLDERS) if path.name == "__init__.py"]
    assert sorted(listed) == sorted(there)
    assert project["tool"]["setuptools"]["package-dir"] == {f"weft.{name}": name for name in FOLDERS}


@pytest.mark.parametrize(
    ("path", "source", "words"),
    [
        ("kernels/a.py", "from .kernel import Kernel", None),
        ("kernels/a.py", "from ..runtime.errors import Mistake", "floor above"),
        ("runtime/graph/a.py", "from ...kernels.kernel import Array", None),
        ("runtime/graph/a.py", "from ..message import World", "floor above"),
        ("runtime/graph/a.py", "def f():\n  from ..message import World", "a.py:2"),
        ("runtime/graph/a.py", "if TYPE_CHECKING:\n  from ..message import World", "floor above"),
        ("runtime/message/a.py", "from ..observe.trace import Trace", "floor above"),
        ("runtime/observe/__init__.py", "from .report import report", None),
        ("runtime/observe/report.py", "from .trace import Trace", None),
        ("runtime/loose.py", "from .errors import Mistake", "no known floor"),
        ("runtime/__init__.py", "from .errors import Mistake", "runs before everything"),
        ("runtime/message/a.py", "from mpi4py import MPI", None),
        ("runtime/train/a.py", "from mpi4py import MPI", "only in runtime.message"),
        ("kernels/device.py", "import cupy", None),
        ("kernels/conv.py", "import cupy", "only in kernels.device"),
        ("runtime/graph/a.py", "import asyncio.queues", "does without asyncio"),
        ("runtime/train/a.py", "import pickle", "must not be used"),
        ("runtime/train/a.py", "np.load(f, allow_pickle=True)", "allow_pickle"),
        ("runtime/train/a.py", "np.load(f, allow_pickle=False)", None),
        ("tests/pure/test_a.py", "from kernels import linear", "second copy"),
        ("tests/pure/test_a.py", "from weft.kernels import linear", None),
        ("runtime/train/a.py", "from weft.kernels import linear", "relatively"),
    ],
)
def test_the_rules_find(path: str, source: str, words: str | None):
    found = violations(Path(path), source)
    if words is None:
        assert found == []
    else:
        assert words in " ".join(found)


def test_a_cycle_is_written_out():
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a -> b -> c -> a"]
    assert cycles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
