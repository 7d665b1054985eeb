"""A model from the job file fits its data, or the error says why not; the oracle trains on any device."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from weft.kernels.device import Device
from weft.kernels.kernel import ArraySpec
from weft.kernels.value_loss import Huber
from weft.runtime.errors import GraphError
from weft.runtime.graph import Builder
from weft.runtime.graph.builder import loss_of
from weft.runtime.graph.outline import outline
from weft.runtime.train import oracle
from weft.runtime.train.data import load_data
from weft.runtime.train.data.section import NpzData
from weft.runtime.train.job import load_job
from weft.runtime.train.model import build, from_python
from weft.runtime.train.replica import Replica
from weft.runtime.train.sample import shown
from weft.runtime.train.schema import Layer, Model

MODELS = """
from weft.runtime.graph import Builder

def model(name, shape):
    b = Builder()
    return b.build(b("dense", b("flatten", b.input(name, shape)), features=10))

def other_name(sample):
    return model("image", sample.shape)

def other_shape(sample):
    return model("x", (64,))

def ends(sample):
    return next(iter(()))
"""


@pytest.mark.parametrize("function", ["other_name", "other_shape"])
def test_a_python_model_with_another_input_than_the_data_is_refused(function, tmp_path, monkeypatch):
    (tmp_path / "inputs_models.py").write_text(MODELS)
    monkeypatch.syspath_prepend(tmp_path)
    job = load_job("digits", [])
    data = load_data(job.data, job.seed, job.model.loss.name)
    model = job.model.model_copy(update={"layers": None, "python": f"inputs_models:{function}"})
    with pytest.raises(GraphError, match="called 'x'"):
        build(model, data)


def test_a_python_model_that_raises_stop_iteration_fails_with_what_a_future_takes(tmp_path, monkeypatch):
    (tmp_path / "ending_models.py").write_text(MODELS)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RuntimeError, match="'ending_models:ends' raised StopIteration"):
        from_python("ending_models:ends", ArraySpec((1, 8, 8)))


FLAT = {"kernel": "flatten"}


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([FLAT], "the model has no weights"),
        (
            [FLAT, {"kernel": "dense", "features": 10}, {"kernel": "softmax"}],
            "takes logits, of any size: leave",
        ),
        ([FLAT, {"kernel": "dense", "features": 9}], "numbered from 0 to the greatest"),
    ],
    ids=["no weights", "softmax twice", "too few outputs"],
)
def test_a_model_that_cannot_learn_its_data_is_refused(layers, words):
    job = load_job("digits-mlp", [])
    given = [Layer.model_validate(layer) for layer in layers]
    with pytest.raises(GraphError, match=words):
        build(job.model.model_copy(update={"layers": given}), load_data(job.data, job.seed))


@pytest.mark.parametrize("features", [3, 5])
def test_one_hot_targets_are_refused_with_what_to_store(features, tmp_path):
    np.savez(tmp_path / "d.npz", x=np.ones((9, 4), np.float32), y=np.eye(3)[np.arange(9) % 3])
    data = load_data(NpzData(source="npz", path=str(tmp_path / "d.npz"), test=0.0), 0)
    model = Model(layers=[Layer(kernel="dense", features=features)])
    with pytest.raises(GraphError, match=rf"targets \(3,\) .* outputs are \({features},\).*argmax\(-1\)"):
        build(model, data)


class Sampled(NamedTuple):
    """What a model sees of data with targets of this shape."""

    target_spec: ArraySpec
    input_spec: ArraySpec = ArraySpec((4,))
    classes: int | None = None


@pytest.mark.parametrize(
    ("loss", "targets", "last", "words"),
    [
        (
            "binary_cross_entropy",
            (3,),
            ["sigmoid"],
            "'sigmoid_1' is a sigmoid, and the loss binary_cross_entr",
        ),
        (
            "binary_cross_entropy",
            (3,),
            ["softmax"],
            "is a softmax, and the loss .* takes logits, of any size",
        ),
        (
            "binary_cross_entropy",
            (1,),
            [],
            r"targets \(1,\) .* outputs are \(3,\).* layer 1, or, if a targ",
        ),
        ("huber", (5,), [], r"targets \(5,\) .* huber takes one output for each target: give .* 5$"),
        ("absolute_error", (3, 1), [], r'end the model in { kernel = "reshape", shape = \[3, 1\] }'),
        ("mean_squared_error", (2, 2), [], "let the model end in the targets' shape"),
    ],
)
def test_what_a_model_must_end_in_is_told_for_each_loss(loss, targets, last, words):
    layers = [Layer(kernel="dense", features=3), *(Layer(kernel=kernel) for kernel in last)]
    with pytest.raises(GraphError, match=words):
        build(Model(layers=layers, loss=loss), Sampled(ArraySpec(targets)))


def test_a_sigmoid_may_be_last_where_values_are_approached():
    layers = [Layer(kernel="dense", features=3), Layer(kernel="sigmoid")]
    graph = build(Model(layers=layers, loss={"name": "huber", "delta": 0.5}), Sampled(ArraySpec((3,))))
    assert loss_of(graph) == Huber(delta=0.5)


def test_an_outline_tells_kernels_settings_and_inputs():
    b = Builder()
    dense = b("dense", b.input("x", (8,)), features=4, bias=False, name="dense")
    graph = b.build(b("add", dense, b("relu", dense, name="relu"), name="sum"))
    assert outline(graph) == {
        "dense": "dense(features=4, bias=False) of x",
        "relu": "relu() of dense",
        "sum": "add() of dense, relu",
    }


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
    data = load_data(job.data, job.seed, job.model.loss.name)
    losses = []
    for device in (Device(), Apart()):
        replica = Replica(
            build(job.model, data), job.train.optimizer.build(), device, job.train.micro_batch, job.seed
        )
        losses.append(oracle.train(job, data, replica, 4, lambda array: None))
    np.testing.assert_array_equal(losses[0], losses[1])


def test_what_a_model_writes_cannot_command_the_terminal():
    written, seen = "a\tb\n\x1b]0;\x0ec\r\x9b é\u00a0", "a\tb\n\ufffd]0;\ufffdc\ufffd\ufffd é\u00a0"
    assert shown(written) == seen
