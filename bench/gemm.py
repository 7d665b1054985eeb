"""A dense layer's three products on one thread: oneDNN beside NumPy's BLAS.

python -m bench gemm --batch 1 4 32 512 1024 --width 1024

forward_N_over_numpy           (N, width) x (width, width)ᵀ: oneDNN's time over NumPy's
input_gradient_N_over_numpy    (N, width) x (width, width)
weight_gradient_N_over_numpy   (N, width)ᵀ x (N, width), as one block
portions_N_over_numpy          the same by blocks of 240 neurons, as portions need them
..._gflops                     oneDNN's rate; ..._numpy_gflops NumPy's

Both write into the same kind of arrays and are compared before the clock starts, within rounding of float32.
A layer takes oneDNN where that is installed (the extra `onednn`), the processor has AVX-512, and the layer is
large enough.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np

from bench.harness import Figure, check, measure, positive, ratio, timed
from weft.kernels import onednn
from weft.kernels.blas import limit_threads

PORTION = 240
Product = Callable[[np.ndarray, np.ndarray, np.ndarray], object]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--batch", type=positive, nargs="+", default=[1, 4, 32, 512, 1024], metavar="N", help="samples"
    )
    parser.add_argument("--width", type=positive, default=1024, metavar="N", help="neurons before and behind")
    parser.add_argument("--repetitions", type=positive, default=21, metavar="N", help="rounds")


def main(arguments: argparse.Namespace) -> dict[str, Figure]:
    library = onednn.load()
    if library is None:
        raise SystemExit(f"gemm: {onednn.trouble() or 'oneDNN is not installed'}: pip install 'weft[onednn]'")
    limit_threads(1)

    def by_onednn(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        check(
            library.product(a, b, out), f"oneDNN does not take {a.strides} and {b.strides} into {out.strides}"
        )

    products: dict[str, Product] = {"onednn": by_onednn, "numpy": np.matmul}
    figures: dict[str, Figure] = {}
    for batch in arguments.batch:
        work = 2 * batch * arguments.width**2
        calls = max(1, round(2e8 / work))
        for name, pieces in _cases(batch, arguments.width).items():
            _compare(f"{name} of {batch}", pieces, products)
            candidates = {by: timed(_all(product, pieces), calls) for by, product in products.items()}
            samples = measure(candidates, arguments.repetitions)
            case = f"{name}_{batch}"
            figures[f"{case}_over_numpy"] = ratio(samples["onednn"], samples["numpy"])
            for by, label in (("onednn", ""), ("numpy", "numpy_")):
                rates = [work / seconds for seconds in samples[by]]
                figures[f"{case}_{label}gflops"] = Figure.of(rates, "GFLOP/s", 1e-9)
    return figures


Pieces = list[tuple[np.ndarray, np.ndarray, np.ndarray]]


def _cases(batch: int, width: int) -> dict[str, Pieces]:
    """Name of each product and its pieces: a, b and where a b goes."""
    draw = np.random.default_rng(0)
    x, dy = (draw.standard_normal((batch, width), np.float32) for _ in range(2))
    weight = draw.standard_normal((width, width), np.float32)
    y, dx, dw = np.empty_like(dy), np.empty_like(x), np.empty_like(weight)
    blocks = [slice(start, start + PORTION) for start in range(0, width, PORTION)]
    return {
        "forward": [(x, weight.T, y)],
        "input_gradient": [(dy, weight, dx)],
        "weight_gradient": [(dy.T, x, dw)],
        "portions": [(dy[:, block].T, x, dw[block]) for block in blocks],
    }


def _all(product: Product, pieces: Pieces) -> Callable[[], None]:
    def run() -> None:
        for piece in pieces:
            product(*piece)

    return run


def _compare(name: str, pieces: Pieces, products: dict[str, Product]) -> None:
    found = []
    for product in products.values():
        for _, _, out in pieces:
            out.fill(np.nan)
        _all(product, pieces)()
        found.append([out.copy() for _, _, out in pieces])
    # NumPy's maximum: Python's own passes over a NaN, which a block that was not written still holds.
    apart = float(np.max([np.abs(one - other).max() for one, other in zip(*found, strict=True)]))
    scale = max(float(np.abs(other).max()) for other in found[1])
    check(
        apart <= 1e-5 * scale, f"{name}: the products differ by {apart / scale:.1e} of the greatest element"
    )
