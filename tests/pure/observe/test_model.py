"""The table of a model's nodes."""

from __future__ import annotations

from weft.runtime.graph import Builder, Graph
from weft.runtime.observe.model import Tensor, client_table, model_table


def graph() -> Graph:
    b = Builder()
    x = b.input("x", (3, 8, 8))
    h = b("conv2d", x, channels=16, kernel_size=[3, 3], padding=1, name="first")
    h = b("max_pool2d", h, kernel_size=[2, 4], name="pool", tags={"priority": 2, "cost": 5e6})
    return b.build(b("take", h, axis=1, indices=list(range(16)), name="last"))


def test_s1_1_every_node_is_shown_with_its_tags() -> None:
    head, first, pool, last, blank, ending = model_table(graph(), batch=2).splitlines()
    titles = ["node", "kernel", "output", "parameters", "MFLOP", "KB", "cost", "splits", "tags"]
    assert head.split() == titles
    words = first.split()
    assert words[:5] == ["first", "conv2d", "channels=16", "kernel_size=3", "padding=1"]
    # 2 · 27 · 16 · 64 products and 1,024 biases of 2 samples; x, y and the weights are moved
    assert words[5:] == ["16×8×8", "448", "0.11", "11.52", "determined", "16", "8"]
    assert pool.split()[1:4] == ["max_pool2d", "kernel_size=2×4", "stride=2×4"]
    assert "5.00" in pool and "given" in pool and pool.endswith("priority=2 cost=5000000.0")  # noqa: PT018
    assert "indices=0,1,2,3,4,5" in last
    assert "…" in last
    assert blank == ""
    assert (
        ending == "3 nodes, 448 parameters, 5.11 MFLOP forward for 2 samples; from x (3×8×8 float32) to last"
    )


def test_parameters_of_other_nodes_are_shown_where_they_are_read() -> None:
    b = Builder()
    first = b("dense", b.input("x", (8,)), features=8, name="first")
    b("dense", first, features=8, name="again", shares={"weight": "first.weight", "bias": "first.bias"})
    head, first_line, again, _, ending = model_table(b.build(first), batch=1).splitlines()
    assert head.split()[-1] == "shares"
    assert first_line.split()[-1] == "8"  # its neurons; it shares nothing itself
    assert again.split()[-2:] == ["first.weight", "first.bias"]
    assert ending.startswith("2 nodes, 72 parameters, ")


def test_columns_without_a_word_are_left_out() -> None:
    b = Builder()
    table = model_table(b.build(b("relu", b.input("x", (4,)), name="only")), batch=1)
    head, row, *_ = table.splitlines()
    assert head.split() == ["node", "kernel", "output", "FLOP", "B", "cost", "splits"]
    assert row.split()[:5] == ["only", "relu", "4", "4", "32"]
    assert "1 node, 0 parameters, 4 FLOP forward for 1 sample; from x (4 float32) to only" in table


def test_a_model_of_nothing() -> None:
    assert model_table(Graph({}, (), ()), 1) == (
        "0 nodes, 0 parameters, 0 FLOP forward for 1 sample; from no input to no output"
    )


def test_what_a_client_gives_and_gets() -> None:
    given = [Tensor("image", "float32", "FP32", ["batch", "3"]), Tensor("n", "int64", "INT64", ["batch"])]
    assert client_table(given, [Tensor("version", "int8", "INT8", [])]).splitlines() == [
        "client  name     dtype    datatype  shape",
        "gives   image    float32  FP32      [batch, 3]",
        "gives   n        int64    INT64     [batch]",
        "gets    version  int8     INT8      []",
    ]
