"""The optimizers: fused against plain arrays, against PyTorch over several steps, and cut into slices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from weft.kernels import optimizer as module
from weft.kernels.optimizer import (
    SGD,
    Adam,
    AdamW,
    Optimizer,
    accumulate,
    move_statistic,
    squared_norm,
)

OPTIMIZERS = {
    "plain descent": SGD(),
    "descent with decay": SGD(weight_decay=0.1),
    "heavy ball": SGD(momentum=0.9),
    "nesterov with decay": SGD(momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": Adam(),
    "adam with decay and other betas": Adam(weight_decay=0.1, beta1=0.8, beta2=0.95, epsilon=1e-3),
    "adamw": AdamW(weight_decay=0.1),
}
every_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())


def arrays(optimizer: Optimizer, size: int, dtype: str = "float32") -> list[np.ndarray]:
    """Parameters and zero states."""
    values = np.random.default_rng(1).standard_normal(size).astype(dtype)
    return [values, *(np.zeros(size, dtype) for _ in range(optimizer.slots))]


def gradients(step: int, size: int, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(100 + step).standard_normal(size).astype(dtype)


@every_optimizer
def test_fused_pass_equals_plain_arrays(optimizer: Optimizer, monkeypatch: pytest.MonkeyPatch) -> None:
    fused = arrays(optimizer, 1001)
    plain = arrays(optimizer, 1001)
    for step in range(1, 6):
        optimizer.update(fused[0], gradients(step, 1001), tuple(fused[1:]), rate=0.01, step=step, scale=0.5)
    for name in ("sgd_step", "momentum_step", "adam_step"):
        monkeypatch.setattr(module, name, getattr(module, name).oracle)
    for step in range(1, 6):
        optimizer.update(plain[0], gradients(step, 1001), tuple(plain[1:]), rate=0.01, step=step, scale=0.5)
    for a, b in zip(fused, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-7)


def pytorch(optimizer: Optimizer, parameter: Any) -> Any:
    torch = pytest.importorskip("torch")
    if isinstance(optimizer, SGD):
        return torch.optim.SGD(
            [parameter],
            lr=0.01,
            momentum=optimizer.momentum,
            nesterov=optimizer.nesterov,
            weight_decay=optimizer.weight_decay,
        )
    assert isinstance(optimizer, Adam)
    kind = torch.optim.AdamW if isinstance(optimizer, AdamW) else torch.optim.Adam
    return kind(
        [parameter],
        lr=0.01,
        betas=(optimizer.beta1, optimizer.beta2),
        eps=optimizer.epsilon,
        weight_decay=optimizer.weight_decay,
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 5e-6)])
@every_optimizer
def test_ten_steps_equal_pytorch(optimizer: Optimizer, dtype: str, tolerance: float) -> None:
    torch = pytest.importorskip("torch")
    values, *states = arrays(optimizer, 200, dtype)
    parameter = torch.tensor(values, requires_grad=True)
    theirs = pytorch(optimizer, parameter)
    for step in range(1, 11):
        rate = 0.01 / step
        gradient = gradients(step, 200, dtype)
        theirs.param_groups[0]["lr"] = rate
        parameter.grad = torch.tensor(gradient)
        theirs.step()
        optimizer.update(values, gradient, tuple(states), rate=rate, step=step)
    np.testing.assert_allclose(values, parameter.detach().numpy(), rtol=tolerance, atol=tolerance)


@every_optimizer
def test_slices_of_any_size_give_the_same_bits(optimizer: Optimizer) -> None:
    whole = arrays(optimizer, 1000)
    cut = arrays(optimizer, 1000)
    slices = [slice(0, 0), slice(0, 7), slice(7, 40), slice(40, 571), slice(571, 1000)]
    for step in (1, 2, 3):
        g = gradients(step, 1000)
        optimizer.update(whole[0], g, tuple(whole[1:]), rate=0.01, step=step, scale=0.7)
        for s in slices:
            optimizer.update(cut[0][s], g[s], tuple(a[s] for a in cut[1:]), rate=0.01, step=step, scale=0.7)
    for a, b in zip(whole, cut, strict=True):
        np.testing.assert_array_equal(a, b)


@every_optimizer
def test_without_decay_the_weights_are_not_pulled(optimizer: Optimizer) -> None:
    values, *states = arrays(optimizer, 50)
    before = values.copy()
    optimizer.update(values, np.zeros(50, "float32"), tuple(states), rate=0.1, step=1, decay=False)
    np.testing.assert_array_equal(values, before)


@every_optimizer
def test_gradients_are_left_alone(optimizer: Optimizer) -> None:
    values, *states = arrays(optimizer, 50)
    g = gradients(1, 50)
    optimizer.update(values, g, tuple(states), rate=0.1, step=1, scale=0.5)
    np.testing.assert_array_equal(g, gradients(1, 50))


def test_a_gradient_that_is_no_number_stays_visible() -> None:
    values, *states = arrays(AdamW(), 40)
    g = gradients(1, 40)
    g[17] = np.nan
    AdamW().update(values, g, tuple(states), rate=0.1, step=1)
    assert np.flatnonzero(np.isnan(values)).tolist() == [17]
    assert np.isnan(squared_norm(g))


def test_squared_norm_adds_in_double_precision() -> None:
    # float32 would stop counting ones at 2**24.
    assert squared_norm(np.ones(2**24 + 2**20, "float32")) == 2**24 + 2**20
    g = gradients(1, 12345)
    assert squared_norm(g) == squared_norm(g.copy())
    assert squared_norm(g) == pytest.approx(module._squares.oracle(g), rel=1e-12)


def test_accumulate_and_move_statistic_work_in_place() -> None:
    a, b = np.array([1.0, 2.0], "float32"), np.array([3.0, 5.0], "float32")
    accumulate(a, b)
    assert a.tolist() == [4.0, 7.0]
    move_statistic(a, b, 0.5)
    assert a.tolist() == [3.5, 6.0]


def test_a_statistic_that_stays_may_be_infinite() -> None:
    mask = np.array([0.0, -np.inf, np.inf], "float32")
    move_statistic(mask, np.zeros(3, "float32"), 0.0)
    assert mask.tolist() == [0.0, -np.inf, np.inf]


WRONG = [
    (
        "a state too few",
        lambda: SGD(momentum=0.9).update(*_pair(5, 5), (), rate=0.1, step=1),
        "takes 1 state",
    ),
    (
        "gradients of another size",
        lambda: SGD().update(*_pair(5, 4), (), rate=0.1, step=1),
        r"parameters \(5,\), gradients \(4,\)",
    ),
    ("nesterov without momentum", lambda: SGD(nesterov=True), "nesterov needs"),
    ("a momentum of one", lambda: SGD(momentum=1.0), "momentum is 1.0"),
    ("a negative decay", lambda: AdamW(weight_decay=-1.0), "AdamW: weight_decay is -1.0"),
    ("a beta of one", lambda: Adam(beta2=1.0), "beta2 is 1.0"),
    ("an epsilon of zero", lambda: Adam(epsilon=0.0), "epsilon is 0.0"),
]


def _pair(parameters: int, gradients: int) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros(parameters, "float32"), np.zeros(gradients, "float32")


@pytest.mark.parametrize(("call", "message"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_mistakes_are_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
