"""The programs of README and docs print what their pages say, under both MPIs."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.launch import ROOT, VENDORS, environment, mpiexec, python, run

PROGRAMS = {
    "primes.py": "README.md",
    "areas.py": "docs/tasks.md",
    "within.py": "docs/tasks.md",
    "branches.py": "docs/tasks.md",
    "ring.py": "docs/messages.md",
    "rows.py": "docs/neurons.md",
}


def program(page: str, name: str) -> str:
    """The block of the page that is this file."""
    found = re.search(rf"<!-- file: {name} -->\n```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert found is not None
    return found[1]


def printed(page: str, command: str) -> str:
    """What the page shows below this command."""
    found = re.search(rf"^\$ {command}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize(("name", "page"), PROGRAMS.items(), ids=PROGRAMS)
def test_a_pages_program_prints_what_the_page_says(page, name, vendor, tmp_path):
    path = tmp_path / name
    path.write_text(program(page, name))
    result = mpiexec(3, [path], vendor=vendor, timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stdout == printed(page, f"mpirun -n 3 python {name}")


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("ranks", [1, 3])
def test_the_readmes_tcp_server_answers_visitors_with_all_ranks(ranks, vendor, tmp_path):
    path = tmp_path / "squares.py"
    path.write_text(program("README.md", "squares.py"))
    result = mpiexec(ranks, [path], vendor=vendor, timeout=60)
    assert result.returncode == 0, result.stderr
    answers = sorted(result.stdout.splitlines())  # they come in any order
    assert answers == [f"{n} squared is {n**2}, says rank {n % ranks}" for n in range(6)]
    if ranks == 3:
        assert answers == printed("README.md", "mpirun -n 3 python squares.py").splitlines()


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_program_trains_a_model_and_asks_it(vendor, tmp_path):
    path = tmp_path / "surrogate.py"
    path.write_text(program("docs/python.md", "surrogate.py"))
    result = mpiexec(3, [path], vendor=vendor, timeout=120, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    first, _, last = printed("docs/python.md", "mpirun -n 3 python surrogate.py").splitlines()
    lines = result.stdout.splitlines()
    assert (lines[0], lines[-1]) == (first, last)


def test_a_graph_is_trained_without_ranks(tmp_path):
    path = tmp_path / "alone.py"
    path.write_text(program("docs/python.md", "alone.py"))
    result = run([python("mpich"), path], timeout=60, env=environment("mpich"))
    assert result.returncode == 0, result.stderr
    assert result.stdout == printed("docs/python.md", "python alone.py")


def test_a_model_with_a_kernel_of_its_own_is_trained(tmp_path):
    (tmp_path / "swish.py").write_text(program("docs/kernels.md", "swish.py"))
    command = re.search(
        r"^\$ (weft train .*swish:build.*)$", (ROOT / "docs/kernels.md").read_text(), re.MULTILINE
    )
    assert command is not None
    settings = environment("mpich", {"PATH": f"{python('mpich').parent}:{os.environ['PATH']}"})
    result = run(["bash", "-c", command[1]], timeout=60, env=settings, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (accuracy,) = re.findall(r"test accuracy (0\.\d+)\n", result.stdout)
    assert float(accuracy) > 0.5


RUN = "mine-20260314-150926"  # as the pages call one

BESIDE_A_RUN = {
    "a checkpoint read by others": ("docs/training.md", 0),
    "an ONNX file read": ("docs/onnx.md", 0),
    "an ONNX file written again": ("docs/onnx.md", 1),
    "samples out of a table": ("docs/serving.md", 1),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that holds a run, what was exported of it, and a table."""
    made = tmp_path_factory.mktemp("pages")
    settings = environment("mpich", {"PATH": f"{python('mpich').parent}:{os.environ['PATH']}"})
    commands = (
        f"weft train digits-mlp --set name=mine && mv runs/mine-* {RUN} && weft export {RUN} model.onnx"
    )
    result = run(["bash", "-euc", commands], timeout=120, env=settings, cwd=made)
    assert result.returncode == 0, result.stderr
    (made / "runs" / RUN).symlink_to(made / RUN)
    (made / "table.csv").write_text("a,b,c,d,e\n1,2,3,4,x\n5,6,7,8,y\n")
    return made


@pytest.mark.parametrize(("page", "number"), BESIDE_A_RUN.values(), ids=BESIDE_A_RUN)
def test_a_pages_program_runs_as_it_stands(page, number, folder):
    programs = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    result = run([python("mpich"), "-c", programs[number]], timeout=60, env=environment("mpich"), cwd=folder)
    assert result.returncode == 0, result.stderr
