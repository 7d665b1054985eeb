"""What is served now: loaded versions, and the families of variants that a request may name.

    "digits/2"               this version, as profiles and the policy know the model too; a family of one
    "digits/2 or variants"   what a request may mean that names no version, while 2 is the newest

A request keeps the family that it came with: a newer version may have other inputs. A model that is loaded
anew keeps its name; to the workers it is another one (`key`), so the old one answers until the new one is
there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from numbers import Integral, Real
from typing import Any

import numpy as np

from .policy import Guarantee, Model, ServiceClass, Settings
from .repository import Version
from .request import (
    ORDINARY,
    Array,
    InferRequest,
    ModelInfo,
    Qos,
    Reason,
    Refused,
    TensorInfo,
    UnknownModel,
    WrongInput,
)
from .settings import ModelSettings, ServerSettings
from .source import DATATYPES

DTYPES = {datatype: np.dtype(dtype) for dtype, datatype in DATATYPES.items()}


@dataclass(eq=False, slots=True)
class Served:
    """A loaded version; `leaving` once it is to be unloaded, and takes no new requests."""

    version: Version
    settings: ModelSettings
    key: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    labels: tuple[str, ...] = ()
    largest: int = 32
    leaving: bool = False
    anew: bool = False  # leaving, and another one comes in its place
    open: int = 0  # requests and batches that need it still
    datatypes: Mapping[str, str] = field(init=False)  # of the outputs, by name

    def __post_init__(self) -> None:
        self.datatypes = {info.name: info.datatype for info in self.outputs}

    @classmethod
    def of(
        cls, version: Version, settings: ModelSettings, key: str, told: Mapping[str, Any], largest: int
    ) -> Served:
        """What a worker tells (source.py)."""
        inputs, outputs = (
            tuple(TensorInfo(name, datatype, tuple(shape)) for name, datatype, shape in told[kind])
            for kind in ("inputs", "outputs")
        )
        return cls(version, settings, key, inputs, outputs, tuple(told["labels"]), largest)

    @property
    def name(self) -> str:
        """As the policy and the profiles know it."""
        return f"{self.version.model}/{self.version.number}"

    @property
    def open_family(self) -> str:
        """What a request asks for that names no version."""
        return f"{self.name} or variants" if self.settings.variants else self.name

    def fits(self, other: Served) -> bool:
        """Whether what `other` accepted can be computed by this one."""
        mine = (self.inputs, self.outputs, self.open_family)
        return mine == (other.inputs, other.outputs, other.open_family) and self.largest >= other.largest

    def samples(self, request: InferRequest) -> tuple[int, list[Array]]:
        """How many samples a request has, and its arrays in the order of the inputs; WrongInput."""
        given = request.inputs
        if len(self.inputs) == 1 and list(given) == [""]:  # the only input, unnamed
            given = {self.inputs[0].name: given[""]}
        if len(given) != len(self.inputs) or not all(info.name in given for info in self.inputs):
            wanted = _listed(info.name for info in self.inputs)
            raise WrongInput(f"{self.name} takes {wanted}; the request has {_listed(given)}")
        if unknown := [name for name in request.outputs if name not in self.datatypes]:
            raise WrongInput(
                f"{self.name} has no output {_listed(unknown)}; it has {_listed(self.datatypes)}"
            )
        arrays = [given[info.name] for info in self.inputs]
        for info, array in zip(self.inputs, arrays, strict=True):
            if array.dtype != DTYPES[info.datatype] or array.shape[1:] != info.shape[1:] or not array.ndim:
                came = "BYTES" if array.dtype == object else DATATYPES.get(str(array.dtype), array.dtype)
                raise WrongInput(
                    f"input {info.name!r} of {self.name} is {info.datatype} {list(info.shape)}; the request "
                    f"has {came} {list(array.shape)}"
                )
        counts = {len(array) for array in arrays}
        if len(counts) > 1:
            raise WrongInput(f"inputs of {self.name} have different numbers of samples: {sorted(counts)}")
        (count,) = counts
        if not 1 <= count <= self.largest:
            advice = ": split it, or set max_batch in the model's weft.toml" if count else ""
            raise WrongInput(
                f"a request for {self.name} has 1 to {self.largest} samples, and this one {count}{advice}"
            )
        return count, arrays

    def info(self, versions: Sequence[str], reason: str = "") -> ModelInfo:
        """For clients."""
        version = self.version
        return ModelInfo(
            version.model, tuple(versions), version.title, str(version.platform), self.inputs,
            self.outputs, self.largest, ready=not self.leaving, reason=reason, config=self._config(),
            labels=self.labels,
        )  # fmt: skip

    def _config(self) -> dict[str, Any]:
        """As Triton's model configuration."""

        def tensors(infos: Sequence[TensorInfo]) -> list[dict[str, Any]]:
            return [
                {"name": i.name, "data_type": f"TYPE_{i.datatype}", "dims": list(i.shape[1:])} for i in infos
            ]

        return {
            "name": self.version.model,
            "platform": str(self.version.platform),
            "backend": "weft",
            "max_batch_size": self.largest,
            "input": tensors(self.inputs),
            "output": tensors(self.outputs),
            "dynamic_batching": {},
            # As JSON: joined by commas "fir, tall" was two classes, and what came behind it had wrong names.
            "parameters": {"labels": {"string_value": json.dumps(self.labels)}} if self.labels else {},
        }


