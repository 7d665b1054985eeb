from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.pure.observe.synthetic import ONE, TWO, exchange_trace, rank_trace, write_run
from weft.runtime.observe import RankTrace, Span, read_metrics
from weft.runtime.observe.compare import Run
from weft.runtime.observe.compare_picture import draw_comparison
from weft.runtime.observe.curves import draw_loss, smooth, spread
from weft.runtime.observe.metrics import History
from weft.runtime.observe.palette import HUES, PALE, PHASES, SHADES, Palette, shade
from weft.runtime.observe.picture import BLUE, CYAN, GREEN, PURPLE, RED, VIOLET, YELLOW
from weft.runtime.observe.steps import starts, typical
from weft.runtime.observe.timeline import draw_timeline


def pixels(path: Path) -> dict[str, int]:
    """How many pixels there are of each colour; a picture is 1600 wide."""
    with Image.open(path) as file:
        image = file.convert("RGB")
    assert image.width == 1600
    return {
        "#{:02X}{:02X}{:02X}".format(*colour): n for n, colour in image.getcolors(image.width * image.height)
    }


def test_the_loss_picture_shows_losses_accuracies_and_rate(tmp_path: Path) -> None:
    folder = write_run(tmp_path, ranks=1)
    assert draw_loss(tmp_path / "loss.png", "digits", read_metrics(folder.metrics))
    found = pixels(tmp_path / "loss.png")
    for colour in (BLUE, RED, PURPLE, GREEN):
        assert found[colour] > 100, colour
    assert found["#FFFFFF"] > 1e6


def test_a_run_without_steps_has_no_loss_picture(tmp_path: Path) -> None:
    assert not draw_loss(tmp_path / "loss.png", "digits", History([], [], None, 0))
    assert not (tmp_path / "loss.png").exists()


LEAN = {
    "one step": [{"step": 1, "loss": 2.3}],
    "losses that are not numbers": [{"step": 1, "loss": float("nan")}, {"step": 2, "loss": float("nan")}],
    "no loss at all": [{"step": 1}],
    "losses below zero": [{"step": i, "loss": -float(i)} for i in range(1, 50)],
    "losses of zero": [{"step": i, "loss": 0.0, "rate": 0.0} for i in range(1, 50)],
}


@pytest.mark.parametrize("steps", LEAN.values(), ids=LEAN.keys())
def test_a_lean_history_is_drawn(tmp_path: Path, steps: list[dict[str, float]]) -> None:
    rows = [{"kind": "step", **step} for step in steps]
    assert draw_loss(tmp_path / "loss.png", "digits", History(rows, [], None, 0))
    assert len(pixels(tmp_path / "loss.png")) > 2


def test_the_timeline_shows_every_phase_and_the_wire(tmp_path: Path) -> None:
    traces = [rank_trace(rank, "n1") for rank in range(3)]
    assert draw_timeline(tmp_path / "timeline.png", "digits", traces)
    found = pixels(tmp_path / "timeline.png")
    for colour in (BLUE, YELLOW, RED, GREEN, CYAN, PURPLE, "#E2BDD1"):
        assert found[colour] > 100, colour


def test_the_timeline_shows_what_the_exchange_costs_the_lane(tmp_path: Path) -> None:
    assert draw_timeline(tmp_path / "with.png", "wide", [exchange_trace(0, "n0", ONE, reduce_ms=0.5)])
    assert draw_timeline(tmp_path / "without.png", "wide", [exchange_trace(0, "n0", ONE)])
    assert pixels(tmp_path / "with.png")[VIOLET] > 1000
    assert VIOLET not in pixels(tmp_path / "without.png")


def test_a_rank_that_sends_nothing_has_no_wire(tmp_path: Path) -> None:
    assert draw_timeline(tmp_path / "wire.png", "wide", [exchange_trace(0, "n0", ONE)])
    assert draw_timeline(tmp_path / "none.png", "wide", [exchange_trace(0, "n0", ONE, sends=False)])
    assert PURPLE in pixels(tmp_path / "wire.png")
    assert not {PURPLE, "#E2BDD1"} & set(pixels(tmp_path / "none.png"))
    with Image.open(tmp_path / "wire.png") as wire, Image.open(tmp_path / "none.png") as none:
        assert none.height < wire.height


