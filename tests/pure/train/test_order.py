"""Epochs, steps, micro-batches and their seeds."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.runtime.train.order import (
    batch_indices,
    epoch_order,
    micro_batch_seed,
    micro_batches,
    owned,
    steps_per_epoch,
)

sizes = st.integers(1, 200)
seeds = st.integers(0, 2**63 - 1)


@given(seeds, st.integers(0, 1000), sizes)
def test_an_epoch_is_a_permutation(seed: int, epoch: int, n: int) -> None:
    assert sorted(epoch_order(seed, epoch, n)) == list(range(n))


@given(seeds, sizes, sizes, st.integers(0, 3))
def test_the_steps_of_an_epoch_use_every_sample_once(seed: int, n: int, batch: int, epoch: int) -> None:
    steps = steps_per_epoch(n, batch)
    batches = [batch_indices(seed, epoch * steps + step, n, batch) for step in range(steps)]
    assert {len(samples) for samples in batches[:-1]} <= {batch}
    assert 1 <= len(batches[-1]) <= batch
    assert sorted(np.concatenate(batches)) == list(range(n))


@given(sizes, sizes, st.integers(1, 9))
def test_every_micro_batch_has_one_owner_at_any_number_of_ranks(n: int, size: int, ranks: int) -> None:
    micro = micro_batches(np.arange(n), size)
    np.testing.assert_array_equal(np.concatenate(micro), np.arange(n))
    assert {len(samples) for samples in micro[:-1]} <= {size}
    shares = [list(owned(len(micro), rank, ranks)) for rank in range(ranks)]
    assert sorted(chain(*shares)) == list(range(len(micro)))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_the_order_depends_on_seed_and_epoch() -> None:
    orders = [tuple(epoch_order(seed, epoch, 50)) for seed in range(4) for epoch in range(4)]
    assert len(set(orders)) == 16


def test_the_order_is_the_same_for_ever() -> None:
    # A run resumed under a newer Weft or NumPy must go on with the same samples.
    assert list(epoch_order(1, 2, 10)) == ORDER_1_2


def test_an_order_can_not_be_changed_by_its_reader() -> None:
    with pytest.raises(ValueError, match="read-only"):
        epoch_order(0, 0, 5)[0] = 1


def test_seeds_of_micro_batches_do_not_meet() -> None:
    seeds = {micro_batch_seed(s, t, m) for s in range(8) for t in range(40) for m in range(40)}
    assert len(seeds) == 8 * 40 * 40
    assert all(0 <= seed < 1 << 63 for seed in seeds)


def test_seeds_are_the_same_for_ever() -> None:
    assert micro_batch_seed(1, 2, 3) == SEED_1_2_3


ORDER_1_2 = [4, 2, 0, 6, 1, 5, 9, 8, 7, 3]
SEED_1_2_3 = 7510213797696614745
