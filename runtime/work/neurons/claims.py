"""Who takes which block: words in shared memory, and the compiled loop that every rank asks for its next one.

    words       a line each: blocks that have ended, the request that failed, the one that is under way; then
                of every block, in a line of its own, how often what it needs has ended (arrived), and for
                which request it is taken; then of every rank which request it has entered and left last
    book        private to a rank: what every block needs and frees, the blocks at home here and the others'

Nothing is reset between requests: words only grow. A block is ready for request r, counted from 1, when
arrived = r * needed, and whoever swaps taken from r - 1 to r has it. So a rank that comes late, or lingers in
a request that is over, finds nothing to take, and no request begins with a barrier.

To end a block and take the next takes 0.6 us.
"""

# What intrinsics return is untyped.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ....kernels.compiled import jit
from ...message.atomics import Words, exchange, fetch_add, load, replace

LINE = 8  # words
ENDED, FAILED, REQUEST, FIRST = 0, LINE, 2 * LINE, 3 * LINE
ARRIVED, TAKEN = 0, 1  # of a block's line

NOTHING, OVER = -1, -2
"""What `take` says when no block is ready now, and when none will be."""

AHEAD = 64  # blocks that are looked through beyond the first that is not taken: some layers


def words(blocks: int, ranks: int) -> int:
    """How many words so many blocks and ranks need."""
    return FIRST + LINE * (blocks + ranks)


def entered(blocks: int, rank: int) -> int:
    """The word in which a rank keeps the last request that it entered; the next is the last that it left."""
    return FIRST + LINE * (blocks + rank)


# Of a book: first numbers, then the arrays, each behind the one before.
_COUNT, _OWN, _OTHERS, _OWN_AT, _OTHERS_AT, _ARRAYS = 0, 1, 2, 3, 4, 5


def book(needs: Sequence[Sequence[int]], own: Sequence[int], others: Sequence[int]) -> Words:
    """What a rank knows of the blocks: what each needs, and its own and the others', urgent first."""
    frees: list[list[int]] = [[] for _ in needs]
    for block, found in enumerate(needs):
        for need in found:
            frees[need].append(block)
    starts = np.cumsum([0, *map(len, frees)])
    return np.concatenate(
        [
            np.array([len(needs), len(own), len(others), 0, 0], np.int64),
            np.array([len(found) for found in needs], np.int64),
            starts.astype(np.int64),
            np.array([*own, *others], np.int64),
            np.array([block for found in frees for block in found], np.int64),
        ]
    )


@jit
def begin(book: Words) -> None:
    """Look for blocks from the first on again: a new request."""
    book[_OWN_AT] = 0
    book[_OTHERS_AT] = 0


@jit
def settle(words: Words, book: Words, request: int) -> None:
    """Make words of a request that failed as if all of it had ended; nobody may be at it."""
    for block in range(book[_COUNT]):
        words[FIRST + block * LINE + ARRIVED] = request * book[_ARRAYS + block]
        words[FIRST + block * LINE + TAKEN] = request
    words[ENDED] = request * book[_COUNT]


@jit
def advance(words: Words, book: Words, block: int, request: int, looks: int, patience: int) -> int:
    """`block` has ended: tell those that wait for it, and take the next."""
    count = book[_COUNT]
    starts = _ARRAYS + count
    frees = starts + count + 1 + book[_OWN] + book[_OTHERS]
    for at in range(book[starts + block], book[starts + block + 1]):
        fetch_add(words, FIRST + book[frees + at] * LINE + ARRIVED, 1)
    fetch_add(words, ENDED, 1)
    return take(words, book, request, looks, patience)


@jit
def take(words: Words, book: Words, request: int, looks: int, patience: int) -> int:
    """The most urgent block that is ready: of one's own, after `patience` looks of the others' too.

    NOTHING after so many looks, OVER when all have ended or the request has failed.
    """
    count, own, others = book[_COUNT], book[_OWN], book[_OTHERS]
    lists = _ARRAYS + 2 * count + 1
    for look in range(looks):
        # Before each look: a rank that comes late sees the failure, or who failed sees that it has entered.
        if _over(words, request, count):
            return OVER
        found = _look(words, book, request, lists, own, _OWN_AT)
        if found < 0 and look >= patience:
            found = _look(words, book, request, lists + own, others, _OTHERS_AT)
        if found >= 0:
            return found
    return OVER if _over(words, request, count) else NOTHING


@jit
def _over(words: Words, request: int, count: int) -> bool:
    """Whether all blocks of a request have ended, or it has failed."""
    return load(words, ENDED) >= request * count or load(words, FAILED) == request


@jit
def _look(words: Words, book: Words, request: int, first: int, count: int, place: int) -> int:
    """Take the first ready block of a list; the book keeps at `place` how many at its front are taken."""
    start = book[place]
    front = True
    for at in range(start, min(count, start + AHEAD)):
        block = book[first + at]
        line = FIRST + block * LINE
        if load(words, line + TAKEN) >= request:
            if front:
                book[place] = at + 1
            continue
        front = False
        ready = load(words, line + ARRIVED) == request * book[_ARRAYS + block]
        if ready and replace(words, line + TAKEN, request - 1, request):
            return block
    return -1


@jit
def fail(words: Words, request: int) -> None:
    """Nobody takes another block of this request."""
    exchange(words, FAILED, request)


@jit
def put(words: Words, at: int, value: int) -> None:
    """Store a word, before whatever this rank loads next."""
    exchange(words, at, value)


@jit
def watch(words: Words, at: int, value: int, looks: int) -> int:
    """A word as soon as it is no longer `value`, or after so many looks."""
    for _ in range(looks):
        seen = load(words, at)
        if seen != value:
            return seen
    return value


def warm_up() -> None:
    """Compile all this, or load it: of one block, all that a rank calls.

    Where the ranks' threads did that at their first block, numba took seconds to start on a busy machine, and
    a world that was over meanwhile waited for them in vain.
    """
    shared, own = np.zeros(words(1, 1), np.int64), book([[]], [0], [])
    put(shared, REQUEST, watch(shared, REQUEST, 1, 1))
    begin(own)
    advance(shared, own, take(shared, own, 1, 1, 0), 1, 1, 0)
    fail(shared, 1)
    settle(shared, own, 1)
