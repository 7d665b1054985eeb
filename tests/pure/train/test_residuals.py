"""Who holds what wire formats have left out, and who gets it back on other ranks."""

from __future__ import annotations

import numpy as np
import pytest

from weft.runtime.graph import Layout
from weft.runtime.train.examine import examine
from weft.runtime.train.job import load_job
from weft.runtime.train.residuals import holders, owed, specs

LAYOUT = Layout.of(examine(load_job("digits-mlp"), None).graph)
HOLDERS = {
    "the first rank of each node": ([[0, 3], [1], [2]], True, [0, 1, 2]),
    "every rank where nothing is shared": ([[0, 3], [1], [2]], False, [0, 1, 2, 3]),
}


def left_out(count: int) -> dict[str, np.ndarray]:
    """By name; the holder at place k has left out 2^k of every element."""
    return {
        f"residual{place}/{p.name}": np.full(p.spec.shape, 1 << place, np.float32)
        for place in range(count)
        for p in LAYOUT.parameters
    }


@pytest.mark.parametrize(("nodes", "shared", "expected"), HOLDERS.values(), ids=HOLDERS)
def test_it_is_held_by(nodes, shared, expected):
    assert holders(nodes, shared=shared) == expected


OWED = {
    "each has its own on as many": (3, 3, [1, 2, 4]),
    "the first has all on more": (2, 3, [3, 0, 0]),
    "the first has all on fewer": (11, 2, [2047, 0]),
    "nobody owes anything where nothing was left out": (0, 2, [0, 0]),
}


@pytest.mark.parametrize(("before", "count", "expected"), OWED.values(), ids=OWED)
def test_it_is_given_back(before, count, expected):
    weights = {f"weight/{p.name}": np.ones(p.spec.shape, np.float32) for p in LAYOUT.parameters}
    arrays, asked = weights | left_out(before), list[str]()

    def read(names):
        asked.extend(names)
        return {name: arrays[name] for name in names}

    found = [owed(arrays, read, LAYOUT, place, count) for place in range(count)]
    assert sorted(asked) == sorted(left_out(before)), "each is read by one holder alone"
    for p in LAYOUT.parameters:
        assert [flat[p.start : p.stop].tolist() for flat in found] == [[e] * p.spec.size for e in expected]


def test_the_names_in_a_checkpoint_tell_of_how_many_it_is():
    assert specs(left_out(3).keys() | {"weight/dense_1.weight"}, LAYOUT).keys() == left_out(3).keys()
    assert not specs(["weight/dense_1.weight", "optimizer0/dense_1.weight"], LAYOUT)
