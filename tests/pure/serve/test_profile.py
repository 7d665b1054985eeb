"""Profiles: what they predict, how they learn, and that they survive being stored."""

from __future__ import annotations

import json
from math import exp, inf, nan
from random import Random

import pytest

from weft.runtime.serve.profile import Profile, Profiles


def latency_s(size: int) -> float:
    return 3e-3 + 0.5e-3 * size


def trained(sizes: list[int], seed: int = 1, scatter: float = 0.03) -> Profile:
    random, profile = Random(seed), Profile(32)
    for number, size in enumerate(sizes):
        profile.measured(size, latency_s(size) * random.gauss(1.0, scatter), float(number))
    return profile


@pytest.mark.parametrize("seed", range(5))
def test_s5_1_after_50_results_every_size_is_predicted_within_5_percent(seed):
    random = Random(seed)
    profile = trained([random.randint(1, 32) for _ in range(50)], seed)
    off = [abs(profile.expected_s(size) / latency_s(size) - 1) for size in range(1, 33)]
    assert sum(off) / len(off) <= 0.05


def test_s5_1_sizes_never_seen_lie_on_the_line_through_those_seen():
    profile = trained([1, 4, 16] * 10, scatter=0.0)
    assert profile.expected_s(8) == pytest.approx(latency_s(8), rel=1e-6)
    assert profile.expected_s(32) == pytest.approx(latency_s(32), rel=1e-6)
    assert profile.fixed_s == pytest.approx(3e-3, rel=1e-6)


def test_s5_1_a_larger_batch_never_takes_less():
    profile = Profile(8)
    for size, seconds in ((1, 5e-3), (2, 9e-3), (4, 6e-3), (8, 12e-3)):
        profile.measured(size, seconds, 0.0)
    table = [profile.expected_s(size) for size in range(1, 9)]
    assert table == sorted(table)


def test_s5_1_one_size_alone_is_taken_to_have_no_fixed_cost():
    profile = Profile(32)
    profile.measured(1, 4e-3, 0.0)
    assert profile.expected_s(8) == pytest.approx(32e-3)


def test_s5_1_the_largest_batch_within_a_time_is_the_last_that_keeps_to_it():
    profile = trained([1, 2, 4, 8, 16, 32] * 5, scatter=0.0)
    for within_s in (1e-3, 4e-3, 10e-3, 1.0):
        size = profile.largest(within_s)
        assert size == 0 or profile.safe_s(size) <= within_s
        assert size == 32 or profile.safe_s(size + 1) > within_s


def test_s5_1_the_distribution_is_that_of_the_results():
    profile = trained([8] * 300, scatter=0.10)
    assert profile.percentile_s(8, 0.5) == pytest.approx(latency_s(8), rel=0.05)
    assert 1.10 < profile.percentile_s(8, 0.99) / profile.percentile_s(8, 0.5) < 1.45


@pytest.mark.parametrize("factor", [2.0, 0.5, 4.0])
@pytest.mark.parametrize("size", [4, 32])
def test_s5_4_a_change_of_speed_is_learned_for_all_sizes_within_20_batches_of_one(factor, size):
    profile, random = trained([1, 2, 4, 8, 16, 32] * 10), Random(2)
    for number in range(20):
        profile.measured(size, factor * latency_s(size) * random.gauss(1.0, 0.03), 100.0 + number)
    for other in (1, 8, 32):
        assert profile.expected_s(other) == pytest.approx(factor * latency_s(other), rel=0.10)
    assert profile.slowdown == pytest.approx(max(1.0, factor), rel=0.1)


@pytest.mark.parametrize(("asked", "other"), [(1, 32), (32, 1)])
@pytest.mark.parametrize("again", [0.0, 0.8])  # how much of what slows a result slows the next one, too
@pytest.mark.parametrize("seed", range(3))
def test_s5_4_a_size_that_nobody_asks_for_neither_vanishes_nor_grows(asked, other, again, seed):
    profile, random, off = trained([1, 2, 4, 8, 16, 32] * 3), Random(seed), 0.0
    for number in range(10_000):
        off = again * off + (1 - again * again) ** 0.5 * random.gauss(0.0, 0.3)
        profile.measured(asked, latency_s(asked) * exp(off), float(number))
    assert 0.4 < profile.expected_s(other) / latency_s(other) < 2.0


