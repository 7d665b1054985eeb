"""Einsum: sums of products by letters, as a matrix product of two operands at a time.

    bik,bkj->bij      b  in both and the result: axes in front, as the batch is
                      k  in both, and gone: columns of the first matrix, rows of the second
                      i  of the first alone: its rows; j, of the second alone: its columns

Several letters of one kind are one axis for the product. A stored operand of whose letters the others share
none with the result is a dense layer's matrix. What sums over nothing is a product element by element.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from math import prod

import numpy as np

from ....kernels.matmul import MatMul
from ....kernels.reduce import ReduceSum
from .algebra import both
from .move import ordered
from .node import At, Dynamic, Operand, Static, show
from .products import dense

UNNAMED = "0123456789"
"""What stands for the axes of "...", from the last."""


def einsum(at: At) -> Operand:
    """Einsum, values first and from the left to the right."""
    operands = [at.operand(index) for index in range(len(at.inputs))]
    operands = [at.value(n) if isinstance(each, Dynamic) else each for n, each in enumerate(operands)]
    terms, result = _letters(at, [len(_shape(each)) for each in operands])
    extents = _extents(at, operands, terms)
    pairs = [_narrowed(at, each, own, extents) for each, own in zip(operands, terms, strict=True)]
    values = [(x, own) for x, own in pairs if isinstance(x, Dynamic)]
    stored = [(each, own) for each, own in pairs if isinstance(each, Static)]
    _require_batch(at, [own for _, own in values], [own for _, own in stored], result)
    every: list[tuple[Operand, str]] = [*values, *stored]
    (x, own), *others = every
    assert isinstance(x, Dynamic)
    for number, (other, letters) in enumerate(others, 1):
        later = {*result, *(letter for _, each in others[number:] for letter in each)}
        x, own = _product(at, x, own, other, letters, later, "" if number == len(others) else f"of{number}")
    x, own = _summed(at, x, own, result)
    return _arranged(at, x, own, result)


def _shape(operand: Operand) -> tuple[int, ...]:
    return operand.shape if isinstance(operand, Dynamic) else operand.array.shape


def _letters(at: At, ranks: Sequence[int]) -> tuple[list[str], str]:
    """A letter for each axis of every operand, and of the result."""
    equation = re.sub(r"\s", "", str(at.attributes["equation"]))
    given, arrow, result = equation.partition("->")
    terms = given.split(",")
    if len(terms) != len(ranks) or not all(
        re.fullmatch(r"[a-zA-Z]*(\.\.\.)?[a-zA-Z]*", each) for each in (*terms, result)
    ):
        at.refuse(f"its equation is {equation!r}; give a term of letters for each operand ({len(ranks)})")
    unnamed = [rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True)]
    for term, rank, count in zip(terms, ranks, unnamed, strict=True):
        if count < 0 or (count > 0 and "..." not in term):
            at.refuse(f"{term!r} in its equation {equation!r} does not name the {rank} axes of its operand")
    wide = [UNNAMED[len(UNNAMED) - count :] for count in unnamed]
    found = [term.replace("...", own) for term, own in zip(terms, wide, strict=True)]
    every, widest = "".join(found), max(wide, key=len)
    if not arrow:  # what comes once, by the alphabet
        result = "..." + "".join(sorted(each for each in {*every} - {*widest} if every.count(each) == 1))
    result = result.replace("...", widest)
    for term in (*found, result):
        if len({*term}) < len(term):
            at.refuse(f"its equation {equation!r} names an axis twice in a term; Weft takes no diagonals")
    if lost := {*result} - {*every}:
        at.refuse(f"its equation {equation!r} gives the result {min(lost)!r}, which no operand has")
    return found, result


def _extents(at: At, operands: Sequence[Operand], terms: Sequence[str]) -> dict[str, int]:
    """The extent of each letter's axes, all of which have it or 1."""
    found: dict[str, int] = {}
    for operand, term in zip(operands, terms, strict=True):
        for letter, extent in zip(term, _shape(operand), strict=True):
            other = found.get(letter, 1)
            if extent != other and 1 not in (extent, other):
                shapes = " and ".join(show(_shape(each)) for each in operands)
                at.refuse(
                    f"its operands are {shapes}, of which its equation {at.attributes['equation']!r} gives "
                    "axes of unequal extents one letter"
                )
            found[letter] = max(extent, other)
    return found


