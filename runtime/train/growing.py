"""The chain of a rank that takes micro-batches as it goes, and may leave its last kernels to others.

    load ─ forward … ─ tally ─ backward … │ load ─ forward … ─ tally ─ backward: the last ─ what is still out
                         └ claims the next: there is one            └ there is none  │
                                                                      somebody is idle: weight gradients are
                                                                      put out, and not run here

Nobody knows before a forward pass has ended whether it was the rank's last. So the chain grows on the lane:
what follows a loss is made behind it. All of it is made also where the model has failed and its tasks do
nothing any more, since other ranks wait for their ends.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ...kernels.lane import Task, gate
from ..exchange import Portion
from ..graph.backward import Phase
from ..work.claims import Dealt
from .chain import Chain
from .helping import Helper, Watch
from .order import Indices
from .outstanding import Outstanding


class Growing(Chain):
    """One step's, of which `dealt` has the micro-batches. On the lane, but for `begin` and what is told."""

    def __init__(self, *given: Any, dealt: Dealt) -> None:
        super().__init__(*given)
        self._dealt = dealt
        self._outstanding = Outstanding()
        self._out: list[
            tuple[int, int, Task, Callable[[], None]]
        ] = []  # place, block, task, what it would run
        self._taken: dict[int, Callable[[int], None]] = {}  # by place
        self.end = [gate(f"end of step {self._share.step + 1}")]

    def begin(self) -> list[Task]:
        """The first tasks, to be submitted on the loop."""
        first = self._dealt.first
        if first is None:
            self._here[self._nothing()] = self._clear
        else:
            self._grow_behind(self._forward(first), first)
        return self._made()

    def _clear(self) -> None:
        self._dealt.clear()
        self._ended()

    def _grow_behind(self, tally: Task, index: int) -> None:
        self._here[tally] = partial(self._grow, index)

    def _grow(self, index: int) -> None:
        """The loss of micro-batch `index` is known: its backward, and what comes then."""
        compute = self._setting.compute
        claimed = self._dealt.next()
        if claimed is None:
            compute.tell(self._round.counted.set)(self._tail[0])
            self._last(index)
        else:
            following, rank = claimed
            self._backward(index)
            self._whose = {} if rank is None else {"of": rank}
            self._grow_behind(self._forward(following), following)
        compute.submit(self._made())

    def _last(self, index: int) -> None:
        first, helper = self._first, self._setting.helper
        tasks = self._last_backward(index)
        if helper is not None:
            for number in helper.blocks & tasks.keys():
                task = tasks[number]
                assert task.run is not None
                task.run = partial(self._run_or_put_out, helper, task, task.run, number, index, first)
        self._here[self._tail[0]] = self._take_back

    def _run_or_put_out(
        self, helper: Helper, task: Task, run: Callable[[], None], number: int, index: int, first: bool
    ) -> None:
        step, place = self._dealt.step, None
        if helper.offers.wanted(step):
            place = helper.offers.put_out(step, number, index, first)
        if place is None:
            run()
            return
        assert task.info is not None
        task.info["phase"] = "put out"
        self._out.append((place, number, task, run))
        self._tell(partial(self._outstanding.put_out, number, self._portions_of(number)))

    def _take_back(self) -> None:
        """Run what was put out and nobody has claimed, what was put out last first."""
        helper = self._setting.helper
        while self._out:
            assert helper is not None
            place, number, task, run = self._out.pop()
            if helper.offers.take_back(self._dealt.step, place):
                again = self._append(task.name, Phase.WEIGHT_GRADIENT.value, run)
                self._here[again] = self._take_back
                self._then[again].append(partial(self._outstanding.done, number))
                self._setting.compute.submit(self._made())
                return
            self._taken[place] = partial(self._done_elsewhere, number)
        self._ended()

    def _ended(self) -> None:
        """Nothing is left to do here; perhaps for others."""
        setting, helper = self._setting, self._setting.helper
        if not self._taken:
            setting.compute.finish(*self.end)
        if helper is not None:
            helper.offers.rest(self._dealt.step)
            ended = partial(setting.compute.finish, *self.end)
            info = {"phase": Phase.WEIGHT_GRADIENT.value, "step": self._share.step, "model": setting.model}
            watch = Watch(self._dealt.step, self._priority, self._part, info, self._taken, ended)
            self._tell(partial(helper.look, watch))

    def _tell(self, callback: Callable[[], None]) -> None:
        self._setting.compute.tell(callback)(self._tail[0])

    def _part(self, index: int) -> tuple[Indices, int]:
        return self._share.parts[index], self._share.samples

    def _portions_of(self, number: int) -> list[int]:
        """The portions that are not whole without a block of backward."""
        setting, block = self._setting, self._setting.blocks[number]
        if block.rows is not None:
            return list(block.completes)
        return [portion.index for portion in setting.portions_of[setting.replica.calls[block.call].node.name]]

    # On the loop

    def _done_elsewhere(self, number: int, took_ns: int) -> None:
        self._round.spent_s[number] = took_ns / 1e9
        self._outstanding.done(number)

    def _computed(self, portion: Portion) -> None:
        self._outstanding.when(portion.index, partial(super()._computed, portion))

    def _released(self, portion: Portion) -> None:
        self._outstanding.when(portion.index, partial(super()._released, portion))