@dataclass(slots=True)
class Catalog:
    """All that is loaded, by model and then version; and the server's settings."""

    settings: ServerSettings
    loaded: dict[str, dict[int, Served]] = field(default_factory=dict)
    awaited: dict[str, str] = field(default_factory=dict)  # models to come, and why they are not here
    problems: dict[tuple[str, str], str] = field(default_factory=dict)  # why a version ("": none) is not here

    def add(self, served: Served) -> None:
        """Serve it, in the place of the one of that number, if there is one."""
        self.loaded.setdefault(served.version.model, {})[served.version.number] = served

    def remove(self, served: Served) -> None:
        """It is no more."""
        versions = self.loaded[served.version.model]
        if versions.get(served.version.number) is served:
            del versions[served.version.number]
        if not versions:
            del self.loaded[served.version.model]

    def versions(self, model: str) -> dict[int, Served]:
        """The versions of a model that take requests, in ascending order."""
        return {n: served for n, served in sorted(self.loaded.get(model, {}).items()) if not served.leaving}

    def all(self) -> list[Served]:
        """Every version that is loaded, leaving ones too."""
        return [served for versions in self.loaded.values() for served in versions.values()]

    def find(self, model: str, version: str = "") -> Served:
        """The version that a request names, or the newest; UnknownModel, or Refused while it is exchanged."""
        loaded = self.loaded.get(model, {})
        if len(loaded) == 1 and not version:  # as it is nearly always
            (served,) = loaded.values()
            if not served.leaving:
                return served
        versions = self.versions(model)
        for served in loaded.values():
            if served.anew and (served.version.title == version or not (version or versions)):
                raise Refused(Reason.NO_WORKER, f"{served.name} is just being loaded anew: ask again")
        if not versions and (reason := self.awaited.get(model)):
            raise UnknownModel(f"model {model!r} is not loaded yet: {reason}")
        if not versions:
            there = _listed(name for name in self.loaded if self.versions(name))
            why = "\n".join(reason for (name, _), reason in self.problems.items() if name == model)
            raise UnknownModel(f"no model {model!r} is loaded; there are {there}{_because(why)}")
        if not version:
            return versions[max(versions)]
        for served in versions.values():
            if served.version.title == version:
                return served
        there = _listed(served.version.title for served in versions.values())
        why = self.problems.get((model, version), "")
        raise UnknownModel(
            f"model {model!r} has no version {version!r} loaded; there are {there}{_because(why)}"
        )

    def named(self, name: str) -> Served:
        """By the policy's name of a model."""
        model, _, version = name.rpartition("/")
        return self.loaded[model][int(version)]

    def qos(self, served: Served, qos: Qos) -> tuple[str, float | None]:
        """The class of a request and the seconds it has; WrongInput for what is none of either."""
        classes = self.settings.classes
        if qos is not ORDINARY:
            _check(qos)
        name = qos.service_class or served.settings.default_class or self.settings.default_class
        if name not in classes:
            raise WrongInput(f"there is no class {name!r}; there are {_listed(classes)}")
        of_model = None if qos.service_class else served.settings.deadline_ms
        deadline_ms = of_model or classes[name].deadline_ms
        deadline_s = None if deadline_ms is None else deadline_ms / 1000
        return name, deadline_s if qos.deadline_s is None else qos.deadline_s

    def policy_settings(self) -> Settings:
        """What the policy is to know."""
        families = {served.name: [_model(served)] for served in self.all()}
        for served in self.all():
            if served.settings.variants:
                families[served.open_family] = [_model(served), *self._variants(served)]
        return Settings(
            classes=[self._class(name) for name in self.settings.classes],
            families=families,
            guarantees=[
                Guarantee(client, g.per_s, g.burst) for client, g in self.settings.guarantees.items()
            ],
            max_queue=self.settings.queue,
        )

    def _variants(self, served: Served) -> list[Model]:
        found = []
        for variant in served.settings.variants:
            versions = self.versions(variant.model)
            other = versions[max(versions)] if versions else None
            if other is None or _shapes(other) != _shapes(served):
                continue  # not here now, or as `misfits` tells
            own = other.settings
            accuracy = variant.accuracy if variant.accuracy is not None else own.accuracy
            cost = variant.cost if variant.cost is not None else own.cost
            found.append(Model(other.name, other.largest, accuracy or 0.0, cost or 0.0))
        return found

    def misfits(self, served: Served) -> str:
        """Which of its variants never answer in its place, and why: only their names may differ."""
        others = [self.versions(variant.model) for variant in served.settings.variants]
        newest = [versions[max(versions)] for versions in others if versions]
        return "; ".join(
            f"its variant {other.name} never answers for it: that has {_told(other)}, this {_told(served)}"
            for other in newest
            if _shapes(other) != _shapes(served)
        )

    def _class(self, name: str) -> ServiceClass:
        own = self.settings.classes[name]
        deadline_s = float("inf") if own.deadline_ms is None else own.deadline_ms / 1000
        return ServiceClass(name, own.priority, deadline_s, own.share, own.patience_ms / 1000)