def test_the_timeline_of_two_models_has_a_hue_for_each_on_lane_and_wire(tmp_path: Path) -> None:
    assert draw_timeline(tmp_path / "timeline.png", "two", [exchange_trace(0, "n0", TWO, reduce_ms=0.2)])
    found = pixels(tmp_path / "timeline.png")
    for hue in HUES[:2]:
        assert found[hue] > 1000
        for part in (SHADES["forward"], SHADES["update"], PALE):
            assert found[shade(hue, part)] > 300, (hue, part)
    assert RED not in found  # a phase's colour would say nothing about the model


def test_kernels_of_no_model_are_drawn_beside_those_of_several(tmp_path: Path) -> None:
    trace = exchange_trace(0, "n0", TWO)
    _, steps = starts(trace)
    at = steps[3][1]
    rest = [
        Span("compute", "rest", at + i * 63_000_000, at + i * 63_000_000 + 9_000_000, {}) for i in range(4)
    ]
    assert draw_timeline(tmp_path / "t.png", "two", [RankTrace(0, "n0", (*trace.spans, *rest))])
    assert pixels(tmp_path / "t.png")["#BBBBBB"] > 100


def test_the_key_of_several_models_fits_the_picture() -> None:
    palette = Palette(["mlp", "cnn"])
    lines = palette.key({(model, phase) for model in palette.models for phase in PHASES}, wire=True)
    assert [model for model, _ in lines] == ["mlp", "cnn"]
    words = [swatch.words for swatch in lines[0][1]]
    assert "exchange" in words
    assert not {"reduce", "encode", "decode"} & set(words)
    assert len({swatch.colour for swatch in lines[0][1]}) >= len(words) - 1  # exposed is as a weight gradient


def run_of(trace: RankTrace) -> Run:
    return Run("a", History([], [], None, 0), [trace])


def test_two_runs_are_drawn_on_one_scale(tmp_path: Path) -> None:
    slow, fast = (exchange_trace(0, "n0", ONE, steps=4, credit=credit) for credit in (1, 4))
    assert draw_comparison(tmp_path / "compare.png", "wide", [run_of(slow), run_of(fast)])
    found = pixels(tmp_path / "compare.png")
    for colour in (BLUE, YELLOW, RED, GREEN, PURPLE):
        assert found[colour] > 100, colour


def test_a_run_without_steps_is_not_compared_in_a_picture(tmp_path: Path) -> None:
    some, none = run_of(exchange_trace(0, "n0", ONE, steps=4)), run_of(RankTrace(0, "n0", ()))
    assert not draw_comparison(tmp_path / "compare.png", "wide", [some, none])
    assert not (tmp_path / "compare.png").exists()


def test_runs_of_one_model_each_are_coloured_by_phase(tmp_path: Path) -> None:
    runs = [run_of(exchange_trace(0, "n0", [model], steps=4)) for model in TWO]
    assert draw_comparison(tmp_path / "compare.png", "mlp and cnn", runs)
    assert pixels(tmp_path / "compare.png")[RED] > 1000


def test_the_timeline_of_many_ranks_shows_the_first(tmp_path: Path) -> None:
    few, many = tmp_path / "few.png", tmp_path / "many.png"
    traces = [rank_trace(rank, f"n{rank}", steps=2, micro_batches=1) for rank in range(17)]
    draw_timeline(few, "digits", traces[:16])
    draw_timeline(many, "digits", traces)
    with Image.open(few) as one, Image.open(many) as other:
        assert one.size == other.size


TRACES = {
    "no ranks": ([], False),
    "a rank without spans": ([RankTrace(0, "n0", ())], False),
    "no training": ([RankTrace(0, "n0", (Span("compute", "validation", 0, 5, {}),))], False),
    "a single step": ([rank_trace(0, "n0", steps=1)], True),
    "two steps": ([rank_trace(0, "n0", steps=2)], True),
    "a rank that came too late": ([rank_trace(0, "n0"), RankTrace(1, "n0", ())], True),
    "kernels without a phase": (
        [RankTrace(0, "n0", (Span("compute", "x", 0, 5_000_000, {"step": 0}),))],
        True,
    ),
}


