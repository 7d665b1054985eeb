"""Policies: which request is answered by whom and when, and which is refused. Pure; chosen by name."""

from .first_come import FirstCome
from .job import Batch, Guarantee, Job, Model, ServiceClass, Settings
from .policy import Policy
from .resource import Resource

POLICIES: dict[str, type[Policy]] = {policy.name: policy for policy in (FirstCome,)}

__all__ = [
    "POLICIES",
    "Batch",
    "FirstCome",
    "Guarantee",
    "Job",
    "Model",
    "Policy",
    "Resource",
    "ServiceClass",
    "Settings",
]
