from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from tests.pure.observe.synthetic import ONE, TWO, Model, exchange_trace, rank_trace, steps_of, write_run
from weft.runtime.observe import RankTrace, Span, read_metrics
from weft.runtime.observe.compare import Run
from weft.runtime.observe.compare_picture import draw_comparison
from weft.runtime.observe.curves import DRAWN, draw_loss, smooth, spread, thin
from weft.runtime.observe.history import History
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
    assert not draw_loss(tmp_path / "loss.png", "digits", History(steps_of([]), [], None, 0))
    assert not (tmp_path / "loss.png").exists()


def test_of_a_single_step_the_loss_is_a_point(tmp_path: Path) -> None:
    steps = [{"step": 1, "loss": 2.3}]
    assert draw_loss(tmp_path / "loss.png", "digits", History(steps_of(steps), [], None, 0))
    with Image.open(tmp_path / "loss.png") as file:
        drawn = np.asarray(file.convert("RGB"))[:, : 1600 - 240]  # without the label at the right
    assert (drawn == [0x44, 0x77, 0xAA]).all(axis=2).sum() > 20


WORDS = {
    "one step": ([1], [], "1 step in 50 s"),
    "the time of all starts": (range(1, 41), [], "40 steps in 50 s"),
    "accuracies that are close": (range(1, 41), [0.9901, 0.9904, 0.9911], None),
    "accuracies that are not": (range(1, 41), [0.1, 0.5, 0.9], None),
}


