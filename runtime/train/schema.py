"""The job file: what is trained, on what, how, and where the run is stored.

    [data]        where samples come from and how they are split
    [model]       exactly one of layers, gpt, python; and the loss
    [train]       batch, length, optimizer, schedule, when to evaluate and stop
    [checkpoint] [exchange] [run] [sample] [serve]     all optional

These classes are the file's documentation: a field's name is the key, its type and bounds what is allowed.
job.py reads a path or a packaged job and turns what does not fit into sentences with line numbers.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from ...kernels.registry import KERNELS, kernel
from ..exchange import Rule, WireFormat
from ..exchange.formats import KEEP
from ..exchange.tune import DEFAULT, Settings
from . import order
from .data.section import DataSection, TextData, files
from .losses import LossSection, PlainLoss
from .optimizers import ConstantSchedule, CosineSchedule, OptimizerSection, ScheduleSection
from .section import Amount, Count, Fraction, Name, Positive, Section, nearest, problem
from .serving import ServeSection
from .toml import to_toml

ALTERNATIVES: dict[str, tuple[str, ...]] = {
    "train": ("epochs", "steps"),
    "model": ("layers", "gpt", "python", "onnx"),
}
"""Keys of a section of which exactly one is given; one that --set gives displaces the file's."""

TARGET, BEST, SCHEDULE = ("train", "target"), ("train", "best"), ("train", "schedule")


class Layer(BaseModel):
    """A kernel by its name in the registry; all other keys are its attributes (and `name`, the node's)."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    kernel: Name

    @field_validator("kernel")
    @classmethod
    def _is_registered(cls, name: str) -> str:
        if name not in KERNELS:
            raise problem(f"unknown kernel{nearest(name, KERNELS)}; there are {', '.join(sorted(KERNELS))}")
        return name

    @model_validator(mode="after")
    def _has_the_kernels_attributes(self) -> Layer:
        if not isinstance(name := self.attributes.get("name", ""), str):
            raise problem(f'name = {name!r}: must be a string, in "quotes"')
        try:
            kernel(self.kernel, **{key: value for key, value in self.attributes.items() if key != "name"})
        except (ValueError, TypeError) as error:
            raise problem(str(error)) from error
        return self

    @property
    def attributes(self) -> dict[str, Any]:
        """The other keys; lists as tuples, as kernels have them."""
        extra = self.model_extra or {}
        return {key: tuple(value) if isinstance(value, list) else value for key, value in extra.items()}


class Gpt(Section):
    """A decoder-only transformer over bytes; its context is the data's."""

    layers: Count
    width: Count
    heads: Count
    dropout: Fraction = 0.0

    @field_validator("heads")
    @classmethod
    def _divides_the_width(cls, heads: int, info: ValidationInfo) -> int:
        width = info.data.get("width", heads)
        if width % heads:
            raise problem(f"must divide width ({width})")
        return heads


