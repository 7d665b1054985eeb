"""How long a sample that ranks compute together waits for a block that does not end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from weft.runtime.serve.dispatcher import STUCK_S, STUCK_TIMES
from weft.runtime.serve.together import Together
from weft.runtime.work.neurons import BlockHeld


class Held:
    """An engine whose block is held: it tells how long that was waited for."""

    def __init__(self) -> None:
        self.close, self.arrays, self.patience_s = None, {}, 0.0

    def infer_here(self, patience_s: float) -> None:
        self.patience_s = patience_s
        raise BlockHeld([1])


@pytest.mark.parametrize(
    ("alone_s", "together_s"), [(0.02, 0.03), (0.1, 0.02), (1.0, 0.6), (1.0, 0.2), (8.0, 1.2)]
)
def test_a_block_is_waited_for_so_long_that_the_sample_is_still_in_time_alone(alone_s, together_s):
    engine, answer = Held(), [np.ones(3)]
    model = SimpleNamespace(source=SimpleNamespace(inputs={}), run=lambda pieces, count: answer)
    made = Together(cast(Any, engine), cast(Any, model), "digits")
    made._compared(alone_s, together_s)
    assert made.run([]) is answer
    assert engine.patience_s > together_s
    assert engine.patience_s + alone_s < max(STUCK_S, STUCK_TIMES * together_s)
