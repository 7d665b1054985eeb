"""WHO computes what: the rank's compute task and its lane."""

from .compute import Compute

__all__ = ["Compute"]
