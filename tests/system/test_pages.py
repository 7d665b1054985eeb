"""The programs of README and docs print what their pages say, under both MPIs."""

from __future__ import annotations

import os
import re

import pytest

from tests.launch import ROOT, VENDORS, environment, mpiexec, python, run

PROGRAMS = {"README.md": "primes.py", "docs/tasks.md": "areas.py", "docs/messages.md": "ring.py"}


def program(page: str, name: str) -> str:
    """The block of the page that is this file."""
    found = re.search(rf"<!-- file: {name} -->\n```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert found is not None
    return found[1]


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize(("page", "name"), PROGRAMS.items(), ids=PROGRAMS)
def test_a_pages_program_prints_what_the_page_says(page, name, vendor, tmp_path):
    console = re.search(rf"\$ mpirun -n 3 python {name}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert console is not None
    path = tmp_path / name
    path.write_text(program(page, name))
    result = mpiexec(3, [path], vendor=vendor, timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stdout == console[1]


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