@pytest.mark.parametrize("seed", range(3))
def test_a_size_that_is_seldom_asked_for_does_not_vanish_where_results_scatter_widely(seed):
    profile, random = trained([1] * 3 + [32] * 2), Random(seed)
    often, seldom = [3, 6, 9, 12, 30], [15, 18, 21, 24, 27]
    for number in range(10_000):
        size = random.choice(often if random.random() < 0.9 else seldom)
        profile.measured(size, latency_s(size) * exp(random.gauss(0.0, 1.0)), float(number))
    for number in range(5):  # which would change all the others with it
        profile.measured(1, latency_s(1), 10_000.0 + number)
    for size in range(1, 33):
        assert 0.005 < profile.expected_s(size) / latency_s(size) < 200


def test_a_batch_that_takes_three_times_its_part_is_known_to_while_only_small_ones_are_asked_for():
    profile = Profile(256)
    for number, size in enumerate([4, 256] * 10 + [4] * 64):  # beyond a cache, as measured
        profile.measured(size, size * (270e-6 if size == 256 else 90e-6), float(number))
    assert profile.expected_s(256) == pytest.approx(256 * 270e-6)


def test_means_that_an_earlier_server_stored_as_next_to_nothing_are_mended_by_what_is_measured():
    stored = trained([1, 3, 32] * 10).to_dict()
    stored["sizes"] = [[1, 4e-16, 3], [3, latency_s(3), 500], [32, 4e-16, 2]]
    profile = Profile.from_dict(stored)
    for number in range(20):
        profile.measured(3, latency_s(3), float(number))
    for number in range(5):
        profile.measured(1, latency_s(1), 20.0 + number)
    assert profile.expected_s(3) < 10 * latency_s(3)


@pytest.mark.parametrize("wrong", [10.0, 0.1])
def test_s5_4_a_size_that_is_off_among_others_that_are_not_is_corrected_by_five_results(wrong):
    profile, random = trained([1, 2, 4, 8, 16] * 10), Random(3)
    for number in range(5):
        profile.measured(32, wrong * latency_s(32), 60.0 + number)
    for number in range(60):
        size = 32 if number % 12 == 0 else random.choice([1, 2, 4, 8, 16])
        profile.measured(size, latency_s(size) * random.gauss(1.0, 0.03), 100.0 + number)
    for size in (1, 8, 32):
        assert profile.expected_s(size) == pytest.approx(latency_s(size), rel=0.15)


def test_s5_4_a_hiccup_is_not_a_change():
    profile = trained([8] * 30, scatter=0.0)
    profile.measured(8, 10 * latency_s(8), 99.0)
    assert profile.expected_s(8) == pytest.approx(latency_s(8), rel=0.06)


HICCUPS = {
    "the first result of a size": [1, 1, 1, 32, 32, 32, -16],
    "the first of the size after a quick one": [1, 1, 1, 32, 32, 32, 16, -16],
    "the first two of a size": [1, 1, 1, 32, 32, 32, -16, -16],
    "two of the first three of a size": [1, 1, 1, 32, 32, 32, -16, 16, -16, 16],
    "one of each size that was looked at": [-1, 1, 1, 32, -32, 32],
    "the first of several sizes": [1, 1, 1, 32, 32, 32, -2, -4, 3, -16, 8, -24, 8, -20, 16],
}


@pytest.mark.parametrize("results", HICCUPS.values(), ids=HICCUPS)
def test_no_hiccup_among_few_results_makes_batches_impossible(results):
    profile = Profile(32)
    for number, size in enumerate(results):
        profile.measured(abs(size), latency_s(size) if size > 0 else 0.5, float(number))
    assert all(profile.safe_s(size) < 4 * latency_s(size) for size in range(1, 33))  # not 25 to 140