@pytest.mark.parametrize(("steps", "accuracies", "subtitle"), WORDS.values(), ids=WORDS.keys())
def test_words_of_the_loss_picture(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    steps: Sequence[int],
    accuracies: list[float],
    subtitle: str | None,
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    rows = [{"step": step, "loss": 1.0} for step in steps]
    evaluated = [
        {"kind": "evaluation", "split": "validation", "step": 10 * i, "accuracy": accuracy}
        for i, accuracy in enumerate(accuracies, 1)
    ]
    assert draw_loss(
        tmp_path / "loss.png", "digits", History(steps_of(rows), evaluated, None, 0, seconds=50.0)
    )
    if subtitle:
        assert subtitle in [text.get_text() for text in drawn[0].texts]
    if accuracies:
        ticks = [label.get_text() for label in drawn[0].axes[1].get_yticklabels()]
        assert len(set(ticks)) == len(ticks)


def test_a_loss_that_ends_as_no_number_leaves_the_other_labels_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    rows = [{"step": i, "loss": 1.0 if i < 20 else float("nan")} for i in range(1, 41)]
    evaluated = [
        {"kind": "evaluation", "split": split, "step": 10, "loss": loss}
        for split, loss in (("validation", 1.2), ("test", 0.8))
    ]
    assert draw_loss(tmp_path / "loss.png", "digits", History(steps_of(rows), evaluated, None, 0))
    labels = [text for text in drawn[0].axes[0].texts if " " in text.get_text()]
    assert [text.get_text() for text in labels] == ["test 0.8000", "validation 1.2000"]


LEAN = {
    "one step": [{"step": 1, "loss": 2.3}],
    "losses that are not numbers": [{"step": 1, "loss": float("nan")}, {"step": 2, "loss": float("nan")}],
    "no loss at all": [{"step": 1}],
    "losses below zero": [{"step": i, "loss": -float(i)} for i in range(1, 50)],
    "losses of zero": [{"step": i, "loss": 0.0, "rate": 0.0} for i in range(1, 50)],
}


@pytest.mark.parametrize("steps", LEAN.values(), ids=LEAN.keys())
def test_a_lean_history_is_drawn(tmp_path: Path, steps: list[dict[str, float]]) -> None:
    assert draw_loss(tmp_path / "loss.png", "digits", History(steps_of(steps), [], None, 0))
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


def test_an_evaluation_is_no_forward_pass_of_the_training(tmp_path: Path) -> None:
    facts = {"phase": "forward", "micro_batch": -1, "model": "a"}
    spans = []
    for step in range(3):
        start = step * 100 * 1_000_000
        about = {"phase": "weight_gradient", "step": step, "model": "a"}
        spans.append(Span("compute", "a.weight_gradient", start, start + 20_000_000, about))
        scored = f"a: validation score after step {step + 1}"
        spans.append(Span("compute", scored, start + 30_000_000, start + 90_000_000, facts))
    assert draw_timeline(tmp_path / "t.png", "a", [RankTrace(0, "n0", tuple(spans))])
    found = pixels(tmp_path / "t.png")
    assert found[PHASES["evaluation"][1]] > 1000
    assert found[RED] > 1000
    assert BLUE not in found


def test_the_key_of_several_models_fits_the_picture() -> None:
    palette = Palette(["mlp", "cnn"])
    lines = palette.key({(model, phase) for model in palette.models for phase in PHASES}, wire=True)
    assert [model for model, _ in lines] == ["mlp", "cnn", ""]
    assert [swatch.words for swatch in lines[2][1]] == ["evaluation"]
    words = [swatch.words for swatch in lines[0][1]]
    assert "exchange" in words
    assert not {"reduce", "encode", "decode"} & set(words)
    assert len({swatch.colour for swatch in lines[0][1]}) >= len(words) - 1  # exposed is as a weight gradient


def run_of(trace: RankTrace) -> Run:
    return Run("a", History(steps_of([]), [], None, 0), [trace])


LONG = "a-surrogate-of-the-turbulent-boundary-layer-at-high-reynolds-number"


def test_names_of_any_length_stay_within_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = Figure.savefig
    edges: list[tuple[str, float, float]] = []

    def measured(figure: Figure, *arguments: object, **keys: object) -> None:
        texts = [*figure.texts, *(text for axes in figure.axes for text in axes.texts)]
        for text in texts:
            box = text.get_window_extent()
            edges.append((text.get_text(), box.x0, box.x1))
        saved(figure, *arguments, **keys)

    monkeypatch.setattr(Figure, "savefig", measured)
    models = [Model(f"{LONG}-{i}", (3.0, 3.0), (2, 2), 2.0) for i in (1, 2)]
    hosts = [f"node-gpu-{i}.cluster.physics.university-somewhere.example" for i in range(2)]
    draw_timeline(
        tmp_path / "t.png", "two", [exchange_trace(i, host, models) for i, host in enumerate(hosts)]
    )
    draw_loss(tmp_path / "l.png", LONG * 3, History(steps_of([{"step": 1, "loss": 2.3}]), [], None, 0))
    draw_comparison(tmp_path / "c.png", LONG * 2, [run_of(exchange_trace(0, "n0", ONE)) for _ in range(2)])
    assert [edge for edge in edges if edge[1] < 0 or edge[2] > 1600] == []
    leads = [text for text, _, _ in edges if text.startswith("a-su…")]
    assert len(set(leads)) == len(leads) == 2  # they differ at their ends alone


def test_a_name_is_no_formula(tmp_path: Path) -> None:
    assert draw_loss(tmp_path / "loss.png", r"a$\foo$b", History(steps_of([{"step": 1}]), [], None, 0))


def test_a_typical_step_is_typical_in_what_it_consists_of() -> None:
    spans = []
    at = 0
    # The fourth is as long as most, and of kernels alone.
    parts = [(50, 40, 10), (50, 40, 10), (60, 50, 10), (100, 0, 0), (50, 40, 10)]
    for step, (compute, travels, idle) in enumerate(parts):
        facts = {"phase": "weight_gradient", "step": step, "micro_batch": 0}
        spans.append(Span("compute", "a.weight_gradient", at, at + compute, facts))
        if travels:
            about = {"bytes": 4, "step": step, "portion": 0}
            spans.append(Span("wire", "portion 0 (a)", at + compute, at + compute + travels, about))
        at += compute + travels + idle
    shown = run_of(RankTrace(0, "n0", tuple(spans))).typical_step()
    assert shown is not None
    assert shown[1:] == (1, 100, 200)


def test_a_step_with_an_evaluation_in_it_is_not_typical() -> None:
    facts = {"phase": "weight_gradient"}
    spans = [
        Span("compute", "a.weight_gradient", 100 * step, 100 * step + 60, {**facts, "step": step})
        for step in range(5)
    ]
    scored = Span("compute", "a: validation score after step 4", 370, 370, {"phase": "forward"})
    shown = run_of(RankTrace(0, "n0", (*spans, scored))).typical_step()
    assert shown is not None
    assert shown[1] == 2  # the latest without


def test_the_shares_beside_a_step_are_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    spans = [
        Span("compute", "a.weight_gradient", start, end, {"phase": "weight_gradient", "step": step})
        for step, (start, end) in enumerate([(0, 80), (100, 180), (200, 280), (300, 900), (910, 920)])
    ]
    run = run_of(RankTrace(0, "n0", tuple(spans)))
    assert draw_comparison(tmp_path / "c.png", "a", [run, run])
    words = [text.get_text() for text in drawn[0].axes[0].texts]
    assert words.count("80%") == 2
    assert words.count("20%") == 2


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


def test_a_step_among_several_models_is_told_with_the_one_that_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one with most kernels of backward, from which the step begins. The other has more in all."""
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    both, alone = (run_of(exchange_trace(0, "n0", models, steps=4)) for models in (TWO, ONE))
    assert draw_comparison(tmp_path / "c.png", "a", [both, alone])
    told = [text.get_text() for text in drawn[0].axes[0].texts if text.get_text().startswith("step ")]
    assert [words.partition(" of ")[2] for words in told] == ["mlp", ""]


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
    "of three the second, not the one that compiles": (steps_at(0, 90, 100), [(1, 90), (2, 100)]),
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


def test_smoothing_of_many_values_is_that_of_each_under_the_window() -> None:
    rng = np.random.default_rng(1)
    values = np.cumsum(rng.standard_normal(30_011)) / 50
    values[rng.random(values.size) < 0.1] = np.nan
    smoothed, known = smooth(values, 375.0), np.isfinite(values)
    for at in (0, 1, 700, 15_000, 29_000, 30_010):
        window = np.exp(-0.5 * ((np.arange(values.size) - at) / 375.0) ** 2)[known]
        assert smoothed[at] == pytest.approx((window @ values[known]) / window.sum(), abs=2e-3), at


def test_the_work_of_smoothing_does_not_go_with_the_square_of_the_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    convolve = np.convolve

    def bounded(a: np.ndarray, window: np.ndarray, mode: str) -> np.ndarray:
        assert a.size * window.size < 50 * 1_000_000
        return convolve(a, window, mode)

    monkeypatch.setattr(np, "convolve", bounded)
    assert smooth(np.ones(1_000_000), 1_000_000 / 80) == pytest.approx(np.ones(1_000_000))


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


def test_of_a_line_with_more_points_than_are_seen_the_least_and_the_greatest_are_drawn() -> None:
    steps = np.arange(10.0 * DRAWN + 7)
    values = np.sin(steps / 1e4)
    values[[4_321, 99_999]] = 9.0, -9.0
    values[50_000:60_000] = np.nan  # a gap stays one
    drawn, kept = thin(steps, values)
    assert len(drawn) <= DRAWN + 100
    assert (np.diff(drawn) >= 0).all()
    assert (np.nanmax(kept), np.nanmin(kept), kept[-1]) == (9.0, -9.0, values[-1])
    assert np.isnan(kept[(drawn > 50_100) & (drawn < 59_900)]).all()


def test_a_line_of_few_points_is_drawn_as_it_is() -> None:
    steps = np.arange(float(DRAWN - 1))
    assert thin(steps, steps)[0] is steps