def _check(qos: Qos) -> None:
    """What came over HTTP has passed already; what a program of any rank says has not."""

    def number(name: str, value: Any, least: float = -inf) -> None:
        if value is not None and not (isinstance(value, Real) and least < float(value) < inf):
            above = "" if least == -inf else f" above {least:g}"
            raise WrongInput(f"{name} of a request is a number{above} or None, not {value!r:.40}")

    number("deadline_ms", None if qos.deadline_s is None else qos.deadline_s * 1000, 0.0)
    number("accuracy", qos.accuracy)
    number("cost", qos.cost)
    priority: Any = qos.priority
    if priority is not None and not (isinstance(priority, Integral) and int(priority) >= 1):
        raise WrongInput(f"priority of a request is a whole number from 1 on or None, not {priority!r:.40}")
    for name, text in (("the class", qos.service_class), ("the client", qos.client)):
        if not isinstance(text, str | None):
            raise WrongInput(f"{name} of a request is a name, as text, not {text!r:.40}")


def _model(served: Served) -> Model:
    own = served.settings
    return Model(served.name, served.largest, own.accuracy or 0.0, own.cost or 0.0)


def _shapes(served: Served) -> list[tuple[str, tuple[int, ...]]]:
    return [(info.datatype, info.shape) for info in (*served.inputs, *served.outputs)]


def _told(served: Served) -> str:
    inputs, outputs = (
        ", ".join(f"{info.datatype} {list(info.shape)}" for info in infos)
        for infos in (served.inputs, served.outputs)
    )
    return f"inputs {inputs} and outputs {outputs}"


def _listed(names: Any) -> str:
    return ", ".join(repr(str(name)) for name in names) or "none"


def _because(reason: str) -> str:
    return f". It could not be loaded: {reason}" if reason else ""
