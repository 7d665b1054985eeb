"""[train] optimizer and schedule: the keys of their kernels, and these kernels."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.pure.train.job_files import GOOD, load
from weft.kernels import optimizer, schedule
from weft.runtime.errors import JobError
from weft.runtime.train import optimizers
from weft.runtime.train.section import Section


@pytest.mark.parametrize(
    ("section", "kernel"),
    [
        (optimizers.SgdOptimizer, optimizer.SGD),
        (optimizers.AdamOptimizer, optimizer.Adam),
        (optimizers.AdamWOptimizer, optimizer.AdamW),
        (optimizers.ConstantSchedule, schedule.Constant),
        (optimizers.CosineSchedule, schedule.Cosine),
        (optimizers.StepSchedule, schedule.Step),
    ],
)
def test_a_section_has_the_keys_and_defaults_of_its_kernel(section: type[Section], kernel: type) -> None:
    attributes = {field.name: field.default for field in dataclasses.fields(kernel)}
    ours = {name: field.default for name, field in section.model_fields.items()}
    given_by_the_runtime = {"peak", "steps", "rate", "name"}
    assert set(attributes) - given_by_the_runtime == set(ours) - given_by_the_runtime
    required = {"every"}
    for name in set(ours) - given_by_the_runtime - required:
        assert ours[name] == attributes[name], name


def test_a_warm_up_longer_than_the_epochs_is_found_when_samples_are_counted(tmp_path: Path) -> None:
    job = load(tmp_path, GOOD, 'train.schedule={name="cosine", warmup=50}')
    with pytest.raises(
        JobError, match=r"schedule.warmup = 50: must be less than the 40 steps of the whole run"
    ):
        job.train.schedule.build(0.1, 40)


def test_optimizers_and_schedules_are_built(tmp_path: Path) -> None:
    text = GOOD.replace('name = "sgd"', 'name = "adamw", beta2 = 0.95')
    job = load(tmp_path, text, 'train.schedule={name="cosine", warmup=3, floor=0.01}')
    assert job.train.optimizer.build() == optimizer.AdamW(beta2=0.95, weight_decay=0.01)
    assert job.train.schedule.build(0.1, 50) == schedule.Cosine(0.1, warmup=3, steps=50, floor=0.01)
