"""HOW gradients meet: portions of the flat gradient, the plan of their order, wires and shared memory."""

from .exchange import Carrier, Exact, Exchange, Reducer, Round
from .formats import WireFormat
from .node import Event, NodeMemory, travels
from .plan import Plan, Rule, make_plan
from .portions import Block, Portion, blocks, cut, rows_of
from .profile import Profile

__all__ = [
    "Block",
    "Carrier",
    "Event",
    "Exact",
    "Exchange",
    "NodeMemory",
    "Plan",
    "Portion",
    "Profile",
    "Reducer",
    "Round",
    "Rule",
    "WireFormat",
    "blocks",
    "cut",
    "make_plan",
    "rows_of",
    "travels",
]
