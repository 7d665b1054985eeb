"""Tasks for whoever is idle: registered functions, run by the ranks of one node or many."""

from .graphs import Call, run_graph
from .parcel import Result
from .pool import Pool
from .tally import Tally

__all__ = ["Call", "Pool", "Result", "Tally", "run_graph"]
