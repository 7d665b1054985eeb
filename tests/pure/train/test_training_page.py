"""docs/training.md names every key of a job file with its default, and no other."""

from __future__ import annotations

import dataclasses
import re
from typing import get_args

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from tests.launch import ROOT
from weft.kernels.registry import KERNELS, LOSSES
from weft.runtime.train import optimizers, schema
from weft.runtime.train.data import section
from weft.runtime.train.toml import to_toml_value

PAGE = (ROOT / "docs" / "training.md").read_text()
SECTIONS = re.split(r"^### \[(\w+)\]$", PAGE, flags=re.MULTILINE)
TABLES = dict(zip(SECTIONS[1::2], SECTIONS[2::2], strict=True))


def rows(text: str, head: str) -> dict[str, str]:
    """The second column of the table whose first column is called `head`, by the first."""
    found: dict[str, str] = {}
    for table in re.findall(rf"^\| {head} \|.*?\n\n", text + "\n", re.MULTILINE | re.DOTALL):
        for line in table.strip().splitlines()[2:]:
            first, second = [cell.strip() for cell in line.strip("|").split(" | ")][:2]
            found[first.strip(" `")] = second
    return found


def attributes(cell: str) -> dict[str, str]:
    """`a`, `b` (`1`) as {"a": "", "b": "`1`"}."""
    return {name: default or "" for name, default in re.findall(r"`(\w+)`(?: \(([^)]*)\))?", cell)}


def default_of(model: type[BaseModel], key: str) -> str | None:
    """As the page has it; None where it says so in words."""
    field = model.model_fields[key]
    if field.default_factory is not None:
        return None
    if field.default is PydanticUndefined:
        return "required"
    if field.default is None:
        return "none"
    value = field.default
    if isinstance(value, BaseModel) and not isinstance(value := value.model_dump(), str):
        value = {name: inner for name, inner in value.items() if inner}
    return f"`{to_toml_value(value)}`"


@pytest.mark.parametrize("name", ["model", "train", "checkpoint", "exchange", "run", "sample"])
def test_every_key_of_a_section_is_there_with_its_default(name):
    model = getattr(schema, name.capitalize())
    told = rows(TABLES[name], "key")
    assert list(told) == list(model.model_fields)
    for key, default in told.items():
        if (expected := default_of(model, key)) is not None:
            assert default == expected, key


def test_every_source_of_data_is_there_with_its_keys():
    sources = {source.model_fields["source"].annotation: source for source in section_sources()}
    told = rows(TABLES["data"], "source")
    assert list(told) == [get_args(name)[0] for name in sources]
    common = rows(TABLES["data"], "key")
    for source in sources.values():
        keys = {key for key in source.model_fields if key != "source"}
        (name,) = get_args(source.model_fields["source"].annotation)
        own = attributes(told[name])
        assert keys - own.keys() <= {*common, "test_targets", "test_path"}, name
        assert own.keys() <= keys, name
        for key, default in own.items():
            if default:
                assert default == default_of(source, key), (name, key)
    for key in ("validation", "test", "test_inputs", "shape", "normalise", "normalise_targets"):
        assert common[key] == default_of(section.NpzData, key)


def test_a_table_is_promised_no_key_that_it_lacks():
    """Of `shape` it was, as of everything "for arrays and tables": a file of pixels was refused by it."""
    table = TABLES["data"].partition("for arrays and tables:")[2]
    lines = [line for line in table.splitlines() if line.startswith("| `")]
    assert [line.split("`")[1] for line in lines if "(`csv`: " not in line] == [
        "normalise",
        "normalise_targets",
    ]
    assert {"normalise", "normalise_targets"} <= section.CsvData.model_fields.keys()


def section_sources() -> list[type[BaseModel]]:
    union, _ = get_args(section.DataSection)
    return list(get_args(union))


@pytest.mark.parametrize("name", rows(TABLES["model"], "kernel"))
def test_a_kernel_has_these_attributes_and_defaults(name):
    told = attributes(rows(TABLES["model"], "kernel")[name])
    fields = {field.name: field for field in dataclasses.fields(KERNELS[name]) if field.init}
    assert list(told) == list(fields)
    for key, default in told.items():
        expected = fields[key].default
        if expected is dataclasses.MISSING:
            assert default == "", key
        elif expected is not None:
            assert default.split(",")[0] == f"`{to_toml_value(expected)}`", key


def test_losses_have_these_attributes_and_defaults():
    told = {
        name: attributes(cell)
        for names, cell in rows(TABLES["model"], "loss").items()
        for name in re.findall(r"\w+", names)
    }
    assert told == {
        name: {each.name: f"`{to_toml_value(each.default)}`" for each in dataclasses.fields(kind)}
        for name, kind in LOSSES.items()
    }


KINDS = {
    "optimizer": (optimizers.SgdOptimizer, optimizers.AdamOptimizer, optimizers.AdamWOptimizer),
    "schedule": (optimizers.ConstantSchedule, optimizers.CosineSchedule, optimizers.StepSchedule),
}


@pytest.mark.parametrize("kind", KINDS)
def test_optimizers_and_schedules_have_these_attributes_and_defaults(kind):
    told = rows(TABLES["train"], kind)
    assert len(told) == len(KINDS[kind])
    for (name, cell), model in zip(told.items(), KINDS[kind], strict=True):
        assert (name,) == get_args(model.model_fields["name"].annotation)
        own = attributes(cell)
        assert own.keys() == model.model_fields.keys() - {"name", "rate", "warmup"}
        for key, default in own.items():
            assert (default or "required") == default_of(model, key), (name, key)
