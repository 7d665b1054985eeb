"""Parameters that several nodes share: one place, one gradient, the same answer as PyTorch's."""

from __future__ import annotations

import numpy as np
import pytest

from tests.pure.graph.onnx_files import Host, compute
from weft.kernels.kernel import ArraySpec
from weft.runtime.errors import GraphError
from weft.runtime.exchange import cut, rows_of
from weft.runtime.graph import Builder, Layout, Memory, Program, initialise, with_loss
from weft.runtime.graph.metadata import describe
from weft.runtime.graph.onnx import read, write
from weft.runtime.graph.onnx.sharing import folded
from weft.runtime.graph.outline import outline
from weft.runtime.work.offers import worth_offering


def language_model(**changes):
    """Tokens, a layer that is applied twice, and scores by the tokens' own table."""
    b = Builder()
    h = b("embedding", b.input("x", (3,), "int32"), entries=7, width=4, name="tokens")
    h = b("tanh", b("dense", h, features=4, name="once"))
    shares = {"weight": "once.weight", "bias": "once.bias"}
    h = b("tanh", b("dense", h, features=4, name="again", shares=shares))
    given = {"features": 7, "shares": {"weight": "tokens.weight"}, **changes}
    return b.build(b("dense", h, name="scores", **given))


def test_what_is_shared_stands_where_the_first_node_has_it():
    layout = Layout.of(language_model())
    assert [p.name for p in layout.parameters] == ["tokens.weight", "once.weight", "once.bias", "scores.bias"]
    flat = np.arange(layout.size, dtype=np.float32)
    weight, bias = layout.views(flat, "scores")
    assert np.shares_memory(weight, layout.views(flat, "tokens")[0])
    assert bias.shape == (7,)
    assert list(layout.nodes) == ["tokens", "once", "scores"]
    assert layout.largest == 32 + 16  # of the scores' weight and bias, apart
    counted = sum(each.parameters for each in describe(language_model(), 1).values())
    assert counted == sum(p.spec.size for p in layout.parameters)


def test_nodes_that_share_travel_whole():
    graph = language_model()
    assert graph.sharing == {"tokens", "once", "again", "scores"}
    assert rows_of(graph) == {}
    assert worth_offering(graph, 1 << 24) == frozenset()  # nor are their gradients computed by other ranks
    portions = cut(Layout.of(graph), 64, rows_of(graph))
    assert {node for p in portions for node in p.nodes} == {"tokens", "once", "scores"}


def test_gradients_of_all_nodes_add_up_as_pytorchs():
    torch = pytest.importorskip("torch")
    graph = with_loss(language_model(), "softmax_cross_entropy", ArraySpec((3,), "int32"))
    layout = Layout.of(graph)
    flat, gradients = initialise(layout, 1), np.full(layout.size, 9, np.float32)
    flat += 0.1
    memory = Memory(graph, layout, Host(), 4, training=True)
    program = Program(graph, layout, memory, 4, flat, gradients)
    random = np.random.default_rng(0)
    tokens, targets = random.integers(0, 7, (2, 4, 3))
    program.inputs["x"][...], program.inputs["target"][...] = tokens, targets
    program.loss_gradient[:] = 0.25

    own = {p.name: torch.tensor(flat[p.start : p.stop].reshape(p.spec.shape), requires_grad=True)
           for p in layout.parameters}  # fmt: skip
    h = own["tokens.weight"][torch.tensor(tokens)]
    for _ in range(2):
        h = torch.tanh(h @ own["once.weight"].T + own["once.bias"])
    scores = h @ own["tokens.weight"].T + own["scores.bias"]
    torch.nn.functional.cross_entropy(scores.reshape(-1, 7), torch.tensor(targets).reshape(-1)).backward()

    for times, backward in ((1, program.backward), (2, program.backward_more)):
        for step in (*program.forward, *backward):
            step.run()
        for p in layout.parameters:
            found = gradients[p.start : p.stop].reshape(p.spec.shape)
            wanted = times * own[p.name].grad.numpy()
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6, err_msg=p.name)


