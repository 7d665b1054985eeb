from __future__ import annotations

import pytest

from weft.runtime.observe.words import duration, figure, speed

FIGURES = {
    1.38e31: "1.4e+31",
    9_999_999.0: "9,999,999",
    5120.4: "5,120",
    34.2: "34.20",
    2.3026: "2.3026",
    0.0421: "0.0421",
    3.2e-5: "3.2e-05",
    0: "0.0000",
    -5120.4: "-5,120",
    float("nan"): "nan",
    float("inf"): "inf",
}


@pytest.mark.parametrize(("value", "text"), FIGURES.items())
def test_figure(value: float, text: str) -> None:
    assert figure(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 s"), (59, "59 s"), (59.5, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("per_s", "text"),
    [
        (5120.4, "5,120 samples/s"),
        (34.21, "34.2 samples/s"),
        (7.4468, "7.45 samples/s"),
        (0.0, "0.00 samples/s"),
    ],
)
def test_speed(per_s: float, text: str) -> None:
    assert speed(per_s) == text
