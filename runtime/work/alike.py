"""Whether the ranks that are to compute a model together hold the same one."""

from __future__ import annotations

from ..errors import Mistake
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
