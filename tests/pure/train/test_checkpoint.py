"""Checkpoints: written whole, read back exactly, refused with a reason."""

from __future__ import annotations

import builtins
import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from weft.kernels.kernel import ArraySpec
from weft.runtime.errors import CheckpointError, MachineError
from weft.runtime.train.checkpoint import (
    DIGEST,
    Snapshot,
    checkpoints,
    chosen,
    latest,
    load,
    read,
    require_lineage,
    require_tensors,
    save,
)


def snapshot(step: int) -> Snapshot:
    tensors = {
        "dense/weight": np.arange(6, dtype="f4").reshape(2, 3) * step,
        "dense/bias": np.full(3, step, "f8"),
        "step": np.array(step, "i8"),
        "mask": np.array([True, False, True]),
        "empty": np.empty((0, 4), "f4"),
    }
    return Snapshot(step, tensors, {"score": 0.5, "seen": [1, 2], "job": {"name": "ü"}})


def same(a: Snapshot, b: Snapshot) -> bool:
    return (
        (a.step, a.progress) == (b.step, b.progress)
        and set(a.tensors) == set(b.tensors)
        and all(
            a.tensors[name].dtype == b.tensors[name].dtype
            and a.tensors[name].shape == b.tensors[name].shape
            and a.tensors[name].tobytes() == b.tensors[name].tobytes()
            for name in a.tensors
        )
    )


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    path = save(tmp_path / "new folder", snapshot(3))
    assert same(load(path), snapshot(3))
    assert path.name == "step-00000003.safetensors"


def test_what_wire_formats_have_left_out_stays_in_the_file(tmp_path: Path) -> None:
    """Every rank that went on with a run had that of all ranks in memory."""
    owed = {"residual0/dense.bias": np.full(3, 2, "f4"), "residual1/dense.bias": np.full(3, 4, "f4")}
    written = replace(snapshot(3), tensors={**snapshot(3).tensors, **owed})
    path = save(tmp_path, written)
    found = load(path)
    assert same(found, snapshot(3))
    assert found.left_out == dict.fromkeys(owed, ArraySpec((3,)))
    assert read(path, ["residual1/dense.bias"])["residual1/dense.bias"].tolist() == [4, 4, 4]
    with pytest.raises(CheckpointError, match=r"residual0/dense.bias is not of this model"):
        require_tensors(
            path,
            found,
            {
                name: ArraySpec(of.shape, of.dtype.name)
                for name, of in {
                    **found.tensors,
                    "residual1/dense.bias": owed["residual1/dense.bias"],
                }.items()
            },
        )
    path.write_bytes(path.read_bytes().replace(owed["residual1/dense.bias"].tobytes(), b"\0" * 12))
    with pytest.raises(CheckpointError, match="does not match its checksum"):
        load(path)
    path.unlink()
    with pytest.raises(CheckpointError, match="was removed"):
        read(path, ["residual1/dense.bias"])


def test_any_reader_of_safetensors_reads_it(tmp_path: Path) -> None:
    read = safetensors.numpy.load_file(save(tmp_path, snapshot(3)))
    assert same(Snapshot(3, read, snapshot(3).progress), snapshot(3))


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(
            lambda name: name != "__metadata__"
        ),
        arrays.arrays(
            st.sampled_from(["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?"]),
            arrays.array_shapes(min_dims=0, min_side=0, max_side=3),
        ),
        max_size=4,
    )
)
def test_any_tensors_survive_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, Any]
) -> None:
    path = save(tmp_path_factory.mktemp("any"), Snapshot(1, tensors))
    assert same(load(path), Snapshot(1, tensors))


def test_a_transposed_or_big_endian_tensor_is_stored_in_its_order(tmp_path: Path) -> None:
    tensors = {"a": np.arange(6.0).reshape(2, 3).T, "b": np.arange(3, dtype=">f4")}
    read = load(save(tmp_path, Snapshot(1, tensors))).tensors
    np.testing.assert_array_equal(read["a"], tensors["a"])
    np.testing.assert_array_equal(read["b"], tensors["b"])


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 10, 9):
        save(tmp_path, snapshot(step), keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == [
        "step-00000010.safetensors",
        "step-00000009.safetensors",
    ]
    save(tmp_path, snapshot(3), keep=1)
    assert [load(path).step for path in checkpoints(tmp_path)] == [3], "the one just written always stays"


def test_the_best_is_kept_and_chosen(tmp_path: Path) -> None:
    def of(step: int, best: int) -> Snapshot:
        return replace(snapshot(step), progress={"best": {"step": best}})

    for step, best in ((1, 1), (2, 1), (3, 3), (4, 3), (5, 3)):
        save(tmp_path, of(step, best), keep=1)
        kept = [load(path).step for path in checkpoints(tmp_path)]
        assert kept == list(dict.fromkeys((step, best)))
        assert load(chosen(tmp_path)).step == best
    save(tmp_path, snapshot(6), keep=2)
    assert load(chosen(tmp_path)).step == 6
    save(tmp_path, of(7, 2), keep=2)
    with pytest.raises(CheckpointError, match=r"step-00000002.safetensors: the run's best .* is missing"):
        chosen(tmp_path)
    latest(tmp_path).write_bytes(b"damaged")
    assert chosen(tmp_path) == latest(tmp_path), "who loads it is told"


def test_what_a_crash_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".step-00000007.safetensors.part", "notes.part", "step-1.safetensors.bak"):
        (tmp_path / name).write_text("x")
    save(tmp_path, snapshot(8))
    assert sorted(os.listdir(tmp_path)) == [
        "notes.part",
        "step-00000008.safetensors",
        "step-1.safetensors.bak",
    ]