class Model(Section):
    """What is trained: a chain of layers, a GPT, what a Python function returns, or an ONNX file's graph."""

    layers: Annotated[list[Layer], Field(min_length=1)] | None = None
    gpt: Gpt | None = None
    python: str | None = None
    onnx: Name | None = Field(None, validate_default=True)
    output: Name | None = (
        None  # the value of the ONNX file that is trained, where that is not its only output
    )
    head: Annotated[list[Layer], Field(min_length=1)] | None = None  # behind it
    weights: Name | None = None  # to start with: a run's, of an ONNX or another safetensors file
    loss: LossSection = PlainLoss(name="softmax_cross_entropy")

    @field_validator("onnx")
    @classmethod
    def _exactly_one(cls, onnx: str | None, info: ValidationInfo) -> str | None:
        _require_exactly_one("model", onnx, info)
        return onnx

    @field_validator("output", "head")
    @classmethod
    def _is_of_a_file(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None and info.data.get("onnx", "wrong, and so given") is None:
            raise problem("is for a model that onnx names")
        return value

    @field_validator("python")
    @classmethod
    def _is_a_function(cls, python: str | None) -> str | None:
        if python is not None and not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", python):
            raise problem('must be "module:function", a function that returns a graph')
        return python


class Target(Section):
    """Stop as soon as the validation set reaches this."""

    metric: Literal["accuracy", "loss"]
    value: float

    @field_validator("value")
    @classmethod
    def _can_be_reached(cls, value: float, info: ValidationInfo) -> float:
        if info.data.get("metric") == "accuracy" and value > 1:
            raise problem("must be at most 1: an accuracy is the share of right answers")
        return value


class KeepBest(Section):
    """Keep the checkpoint of the best evaluation, and with `patience` stop when none gets better."""

    metric: Literal["accuracy", "loss"]
    patience: Count | None = None  # so many evaluations in a row


class Train(Section):
    """How it is trained."""

    batch: Count  # samples in a step, over all ranks
    micro_batch: Count = Field(default_factory=lambda data: min(32, data["batch"]))
    epochs: Count | None = None
    steps: Count | None = Field(None, validate_default=True)
    optimizer: OptimizerSection
    schedule: ScheduleSection = ConstantSchedule()
    clip_norm: Positive | None = None
    evaluate_every: Count = Field(  # epochs, or steps where the length is given in steps
        default_factory=lambda data: max(1, data["steps"] // 10) if data["steps"] else 1
    )
    target: Target | None = None
    best: KeepBest | None = None
    deterministic: bool = False  # equal bits in every run on as many ranks: nobody steals, nothing is tuned

    @field_validator("steps")
    @classmethod
    def _exactly_one(cls, steps: int | None, info: ValidationInfo) -> int | None:
        _require_exactly_one("train", steps, info)
        return steps

    @field_validator("micro_batch")
    @classmethod
    def _fits_the_batch(cls, micro_batch: int, info: ValidationInfo) -> int:
        batch = info.data.get("batch", micro_batch)
        if micro_batch > batch:
            raise problem(f"must be at most batch ({batch})")
        return micro_batch

    @field_validator("schedule")
    @classmethod
    def _schedule_fits(cls, schedule: ScheduleSection, info: ValidationInfo) -> ScheduleSection:
        optimizer, steps = info.data.get("optimizer"), info.data.get("steps")
        if isinstance(schedule, CosineSchedule) and optimizer and schedule.floor > optimizer.rate:
            raise problem(f"must be at most optimizer.rate ({optimizer.rate:g})", (*SCHEDULE, "floor"))
        if isinstance(schedule, CosineSchedule) and steps and schedule.warmup >= steps:
            raise problem(f"must be less than steps ({steps})", (*SCHEDULE, "warmup"))
        return schedule

    def total_steps(self, samples: int) -> int:
        """Steps of the whole run with this many training samples."""
        return self.steps or (self.epochs or 0) * order.steps_per_epoch(samples, self.batch)


class Checkpoint(Section):
    """When checkpoints are written; one is written at the end and at a signal in any case."""

    every: Amount = 0  # steps; 0: only then
    keep: Count = 2


class Exchange(Section):
    """How gradients meet. What is left open of portions, credit and rule is measured in the first steps."""

    inside: Literal["shared", "flat"] = (
        "shared"  # a node: through its memory, or by all-reduce as between nodes
    )
    portion_bytes: Annotated[int, Field(ge=1024)] | None = None
    credit: Count | None = None  # portions in flight
    rule: Rule | None = None
    wire: WireFormat = "float32"  # what travels: exact, or fewer bytes with error feedback
    keep: Annotated[float, Field(gt=0, le=1)] | None = Field(  # fraction of a portion that top_k sends
        default_factory=lambda data: KEEP if data.get("wire") == "top_k" else None
    )

    @field_validator("keep")
    @classmethod
    def _is_used(cls, keep: float | None, info: ValidationInfo) -> float | None:
        if keep is not None and info.data.get("wire", "top_k") != "top_k":
            raise problem('is for wire = "top_k"')
        return keep

    def settings(self) -> Settings:
        """What a run starts with."""
        given = {name: getattr(self, name) for name in self.fixed()}
        return replace(DEFAULT, **given)

    def fixed(self) -> frozenset[str]:
        """What the job file says, and tuning leaves alone."""
        return frozenset(
            name for name in ("portion_bytes", "credit", "rule") if getattr(self, name) is not None
        )


class Run(Section):
    """Where the run is stored, what is recorded, and what it gets beside others that train with it."""

    folder: Name = "runs"
    trace: bool = True
    share: Annotated[float, Field(ge=1e-6, le=1e6)] = (
        1.0  # of the compute time, among models of the same priority
    )
    priority: int = 0  # higher goes first; the others keep a tenth of the time
    halve: bool = False  # whether the worse half of the models that train together is stopped early


class Sample(Section):
    """Text that the trained model writes at the end."""

    length: Count = 256  # bytes
    prompt: Name = "\n"
    temperature: Positive = 0.8


class Job(Section):
    """A whole job file."""

    name: str
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    data: DataSection
    model: Model
    train: Train
    checkpoint: Checkpoint = Checkpoint()
    exchange: Exchange = Exchange()
    run: Run = Run()
    sample: Sample | None = None
    serve: ServeSection | None = None  # by weft run alone

    @field_validator("name")
    @classmethod
    def _can_name_a_folder(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
            raise problem("names the run's folder: letters, digits, and . _ - behind the first")
        return name

    @field_validator("model")
    @classmethod
    def _model_fits_data(cls, model: Model, info: ValidationInfo) -> Model:
        data = info.data.get("data")
        text = isinstance(data, TextData)
        if text and model.loss.predicts != "classes":
            raise problem("text is bytes to choose from: use softmax_cross_entropy", ("model", "loss"))
        if model.gpt and data and not text:
            raise problem('reads bytes, and so needs [data] source = "text"', ("model", "gpt"))
        return model

    @field_validator("train")
    @classmethod
    def _metrics_can_be_measured(cls, train: Train, info: ValidationInfo) -> Train:
        data, model = info.data.get("data"), info.data.get("model")
        for asked, where in ((train.target, TARGET), (train.best, BEST)):
            if asked and data and data.validation == 0.0:
                raise problem("is measured on the validation set: [data] validation must be above 0", where)
            if asked and model and asked.metric == "accuracy" and model.loss.predicts == "values":
                raise problem(f'{model.loss.name} has no accuracy: use "loss"', (*where, "metric"))
        return train

    @field_validator("run")
    @classmethod
    def _can_be_compared(cls, run: Run, info: ValidationInfo) -> Run:
        data = info.data.get("data")
        if run.halve and data and data.validation == 0.0:
            raise problem(
                "compares by the validation set: [data] validation must be above 0", ("run", "halve")
            )
        return run

    @field_validator("sample")
    @classmethod
    def _sample_is_text(cls, sample: Sample | None, info: ValidationInfo) -> Sample | None:
        data = info.data.get("data")
        if sample and data and not isinstance(data, TextData):
            raise problem(f'only a model of text writes samples; [data] source is "{data.source}"')
        return sample

    def dump(self) -> str:
        """The job as TOML with every default written out; loading it gives an equal job."""
        return to_toml(self.model_dump(exclude_none=True))

    def digest(self) -> str:
        """The same on two ranks exactly if their jobs are equal."""
        text = json.dumps(self.model_dump(), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def lineage(self) -> dict[str, Any]:
        """What a run that resumes must have in common with the one it resumes.

        Files and functions may lie elsewhere by then: what is in them is compared, not where they are.
        """
        train = self.train.model_dump(include={"batch", "micro_batch", "optimizer", "schedule", "clip_norm"})
        data = self.data.model_dump(exclude=set(files(self.data.source)))
        model = self.model.model_dump(exclude={"python", "onnx", "weights"})
        return {"seed": self.seed, "data": data, "model": model, "train": train}


def _require_exactly_one(section: str, last: object, info: ValidationInfo) -> None:
    names = ALTERNATIVES[section]
    values = {**{name: info.data.get(name, "wrong, and so given") for name in names}, names[-1]: last}
    given = [name for name in names if values[name] is not None]
    if len(given) > 1:
        raise problem(f"{' and '.join(given)} exclude each other: give one of them", (section, given[1]))
    if not given:
        raise problem(f"one of {', '.join(names)} must be given", (section,))
