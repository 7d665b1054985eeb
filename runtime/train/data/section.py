"""[data]: where samples come from, and how they are split.

What names a file may name a folder's or those that match a pattern, too (parts.py).
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from ..section import Count, Fraction, Name, Section, problem

Normalise = Literal["range", "standard", "none"]
"""range: unsigned integers to 0..1, others as they are; standard: each feature to mean 0 and deviation 1."""


FILES = ("path", "inputs", "targets", "test_path", "test_inputs", "test_targets")


def files(source: object) -> tuple[str, ...]:
    """The keys of [data] that name files; of .npz and HDF5 files the others are names inside them."""
    return FILES[:1] if source in ("npz", "hdf5") else FILES


class _Data(Section):
    validation: Fraction = 0.1
    test: Fraction = 0.2

    @property
    def has_own_test(self) -> bool:
        """Whether the test set is a file of its own, and `test` not used."""
        return False

    @model_validator(mode="after")
    def _leaves_training_samples(self) -> Self:
        # Of all fields, for whether `test` counts: a run with a test set of its own, and 0.85 to validate,
        # could not be resumed, for its job.toml has the fraction that it did not use.
        if not self.has_own_test and self.validation + self.test >= 1.0:
            raise problem(
                f"leaves nothing to train on: its sum with validation ({self.validation}) must be below 1",
                ("data", "test"),
            )
        return self


NormaliseTargets = Literal["standard"]
"""standard: each column of targets to mean 0 and deviation 1; what the model predicts is led back."""


class _Arrays(_Data):
    """Arrays of samples. `inputs` and `targets` are files; for npz and hdf5 names inside those of `path`."""

    test_inputs: Name | None = None  # a test set of its own; then `test` is not used
    test_targets: Name | None = Field(None, validate_default=True)
    shape: list[Count] | None = None  # of one sample, where the model wants another: [1, 28, 28] for conv2d
    normalise: Normalise = "range"
    normalise_targets: NormaliseTargets | None = None

    @property
    def has_own_test(self) -> bool:
        """As in _Data."""
        return self.test_inputs is not None

    @field_validator("test_targets")
    @classmethod
    def _comes_in_pairs(cls, targets: str | None, info: ValidationInfo) -> str | None:
        if (targets is None) != (info.data.get("test_inputs", targets) is None):
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
    """.npy files of inputs and of targets, memory-mapped."""

    source: Literal["npy"]
    inputs: Name
    targets: Name


class Hdf5Data(_Arrays):
    """HDF5 files; `inputs` and `targets` name datasets, with the groups that they are in."""

    source: Literal["hdf5"]
    path: Name
    inputs: Name
    targets: Name


class IdxData(_Arrays):
    """IDX files as MNIST comes, plain or gzipped; images of two axes get a channel axis."""

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
    normalise_targets: NormaliseTargets | None = None

    @field_validator("delimiter")
    @classmethod
    def _stands_between_columns(cls, delimiter: str) -> str:
        if delimiter in '"\r\n':  # for which NumPy has a TypeError
            raise problem("must be a character that neither quotes nor ends a line")
        return delimiter

    @property
    def has_own_test(self) -> bool:
        """As in _Data."""
        return self.test_path is not None


class TextData(_Data):
    """A file, or a folder's files in sorted order, as bytes; the target of a byte is the next one."""

    source: Literal["text"]
    path: Name  # "{stdlib}" stands for the folder of Python's standard library
    files: Name = "**/*"  # which files of a folder
    exclude: list[Name] = Field(default_factory=list)
    context: Count = 128  # bytes in a sample


ArraySection = DigitsData | NpzData | NpyData | Hdf5Data | IdxData | CsvData
DataSection = Annotated[ArraySection | TextData, Field(discriminator="source")]
