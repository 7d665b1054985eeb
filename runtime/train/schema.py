"""The job file: what is trained, on what, how, and where the run is stored.

    [data]        where samples come from and how they are split
    [model]       exactly one of layers, gpt, python; and the loss
    [train]       batch, length, optimizer, schedule, when to evaluate and stop
    [checkpoint] [exchange] [run] [sample]     all optional

These classes are the file's documentation: a field's name is the key, its type and bounds what is allowed.
job.py reads a path or a packaged job and turns what does not fit into sentences with line numbers.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from ...kernels.optimizer import SGD, Adam, AdamW, Optimizer
from ...kernels.registry import KERNELS, kernel
from ...kernels.schedule import Constant, Cosine, Schedule, Step
from ..errors import JobError
from . import order
from .toml import Path, to_toml

Count = Annotated[int, Field(ge=1)]
Amount = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Name = Annotated[str, Field(min_length=1)]
Normalise = Literal["range", "standard", "none"]
"""range: unsigned integers to 0..1, others as they are; standard: each feature to mean 0 and deviation 1."""

ALTERNATIVES: dict[str, tuple[str, ...]] = {
    "train": ("epochs", "steps"),
    "model": ("layers", "gpt", "python"),
}
"""Keys of a section of which exactly one is given; one that --set gives displaces the file's."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """A question about a misspelt name, or nothing."""
    close = difflib.get_close_matches(name, list(choices), n=1)
    return f"; did you mean {close[0]}?" if close else ""


TARGET, SCHEDULE = ("train", "target"), ("train", "schedule")


def problem(message: str, at: Path | None = None) -> PydanticCustomError:
    """A problem in our own words; `at` is the key it is about where that is not the field itself."""
    return PydanticCustomError("weft", "{message}", {"message": message, "at": at})


class Section(BaseModel):
    """A table of the job file: unknown keys are refused, and "3" is not a number."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


# ---------------------------------------------------------------------------------------------- [data]


class _Data(Section):
    validation: Fraction = 0.1
    test: Fraction = 0.2

    @field_validator("test")
    @classmethod
    def _leaves_training_samples(cls, test: float, info: ValidationInfo) -> float:
        validation = info.data.get("validation", 0.0)
        if validation + test >= 1.0:
            raise problem(
                f"leaves nothing to train on: its sum with validation ({validation}) must be below 1"
            )
        return test


class _Arrays(_Data):
    """Arrays of samples. `inputs` and `targets` are files, or for npz names of arrays in the file `path`."""

    test_inputs: Name | None = None  # a test set of its own; then `test` is not used
    test_targets: Name | None = None
    shape: list[Count] | None = None  # of one sample, where the model wants another: [1, 28, 28] for conv2d
    normalise: Normalise = "range"

    @field_validator("test_targets")
    @classmethod
    def _comes_in_pairs(cls, targets: str | None, info: ValidationInfo) -> str | None:
        if (targets is None) != (info.data.get("test_inputs") is None):
            raise problem("test_inputs and test_targets go together: give both or neither")
        return targets


class DigitsData(_Data):
    """The 1,797 handwritten digits of 8×8 pixels that scikit-learn bundles."""

    source: Literal["digits"]


class NpzData(_Arrays):
    """An .npz file; `inputs` and `targets` name its arrays."""

    source: Literal["npz"]
    path: Name
    inputs: Name = "x"
    targets: Name = "y"


class NpyData(_Arrays):
    """A pair of .npy files, memory-mapped."""

    source: Literal["npy"]
    inputs: Name
    targets: Name


class IdxData(_Arrays):
    """A pair of IDX files as MNIST comes, plain or gzipped; images of two axes get a channel axis."""

    source: Literal["idx"]
    inputs: Name
    targets: Name


class CsvData(_Data):
    """A table of numbers; one column is the target, all others are the inputs."""

    source: Literal["csv"]
    path: Name
    target: str | int  # a column's name, or its number from 0; negative numbers count from the end
    header: bool  # whether the first line names the columns: said, not guessed
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = ","
    test_path: Name | None = None  # a test set of its own, with the same columns; then `test` is not used
    normalise: Normalise = "standard"


class TextData(_Data):
    """A file, or a folder's files in sorted order, as bytes; the target of a byte is the next one."""

    source: Literal["text"]
    path: Name  # "{stdlib}" stands for the folder of Python's standard library
    files: Name = "**/*"  # which files of a folder
    exclude: list[Name] = []
    context: Count = 128  # bytes in a sample