def _narrowed(at: At, x: Operand, term: str, extents: Mapping[str, int]) -> tuple[Operand, str]:
    """An operand without the axes of extent 1 where another one is longer."""
    shape = _shape(x)
    kept = [place for place, letter in enumerate(term) if shape[place] == extents[letter]]
    if len(kept) == len(term):
        return x, term
    shape = tuple(shape[place] for place in kept)
    narrow = "".join(term[place] for place in kept)
    if isinstance(x, Dynamic):
        return at.reshape(x, shape, part=f"narrow_{narrow}"), narrow
    at.check_fixed(x)
    return Static(x.array.reshape(shape), x.trained), narrow


def _require_batch(at: At, values: Sequence[str], stored: Sequence[str], result: str) -> None:
    """Refuse an equation in which the batch is not axis 0 of each value and of the result alone."""
    if not at.writing.batched:
        return
    first = {own[:1] for own in (*values, result)}
    if len(first) > 1 or first & {"", *"".join(stored)}:
        at.refuse(
            f"its equation {at.attributes['equation']!r} mixes samples: the batch, axis 0 of each value, has "
            "to be axis 0 of the result; a model without a batch axis is read with batched=False"
        )


def _product(
    at: At, x: Dynamic, own: str, other: Operand, letters: str, later: Collection[str], part: str
) -> tuple[Dynamic, str]:
    """Of two operands, of whose letters those in `later` stay: common ones, then those of each."""
    x, own = _summed(at, x, own, {*later, *letters})
    if isinstance(other, Static):
        at.check_fixed(other)
        gone = tuple(place for place, letter in enumerate(letters) if letter not in {*later, *own})
        other = Static(other.array.sum(axis=gone), other.trained) if gone else other
        letters = _kept(letters, {*later, *own})
        if {*letters} & {*own} and not {*letters} & {*own} & {*later}:
            return _layer(at, x, own, other, letters, part)
        lead = own[:1] if at.writing.batched else ""
        y, letters = at.constant(other, len(letters) + len(lead)), lead + letters
    else:
        y, letters = _summed(at, other, letters, {*later, *own})
    shared, rows, columns = _kept(own, letters), _without(own, letters), _without(letters, own)
    between, summed = _kept(shared, later), _without(shared, later)
    extents = dict(zip(own + letters, x.shape + y.shape, strict=True))
    apart = [extents[each] for each in between + rows + columns]
    x = _arranged(at, x, own, between + rows + summed)
    y = _arranged(at, y, letters, between + summed + columns)
    front, deep = x.shape[: len(between)], prod(extents[each] for each in summed)
    if not summed:
        x = at.reshape(x, (*x.shape, *(1,) * len(columns)), part="left")
        y = at.reshape(y, (*front, *(1,) * len(rows), *y.shape[len(front) :]), part="right")
        return both(at, "mul", x, y, part), between + rows + columns
    x = at.reshape(x, (*front, prod(extents[each] for each in rows), deep), part="left")
    y = at.reshape(y, (*front, deep, prod(extents[each] for each in columns)), part="right")
    return at.reshape(at.add(MatMul(), x, y, part=part), apart, part="apart"), between + rows + columns


def _layer(at: At, x: Dynamic, own: str, stored: Static, letters: str, part: str) -> tuple[Dynamic, str]:
    """A dense layer: all letters that both have are summed over."""
    summed, kept, made = _kept(own, letters), _without(own, letters), _without(letters, own)
    if stored.array.dtype != np.float32:
        at.refuse(f"a stored operand is {stored.array.dtype}; Weft computes in float32")
    extents = dict(zip(letters, stored.array.shape, strict=True))
    weight = stored.array.transpose([letters.index(each) for each in made + summed])
    weight = weight.reshape(prod(extents[each] for each in made), -1)
    x = _arranged(at, x, own, kept + summed)
    front = x.shape[: len(kept)]
    x = at.reshape(x, (*front, prod(x.shape[len(kept) :])), part="left")
    y = dense(at, x, weight, None, part)
    return at.reshape(y, (*front, *(extents[each] for each in made)), part="apart"), kept + made


def _summed(at: At, x: Dynamic, own: str, keep: Collection[str]) -> tuple[Dynamic, str]:
    """Summed over what is not to be kept."""
    gone = [at.axis(place, len(own)) for place, letter in enumerate(own) if letter not in keep]
    if not gone:
        return x, own
    return at.add(at.kernel(ReduceSum, tuple(gone), False), x, part="sum"), _kept(own, keep)


def _arranged(at: At, x: Dynamic, own: str, wanted: str) -> Dynamic:
    """The value with its axes in that order."""
    return ordered(at, x, [own.index(each) for each in wanted], part="order")


def _kept(letters: str, among: Collection[str]) -> str:
    return "".join(each for each in letters if each in among)


def _without(letters: str, others: Collection[str]) -> str:
    return "".join(each for each in letters if each not in others)
