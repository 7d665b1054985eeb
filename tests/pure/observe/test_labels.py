from __future__ import annotations

from weft.runtime.observe import Span
from weft.runtime.observe.labels import forward_order, labels, layers


def test_a_layer_is_numbered_in_forward_order_and_its_portions_as_they_get_ready() -> None:
    names = [
        "portion 0 (d)",
        "portion 1 (c rows 64-127)",
        "portion 2 (c rows 0-63)",
        "portion 3 (b, a)",
    ]
    forward = ["a", "relu", "b", "c", "relu", "d"]
    assert layers(names, forward) == {"a": 1, "b": 2, "c": 3, "d": 4}
    found = labels(names, forward)
    assert [found[name].short for name in names] == ["4", "3a", "3b", "1–2"]
    assert [found[name].what for name in names] == ["d", "c rows 64-127", "c rows 0-63", "b, a"]
    assert [found[name].place for name in names] == [4, 3, 3, 1]


def test_without_forward_kernels_portions_go_by_their_number() -> None:
    assert labels(["portion 7 (d)"], [])["portion 7 (d)"].short == "7"


def test_a_layer_may_have_more_portions_than_there_are_letters() -> None:
    names = [f"portion {i} (a rows {i}-{i})" for i in range(28)]
    found = labels(names, ["a"])
    assert [found[names[i]].short for i in (0, 25, 26, 27)] == ["1a", "1z", "1aa", "1ab"]


def forward(*names: str, step: int) -> list[Span]:
    facts = {"phase": "forward", "step": step}
    return [Span("compute", name, 10 * step + i, 10 * step + i + 1, facts) for i, name in enumerate(names)]


def test_the_forward_order_is_that_of_a_whole_step() -> None:
    cut = forward("b.forward", "c.forward", step=0)
    whole = forward("a.forward", "b.forward rows 64-127", "b.forward rows 0-63", "c.forward", step=1)
    assert forward_order([*cut, *whole], "") == ["a", "b", "c"]
    assert forward_order(whole, "another model") == []
