"""Flat vectors: alignment, runs of equal treatment, and initial values that belong to their names."""

import numpy as np

from weft.runtime.graph import Layout, initialise, sequential
from weft.runtime.graph.parameters import ALIGNMENT


def layout_of(*layers, shape=(2, 6, 6)):
    return Layout.of(sequential(shape, layers))


CONV = ("conv2d", {"channels": 3, "kernel_size": 3})
NORM = ("batch_norm", {})
DENSE = ("dense", {"features": 5})


def test_every_parameter_starts_on_a_cache_line():
    layout = layout_of(CONV, NORM, ("flatten", {}), DENSE)
    assert len(layout.parameters) == 2 + 4 + 2
    assert all(p.start % ALIGNMENT == 0 for p in layout.parameters)
    assert layout.size % ALIGNMENT == 0
    ends = [p.stop for p in layout.parameters]
    assert all(stop <= later.start for stop, later in zip(ends, layout.parameters[1:], strict=False))


def test_views_share_the_flat_memory():
    layout = layout_of(CONV)
    flat = np.zeros(layout.size, np.float32)
    weight, bias = layout.views(flat, "conv2d_1")
    assert weight.shape == (3, 2, 3, 3)
    bias[...] = 1
    weight[...] = 2
    assert flat.sum() == 3 + 2 * 54


def test_runs_cover_every_parameter_once_and_part_statistics_from_weights():
    layout = layout_of(CONV, NORM, ("flatten", {}), DENSE)
    runs = list(layout.runs(0, layout.size))
    for parameter in layout.parameters:
        owners = [run for run in runs if run.start <= parameter.start and parameter.stop <= run.stop]
        assert len(owners) == 1
        assert (owners[0].role, owners[0].decay) == (parameter.spec.role, parameter.spec.decay)
    assert {run.role for run in runs} == {"weight", "statistic"}


def test_runs_of_a_slice_stay_inside_it():
    layout = layout_of(CONV, NORM)
    runs = list(layout.runs(16, 48))
    assert runs
    assert all(16 <= run.start < run.stop <= 48 for run in runs)


def test_initial_values_belong_to_the_name_and_the_seed():
    short, long = layout_of(CONV), layout_of(CONV, NORM, CONV)
    own = [layout.views(initialise(layout, 1), "conv2d_1")[0] for layout in (short, long)]
    np.testing.assert_array_equal(*own)
    assert not np.array_equal(own[0], long.views(initialise(long, 2), "conv2d_1")[0])
    other = long.views(initialise(long, 1), "conv2d_2")[0]
    assert other.std() > 0