Data = Annotated[DigitsData | NpzData | NpyData | IdxData | CsvData | TextData, Field(discriminator="source")]


# --------------------------------------------------------------------------------------------- [model]


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
    """What is trained: a chain of layers, a GPT, or a Python function that returns a graph."""

    layers: Annotated[list[Layer], Field(min_length=1)] | None = None
    gpt: Gpt | None = None
    python: str | None = Field(None, validate_default=True)
    loss: Literal["softmax_cross_entropy", "mean_squared_error"] = "softmax_cross_entropy"

    @field_validator("python")
    @classmethod
    def _exactly_one(cls, python: str | None, info: ValidationInfo) -> str | None:
        _require_exactly_one("model", python, info)
        if python is not None and not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", python):
            raise problem('must be "module:function", a function that returns a graph')
        return python


# --------------------------------------------------------------------------------------------- [train]


class _Optimizer(Section):
    rate: Annotated[float, Field(gt=0.0)]  # the schedule's peak


class SgdOptimizer(_Optimizer):
    """Stochastic gradient descent; see kernels/optimizer.py for the attributes of all three."""

    name: Literal["sgd"]
    momentum: Fraction = 0.0
    nesterov: bool = False
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0

    @field_validator("nesterov")
    @classmethod
    def _needs_momentum(cls, nesterov: bool, info: ValidationInfo) -> bool:
        if nesterov and info.data.get("momentum") == 0.0:
            raise problem("needs a momentum above 0")
        return nesterov

    def build(self) -> Optimizer:
        """The kernel."""
        return SGD(momentum=self.momentum, nesterov=self.nesterov, weight_decay=self.weight_decay)


