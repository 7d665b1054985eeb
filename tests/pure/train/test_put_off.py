"""Which layers' weight gradients a rank may put off: it keeps what they read until backward ends."""

from __future__ import annotations

from typing import Any

import pytest

from weft.kernels.device import Device
from weft.runtime.graph import Builder, Graph
from weft.runtime.train.prepare import make_replica
from weft.runtime.train.schema import Job


def network() -> Graph:
    b = Builder()
    h = b("flatten", b("relu", b("conv2d", b.input("x", (1, 8, 8)), channels=8, kernel_size=3)))
    h = b("relu", b("dense", h, features=128, name="large"))  # 147,968 bytes
    return b.build(b("dense", h, features=4, name="small"))


@pytest.mark.parametrize(
    ("exchange", "ranks", "expected"),
    [
        pytest.param({}, 2, {"large"}, id="portions are tuned, and may be as large as it"),
        pytest.param({"portion_bytes": 65_536}, 2, {"large"}, id="it travels by rows"),
        pytest.param({"portion_bytes": 148_100}, 2, {"large"}, id="it travels whole"),
        pytest.param({"portion_bytes": 1 << 20}, 2, set(), id="it travels together with others"),
        pytest.param({}, 1, set(), id="nothing travels"),
    ],
)
def test_layers_that_may_be_put_off(exchange: dict[str, Any], ranks: int, expected: set[str]) -> None:
    job = Job.model_validate(
        {
            "name": "late",
            "data": {"source": "digits"},
            "model": {"layers": [{"kernel": "flatten"}]},
            "train": {"batch": 8, "steps": 1, "optimizer": {"name": "sgd", "rate": 0.1}},
            "exchange": exchange,
        }
    )
    assert make_replica(job, network(), Device(), None, ranks).memory.movable == expected
