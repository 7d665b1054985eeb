"""A lot: tasks that lie side by side for others to take, by halves, with one atomic addition to one word.

    word    claims (24 bits) | first (20) | count (20)

    fetch and add 1 to `claims`        of a lot of 8 at 3 claim 0 takes 3 4 5 6, claim 1 takes 7 8, claim 2
    ─> the word before it              takes 9, claim 3 takes 10, and later ones nothing

What a claim takes follows from the number of claims before it, so two claims never take the same task and no
answer is needed from whoever put the lot out. The owner takes back what is left by swapping in another word.
Sixteen million claims would begin a lot anew: so look before claiming, and leave an empty one alone.

Steal-half by a structured word is from Cartier, Dinan and Larkins, "Optimizing Work Stealing Communication
with Structured Atomic Operations", ICPP 2021.
"""

from __future__ import annotations

FIELD_BITS = 20
LONGEST = (1 << FIELD_BITS) - 1
"""The largest number of tasks in a lot, and of the place of its first."""

CLAIM = 1 << (2 * FIELD_BITS)
"""What a claim adds to the word."""

NONE = 0
"""An empty lot."""


def word(first: int, count: int) -> int:
    """The word of a new lot of `count` tasks from place `first` on."""
    if not (0 <= first <= LONGEST and 0 <= count <= LONGEST):
        raise ValueError(f"a lot of {count} tasks from {first} on; both must be 0 to {LONGEST}")
    return first << FIELD_BITS | count


def taken(word: int) -> range:
    """The places that a claim takes which found `word`: half of what is left, rounded up."""
    first, count, claims = _fields(word)
    return range(first + count - (count >> claims), first + count - (count >> (claims + 1)))


def left(word: int) -> range:
    """The places that nobody has claimed."""
    first, count, claims = _fields(word)
    return range(first + count - (count >> claims), first + count)


def _fields(word: int) -> tuple[int, int, int]:
    word &= (1 << 64) - 1  # as MPI's signed integers hold it
    return word >> FIELD_BITS & LONGEST, word & LONGEST, word // CLAIM