class _Adaptive(_Optimizer):
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    epsilon: Annotated[float, Field(gt=0.0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0


class AdamOptimizer(_Adaptive):
    """Adam; its weight decay is added to the gradient."""

    name: Literal["adam"]

    def build(self) -> Optimizer:
        """The kernel."""
        return Adam(weight_decay=self.weight_decay, beta1=self.beta1, beta2=self.beta2, epsilon=self.epsilon)


class AdamWOptimizer(_Adaptive):
    """AdamW; its weight decay is apart from the gradient."""

    name: Literal["adamw"]
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01

    def build(self) -> Optimizer:
        """The kernel."""
        return AdamW(weight_decay=self.weight_decay, beta1=self.beta1, beta2=self.beta2, epsilon=self.epsilon)


class _Schedule(Section):
    warmup: Amount = 0  # steps


class ConstantSchedule(_Schedule):
    """The same rate in every step after the warm-up."""

    name: Literal["constant"] = "constant"

    def build(self, peak: float, steps: int) -> Schedule:
        """The schedule of a run of `steps`."""
        return Constant(peak, warmup=self.warmup)


class CosineSchedule(_Schedule):
    """Half a cosine from the rate down to `floor` at the end of the run."""

    name: Literal["cosine"]
    floor: Annotated[float, Field(ge=0.0)] = 0.0

    def build(self, peak: float, steps: int) -> Schedule:
        """The schedule of a run of `steps`."""
        if steps <= self.warmup:  # with epochs, known only now that the samples are counted
            warmup = f"[train] schedule.warmup = {self.warmup}"
            raise JobError(f"{warmup}: must be less than the {steps} steps of the whole run")
        return Cosine(peak, warmup=self.warmup, steps=steps, floor=self.floor)


class StepSchedule(_Schedule):
    """The rate times `factor` after every `every` steps."""

    name: Literal["step"]
    every: Count
    factor: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1

    def build(self, peak: float, steps: int) -> Schedule:
        """The schedule of a run of `steps`."""
        return Step(peak, warmup=self.warmup, every=self.every, factor=self.factor)


class Target(Section):
    """Stop as soon as the validation set reaches this."""

    metric: Literal["accuracy", "loss"]
    value: float


class Train(Section):
    """How it is trained."""

    batch: Count  # samples in a step, over all ranks
    micro_batch: Count = Field(default_factory=lambda data: min(32, data["batch"]))
    epochs: Count | None = None
    steps: Count | None = Field(None, validate_default=True)
    optimizer: Annotated[SgdOptimizer | AdamOptimizer | AdamWOptimizer, Field(discriminator="name")]
    schedule: Annotated[ConstantSchedule | CosineSchedule | StepSchedule, Field(discriminator="name")] = (
        ConstantSchedule()
    )
    clip_norm: Annotated[float, Field(gt=0.0)] | None = None
    evaluate_every: Count = Field(  # epochs, or steps where the length is given in steps
        default_factory=lambda data: max(1, data["steps"] // 10) if data["steps"] else 1
    )
    target: Target | None = None

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
    def _schedule_fits(cls, schedule: _Schedule, info: ValidationInfo) -> _Schedule:
        optimizer, steps = info.data.get("optimizer"), info.data.get("steps")
        if isinstance(schedule, CosineSchedule) and optimizer and schedule.floor > optimizer.rate:
            raise problem(f"must be at most optimizer.rate ({optimizer.rate:g})", (*SCHEDULE, "floor"))
        if isinstance(schedule, CosineSchedule) and steps and schedule.warmup >= steps:
            raise problem(f"must be less than steps ({steps})", (*SCHEDULE, "warmup"))
        return schedule

    def total_steps(self, samples: int) -> int:
        """Steps of the whole run with this many training samples."""
        return self.steps or (self.epochs or 0) * order.steps_per_epoch(samples, self.batch)


# ----------------------------------------------------------------------------------- the optional rest


class Checkpoint(Section):
    """When checkpoints are written; one is written at the end and at a signal in any case."""

    every: Amount = 0  # steps; 0: only then
    keep: Count = 2


class Exchange(Section):
    """How gradients are cut for the wire."""

    portion_bytes: Annotated[int, Field(ge=1024)] = 1 << 20
    credit: Count = 4  # portions in flight


class Run(Section):
    """Where the run is stored and what is recorded."""

    folder: Name = "runs"
    trace: bool = True


class Sample(Section):
    """Text that the trained model writes at the end."""

    length: Count = 256  # bytes
    prompt: Name = "\n"
    temperature: Annotated[float, Field(gt=0.0)] = 0.8


class Job(Section):
    """A whole job file."""

    name: str
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    data: Data
    model: Model
    train: Train
    checkpoint: Checkpoint = Checkpoint()
    exchange: Exchange = Exchange()
    run: Run = Run()
    sample: Sample | None = None

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
        if text and model.loss != "softmax_cross_entropy":
            raise problem("text is bytes to choose from: use softmax_cross_entropy", ("model", "loss"))
        if model.gpt and data and not text:
            raise problem('reads bytes, and so needs [data] source = "text"', ("model", "gpt"))
        return model

    @field_validator("train")
    @classmethod
    def _target_can_be_seen(cls, train: Train, info: ValidationInfo) -> Train:
        data, model = info.data.get("data"), info.data.get("model")
        if train.target and data and data.validation == 0.0:
            raise problem("is measured on the validation set: [data] validation must be above 0", TARGET)
        classes = model is None or model.loss == "softmax_cross_entropy"
        if train.target and train.target.metric == "accuracy" and not classes:
            raise problem("a mean_squared_error has no accuracy", (*TARGET, "metric"))
        return train

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
        """What a run that resumes must have in common with the one it resumes, by dotted key."""
        train = self.train.model_dump(include={"batch", "micro_batch", "optimizer", "schedule", "clip_norm"})
        values = {"seed": self.seed, "data": self.data.model_dump(), "model": self.model.model_dump()}
        return {**values, **{f"train.{key}": value for key, value in train.items()}}


def _require_exactly_one(section: str, last: object, info: ValidationInfo) -> None:
    names = ALTERNATIVES[section]
    values = {**{name: info.data.get(name, "wrong, and so given") for name in names}, names[-1]: last}
    given = [name for name in names if values[name] is not None]
    if len(given) > 1:
        raise problem(f"{' and '.join(given)} exclude each other: give one of them", (section, given[1]))
    if not given:
        raise problem(f"one of {', '.join(names)} must be given", (section,))
