"""Policies: which request is answered by whom and when, and which is refused. Pure; chosen by name."""

from .clockwork import Clockwork
from .first_come import FirstCome
from .job import Batch, Guarantee, Job, Model, ServiceClass, Settings
from .nexus import Nexus
from .policy import Policy
from .resource import Resource
from .triton import Triton
from .weft import Weft

POLICIES: dict[str, type[Policy]] = {
    policy.name: policy for policy in (FirstCome, Triton, Nexus, Clockwork, Weft)
}

__all__ = [
    "POLICIES",
    "Batch",
    "Clockwork",
    "FirstCome",
    "Guarantee",
    "Job",
    "Model",
    "Nexus",
    "Policy",
    "Resource",
    "ServiceClass",
    "Settings",
    "Triton",
    "Weft",
]
