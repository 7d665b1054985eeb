"""[model] loss: the job file's side of the losses among the kernels.

    loss = "huber"                              by its name: its attributes have their defaults
    loss = { name = "huber", delta = 0.5 }

A section has the attributes of its kernel, under the same names and with the same defaults (a test holds
this). What a loss makes of targets and answers (classes, labels, values) its kernel says, and nobody else.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_serializer

from ...kernels.loss import Predicts
from ...kernels.registry import LOSSES
from .section import Positive, Section, problem


class _Loss(Section):
    name: str

    @property
    def attributes(self) -> dict[str, Any]:
        """The kernel's, by name."""
        return {name: getattr(self, name) for name in type(self).model_fields if name != "name"}

    @property
    def predicts(self) -> Predicts:
        """What the model's output tells."""
        return LOSSES[self.name].predicts

    @model_serializer
    def _shortly(self) -> str | dict[str, Any]:
        """As its name where it has nothing else: so it stands in the checkpoints of earlier runs."""
        return {"name": self.name, **self.attributes} if self.attributes else self.name


class PlainLoss(_Loss):
    """A loss without attributes."""

    name: Literal["softmax_cross_entropy", "binary_cross_entropy", "mean_squared_error", "absolute_error"]


class HuberLoss(_Loss):
    """Squared up to `delta`, in units of what is learnt, and absolute from there on."""

    name: Literal["huber"]
    delta: Positive = 1.0


def _table(value: Any) -> Any:
    if isinstance(value, str):
        return {"name": value}
    if not isinstance(value, dict | _Loss):
        raise problem('must be a loss\'s name, in "quotes", or a table, { name = … }')
    return value


LossSection = Annotated[
    Annotated[PlainLoss | HuberLoss, Field(discriminator="name")], BeforeValidator(_table)
]
