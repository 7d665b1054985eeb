"""Data in several files are one data set, in the order of their names; what does not fit is named."""

from __future__ import annotations

import gzip
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.pure.train.loaded import AnyArray, gathered, load
from tests.pure.train.sources import idx_bytes
from weft.runtime.errors import DataError
from weft.runtime.train.data import MissingData
from weft.runtime.train.data.files import existing
from weft.runtime.train.data.parts import parts, together
from weft.runtime.train.data.stored import Joined, blocks, located

SIZES = {1: 13, 2: 7, 10: 20}
N = sum(SIZES.values())
INPUTS = np.random.default_rng(0).integers(0, 200, (N, 3)).astype("u1")
TARGETS = np.arange(N) % 5


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One data set, whole and in three parts whose numbers say their order, of every kind."""
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    places = np.cumsum([0, *SIZES.values()])
    for number, (start, end) in zip(SIZES, pairwise(places), strict=True):
        write(f"runs/{{}}-{number}", INPUTS[start:end], TARGETS[start:end])
    write("whole-{}", INPUTS, TARGETS)
    return tmp_path


def write(name: str, x: AnyArray, y: AnyArray) -> None:
    np.save(name.format("x") + ".npy", x)
    np.save(name.format("y") + ".npy", y)
    np.savez(name.format("u") + ".npz", x=x, y=y)
    with h5py.File(name.format("u") + ".h5", "w") as file:
        file["x"] = x
        file.create_dataset("y", data=y, chunks=(3,), compression="gzip")
    Path(name.format("x") + ".idx").write_bytes(idx_bytes(x, 0x08))
    Path(name.format("y") + ".idx.gz").write_bytes(gzip.compress(idx_bytes(y.astype("u1"), 0x08)))
    rows = [",".join(map(str, [*row, label])) for row, label in zip(x, y, strict=True)]
    Path(name.format("t") + ".csv").write_text("\n".join(["a,b,c,y", *rows]))


KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "npy": (
        {"source": "npy", "inputs": "runs/x-*.npy", "targets": "runs/y-*.npy"},
        {"inputs": "whole-x.npy", "targets": "whole-y.npy"},
    ),
    "npz": ({"source": "npz", "path": "runs/*.npz"}, {"path": "whole-u.npz"}),
    "npz by its folder": ({"source": "npz", "path": "runs"}, {"path": "whole-u.npz"}),
    "npz below folders": ({"source": "npz", "path": "**/u-*.npz"}, {"path": "whole-u.npz"}),
    "HDF5": (
        {"source": "hdf5", "path": "runs/u-*.h5", "inputs": "x", "targets": "y"},
        {"path": "whole-u.h5"},
    ),
    "IDX": (
        {"source": "idx", "inputs": "runs/x-*.idx", "targets": "runs/y-*.idx.gz"},
        {"inputs": "whole-x.idx", "targets": "whole-y.idx.gz"},
    ),
    "CSV": (
        {"source": "csv", "path": "runs/*.csv", "target": "y", "header": True},
        {"path": "whole-t.csv"},
    ),
}


@pytest.mark.parametrize("normalise", ["range", "standard"])
@pytest.mark.parametrize(("keys", "whole"), KINDS.values(), ids=KINDS)
def test_parts_are_trained_on_as_the_whole_is(
    keys: dict[str, Any], whole: dict[str, Any], normalise: str, here: Path
) -> None:
    ours, theirs = load(**keys, normalise=normalise), load(**{**keys, **whole}, normalise=normalise)
    assert ours.classes == theirs.classes == 5
    assert (ours.train.files, theirs.train.files) == (len(SIZES), 1)
    for name in ("train", "validation", "test"):
        mine, other = gathered(getattr(ours, name)), gathered(getattr(theirs, name))
        np.testing.assert_array_equal(mine[0], other[0])
        np.testing.assert_array_equal(mine[1], other[1])


def test_values_and_shapes_of_parts_are_those_of_the_whole(here: Path) -> None:
    keys, whole = KINDS["npy"]
    how = {"loss": "mean_squared_error", "shape": [3, 1], "normalise_targets": "standard"}
    ours, theirs = load(**keys, **how), load(**{**keys, **whole}, **how)
    assert ours.input_spec.shape == (3, 1)
    np.testing.assert_array_equal(gathered(ours.train)[1], gathered(theirs.train)[1])
    assert ours.outcome == theirs.outcome


def test_a_test_set_may_have_parts_of_its_own(here: Path) -> None:
    data = load(**KINDS["CSV"][0], test_path="runs/t-1*.csv")
    assert len(data.test) == SIZES[1] + SIZES[10]


def test_names_of_classes_are_those_of_all_parts(here: Path) -> None:
    Path("runs/t-2.csv").write_text("y,c,b,a\nno,1,2,3\nyes,4,5,6\n")
    Path("runs/t-1.csv").write_text("a,b,c,y\n7,8,9,maybe\n")
    Path("runs/t-10.csv").unlink()
    data = load(**KINDS["CSV"][0], validation=0, test=0, normalise="none")
    assert data.labels == ("maybe", "no", "yes")
    np.testing.assert_array_equal(gathered(data.train)[0], [[7, 8, 9], [3, 2, 1], [6, 5, 4]])


def test_parts_are_mapped_and_not_read(here: Path) -> None:
    inputs = load(**KINDS["npz"][0]).train.content()[0]
    assert isinstance(inputs, Joined)
    for part in inputs.parts:
        mapped: Any = part
        while not isinstance(mapped, np.memmap):
            mapped = mapped.base
    assert inputs.names == [f"runs/u-{number}.npz[x]" for number in SIZES]


@pytest.mark.parametrize("kind", ["npy", "npz", "HDF5", "CSV"])
def test_a_part_more_or_less_or_another_is_seen(kind: str, here: Path) -> None:
    keys = KINDS[kind][0]
    before = load(**keys).digest()
    assert load(**keys).digest() == before
    write("runs/{}-11", INPUTS[:5], TARGETS[:5])
    more = load(**keys).digest()
    write("runs/{}-11", INPUTS[5:10], TARGETS[:5])
    other = load(**keys).digest()
    assert len({before, more, other}) == 3


def test_of_many_parts_each_is_looked_at(here: Path) -> None:
    for number in range(200):
        np.save(f"runs/x-{number}.npy", np.full((9, 2), number))
        np.save(f"runs/y-{number}.npy", np.zeros(9, int))
    keys = {"source": "npy", "inputs": "runs/x-*.npy", "targets": "runs/y-*.npy"}
    before = load(**keys).digest()
    np.save("runs/x-77.npy", np.full((9, 2), 78))
    assert load(**keys).digest() != before


WRONG: dict[str, tuple[str, dict[str, Any], Any, str]] = {
    "another shape": (
        "npz",
        {},
        lambda: np.savez("runs/u-2.npz", x=INPUTS[:7, :2], y=TARGETS[:7]),
        r"^runs/u-2.npz\[x\]: a sample's inputs are uint8 of shape \(2,\), but uint8 of \(3,\) in "
        r"runs/u-1.npz\[x\]; store all parts alike, or leave this one out of what the pattern matches$",
    ),
    "another dtype": (
        "npy",
        {},
        lambda: np.save("runs/y-10.npy", TARGETS[:20].astype("f4")),
        r"^runs/y-10.npy: a sample's targets are float32 of shape \(\), but int64 of \(\) in runs/y-1.npy; ",
    ),
    "no samples but a number": (
        "npy",
        {},
        lambda: np.save("runs/x-2.npy", np.array(3)),
        r"^runs/x-2.npy: holds no samples; its shape is \(\)$",
    ),
    "a target too few in one": (
        "npy",
        {},
        lambda: np.save("runs/y-2.npy", TARGETS[:6]),
        r"^runs/x-2.npy holds 7 samples but runs/y-2.npy 6; the first axis of both counts",
    ),
    "a file of targets too few": (
        "npy",
        {},
        lambda: Path("runs/y-2.npy").unlink(),
        r"^runs: of 3 files of inputs and 2 of targets runs/x-2.npy have no partner: name those that",
    ),
    "a file of each too few, and not the same": (
        "npy",
        {},
        lambda: (Path("runs/x-1.npy").unlink(), Path("runs/y-10.npy").unlink()),
        r"^runs: of 2 files of inputs and 2 of targets runs/x-10.npy, runs/y-1.npy have no partner",
    ),
    "one file of inputs for three of targets": (
        "npy",
        {"inputs": "whole-x.npy"},
        lambda: None,
        r"of 1 files of inputs and 3 of targets some have no partner",
    ),
    "an array that one lacks": (
        "npz",
        {},
        lambda: np.savez("runs/u-2.npz", a=INPUTS, y=TARGETS),
        r"^runs/u-2.npz: holds no array 'x'",
    ),
    "a class that is none, in one": (
        "npy",
        {},
        lambda: [
            np.save(f"runs/y-{number}.npy", np.where(np.arange(size) == 6, number / 10, 1.0))
            for number, size in SIZES.items()
        ],
        r"^runs/y-1.npy: target 0.1 of sample 6 is no class",
    ),
    "a NaN in one": (
        "npy",
        {"normalise": "standard"},
        lambda: [
            np.save(f"runs/x-{number}.npy", np.full((size, 2), [[np.nan if number == 2 else 1.0, 1.0]]))
            for number, size in SIZES.items()
        ],
        r"^runs/x-2.npy: sample [0-6] holds nan, so that nothing can be normalised; clean it$",
    ),
    "flipped bytes in one": (
        "npz",
        {},
        lambda: Path("runs/u-2.npz").write_bytes(Path("runs/u-2.npz").read_bytes().replace(b"\0", b"\1")),
        r"^runs/u-2.npz: is not a whole .npz file",
    ),
    "a column that one lacks": (
        "CSV",
        {},
        lambda: Path("runs/t-2.csv").write_text("a,b,d,y\n1,2,3,0\n"),
        r"^runs/t-2.csv: has the columns a, b, d, y, but runs/t-1.csv a, b, c, y; name the same ones",
    ),
    "nothing that matches": (
        "npz",
        {"path": "runs/v-*.npz"},
        lambda: None,
        r"^runs/v-\*.npz: no file matches this pattern; .*runs exists. A relative path in a job file starts",
    ),
}


@pytest.mark.parametrize(("kind", "keys", "spoil", "expected"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_named(
    kind: str, keys: dict[str, Any], spoil: Any, expected: str, here: Path
) -> None:
    spoil()
    with pytest.raises(DataError, match=expected):
        load(**{**KINDS[kind][0], **keys})


def test_the_sample_that_no_float32_holds_is_named_with_its_file(here: Path) -> None:
    for number, size in SIZES.items():
        values = np.zeros((size, 2))
        values[3, 1] = np.nan if number == 10 else 0.0
        np.save(f"runs/x-{number}.npy", values)
    train = load(**KINDS["npy"][0], validation=0, test=0).train
    assert train.damage(np.arange(len(train))) == "sample 3 of runs/x-10.npy holds nan"


def test_numbers_in_names_count_by_their_value(tmp_path: Path) -> None:
    names = ["a9.npz", "a10.npz", "a10b.npz", "b1", "b.npz", "a010.npz", ".hidden.npz", "c/1.npz", "c-1.npz"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.npz").mkdir()

    def found(name: str) -> list[str]:
        return [str(path.relative_to(tmp_path)) for path in parts(str(tmp_path / name), (".npz",))]

    assert found("") == ["a9.npz", "a010.npz", "a10.npz", "a10b.npz", "b.npz", "c-1.npz"]
    assert found("*.npz") == found("")
    assert found("**/*1.npz") == ["c-1.npz", "c/1.npz"]
    assert found("b1") == ["b1"], "what is named is taken, however it ends"


def test_wildcards_in_the_name_of_a_file_or_folder_that_there_is_are_letters(tmp_path: Path) -> None:
    folder = tmp_path / "run[1]"
    folder.mkdir()
    for name in ("x*.npz", "x1.npz"):
        (folder / name).touch()
    assert parts(str(folder / "x*.npz"), ()) == [folder / "x*.npz"]
    assert parts(str(folder / "x?.npz"), ()) == [folder / "x1.npz", folder / "x*.npz"]


def test_what_links_lead_to_again_comes_once(tmp_path: Path) -> None:
    (tmp_path / "run-1/deep").mkdir(parents=True)
    (tmp_path / "run-1/u.npz").touch()
    (tmp_path / "run-1/deep/u.npz").touch()
    (tmp_path / "run-1/.kept").mkdir()
    (tmp_path / "run-1/.kept/u.npz").touch()
    (tmp_path / "latest").symlink_to("run-1")
    for name in "abc":  # what followed these found no end
        (tmp_path / "run-1" / name).symlink_to("..")

    def found(name: str) -> list[str]:
        return [str(path.relative_to(tmp_path)) for path in parts(str(tmp_path / name), (".npz",))]

    for pattern in ("**/*.npz", "**/**/*.npz", "**", "**/u**.npz"):
        assert found(pattern) == ["run-1/deep/u.npz", "run-1/u.npz"]
    assert found("lat*/*.npz") == ["latest/u.npz"], "a link that is named is followed"
    assert found("*/.kept/*.npz") == ["latest/.kept/u.npz", "run-1/.kept/u.npz"]


def test_a_folder_that_may_not_be_looked_into_is_not_passed_over(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    walk = os.walk

    def guarded(top: Any, onerror: Any) -> Any:
        onerror(PermissionError(13, "Permission denied", str(Path(top) / "theirs")))
        return walk(top)

    monkeypatch.setattr(os, "walk", guarded)
    with pytest.raises(DataError, match=r"theirs: cannot be read: Permission denied"):
        parts("*/u-*.npz", (".npz",))


def test_a_link_to_nothing_is_missing_and_not_left_out(here: Path) -> None:
    Path("runs/u-3.npz").symlink_to("nowhere")
    with pytest.raises(MissingData, match=r"^runs/u-3.npz: there is no such file"):
        load(**KINDS["npz"][0])
    with pytest.raises(MissingData, match=r"^runs/u-3.npz: there is no such file"):
        load(**KINDS["npz by its folder"][0])
    assert existing(Path("runs/u-1.npz"))


@pytest.mark.parametrize(
    ("inputs", "targets", "fit"),
    [
        pytest.param("x-1 x-2", "y-1 y-2", True, id="another letter before the number"),
        pytest.param("in/a.npy in/b.npy", "out/a.npy out/b.npy", True, id="another folder"),
        pytest.param("1-images 2-images", "1-labels 2-labels", True, id="another word behind it"),
        pytest.param("x-10 x-11", "y-20 y-21", False, id="digits that all numbers begin with count"),
        pytest.param("1.npy 11.npy", "1.npy 21.npy", False, id="and those that they end with"),
        pytest.param("anything", "something", True, id="one file of each may be called anything"),
        pytest.param("x-1 x-2", "y-1", False, id="another count"),
    ],
)
def test_which_names_belong_together(inputs: str, targets: str, fit: bool) -> None:
    ours, theirs = [[Path(name) for name in names.split()] for names in (inputs, targets)]
    if fit:
        assert together(ours, theirs) == list(zip(ours, theirs, strict=True))
    else:
        with pytest.raises(DataError, match=r"have no partner"):
            together(ours, theirs)


def test_files_belong_together_by_their_names_and_not_by_their_places(tmp_path: Path) -> None:
    for name in ("a", "a_b", "c"):
        (tmp_path / f"x-{name}.npy").touch()
        (tmp_path / f"y-{name}_y.npy").touch()
    found = together(*(parts(str(tmp_path / pattern), ()) for pattern in ("x-*.npy", "y-*.npy")))
    assert [(x.name, y.name) for x, y in found] == [
        ("x-a.npy", "y-a_y.npy"),
        ("x-a_b.npy", "y-a_b_y.npy"),
        ("x-c.npy", "y-c_y.npy"),
    ]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.data())
def test_rows_of_parts_are_those_of_the_whole(sizes: list[int], data: st.DataObject) -> None:
    whole = np.arange(sum(sizes) * 2).reshape(-1, 2)
    pieces = np.split(whole, np.cumsum(sizes)[:-1])
    joined = Joined(pieces, [f"part {number}" for number in range(len(sizes))])
    assert (joined.shape, joined.dtype, len(joined), joined.size) == (
        whole.shape,
        whole.dtype,
        len(whole),
        whole.size,
    )
    rows = np.array(data.draw(st.lists(st.integers(0, max(0, len(whole) - 1)))), int)[: 20 * len(whole)]
    np.testing.assert_array_equal(joined[rows], whole[rows])
    np.testing.assert_array_equal(joined.reshaped((2, 1))[rows], whole[rows][..., None])
    begin, end = sorted(data.draw(st.tuples(st.integers(0, 30), st.integers(0, 30))))
    np.testing.assert_array_equal(joined[begin:end], whole[begin:end])
    np.testing.assert_array_equal(np.concatenate([block for _, block in blocks(joined)] or [whole]), whole)
    for row in range(len(whole)):
        number, name = located(joined, row, "all")
        np.testing.assert_array_equal(pieces[int(name.split()[1])][number], whole[row])
