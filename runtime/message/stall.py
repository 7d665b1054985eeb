"""A wait that lasts too long says who waits for whom, and for what.

    weft: rank 0 (n1) has waited 10 s in "all-reduce of portion 3 (conv2)" for
      rank 2 (n2), which has not called it; it is at "step 41: evaluating" (12 s)
      rank 3 (n2), which does not answer: its event loop is blocked, or its process is stopped

Only waits that need a certain rank count: collectives, sends, receives and replies from a named rank. A
server that listens for anybody, or a rank whose main is over, may wait for ever in silence. A rank that has
waited `stall_s` asks the ranks it needs (control.py) what they are doing and how many collectives they have
called on that communicator; collectives match by order, so a smaller number means "not yet called", and
another collective at the same number that they do not call them in the same order. Of the ranks that wait for
the same the first to ask tells; of those that ask at once the lowest.

A wait with a patience of its own is told sooner: with 2.5 s, for which rank, model, layer and portion, within
5 s of its beginning, also where the rank that is late does not answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

from .control import Control
from .failure import say
from .selector import LONGEST_TEXT, ONE_SIZE, ONE_TYPE, Call, Waiting
from .world import World

STALL_S = 10.0
AGAIN = 6  # told once more after 6 times as long (60 s), and then every 60 s
# Whoever has not answered by then does not; a part of the patience, for the sum to stay below twice of it.
ANSWER_S = 2.0
ANSWER_SHARE = 0.6
LOOK_S = 0.25
# Several waits for the same ranks, all portions of a step, are told as one in this many times the patience.
# One that began after that, where what was told is over, is another: who was late came, and is late again.
QUIET = 2
# A rank whose loop stood still for so much of the patience (computing, or stopped by Ctrl-Z) looks first.
AWAY_SHARE = 0.5
SHOWN_RANKS = 8
SHOWN_WAITS = 3


@dataclass(frozen=True, slots=True)
class Answer:
    """What a rank says of itself: its position and how long it has been there, and its own longest waits.

    `called` is how many collectives it has called on the communicator in question, `there` what it called
    at the place in question (None if nothing yet, or too long ago to know).
    """

    position: str
    since_s: float
    waits: tuple[tuple[str, float], ...] = ()
    called: int = 0
    there: Call | None = None


@dataclass(slots=True)
class Question:
    """What this rank asks about one of its waits, and the answers so far, by rank.

    It stands for so many `more` for the same ranks.
    """

    wait: Waiting
    since_s: float
    answers: dict[int, Answer] = field(default_factory=dict)
    more: int = 0

    @property
    def asked(self) -> set[int]:
        """Who is asked."""
        return {*self.wait.needs.peers, *self.wait.needs.witnesses}


def excuses(question: Question) -> dict[int, str]:
    """The ranks that keep a wait waiting, and why."""
    wait = question.wait
    found = {peer: excuse(wait, question.answers.get(peer)) for peer in sorted(wait.needs.peers)}
    return {peer: says for peer, says in found.items() if says is not None}


def describe(question: Question, rank: int, hosts: Sequence[str]) -> str:
    """The report of one stalled wait."""
    wait = question.wait
    lines = [f"  rank {peer} ({hosts[peer]}), which {says}" for peer, says in excuses(question).items()]
    head = f'weft: rank {rank} ({hosts[rank]}) has waited {question.since_s:.0f} s in "{wait.what}"'
    if question.more:
        head += f" and in {question.more:,} more"
    if not lines:
        return f"{head}; every rank has called it, so it is MPI or the network that does not move"
    if len(lines) > SHOWN_RANKS:
        lines[SHOWN_RANKS:] = [f"  and {len(lines) - SHOWN_RANKS} more ranks"]
    return "\n".join([f"{head} for", *lines])


def excuse(wait: Waiting, answer: Answer | None) -> str | None:
    """Why the rank that gave `answer` keeps this wait waiting; None where it has done its part."""
    if answer is None:
        return "does not answer: its event loop is blocked, or its process is stopped"
    doing = f'is at "{answer.position}" ({answer.since_s:.0f} s)'
    if answer.waits:
        doing += " and waits in " + " and ".join(
            f'"{what}" ({since_s:.0f} s)' for what, since_s in answer.waits
        )
    if not wait.needs.number:
        return doing
    if answer.called < wait.needs.number:
        behind = wait.needs.number - answer.called
        return f"has not called it{f' ({behind} collectives behind)' if behind > 1 else ''}; it {doing}"
    mine, there = wait.needs.call, answer.there
    if mine and there and (mine.operation, mine.what) != (there.operation, there.what):
        other = there.what
        if mine.operation != there.operation not in other:
            other = f"{there.operation}: {other}"
        return (
            f'called "{other}" there, as collective {wait.needs.number} on {wait.needs.group!r}: '
            "all ranks must call the same collectives in the same order"
        )
    if mine and there and mine.nbytes != there.nbytes:
        return f"gave it {there.nbytes:,} bytes, where this rank gave {mine.nbytes:,}: {ONE_SIZE}"
    if mine and there and mine.elements != there.elements:
        return f"gave it {there.elements}, where this rank gave {mine.elements}: {ONE_TYPE}"
    return None


def due(told: float, patience_s: float, now: float, away_s: float) -> float:
    """When to tell a wait that was to be told at `told`; the loop stood still for `away_s` until `now`.

    What it waits for may have come meanwhile, or have stood still, too: of an all-reduce posted before five
    seconds of computing every rank told, when it looked again, that MPI or the network did not move.
    """
    return max(told, now + patience_s) if away_s > AWAY_SHARE * patience_s else told


class Stalls:
    """Looks after this rank's waits, and answers other ranks' questions."""

    def __init__(self, control: Control, world: World, stall_s: float) -> None:
        self._control = control
        self._world = world
        self._stall_s = stall_s
        self._questions: dict[int, Question] = {}
        self._asked = 0
        self._told: dict[tuple[str, float], float] = {}  # waits, and when they are to be told next
        # On what, by whom: when last told, and of which wait
        self._late: dict[tuple[str, tuple[int, ...]], tuple[float, tuple[str, float]]] = {}
        self._looked = time.monotonic()
        self._timer: asyncio.TimerHandle | None = None
        control.on("where", self._answer)
        control.on("here", self._heard)
        self._look_later()

    def stop(self) -> None:
        """Ask no more (main is over on this rank); others are still answered."""
        if self._timer is not None:
            self._timer.cancel()
        self._questions.clear()

    def _waits(self) -> list[Waiting]:
        return [wait for wait in self._world.selector.pending() if wait.needs.peers]

    def _patience_s(self, wait: Waiting) -> float:
        return self._stall_s if wait.needs.patience_s is None else wait.needs.patience_s

    def _look_later(self, wait_s: float = LOOK_S) -> None:
        self._timer = self._world.loop.call_later(min(wait_s, self._stall_s / 10), self._look)

    def _look(self) -> None:
        now = time.monotonic()
        away_s, self._looked = now - self._looked, now
        waits = self._waits()
        told = {key(wait): wait.since + self._patience_s(wait) for wait in waits} | self._told
        self._told = {key(w): due(told[key(w)], self._patience_s(w), now, away_s) for w in waits}
        for alike in alikes(wait for wait in waits if now >= self._told[key(wait)]):
            for wait in alike:
                self._postpone(wait, now)
            shown = alike[:SHOWN_WAITS]
            for wait in shown:
                self._ask(wait, now, len(alike) - len(shown) if wait is shown[-1] else 0)
        self._look_later(min([LOOK_S, *(self._patience_s(wait) / 10 for wait in waits)]))

    def _postpone(self, wait: Waiting, now: float) -> None:
        """Told now, by this rank or another: not again for a while."""
        period_s = AGAIN * max(self._stall_s, self._patience_s(wait))
        self._told[key(wait)] = wait.since + period_s * ((now - wait.since) // period_s + 1)

    def _ask(self, wait: Waiting, now: float, more: int) -> None:
        self._asked += 1
        self._questions[self._asked] = Question(wait, now - wait.since, more=more)
        needs = wait.needs
        for peer in self._questions[self._asked].asked:
            what = wait.what[:LONGEST_TEXT]
            self._control.send(peer, "where", self._asked, needs.group, needs.number, what)
        answer_s = min(ANSWER_S, ANSWER_SHARE * self._patience_s(wait))
        self._world.loop.call_later(answer_s, self._tell, self._asked)

    def _answer(self, source: int, question: int, group: str, number: int, what: str) -> None:
        """Another rank asks: tell it; if this rank waits for the same, leave the telling to it."""
        waits = self._waits()
        now = time.monotonic()  # behind the look at the waits, which tells a board's own clock
        for wait in waits:
            same = wait.needs.number == number if number else wait.what[:LONGEST_TEXT] == what
            if group and wait.needs.group == group and same:
                mine = [k for k, q in self._questions.items() if key(q.wait) == key(wait)]
                if source < self._control.rank or not mine:
                    self._postpone(wait, now)
                    for k in mine:
                        del self._questions[k]
        text, since = self._world.where()
        text = text[:LONGEST_TEXT]
        called, there = self._called(group, number)
        shown = [(w.what[:LONGEST_TEXT], now - w.since) for w in waits[:SHOWN_WAITS]]
        self._control.send(source, "here", question, text, now - since, shown, called, there)

    def _called(self, group: str, number: int) -> tuple[int, Call | None]:
        for comm in self._world.selector.communicators:
            if number and comm.group == group:
                return comm.called, comm.call(number)
        return 0, None

    def _heard(
        self,
        source: int,
        number: int,
        text: str,
        since_s: float,
        waits: Iterable[Any],
        called: int,
        there: Sequence[Any] | None,
    ) -> None:
        if (question := self._questions.get(number)) is not None:
            longest = tuple((str(what), float(s)) for what, s in waits)
            call = Call(*there) if there else None
            question.answers[source] = Answer(text, since_s, longest, called, call)
            if question.answers.keys() >= question.asked:
                self._tell(number)

    def _tell(self, number: int) -> None:
        """Everybody has answered, or nobody else will: print, unless the wait is over."""
        if (question := self._questions.pop(number, None)) is None:
            return
        waits = self._waits()
        for wait in waits:
            if key(wait) == key(question.wait):  # its peers may be fewer by now
                question.wait = wait
                late = (wait.needs.group, tuple(excuses(question)))
                now = time.monotonic()
                told, of = self._late.get(late, (-inf, key(wait)))
                another = wait.since > told and of not in map(key, waits)
                if not wait.needs.group or another or now - told > QUIET * self._patience_s(wait):
                    self._late[late] = now, key(wait)
                    say(describe(question, self._world.rank, self._world.hosts))


def alikes(waits: Iterable[Waiting]) -> Iterable[list[Waiting]]:
    """Waits that are for the same ranks, together, in their order.

    Of each the first few are asked about, and stand for all: a thousand receives that waited for one rank
    were told in two thousand lines, and rank and peer did nothing else meanwhile, so that neither answered.
    """
    found: dict[tuple[str, tuple[int, ...]], list[Waiting]] = {}
    for wait in waits:
        found.setdefault((wait.needs.group, wait.needs.peers), []).append(wait)
    return found.values()


def key(wait: Waiting) -> tuple[str, float]:
    """What tells a wait from all others of this rank."""
    return wait.what, wait.since
