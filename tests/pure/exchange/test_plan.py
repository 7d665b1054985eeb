"""Plans: what leaves first, what may wait, and that nothing runs before what it needs."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pure.exchange.networks import MEGABYTE, balanced, timings_of_any_kind
from weft.runtime.exchange import Plan, Portion
from weft.runtime.exchange.plan import RULES, Timings, Work, describe, drifted, make_plan

NAMES = {0: "2a", 1: "2b", 2: "2c", 3: "1a", 4: "1b"}


def two_layers(*, movable, wire_s=5.0):
    """Layer 2 gives three portions, layer 1 two; a block takes 1 s, so does the input gradient of layer 2."""
    second = [Work(1.0, (portion,), movable) for portion in (0, 1, 2)]
    first = [Work(1.0, (portion,), movable) for portion in (3, 4)]
    return Timings((*second, Work(1.0), *first), (wire_s,) * 5, (1, 1, 1, 0, 0))


@pytest.mark.parametrize("movable", [False, True])
def test_s3_2_layer_1_overtakes_what_remains_of_layer_2(movable):
    plan = make_plan(two_layers(movable=movable), "lower_layer_first", credit=1)
    assert [NAMES[portion] for portion in plan.order] == ["2a", "1a", "1b", "2b", "2c"]


@pytest.mark.parametrize(
    ("rule", "order"),
    [
        ("lower_layer_first", ["2a", "1a", "1b", "2b", "2c"]),
        ("latest_first", ["2a", "1b", "1a", "2c", "2b"]),
        ("first_come", ["2a", "2b", "2c", "1a", "1b"]),
    ],
)
def test_s3_3_each_rule_chooses_among_what_is_ready(rule, order):
    plan = make_plan(two_layers(movable=False, wire_s=5.5), rule, credit=1)
    assert [NAMES[portion] for portion in plan.order] == order


def test_s3_3_what_is_posted_is_not_recalled():
    plan = make_plan(two_layers(movable=False), "lower_layer_first", credit=3)
    assert [NAMES[portion] for portion in plan.order] == ["2a", "2b", "2c", "1a", "1b"]


def test_s3_2_blocks_run_later_when_the_wire_has_enough():
    plan = make_plan(two_layers(movable=True), "lower_layer_first", credit=1)
    assert plan.backward == (0, 3, 4, 5, 1, 2)  # 2a, the input gradient, 1a, 1b, and only then 2b and 2c


@pytest.mark.parametrize("rule", ["latest_first", "first_come"])
def test_s3_3_nothing_is_put_off_where_the_time_of_storing_counts(rule):
    plan = make_plan(two_layers(movable=True, wire_s=5.5), rule, credit=1)
    assert plan == make_plan(two_layers(movable=False, wire_s=5.5), rule, credit=1)
    assert plan.backward == (0, 1, 2, 3, 4, 5)


@pytest.mark.parametrize("wire_s", [0.0, 0.1, 1.0])
def test_a_fast_wire_leaves_backward_as_it_is(wire_s):
    timings = two_layers(movable=True, wire_s=wire_s)
    for rule in ("lower_layer_first", "first_come"):
        assert make_plan(timings, rule, credit=2) == Plan((0, 1, 2, 3, 4), (0, 1, 2, 3, 4, 5), 2)


def test_the_chain_goes_first_where_it_feeds_the_wire_itself():
    backward = (Work(1.0, (0,)), Work(1.0, (1,), True), Work(3.0, (2,)))
    timings = Timings(backward, (3.5, 1.0, 1.0), (2, 1, 0))
    assert make_plan(timings, "lower_layer_first", 1).backward == (0, 2, 1)
    starved = replace(timings, wire_s=(2.5, 1.0, 1.0))
    assert make_plan(starved, "lower_layer_first", 1).backward == (0, 1, 2)


def test_a_model_of_one_portion():
    timings = Timings((Work(2.0), Work(1.0, (0,))), (1.0,), (0,))
    assert make_plan(timings, "lower_layer_first", 4) == Plan((0,), (0, 1), 4)


@pytest.mark.parametrize(
    ("order", "backward", "credit", "words"),
    [
        pytest.param((0, 0, 1), (0,), 1, "every portion once", id="a portion twice"),
        pytest.param((0, 2), (0,), 1, "every portion once", id="a portion missing"),
        pytest.param((0,), (1, 1), 1, "every item of backward once", id="an item twice"),
        pytest.param((0,), (0,), 0, "at least one", id="no credit"),
    ],
)
def test_a_plan_that_cannot_work_is_refused(order, backward, credit, words):
    with pytest.raises(ValueError, match=words):
        Plan(order, backward, credit)


@pytest.mark.parametrize(
    ("backward", "words"),
    [
        pytest.param(
            (0, 1, 2, 3, 5, 4, 6, 7), "item 5 of backward runs before item 4", id="chain out of order"
        ),
        pytest.param((2, 0, 1, 3, 4, 5, 6, 7), "item 2 of backward runs before item 1", id="block too early"),
        pytest.param((0, 1, 2), "3 items of backward", id="another backward"),
    ],
)
def test_a_lane_order_against_the_dependencies_is_refused(backward, words):
    chain, blocks = Work(1.0), [Work(1.0, (portion,), True) for portion in range(4)]
    items = (blocks[0], chain, blocks[1], blocks[2], chain, chain, blocks[3], chain)
    timings = Timings(items, (1.0,) * 4, (3, 2, 2, 0))
    Plan((0, 1, 2, 3), (1, 3, 0, 4, 5, 2, 7, 6), 1).check(timings)
    with pytest.raises(ValueError, match=words):
        Plan((0, 1, 2, 3), backward, 1).check(timings)


@pytest.mark.parametrize(
    ("backward", "layer", "words"),
    [
        pytest.param([Work(1, (0,))], (0, 1), "1 portions have 2 layers", id="too many layers"),
        pytest.param([Work(1, (0,)), Work(1, (0,))], (0,), "not each of 1 once", id="completed twice"),
        pytest.param([Work(1)], (0,), "not each of 1 once", id="never completed"),
        pytest.param([Work(-1, (0,))], (0,), "not negative", id="negative seconds"),
        pytest.param([Work(float("nan"), (0,))], (0,), "finite", id="seconds that are no number"),
        pytest.param(
            [Work(1, (0,)), Work(1, (), True)], (0,), "completes no portion", id="a block of nothing"
        ),
    ],
)
def test_timings_that_cannot_be_are_refused(backward, layer, words):
    with pytest.raises(ValueError, match=words):
        Timings(tuple(backward), (1.0,), layer)


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="there are lower_layer_first"):
        make_plan(two_layers(movable=True), "largest_first", 1)


@settings(deadline=None)
@given(timings_of_any_kind(), st.sampled_from(RULES), st.integers(1, 4))
def test_every_plan_obeys_the_dependencies(timings, rule, credit):
    make_plan(timings, rule, credit).check(timings)


@settings(deadline=None)
@given(
    timings_of_any_kind(),
    st.sampled_from(RULES),
    st.integers(1, 4),
    st.sampled_from([0.125, 0.5, 2.0, 1024.0]),
)
def test_only_the_ratio_of_wire_to_compute_counts(timings, rule, credit, factor):
    scaled = scaled_by(timings, lane=factor, wire=factor)
    assert make_plan(scaled, rule, credit) == make_plan(timings, rule, credit)
    assert not drifted(timings, scaled)


def scaled_by(timings, *, lane=1.0, wire=1.0):
    backward = tuple(replace(work, seconds=work.seconds * lane) for work in timings.backward)
    return Timings(backward, tuple(seconds * wire for seconds in timings.wire_s), timings.layer)


@pytest.mark.parametrize(
    ("lane", "wire", "drift"),
    [
        pytest.param(1.0, 1.2, False, id="a wire a little slower"),
        pytest.param(1.0, 1.3, True, id="a wire much slower"),
        pytest.param(1.0, 0.7, True, id="a wire much faster"),
        pytest.param(1.3, 1.0, True, id="kernels much slower"),
        pytest.param(3.0, 3.0, False, id="all slower alike"),
        pytest.param(1.0, 0.0, True, id="no wire any more"),
    ],
)
def test_timings_drift(lane, wire, drift):
    planned = balanced().cut(MEGABYTE)[0]
    assert drifted(planned, scaled_by(planned, lane=lane, wire=wire)) is drift


def test_no_wire_at_all_is_no_drift():
    alone = scaled_by(balanced().cut(MEGABYTE)[0], wire=0.0)
    assert not drifted(alone, alone)


def test_a_plan_in_words():
    portions = [Portion(index, 0, 1, (f"dense_{2 if index < 3 else 1}",), 0) for index in range(5)]
    plan = make_plan(two_layers(movable=True), "lower_layer_first", credit=1)
    assert describe(plan, portions) == (
        "wire, at most 1 under way: dense_2 | dense_1 x2 | dense_2 x2; 2 of 6 items put off"
    )
