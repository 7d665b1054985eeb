"""Whether the ranks that are to compute a model together hold the same one, and can all go on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np

from ..errors import Mistake, WeftError
from ..graph import Graph
from ..graph.outline import outline
from ..message import Communicator, World


async def agree_on_model(world: World, name: str, graph: Graph, *, among: Communicator | None = None) -> None:
    """Mistake on all ranks, naming the first node that differs, where they hold other graphs. Collective.

    As they do of a function that goes through a set of names: their order changes from process to process.
    `among` as in `world.agree`.
    """
    nodes = [f"{node} = {settings}" for node, settings in outline(graph).items()]
    inputs = ", ".join(f"{value}: {spec.shape} {spec.dtype}" for value, spec in graph.inputs.items())
    ends = f"inputs {inputs}; outputs {', '.join(graph.outputs)}"
    try:
        await world.agree(f"model of {name}", "\n".join([*nodes, ends]), among=among)
    except Mistake:
        await world.agree(f"number of nodes of the model of {name}", str(len(nodes)), among=among)
        for number, node in enumerate(nodes, 1):
            await world.agree(f"node {number} of the model of {name}", node, among=among)
        await world.agree(f"inputs and outputs of the model of {name}", ends, among=among)
        raise


@asynccontextmanager
async def all_or_none(among: Communicator) -> AsyncIterator[None]:
    """Where one rank raises within, for want of memory say, all do. Collective; nothing within may be.

    It went on alone, with others waiting for it in the next collective for ever.
    """
    problem: Exception | None = None
    try:
        yield
    except Exception as error:
        problem = error
    flag = np.array([problem is None], np.uint8)
    await among.allreduce(flag, "min", what="whether all ranks could do their part of an engine")
    if problem is not None:
        raise problem
    if not flag[0]:
        raise WeftError("another rank of the node could not do its part of an engine, and has told why")
