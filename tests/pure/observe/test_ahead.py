"""The picture of layers that overlap: found where blocks of two later layers begin before the first ends."""

from __future__ import annotations

from weft.runtime.observe.ahead import draw_ahead, overlaps
from weft.runtime.observe.trace import COMPUTE, RankTrace, Span


def block(layer: int, start: int, end: int, request: int = 1) -> Span:
    name = f"conv{layer} rows {start}-{end}"
    return Span(COMPUTE, name, start * 1000, end * 1000, {"layer": layer, "request": request})


AHEAD = [
    [block(0, 0, 10), block(1, 10, 20), block(2, 20, 30), block(3, 40, 50)],
    [block(0, 0, 35), block(1, 35, 37), block(2, 37, 40)],
]


def test_s1_5_a_trace_shows_blocks_of_two_later_layers_before_the_first_ends():
    (found,) = overlaps([span for spans in AHEAD for span in spans])
    assert found.layers == (0, 1, 2)
    assert found.ahead_ns == 15_000


def test_layer_after_layer_is_no_overlap(tmp_path):
    spans = tuple(block(layer, 10 * layer, 10 * layer + 10) for layer in range(4))
    assert overlaps(spans) == []
    path = tmp_path / "none.png"
    assert not draw_ahead(path, [RankTrace(0, "host", spans)], {}, "model")
    assert not path.exists()


def test_the_last_request_is_drawn(tmp_path):
    earlier = [block(layer, layer, layer + 1, request=0) for layer in range(4)]
    traces = [RankTrace(rank, "host", (*earlier, *spans)) for rank, spans in enumerate(AHEAD)]
    path = tmp_path / "ahead.png"
    assert draw_ahead(path, traces, {n: f"conv{n}" for n in range(4)}, "model")
    assert path.read_bytes().startswith(b"\x89PNG")
