"""The oracle trains on any device."""

from __future__ import annotations

import numpy as np

from weft.kernels.device import Device
from weft.runtime.train import oracle
from weft.runtime.train.data import load_data
from weft.runtime.train.job import load_job
from weft.runtime.train.model import build
from weft.runtime.train.replica import Replica


class Apart(Device):
    """A device whose gradients travel through host memory of their own, as a GPU's do."""

    def travelling(self, array):
        return np.zeros_like(array)

    def copy_in(self, host, array):
        array[...] = host

    def copy_out(self, array, host):
        host[...] = array


def test_the_oracle_trains_where_gradients_travel_through_other_memory():
    job = load_job("digits-mlp", ["train.schedule.warmup=2", "train.steps=4"])
    data = load_data(job.data, job.seed, job.model.loss)
    losses = []
    for device in (Device(), Apart()):
        replica = Replica(
            build(job.model, data), job.train.optimizer.build(), device, job.train.micro_batch, job.seed
        )
        losses.append(oracle.train(job, data, replica, 4, lambda array: None))
    np.testing.assert_array_equal(losses[0], losses[1])
