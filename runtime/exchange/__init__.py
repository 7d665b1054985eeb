"""HOW gradients meet: portions of the flat gradient, their order, and their all-reduce."""

from .exchange import FlatExchange, Reducer, Round
from .plan import Plan, first_come
from .portions import Portion, cut

__all__ = ["FlatExchange", "Plan", "Portion", "Reducer", "Round", "cut", "first_come"]