@pytest.mark.parametrize(("traces", "drawn"), TRACES.values(), ids=TRACES.keys())
def test_a_lean_trace_is_drawn_or_left(tmp_path: Path, traces: list[RankTrace], drawn: bool) -> None:
    assert draw_timeline(tmp_path / "timeline.png", "digits", traces) is drawn
    assert (tmp_path / "timeline.png").exists() is drawn


def steps_at(*starts: int) -> RankTrace:
    spans = [
        Span("compute", "a.forward", start, start + 1, {"phase": "forward", "step": step})
        for step, start in enumerate(starts)
    ]
    return RankTrace(0, "n0", tuple(spans))


STEADY = {
    "the latest of equal stretches": (steps_at(0, 10, 20, 30, 40), [(2, 20), (3, 30), (4, 40)]),
    "not the one with an evaluation in it": (
        steps_at(0, 10, 20, 30, 130, 140),
        [(1, 10), (2, 20), (3, 30)],
    ),
    "not the one that compiles": (steps_at(0, 90, 100, 110), [(1, 90), (2, 100), (3, 110)]),
    "of two steps the first": (steps_at(0, 10), [(0, 0), (1, 10)]),
    "of one step that": (steps_at(5), [(0, 5)]),
    "of none nothing": (steps_at(), []),
}


@pytest.mark.parametrize(("trace", "steps"), STEADY.values(), ids=STEADY.keys())
def test_typical_steps(trace: RankTrace, steps: list[tuple[int, int]]) -> None:
    assert typical(starts(trace)[1], 2) == steps


def test_updates_do_not_begin_a_step() -> None:
    late = Span("compute", "a.update", 12, 13, {"phase": "update", "step": 0})
    early = Span("compute", "b.update", -3, -2, {"phase": "update", "step": 0})
    trace = steps_at(0, 10, 20)
    assert starts(RankTrace(0, "n0", (early, *trace.spans, late)))[1] == [(0, 0), (1, 10), (2, 20)]


def test_steps_begin_with_backward_if_wished() -> None:
    trace = exchange_trace(0, "n0", ONE, steps=3)
    forward, backward = starts(trace)[1], starts(trace, backward=True)[1]
    assert [step for step, _ in backward] == [0, 1, 2]
    for (_, begun), (_, turned) in zip(forward, backward, strict=True):
        assert turned - begun > 12_000_000  # the forward kernels take 12 ms


def test_of_several_models_the_steps_of_the_busiest_count() -> None:
    model, steps = starts(exchange_trace(0, "n0", TWO, steps=3))
    assert model == "cnn"
    assert [step for step, _ in steps] == [0, 1]  # in its last step the other has ended


def test_smoothing_keeps_a_constant_and_bridges_what_is_missing() -> None:
    values = np.full(100, 2.0)
    values[40:43] = np.nan
    assert smooth(values, 5.0) == pytest.approx(np.full(100, 2.0))


def test_smoothing_does_not_lag() -> None:
    step = np.repeat([0.0, 1.0], 50)
    smoothed = smooth(step, 4.0)
    assert (smoothed[49] + smoothed[50]) / 2 == pytest.approx(0.5)


SPREAD = {
    "far apart stay": ([0.0, 5.0], [0.0, 5.0]),
    "two that meet part evenly": ([3.0, 3.0], [2.5, 3.5]),
    "a group pushes its neighbour": ([0.0, 0.0, 0.6], [-0.8, 0.2, 1.2]),
    "one alone stays": ([0.3], [0.3]),
    "none": ([], []),
}


@pytest.mark.parametrize(("places", "moved"), SPREAD.values(), ids=SPREAD.keys())
def test_spread(places: list[float], moved: list[float]) -> None:
    assert spread(places, 1.0) == pytest.approx(moved)
