"""A folder of models in Triton's layout: what is in there, and what is wrong with it.

    models/
        weft.toml             the server's classes and limits (settings.py), optional
        digits/
            weft.toml         the model's settings, optional
            1/model.onnx
            2/job.toml …      the folder of a run of `weft train`, or a link to it
            3/model.onnx      the newest: what a request gets that names no version

The folder of one run is a repository, too: of that run, as version 1 of a model with the job's name.

Only names are read here, by rank 0; the files themselves are read where they are loaded (model.py). Folders
whose names are no whole numbers from 1 on are no versions, as with Triton.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from ..errors import JobError, Mistake
from ..observe import RunFolder
from .settings import ModelSettings, ServerSettings, read_settings

SETTINGS = "weft.toml"


class Platform(StrEnum):
    """What a version's folder holds, by the name that clients see."""

    ONNX = "weft_onnx"
    CHECKPOINT = "weft_checkpoint"


@dataclass(frozen=True, slots=True)
class Version:
    """A version of a model: its folder, and what is in it; `reason` where it cannot be served.

    Clients see `shown` in the place of the number, where it is given.
    """

    model: str
    number: int
    path: Path
    platform: Platform | None = None
    reason: str = ""
    shown: str = ""

    @property
    def title(self) -> str:
        """What clients call it."""
        return self.shown or str(self.number)


@dataclass(frozen=True, slots=True)
class Entry:
    """A model of the repository; `reason` where none of its versions can be served."""

    name: str
    settings: ModelSettings = field(default_factory=ModelSettings)
    versions: tuple[Version, ...] = ()  # in ascending order
    reason: str = ""

    @property
    def wanted(self) -> tuple[Version, ...]:
        """The versions that are to be loaded."""
        chosen = self.settings.versions
        return tuple(each for each in self.versions if chosen is None or each.number in chosen)


class Repository:
    """The folder; every method looks anew, for models come and go while the server runs."""

    def __init__(self, root: Path | str) -> None:
        root = Path(root)
        try:
            is_folder = root.is_dir()
        except OSError as error:  # it lies where this user may not look
            raise Mistake(f"the model repository {root} cannot be read: {error.strerror}") from error
        if not is_folder:
            found = "is a file" if root.exists() else "does not exist"
            raise Mistake(f"the model repository {root} {found}; give a folder with NAME/VERSION/model.onnx")
        self.root = root.resolve()
        run = RunFolder(self.root)  # by os.path: Path raises where it may not look, which settings() tells
        self._run = run if os.path.isfile(run.job) and os.path.isdir(run.checkpoints) else None

    def settings(self) -> ServerSettings:
        """The server's settings; JobError naming every problem with its line."""
        return read_settings(ServerSettings, self.root / SETTINGS)

    def scan(self) -> Mapping[str, Entry]:
        """Every model by name; it takes as long as the file system does, so not on an event loop."""
        names = self.names()
        return {name: self._entry(name, names) for name in names}

    def names(self) -> list[str]:
        """The models that it holds, whether or not they can be served."""
        if self._run is not None:
            return [self._run.name]
        return sorted(path.name for path in self.root.iterdir() if _is_name(path.name) and _is_folder(path))

    def entry(self, name: str) -> Entry:
        """One model; Mistake if there is no such folder."""
        names = self.names()
        if name not in names:
            known = ", ".join(names) or "nothing"
            raise Mistake(f"the repository {self.root} has no model {name!r}; it holds {known}")
        return self._entry(name, names)

    def _entry(self, name: str, names: Collection[str]) -> Entry:
        if self._run is not None:
            return Entry(name, versions=(_version(name, 1, self.root),))
        folder = self.root / name
        try:
            settings = read_settings(ModelSettings, folder / SETTINGS)
        except JobError as error:
            return Entry(name, reason=str(error))
        if absent := [v.model for v in settings.variants if v.model not in names]:
            reason = f"variants in {folder / SETTINGS}: no model {absent[0]!r}; there are {', '.join(names)}"
            return Entry(name, reason=reason)
        try:
            there = {int(path.name) for path in folder.iterdir() if _is_version(path)}
        except OSError as error:  # it has gone since it was listed, for instance
            return Entry(name, reason=f"{folder} cannot be read: {error.strerror}")
        numbers = sorted(there | set(settings.versions or ()) if there else there)
        versions = tuple(
            _version(name, number, folder / str(number))
            if number in there
            else Version(name, number, folder / str(number), reason=_no_version(folder, number, there))
            for number in numbers
        )
        reason = "" if versions else _empty(folder)
        return Entry(name, settings, versions, reason)


def _empty(folder: Path) -> str:
    """Why a model without versions is not served, and what its folder is probably meant as."""
    reason = f"{folder} has no version: a folder named 1, 2, … with a model in it"
    run, model = RunFolder(folder), folder / "model.onnx"
    if folder.name.isdecimal():
        return f"{reason}; if {folder.parent} is one model, the repository is {folder.parent.parent}"
    if os.path.isfile(run.job) and os.path.isdir(run.checkpoints):
        return f"{reason}; it is a run: serve its folder alone, or link it as NAME/1 in a repository"
    return f"{reason}; {model} belongs into {folder / '1'}" if os.path.isfile(model) else reason


def _no_version(folder: Path, number: int, there: set[int]) -> str:
    known = ", ".join(map(str, sorted(there)))
    return f"versions in {folder / SETTINGS}: there is no version {number}; there are {known}"


def _is_name(name: str) -> bool:
    """A file system's name may be no text: a request could not name it."""
    return not name.startswith(".") and name.isprintable()


def _is_version(path: Path) -> bool:
    name = path.name
    numbered = name.isascii() and name.isdecimal() and name[0] != "0"
    return numbered and (_is_folder(path) or _leads_nowhere(path))


def _is_folder(path: Path) -> bool:
    """Whether it is one. A link to where this user may not look counts: whoever reads it says why not.

    Raised here, one link into somebody's private folder would have hidden all other models.
    """
    try:
        return path.is_dir()
    except OSError:
        return True


def _leads_nowhere(path: Path) -> bool:
    return path.is_symlink() and not path.exists()


def _version(model: str, number: int, path: Path) -> Version:
    try:
        if (path / "job.toml").is_file():  # first: weft export leaves a model.onnx in a run's folder
            return Version(model, number, path, Platform.CHECKPOINT)
        if (path / "model.onnx").is_file():
            return Version(model, number, path, Platform.ONNX)
        if _leads_nowhere(path):
            reason = f"{path} is a link to {path.readlink()}, which does not exist"
            return Version(model, number, path, reason=reason)
        found = ", ".join(sorted(entry.name for entry in path.iterdir())[:5]) or "nothing"
        reason = f"{path} holds {found}; it needs model.onnx, or a run's job.toml and checkpoints"
    except OSError as error:
        reason = f"{path} cannot be read: {error.strerror}"
    return Version(model, number, path, reason=reason)
