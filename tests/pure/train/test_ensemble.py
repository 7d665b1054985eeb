"""Several runs as one model: what its graph computes, and which runs may be its members."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.pure.graph.onnx_files import expected
from tests.pure.graph.test_onnx_writer import computed
from weft.kernels.loss import Predicts
from weft.runtime.errors import Mistake
from weft.runtime.graph import Builder, Graph, Layout
from weft.runtime.graph.builder import sequential
from weft.runtime.graph.onnx import write
from weft.runtime.train.data.samples import Affine
from weft.runtime.train.ensemble import ensemble
from weft.runtime.train.export import export
from weft.runtime.train.inference import Trained

FEATURES, OUTPUTS = 5, 3
GRAPH = sequential((FEATURES,), [("dense", {"features": 4}), ("relu", {}), ("dense", {"features": OUTPUTS})])
SAMPLES = np.random.default_rng(3).normal(20, 4, (7, FEATURES)).astype(np.float32)


def member(seed: int, *, predicts: Predicts, labels: tuple[str, ...] = (), graph: Graph = GRAPH) -> Trained:
    """A run's model of drawn weights; each seed has seen samples of another mean and scale."""
    random = np.random.default_rng(seed)
    weights = {
        parameter.name: random.standard_normal(parameter.spec.shape).astype(np.float32)
        for parameter in Layout.of(graph).parameters
    }
    affine = Affine(random.normal(20, 1, FEATURES), random.uniform(0.1, 0.4, FEATURES))
    return Trained(graph, weights, affine, labels, 10 * seed, predicts)


def predicted(one: Trained) -> np.ndarray:
    samples = ((SAMPLES - one.affine.mean) * one.affine.scale).astype(np.float32)
    return computed(one.graph, dict(one.weights), samples).astype(np.float64)


@pytest.mark.parametrize("count", [2, 5])
def test_values_are_the_members_mean_and_their_deviation_from_it(count: int) -> None:
    members = [member(seed, predicts="values") for seed in range(count)]
    graph, weights = ensemble(members, [f"run-{n}" for n in range(count)])
    assert graph.outputs == ("dense_2", "dense_2_deviation")
    wanted = np.array([predicted(one) for one in members])
    mean, deviation = expected(write(graph, weights), {"x": SAMPLES})
    np.testing.assert_allclose(mean, wanted.mean(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(deviation, wanted.std(0, ddof=1), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(computed(graph, weights, SAMPLES), mean, rtol=1e-5, atol=1e-5)


def test_classes_have_the_members_mean_probability() -> None:
    members = [member(seed, predicts="classes") for seed in range(3)]
    graph, weights = ensemble(members, ["a", "b", "c"])
    logits, deviation = expected(write(graph, weights), {"x": SAMPLES})
    shares = np.exp([predicted(one) for one in members])
    shares /= shares.sum(-1, keepdims=True)
    np.testing.assert_allclose(np.exp(logits), shares.mean(0), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(deviation, shares.std(0, ddof=1), rtol=1e-3, atol=1e-4)


def test_labels_have_the_members_mean_probability_each() -> None:
    members = [member(seed, predicts="labels") for seed in range(3)]
    graph, weights = ensemble(members, ["a", "b", "c"])
    logits, deviation = expected(write(graph, weights), {"x": SAMPLES})
    shares = 1 / (1 + np.exp([-predicted(one) for one in members]))
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), shares.mean(0), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(1 / (1 + np.exp(logits)), 1 - shares.mean(0), rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(deviation, shares.std(0, ddof=1), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(computed(graph, weights, SAMPLES), logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("predicts", ["classes", "labels"])
def test_what_no_member_thinks_possible_has_a_finite_logarithm(predicts: Predicts) -> None:
    sure = member(1, predicts=predicts)
    sure = replace(sure, weights={name: 1e4 * array for name, array in sure.weights.items()})
    graph, weights = ensemble([sure, sure], ["a", "b"])
    with np.errstate(over="ignore", invalid="ignore"):  # in the evaluator's sigmoid
        logits, deviation = expected(write(graph, weights), {"x": SAMPLES})
    assert np.isfinite(logits).all()
    assert logits.min() < -80
    assert (deviation == 0).all()


OTHER = sequential((FEATURES,), [("dense", {"features": OUTPUTS + 1})])
WIDER = sequential((FEATURES + 1,), [("dense", {"features": OUTPUTS})])


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (member(2, predicts="values"), r"b predicts dense_2 \(3,\) \(values\), and a dense_2 \(3,\)"),
        (member(2, predicts="labels"), r"b predicts dense_2 \(3,\) \(scores of labels\), and a dense_2"),
        (member(2, predicts="classes", graph=OTHER), r"b predicts dense_1 \(4,\) \(scores of classes\), "),
        (member(2, predicts="classes", graph=WIDER), r"b takes x float32 \(6,\), and a x float32 \(5,\)"),
        (member(2, predicts="classes", labels=("u", "v", "w")), "b tells apart u, v, w, and a classes with"),
    ],
)  # fmt: skip
def test_members_that_do_not_do_the_same_are_told(other: Trained, told: str) -> None:
    with pytest.raises(Mistake, match=told):
        ensemble([member(1, predicts="classes"), other], ["a", "b"])


def test_the_output_may_be_called_as_a_node_without_a_name_would_be() -> None:
    b = Builder()
    x = b.input("x", (FEATURES,))
    graph = b.build(b("add", b("dense", x, features=OUTPUTS), b("dense", x, features=OUTPUTS)))
    members = [member(seed, predicts="values", graph=graph) for seed in range(3)]
    made, weights = ensemble(members, ["a", "b", "c"])
    assert made.outputs == ("add_1", "add_1_deviation")
    wanted = np.mean([predicted(one) for one in members], 0)
    np.testing.assert_allclose(computed(made, weights, SAMPLES), wanted, rtol=1e-4, atol=1e-4)


def test_a_file_of_several_runs_is_asked_for_by_the_ending_that_it_needs() -> None:
    with pytest.raises(Mistake, match=r"2 runs become one file.* \.onnx; the last is both\.model"):
        export([Path("a"), Path("both.model")], None)
