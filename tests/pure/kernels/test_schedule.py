"""The schedules as tables, and against PyTorch's over whole runs."""

from __future__ import annotations

from typing import Any

import pytest

from weft.kernels.schedule import Constant, Cosine, Schedule, Step

TABLE = [
    ("a constant rate is the peak from the first step", Constant(0.1), {1: 0.1, 1000: 0.1}),
    (
        "a warm-up of three climbs by quarters and reaches the peak at the fourth step",
        Constant(0.4, warmup=3),
        {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4, 5: 0.4},
    ),
    ("a cosine starts at the peak", Cosine(0.1, steps=10), {1: 0.1}),
    ("a cosine is half way in the middle", Cosine(0.1, steps=10), {6: 0.05}),
    ("a cosine stays at its floor after the end", Cosine(1.0, steps=4, floor=0.2), {5: 0.2, 6: 0.2, 99: 0.2}),
    ("a cosine's last step still moves", Cosine(1.0, steps=2), {2: 0.5}),
    (
        "a cosine after a warm-up starts at the peak and ends with the run",
        Cosine(1.0, warmup=4, steps=8),
        {4: 0.8, 5: 1.0, 7: 0.5, 9: 0.0},
    ),
    (
        "steps drop the rate after every third step",
        Step(1.0, every=3, factor=0.5),
        {1: 1.0, 3: 1.0, 4: 0.5, 6: 0.5, 7: 0.25},
    ),
    (
        "steps count their threes from the end of the warm-up",
        Step(1.0, warmup=1, every=3),
        {1: 0.5, 2: 1.0, 4: 1.0, 5: 0.1},
    ),
]


@pytest.mark.parametrize(("schedule", "rates"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_rates(schedule: Schedule, rates: dict[int, float]) -> None:
    assert {step: schedule.rate(step) for step in rates} == pytest.approx(rates, abs=1e-15)


WRONG = [
    ("a negative peak", lambda: Constant(-0.1), "peak is -0.1"),
    ("a peak that is no number", lambda: Constant(float("nan")), "peak is nan"),
    ("a negative warm-up", lambda: Constant(0.1, warmup=-1), "warmup is -1"),
    ("a cosine without steps", lambda: Cosine(0.1), "steps is 0"),
    ("a cosine that ends with its warm-up", lambda: Cosine(0.1, warmup=5, steps=5), "more than warmup"),
    ("a floor above the peak", lambda: Cosine(0.1, steps=5, floor=0.2), "floor is 0.2"),
    ("steps of no length", lambda: Step(0.1), "every is 0"),
    ("a factor of zero", lambda: Step(0.1, every=1, factor=0.0), "factor is 0.0"),
    ("a step before the first", lambda: Constant(0.1).rate(0), "step 0"),
]


@pytest.mark.parametrize(("make", "message"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_mistakes_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("warmup", [0, 5])
@pytest.mark.parametrize("name", ["constant", "cosine", "step"])
def test_whole_run_equals_pytorch(name: str, warmup: int) -> None:
    torch = pytest.importorskip("torch")
    from torch.optim import lr_scheduler as theirs

    peak, steps = 0.3, 40
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    ours, after = {
        "constant": (Constant(peak, warmup), lambda: theirs.ConstantLR(optimizer, factor=1.0)),
        "cosine": (
            Cosine(peak, warmup, steps, floor=0.01),
            lambda: theirs.CosineAnnealingLR(optimizer, T_max=steps - warmup, eta_min=0.01),
        ),
        "step": (Step(peak, warmup, every=7), lambda: theirs.StepLR(optimizer, step_size=7, gamma=0.1)),
    }[name]
    if warmup:
        climb = theirs.LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
        scheduler = theirs.SequentialLR(optimizer, [climb, after()], milestones=[warmup])
    else:
        scheduler = after()
    for step in range(1, steps + 1):
        assert ours.rate(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        scheduler.step()
