"""What lstm and gru compute of one place, element by element, between two products: compiled, and as arrays.

Arrays of all places are (sequences, places, …), and `place` is the one that is meant. What goes on from place
to place, (sequences, features), is written where it stands.

Compiled, a sequence's row is gone over several times: each loop has few arrays, so that LLVM can ask whether
they overlap, and vectorises it. One loop over all of them took as long as whole arrays.
"""

from __future__ import annotations

from . import elementary
from .compiled import compiled, jit
from .device import array_module
from .kernel import Array


def parts(a: Array, count: int) -> tuple[Array, ...]:
    """So many equal parts of the last axis."""
    features = a.shape[-1] // count
    return tuple(a[..., k * features : (k + 1) * features] for k in range(count))


def sigmoid(a: Array) -> None:
    """In place, and by tanh, which does not overflow."""
    a *= 0.5
    array_module(a).tanh(a, out=a)
    a *= 0.5
    a += 0.5


@jit
def _sigmoid(x: Array, half: Array) -> Array:
    return half * elementary.tanh(half * x) + half


def _lstm_arrays(gates: Array, place: int, recurrent: Array, c: Array, h: Array) -> None:
    xp, sums = array_module(c), gates[:, place]
    sums += recurrent
    i, o, f, g = parts(sums, 4)
    sigmoid(sums[:, : 3 * c.shape[1]])
    xp.tanh(g, out=g)
    c[...] = f * c + i * g
    h[...] = o * xp.tanh(c)


@compiled(oracle=_lstm_arrays)
def lstm_place(gates: Array, place: int, recurrent: Array, c: Array, h: Array) -> None:
    """The gates i, o, f and g, in the place of sums that lack what is recurrent; then cells and state."""
    features, half = c.shape[1], c.dtype.type(0.5)
    for n in range(len(c)):
        sums, more, cells, state = gates[n, place], recurrent[n], c[n], h[n]
        i, o = sums[:features], sums[features : 2 * features]
        f, g, candidates = sums[2 * features : 3 * features], sums[3 * features :], more[3 * features :]
        for j in range(3 * features):
            sums[j] = _sigmoid(sums[j] + more[j], half)
        for j in range(features):
            g[j] = elementary.tanh(g[j] + candidates[j])
        for j in range(features):
            cells[j] = f[j] * cells[j] + i[j] * g[j]
        for j in range(features):
            state[j] = o[j] * elementary.tanh(cells[j])


def _lstm_gradient_arrays(
    gates: Array, c: Array, before: Array, place: int, dh: Array, dc: Array, dsums: Array
) -> None:
    i, o, f, g = parts(gates[:, place], 4)
    di, do, df, dg = parts(dsums[:, place], 4)
    bent = array_module(c).tanh(c[:, place])
    dc += dh * o * (1 - bent * bent)
    do[...] = dh * bent * o * (1 - o)
    di[...] = dc * g * i * (1 - i)
    df[...] = dc * before[:, place] * f * (1 - f)
    dg[...] = dc * i * (1 - g * g)
    dc *= f


@compiled(oracle=_lstm_gradient_arrays)
def lstm_place_gradient(
    gates: Array, c: Array, before: Array, place: int, dh: Array, dc: Array, dsums: Array
) -> None:
    """Gradients of the sums, and in dc those of the cells `before`; dh is that of the state."""
    features, one = dh.shape[1], dh.dtype.type(1)
    for n in range(len(dh)):
        own, into, cells, earlier = gates[n, place], dsums[n, place], c[n, place], before[n, place]
        i, o, f, g = (
            own[:features],
            own[features : 2 * features],
            own[2 * features : 3 * features],
            own[3 * features :],
        )
        di, do = into[:features], into[features : 2 * features]
        df, dg = into[2 * features : 3 * features], into[3 * features :]
        dstate, dcells = dh[n], dc[n]
        for j in range(features):
            do[j] = elementary.tanh(cells[j])
        for j in range(features):
            dcells[j] += dstate[j] * o[j] * (one - do[j] * do[j])
        for j in range(features):
            do[j] *= dstate[j] * o[j] * (one - o[j])
        for j in range(features):
            di[j] = dcells[j] * g[j] * i[j] * (one - i[j])
        for j in range(features):
            df[j] = dcells[j] * earlier[j] * f[j] * (one - f[j])
        for j in range(features):
            dg[j] = dcells[j] * i[j] * (one - g[j] * g[j])
        for j in range(features):
            dcells[j] *= f[j]


