"""Attention of operator set 23: rows of which nothing is seen, and what is refused."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests.pure.graph.onnx_files import compute, expected, file, node, normal, softmax
from weft.runtime.errors import GraphError
from weft.runtime.graph.onnx import read

PLACES = {"q": ("n", 4, 6), "k": ("n", 5, 6), "v": ("n", 5, 6)}
ROWS = np.array([[True] * 5, [False] * 5, [True] * 5, [False] * 4 + [True]])
HEADS = {"q_num_heads": 2, "kv_num_heads": 2}


def attending(inputs: str, **attributes) -> onnx.ModelProto:
    shapes = PLACES | {"m": ("n", 1, 4, 5), "f": ("n", 1, 4, 5), "p": ("n", 2, 3, 3)}
    stored = {"rows": ROWS, "numbers": np.where(ROWS, NUMBERS, np.float32(-np.inf))}
    names = inputs.split()
    proto = file(
        [node("Attention", inputs.replace("-", ""), "y", **HEADS | attributes)],
        {name: shapes[name] for name in shapes if name in names},
        ["y"],
        {name: array for name, array in stored.items() if name in names},
        version=23,
    )
    if "m" in names:
        (mask,) = (each for each in proto.graph.input if each.name == "m")
        mask.type.tensor_type.elem_type = onnx.TensorProto.BOOL
    return proto


def wanted(q: np.ndarray, k: np.ndarray, v: np.ndarray, seen: np.ndarray, added: np.ndarray) -> np.ndarray:
    heads = [x.reshape(*x.shape[:2], 2, 3).transpose(0, 2, 1, 3) for x in (q, k, v)]
    scores = heads[0] @ heads[1].swapaxes(2, 3) / np.sqrt(3) + added
    shares = softmax(np.where(seen, scores, -30), -1) * seen
    return (shares @ heads[2]).transpose(0, 2, 1, 3).reshape(q.shape)


NUMBERS = normal(4, 5, seed=7)
GIVEN = {name: normal(2, *shape[1:], seed=n) for n, (name, shape) in enumerate(PLACES.items())}
SEEN = normal(2, 1, 4, 5, seed=5) > -0.5
SEEN[1, 0, 2] = False


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("mask", ["", "m", "rows", "f", "numbers"])
def test_places_of_which_none_is_seen_get_nothing(mask, causal):
    """A softmax of minus infinity alone is no number; with a window it was of what that hides."""
    proto = attending(f"q k v {mask}".strip(), is_causal=causal)
    shown = {"": np.True_, "m": SEEN, "f": SEEN}.get(mask, ROWS)
    seen = shown & (np.tri(4, 5, dtype=bool) | (not causal))
    added = np.where(mask in ("f", "numbers"), NUMBERS, 0)
    masks = {"m": SEEN, "f": np.where(SEEN, added, -np.inf)}
    samples = GIVEN | {name: array for name, array in masks.items() if name == mask}
    (y,) = compute(read(proto), samples).values()
    np.testing.assert_allclose(y, wanted(*GIVEN.values(), seen, added), rtol=1e-5, atol=1e-6)
    unseen = ~np.broadcast_to(seen, (2, 1, 4, 5)).any(-1)[:, 0]
    assert (y[unseen] == 0).all()


@pytest.mark.parametrize("windows", [{"is_causal": 1}, {"left_window_size": 0}], ids=["causal", "a window"])
@pytest.mark.parametrize("stored", [True, False], ids=["stored", "computed"])
def test_a_row_of_padding_sees_what_its_window_shows(stored, windows):
    """Masks that are made for padding add the least float; what the window hid got a share of such a row."""
    least = np.where(ROWS, np.float32(0), np.finfo(np.float32).min)
    proto = attending("q k v f", **windows)
    if windows.keys() != {"is_causal"}:  # since set 25
        proto.opset_import[0].version = 25
    samples = GIVEN | {"f": np.stack([least[None], np.zeros_like(least)[None]])}
    if stored:
        (mask,) = (each for each in proto.graph.input if each.name == "f")
        proto.graph.input.remove(mask)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(least, "f"))
        samples = GIVEN
    (y,) = compute(read(proto), samples).values()
    (target,) = expected(proto, samples)
    np.testing.assert_allclose(y, target, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("inputs", "attributes", "words"),
    [
        ("q k v - p p", {}, "its past_key is a state that one request leaves to the next"),
        ("q k v", {"kv_num_heads": 4}, "the 6 features of (N, 5, 6) are not 4 heads of equal size"),
        ("q k v", {"kv_num_heads": 3}, "2 heads of queries cannot share 3 of keys and 3 of values"),
        ("q k p", {}, "queries, keys and values are (N, 4, 6), (N, 5, 6), (N, 2, 3, 3); they have 3 axes"),
    ],
    ids=["a state", "features that are no heads", "heads that cannot share", "axes of unequal numbers"],
)
def test_what_is_no_attention_is_refused(inputs, attributes, words):
    proto = attending(inputs.replace(" -", ""), **attributes)
    if "-" in inputs:
        proto.graph.node[0].input.insert(3, "")
    with pytest.raises(GraphError) as caught:
        read(proto)
    assert words in str(caught.value)
