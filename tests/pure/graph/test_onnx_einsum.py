"""Einsum by letters: every kind of axis, stored operands, more than two; what mixes samples is refused."""

from __future__ import annotations

import numpy as np
import pytest

from tests.pure.graph.onnx_files import compute, file, node, normal
from weft.runtime.errors import GraphError
from weft.runtime.graph.onnx import read

CASES = {  # the equation, shapes, which operands are stored, the kernels that it takes
    "matrices": ("bij,bjk->bik", [(2, 3, 4), (2, 4, 5)], "", "matmul"),
    "rows by rows": ("bij,bkj->bki", [(2, 3, 4), (2, 5, 4)], "", "transpose matmul transpose"),
    "scores of heads": ("bthd,bshd->bhts", [(2, 4, 3, 5), (2, 6, 3, 5)], "", "transpose transpose matmul"),
    "a layer into heads": ("btd,dhk->bthk", [(2, 4, 6), (6, 3, 2)], "w", "dense reshape"),
    "a layer out of heads": ("bthk,hkd->btd", [(2, 4, 3, 2), (3, 2, 6)], "w", "reshape dense"),
    "a layer for each head": ("bhtd,hde->bhte", [(2, 3, 4, 5), (3, 5, 6)], "w", "constant matmul"),
    "element by element": ("bij,bij->bij", [(2, 3, 4), (2, 3, 4)], "", "arithmetic"),
    "an outer product": ("bi,bj->bij", [(2, 3), (2, 4)], "", "reshape reshape arithmetic"),
    "an outer product with a weight": (
        "bi,j->bij", [(2, 3), (4,)], "w", "constant reshape reshape arithmetic"
    ),
    "an inner product": ("bi,bi->b", [(2, 3), (2, 3)], "", "reshape reshape matmul reshape"),
    "an inner product with a weight": ("bi,i->b", [(2, 3), (3,)], "w", "dense reshape"),
    "a transpose": ("bij->bji", [(2, 3, 4)], "", "transpose"),
    "a sum": ("bij->bj", [(2, 3, 4)], "", "reduce_sum"),
    "what one alone has is summed first": (
        "bi,bijz->bj", [(2, 3), (2, 3, 4, 5)], "", "reduce_sum reshape matmul reshape"
    ),
    "axes without names": ("...ij,...jk->...ik", [(2, 5, 3, 4), (2, 5, 4, 6)], "", "matmul"),
    "a layer along axes without names": ("...d,df->...f", [(2, 5, 4), (4, 6)], "w", "dense"),
    "no arrow": ("...j,jk", [(2, 3, 4), (4, 5)], "w", "dense"),
    "three values": ("bij,bjk,bkl->bil", [(2, 3, 4), (2, 4, 5), (2, 5, 2)], "", "matmul matmul"),
    "two layers": ("bij,jk,kl->bil", [(2, 3, 4), (4, 5), (5, 2)], "wv", "dense dense"),
    "a bilinear form": (
        "bi,bj,ijk->bk", [(2, 3), (2, 4), (3, 4, 5)], "v", "reshape reshape arithmetic reshape dense"
    ),
    "an extent of 1, which others are longer than": (
        "bij,bjk->bik", [(2, 3, 1), (2, 4, 5)], "", "reshape reduce_sum reshape reshape arithmetic"
    ),
    "one that the result has": ("bij,bij->bij", [(2, 3, 1), (2, 3, 4)], "", "reshape reshape arithmetic"),
    "one without a name": (
        "...j,...j->...", [(2, 1, 4), (2, 3, 4)], "", "reshape transpose reshape matmul reshape"
    ),
    "a stored one of 1": (
        "bij,jk->bik", [(2, 3, 4), (1, 5)], "w", "reduce_sum constant reshape reshape arithmetic"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("equation", "shapes", "stored", "kernels"), CASES.values(), ids=CASES)
def test_an_equation_gives_what_numpy_does(equation, shapes, stored, kernels):
    names = {1: "x", 2: "x w" if "w" in stored else "x z", 3: "x w v" if "w" in stored else "x z v"}
    operands = names[len(shapes)].split()
    arrays = {
        name: normal(*shape, seed=n) for n, (name, shape) in enumerate(zip(operands, shapes, strict=True))
    }
    values = [name for name in operands if name not in stored]
    proto = file(
        [node("Einsum", " ".join(operands), "y", equation=equation)],
        {name: ("n", *arrays[name].shape[1:]) for name in values},
        ["y"],
        {name: arrays[name] for name in stored},
    )
    model = read(proto)
    (y,) = compute(model, {name: arrays[name] for name in values}).values()
    np.testing.assert_allclose(y, np.einsum(equation, *arrays.values()), rtol=1e-5, atol=1e-5)
    assert " ".join(each.kernel.name for each in model.graph.nodes) == kernels


@pytest.mark.parametrize("equation", ["ij,jk->ik", "ij,kj->ki", "ij,ij->ij", "ij,ij->"])
@pytest.mark.parametrize("stored", [(), ("z",)], ids=["computed", "stored"])
def test_without_a_batch_any_axis_is_as_others(equation, stored):
    x, z = normal(3, 3), normal(3, 3, seed=1)
    inputs = {name: (3, 3) for name in ("x", "z") if name not in stored}
    weights = {"z": z} if stored else {}
    proto = file([node("Einsum", "x z", "y", equation=equation)], inputs, ["y"], weights)
    samples = {name: array[None] for name, array in (("x", x), ("z", z)) if name in inputs}
    (y,) = compute(read(proto, batched=False), samples).values()
    np.testing.assert_allclose(y[0], np.einsum(equation, x, z), rtol=1e-5, atol=1e-5)


REFUSED = {
    "bij,cjk->bick": "mixes samples",
    "bij,bjk->ikb": "mixes samples",
    "bij,bjk": "mixes samples",
    "bii,bij->bi": "names an axis twice in a term",
    "bij,bjk->bix": "gives the result 'x', which no operand has",
    "bij->bij": "give a term of letters for each operand (2)",
    "bij,bkk->bik": "names an axis twice in a term",
    "b.ij,bjk->bik": "give a term of letters for each operand (2)",
    "bi,bjk->bk": "'bi' in its equation 'bi,bjk->bk' does not name the 3 axes",
}


@pytest.mark.parametrize(("equation", "words"), REFUSED.items(), ids=REFUSED)
def test_what_is_no_product_of_samples_is_refused(equation, words):
    proto = file(
        [node("Einsum", "x z", "y", equation=equation)], {"x": ("n", 4, 4), "z": ("n", 4, 4)}, ["y"], {}
    )
    with pytest.raises(GraphError) as caught:
        read(proto)
    assert words in str(caught.value)


def test_axes_of_unequal_extents_are_told():
    proto = file(
        [node("Einsum", "x z", "y", equation="bij,bjk->bik")], {"x": ("n", 4, 3), "z": ("n", 4, 5)}, ["y"], {}
    )
    with pytest.raises(GraphError, match=r"operands are \(N, 4, 3\) and \(N, 4, 5\), of which its equation"):
        read(proto)