def _gru_arrays(gates: Array, inner: Array, place: int, recurrent: Array, h: Array) -> None:
    sums, two = gates[:, place], 2 * h.shape[1]
    sums[:, :two] += recurrent[:, :two]
    sigmoid(sums[:, :two])
    z, r, n = parts(sums, 3)
    inner[:, place] = recurrent[:, two:]
    n += r * inner[:, place]
    array_module(h).tanh(n, out=n)
    h[...] = n + z * (h - n)


@compiled(oracle=_gru_arrays)
def gru_place(gates: Array, inner: Array, place: int, recurrent: Array, h: Array) -> None:
    """The gates z, r and n, where r scales n's part of what is recurrent, which is kept; then the state."""
    features, half = h.shape[1], h.dtype.type(0.5)
    for k in range(len(h)):
        sums, more, kept, state = gates[k, place], recurrent[k], inner[k, place], h[k]
        z, r, n = sums[:features], sums[features : 2 * features], sums[2 * features :]
        candidates = more[2 * features :]
        for j in range(2 * features):
            sums[j] = _sigmoid(sums[j] + more[j], half)
        for j in range(features):
            kept[j] = candidates[j]
        for j in range(features):
            n[j] = elementary.tanh(n[j] + r[j] * candidates[j])
        for j in range(features):
            state[j] = n[j] + z[j] * (state[j] - n[j])


def _gru_gradient_arrays(
    gates: Array, inner: Array, before: Array, place: int, dh: Array, dsums: Array, drecurrent: Array
) -> None:
    z, r, n = parts(gates[:, place], 3)
    dz, dr, dn = parts(dsums[:, place], 3)
    dz[...] = dh * (before[:, place] - n) * z * (1 - z)
    dn[...] = dh * (1 - z) * (1 - n * n)
    dr[...] = dn * inner[:, place] * r * (1 - r)
    drecurrent[:, place] = dsums[:, place]
    drecurrent[:, place, 2 * dh.shape[1] :] *= r
    dh *= z


@compiled(oracle=_gru_gradient_arrays)
def gru_place_gradient(
    gates: Array, inner: Array, before: Array, place: int, dh: Array, dsums: Array, drecurrent: Array
) -> None:
    """Gradients of the sums and of their recurrent parts; of dh, that of the state, what goes by z alone."""
    features, one = dh.shape[1], dh.dtype.type(1)
    for k in range(len(dh)):
        own, into, back = gates[k, place], dsums[k, place], drecurrent[k, place]
        z, r, n = own[:features], own[features : 2 * features], own[2 * features :]
        dz, dr, dn = into[:features], into[features : 2 * features], into[2 * features :]
        kept, earlier, dstate, candidates = inner[k, place], before[k, place], dh[k], back[2 * features :]
        for j in range(features):
            dz[j] = dstate[j] * (earlier[j] - n[j]) * z[j] * (one - z[j])
        for j in range(features):
            dn[j] = dstate[j] * (one - z[j]) * (one - n[j] * n[j])
        for j in range(features):
            dr[j] = dn[j] * kept[j] * r[j] * (one - r[j])
        for j in range(2 * features):
            back[j] = into[j]
        for j in range(features):
            candidates[j] = dn[j] * r[j]
        for j in range(features):
            dstate[j] *= z[j]