@pytest.mark.parametrize("factor", [2.0, 8.0])
def test_a_resource_that_is_slower_than_at_first_is_known_to_be_after_one_result_of_each_of_few_sizes(factor):
    profile = trained([1, 1, 1, 32, 32, 32])
    for number, size in enumerate([3, 27, 11, 8, 20, 30]):
        profile.measured(size, factor * latency_s(size), 10.0 + number)
    for size in (1, 5, 11, 32):
        assert profile.expected_s(size) == pytest.approx(factor * latency_s(size), rel=0.25)


CURVES = {
    "8 samples take as long as 32": (lambda size: 1e-3 * min(1 + size, 9), [2, 5, 3, 6, 4, 8, 7, 2, 3, 5]),
    "the same, seen from above": (lambda size: 1e-3 * min(1 + size, 9), list(range(31, 1, -1))),
    "the next power of two": (
        lambda size: 1e-3 * (4 + (1 << (size - 1).bit_length())),
        list(range(31, 1, -1)),
    ),
    "twice as much a sample beyond a cache": (
        lambda size: size * (0.25e-3 if size < 16 else 0.6e-3),
        [20, 17, 27],
    ),
}


@pytest.mark.parametrize(("curve", "sizes"), CURVES.values(), ids=CURVES)
def test_first_results_that_lie_on_no_line_are_no_change(curve, sizes):
    profile = Profile(32)
    for size in (1, 1, 1, 32, 32, *sizes):  # a first look, and what is asked for then
        profile.measured(size, curve(size), 0.0)
    assert profile.slowdown == 1.0
    assert profile.expected_s(32) < 1.3 * curve(32)


def test_changes_that_are_seen_in_sizes_of_few_results_leave_the_distribution_as_it_is():
    profile = trained([8] * 30, scatter=0.0)
    before = list(profile._ratios)
    for number, size in enumerate(range(9, 29)):
        profile.measured(size, 3.0 ** (1 + number // 5) * latency_s(size), 30.0 + number)
    assert list(profile._ratios) == before


def test_s5_1_failures_lower_availability_and_answers_raise_it():
    profile = trained([1] * 10)
    for _ in range(10):
        profile.failed()
    low = profile.availability
    profile.measured(1, latency_s(1), 0.0)
    assert low < 0.7 < low + 0.3
    assert profile.availability > low


def test_s5_1_profiles_survive_json():
    before = Profiles()
    before._of["rank 2 cpu", "digits"] = trained([1, 8, 32] * 20)
    after = Profiles.from_list(json.loads(json.dumps(before.to_list()))).of("rank 2 cpu", "digits")
    profile = before.of("rank 2 cpu", "digits")
    assert [after.safe_s(b) for b in range(1, 33)] == [profile.safe_s(b) for b in range(1, 33)]
    assert (after.results, after.error, after.availability) == (60, profile.error, profile.availability)


def test_s5_1_damaged_profiles_are_refused():
    stored = {"resource": "r", "model": "m", **trained([1, 2]).to_dict()}
    with pytest.raises(ValueError, match="took -1"):
        Profiles.from_list([stored | {"sizes": [[1, -1.0, 3]]}])
    for ratios in ([], [1.0, 0.0], [nan], [inf]):
        with pytest.raises(ValueError, match="ratios, of which all must be above 0"):
            Profiles.from_list([stored | {"ratios": ratios}])
    for wrong in ({"max_batch": inf}, {"max_batch": 0}, {"max_batch": 10**9}, {"sizes": [[1, inf, 3]]},
                  {"sizes": [[1, nan, 3]]}, {"sizes": [[1, 1e-300, 3]]}, {"sizes": [[1, 0.1, inf]]},
                  {"error": nan}, {"availability": nan}, {"results": -1}):  # fmt: skip
        with pytest.raises(ValueError, match=r"batches of up to|took|results"):
            Profiles.from_list([stored | wrong])
    with pytest.raises(KeyError):
        Profiles.from_list([{"resource": "r", "model": "m"}])


def test_s5_1_a_new_resource_begins_with_what_is_known_of_the_model_elsewhere():
    found = Profiles()
    for size in (1, 32):
        found.of("fast", "m").measured(size, latency_s(size), 0.0)
    assert found.of("new", "m").expected_s(16) == pytest.approx(latency_s(16))