class Crash(BaseException):
    """Stands for the end of the process: no `except OSError` catches it."""


@pytest.mark.parametrize(
    "error", [Crash(), OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EIO, "I/O")]
)
@pytest.mark.parametrize("point", ["open", "write 1", "write 2", "write 4", "fsync 1", "replace", "fsync 2"])
def test_nothing_is_lost_by_an_error_at(
    point: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        save(tmp_path, snapshot(step), keep=2)
    counts: dict[str, int] = {}

    def failing(name: str, function: Any) -> Any:
        def wrapper(*args: Any, **keys: Any) -> Any:
            counts[name] = counts.get(name, 0) + 1
            if point in (name, f"{name} {counts[name]}"):
                raise error
            return function(*args, **keys)

        return wrapper

    class File:
        """A real file whose writes can fail half-way."""

        def __init__(self, *args: Any) -> None:
            self.file = real_open(*args)
            self.fileno, self.flush = self.file.fileno, self.file.flush

        def write(self, data: Any) -> None:
            self.file.write(memoryview(data)[: len(data) // 2])
            failing("write", lambda: self.file.write(memoryview(data)[len(data) // 2 :]))()

        def __enter__(self) -> File:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

    real_open = builtins.open
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing("fsync", os.fsync))
        patch.setattr(os, "replace", failing("replace", os.replace))
        patch.setattr(builtins, "open", failing("open", File))
        with pytest.raises((Crash, MachineError)) as caught:
            save(tmp_path, snapshot(3), keep=2)
    if isinstance(error, OSError):
        assert f"step-00000003.safetensors: cannot be written: {error.strerror}" in str(caught.value)
        assert not list(tmp_path.glob(".*")), "the unfinished file is gone"
    if error.args[:1] == (errno.ENOSPC,):
        assert "kB are free. Earlier checkpoints are kept" in str(caught.value)

    newest = load(latest(tmp_path))
    assert same(newest, snapshot(newest.step))
    assert newest.step == (3 if point == "fsync 2" else 2)
    assert same(load(tmp_path / "step-00000002.safetensors"), snapshot(2))
    save(tmp_path, snapshot(4), keep=2)
    assert not list(tmp_path.glob(".*"))
    assert len(checkpoints(tmp_path)) == 2


def test_a_full_disk_is_told_with_all_that_the_file_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = replace(snapshot(3), progress={"lineage": "layers " * 1000})  # its header is most of it
    nbytes = save(tmp_path, whole).stat().st_size

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MachineError, match=f"it needs {-(-nbytes // 1000)} kB and [0-9,]+ kB are free"):
        save(tmp_path, whole)


def flip(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :]


def rewritten(content: bytes, **changes: str | None) -> bytes:
    """The file with other metadata; None removes a key."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"].update(changes)
    header["__metadata__"] = {
        key: value for key, value in header["__metadata__"].items() if value is not None
    }
    head = json.dumps(header).encode()
    return len(head).to_bytes(8, "little") + head + content[8 + length :]


DAMAGE = {
    "truncated": (lambda content: content[:-1], "is damaged or no safetensors file"),
    "truncated in its header": (lambda content: content[:50], "is damaged or no safetensors file"),
    "empty": (lambda content: b"", "is damaged or no safetensors file"),
    "with a bit flipped in a tensor": (lambda content: flip(content, -20), "does not match its checksum"),
    "with another step in its header": (
        lambda content: rewritten(content, step="9"),
        "does not match its checksum",
    ),
    "without its checksum": (
        lambda content: rewritten(content, checksum=None),
        "has no checksum in its header",
    ),
    "of a later format": (
        lambda content: rewritten(content, format_version="2", weft="9.9"),
        r"has format 2, written by Weft 9.9; this Weft, 0.*, reads format 1",
    ),
    "of another program": (
        lambda content: safetensors.numpy.save({"a": np.zeros(3)}),
        "is a safetensors file, but no checkpoint of Weft",
    ),
    "that is something else": (
        lambda content: b"PK\3\4 and so on, for some more bytes",
        "is damaged or no safetensors",
    ),
}


@pytest.mark.parametrize(("damage", "expected"), DAMAGE.values(), ids=DAMAGE)
def test_a_file_is_refused(damage: Any, expected: str, tmp_path: Path) -> None:
    save(tmp_path, snapshot(1))
    path = save(tmp_path, snapshot(2))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=expected) as caught:
        load(latest(tmp_path))
    assert str(caught.value).startswith(str(path))
    assert str(caught.value).endswith(
        f"the run resumes from the first of these:\n    {tmp_path}/step-00000001.safetensors"
    )


def test_a_file_that_is_named_as_another_steps_is_refused(tmp_path: Path) -> None:
    save(tmp_path, snapshot(1)).rename(tmp_path / "step-00000009.safetensors")
    save(tmp_path, snapshot(2))
    with pytest.raises(
        CheckpointError, match=r"9\.safetensors: holds step 1: .* step-00000001\.safetensors\n"
    ):
        load(latest(tmp_path))
    copied = latest(tmp_path).rename(tmp_path / "good.safetensors")
    assert load(copied).step == 1


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = save(tmp_path, snapshot(1))
    content = path.read_bytes()
    for position in range(len(content)):
        path.write_bytes(flip(content, position))
        try:
            read = load(path)
        except CheckpointError:
            continue
        assert same(read, snapshot(1)), f"byte {position} of {len(content)}"  # spaces behind the header


def test_a_folder_without_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no checkpoint; nothing can be resumed from it"):
        latest(tmp_path)
    with pytest.raises(CheckpointError, match="is no folder"):
        latest(tmp_path / "none")
    with pytest.raises(CheckpointError, match=r"step-1.safetensors: cannot be read \(No such file"):
        load(tmp_path / "none" / "step-1.safetensors")


def test_tensors_of_another_model_are_named() -> None:
    expected = {
        "dense/weight": ArraySpec((2, 4)),
        "dense/bias": ArraySpec((3,)),
        "step": ArraySpec((), "int64"),
        "mask": ArraySpec((3,), "bool"),
        "other/weight": ArraySpec((1,)),
    }
    with pytest.raises(CheckpointError) as caught:
        require_tensors(Path("c"), snapshot(1), expected)
    assert str(caught.value).splitlines() == [
        "c: is of another model:",
        "    other/weight is missing",
        "    empty is not of this model",
        "    dense/weight is float32 (2, 3), the model's float32 (2, 4)",
        "    dense/bias is float64 (3,), the model's float32 (3,)",
    ]
    fitting = {name: ArraySpec(t.shape, t.dtype.name) for name, t in snapshot(1).tensors.items()}
    require_tensors(Path("c"), snapshot(1), fitting)


def test_a_job_with_another_lineage_is_refused() -> None:
    lineage = {"seed": 1, "train.batch": 64}
    require_lineage(Path("c"), lineage, dict(lineage))
    with pytest.raises(CheckpointError, match=r"c: is of a job with other:\n    train.batch was 64, is 32$"):
        require_lineage(Path("c"), lineage, {"seed": 1, "train.batch": 32})


def test_files_of_a_folder_may_be_chosen_otherwise_if_what_is_in_them_is_the_same() -> None:
    before = {"data": {"files": "**/*", "exclude": [], "context": 16}, DIGEST: "5ab"}
    chosen = {"data": {"files": "a/*", "exclude": ["closed/**"], "context": 16}, DIGEST: "5ab"}
    require_lineage(Path("c"), before, chosen)
    for now in ({**chosen, DIGEST: "6cd"}, {"data": chosen["data"]}):  # another text, or one nobody knows
        with pytest.raises(CheckpointError, match=r'data.exclude.0 was null, is "closed/\*\*"'):
            require_lineage(Path("c"), before, now)
    with pytest.raises(CheckpointError, match=r"other:\n    data.context was 16, is 17$"):
        require_lineage(Path("c"), before, {"data": {**chosen["data"], "context": 17}, DIGEST: "5ab"})


def test_another_lineage_is_told_key_by_key() -> None:
    before = {"model": {"layers": [{"kernel": "dense", "features": 8}, {"kernel": "relu"}], "gpt": None}}
    now = {"model": {"layers": [{"kernel": "dense", "features": 9}]}}
    with pytest.raises(CheckpointError) as caught:
        require_lineage(Path("c"), before, now)
    assert str(caught.value).splitlines()[1:] == [
        "    model.layers.0.features was 8, is 9",
        '    model.layers.1.kernel was "relu", is null',
    ]
