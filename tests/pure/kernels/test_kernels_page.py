"""docs/kernels.md names every kernel with its attributes, and its own kernel is a right one."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from tests.launch import ROOT
from tests.pure.kernels.checks import check_gradients, normal
from weft.kernels.registry import KERNELS

PAGE = (ROOT / "docs" / "kernels.md").read_text()
ROWS = {
    name: row.split(" | ")[1]
    for row in re.findall(r"^\| (`.*) \|$", PAGE, re.MULTILINE)
    for name in re.findall(r"`(\w+)`", row.split(" | ")[0])
}


def defaults(name: str) -> dict[str, str]:
    """Attributes of a kernel and their defaults as a job file writes them; empty where there is none."""
    return {
        each.name: "" if each.default is dataclasses.MISSING or each.default is None else shown(each.default)
        for each in dataclasses.fields(KERNELS[name])
        if each.init
    }


def shown(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value).lower()


def test_every_kernel_is_there():
    assert ROWS.keys() == KERNELS.keys()


@pytest.mark.parametrize("name", ROWS)
def test_a_kernel_has_these_attributes_and_defaults(name):
    cell = ROWS["conv2d"] if ROWS[name] == "as `conv2d`" else ROWS[name]
    told = dict(re.findall(r"`(\w+)`(?: \(`([^`]*)`)?", cell))
    if name.startswith(("arithmetic", "compare")):
        told["operator"] = ""  # its choices are listed there
    assert {key: value for key, value in told.items() if key in defaults(name)} == defaults(name)
    assert told.keys() - defaults(name).keys() <= {"kernel_size"}, "no such attribute"


def test_the_pages_own_kernel_has_the_gradients_of_what_it_computes():
    program = re.search(r"<!-- file: swish.py -->\n```python\n(.*?)```", PAGE, re.DOTALL)
    assert program is not None
    module: dict[str, Any] = {}
    exec(compile(program[1], "swish.py", "exec"), module)
    check_gradients(module["Swish"](), normal(3, 4, 5))