def test_some_steps_of_training_end_where_pytorchs_do():
    torch = pytest.importorskip("torch")
    graph = with_loss(language_model(bias=False), "softmax_cross_entropy", ArraySpec((3,), "int32"))
    layout = Layout.of(graph)
    flat, gradients = initialise(layout, 1), np.zeros(layout.size, np.float32)
    table, middle = torch.nn.Embedding(7, 4), torch.nn.Linear(4, 4)
    theirs = {"tokens.weight": table.weight, "once.weight": middle.weight, "once.bias": middle.bias}
    for p in layout.parameters:
        with torch.no_grad():
            theirs[p.name].copy_(torch.tensor(flat[p.start : p.stop].reshape(p.spec.shape)))
    program = Program(graph, layout, Memory(graph, layout, Host(), 4, training=True), 4, flat, gradients)
    program.loss_gradient[:] = 0.25
    optimizer = torch.optim.SGD([table.weight, *middle.parameters()], 0.3)
    random = np.random.default_rng(0)
    for _ in range(8):
        tokens, targets = random.integers(0, 7, (2, 4, 3))
        program.inputs["x"][...], program.inputs["target"][...] = tokens, targets
        for step in (*program.forward, *program.backward):
            step.run()
        flat -= np.float32(0.3) * gradients
        h = torch.tanh(middle(torch.tanh(middle(table(torch.tensor(tokens))))))
        scores = (h @ table.weight.T).reshape(-1, 7)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(scores, torch.tensor(targets).reshape(-1)).backward()
        optimizer.step()
    for p in layout.parameters:
        ours = flat[p.start : p.stop].reshape(p.spec.shape)
        np.testing.assert_allclose(ours, theirs[p.name].detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
def test_a_file_shares_them_too(bias):
    """The table is stored once and transposed for the scores; read again, it is one parameter."""
    graph = language_model(bias=bias)
    layout = Layout.of(graph)
    flat = initialise(layout, 1) + np.arange(layout.size, dtype=np.float32) / 64
    weights = {p.name: flat[p.start : p.stop].reshape(p.spec.shape) for p in layout.parameters}
    proto = write(graph, weights)
    assert {each.name for each in proto.graph.initializer if "/" not in each.name} == {*weights}
    again = read(proto)
    assert again.graph.by_name["scores"].shares == {"weight": "tokens.weight"}
    assert [p.name for p in Layout.of(again.graph).parameters] == [*weights]
    x = np.random.default_rng(0).integers(0, 7, (4, 3)).astype(np.int32)
    (y,) = compute(again, {"x": x}).values()
    h = weights["tokens.weight"][x]
    for _ in range(2):
        h = np.tanh(h @ weights["once.weight"].T + weights["once.bias"])
    scores = h @ weights["tokens.weight"].T + weights.get("scores.bias", 0)
    np.testing.assert_allclose(y, scores, rtol=1e-4, atol=1e-5)
    (y,) = compute(read(proto, inference=True), {"x": x}).values()
    np.testing.assert_allclose(y, scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shares": {"kernel": "tokens.weight"}}, "shares its 'kernel'; its parameters are: weight, bias"),
        ({"shares": {"weight": "token.weight"}}, "shares 'token.weight', which no node before it has"),
        ({"shares": {"weight": "again.weight"}}, "shares 'again.weight', which no node before it has"),
        ({"features": 8}, r"its weight has shape \(8, 4\), and 'tokens.weight', which it shares, \(7, 4\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_shared_is_refused(changes, words):
    with pytest.raises(GraphError, match=words):
        language_model(**changes)


def test_statistics_are_not_shared():
    b = Builder()
    h = b("batch_norm", b.input("x", (3,)), name="first")
    shares = {"running_mean": "first.running_mean"}
    with pytest.raises(GraphError, match="no weight that is trained"):
        b.build(b("batch_norm", h, name="second", shares=shares))


def test_the_outline_tells_who_shares_what():
    """A run that goes on compares it: the same arrays may be there, and another node read them."""
    lines = outline(language_model())
    assert lines["scores"] == "dense(features=7) of tanh_2, its weight is tokens.weight"
    assert lines["once"] == "dense(features=4) of tokens"


def test_masks_are_no_weights_that_are_stored_twice():
    mask = np.tri(3, dtype=bool)
    table = np.arange(6, dtype=np.float32).reshape(2, 3)
    stored = {"mask": mask, "onnx::Where_7": mask.T, "table": table, "onnx::MatMul_8": table.T}
    assert folded(stored) == {"onnx::MatMul_8": "table"}
