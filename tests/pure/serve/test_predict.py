"""What weft predict takes and writes; system/test_predict.py runs it."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import numpy as np
import pytest

from weft.runtime.errors import DataError, MachineError, Mistake, RequestError
from weft.runtime.serve.predict import (
    AHEAD,
    Options,
    ask,
    converted,
    read_samples,
    require_fitting,
    save,
    written,
)
from weft.runtime.serve.request import ModelInfo, TensorInfo

IMAGE, TOKENS = TensorInfo("x", "FP32", (-1, 3, 3)), TensorInfo("tokens", "INT32", (-1, 5))
SHARES, LOGITS = TensorInfo("shares", "FP32", (-1, 4)), TensorInfo("logits", "FP32", (-1, 4))


def options(**changes: object) -> Options:
    found = {"output": "", "batch": 8, "device": "cpu", **changes}
    return Options(Path("m"), Path("x.npy"), Path("y.npy"), **found)


def info(inputs=(IMAGE,), outputs=(LOGITS,), platform="weft_onnx") -> ModelInfo:
    return ModelInfo("model", ("1",), "1", platform, tuple(inputs), tuple(outputs), 8, ready=True)


IMAGES = np.zeros((7, 3, 3))

FITTING = {
    "numbers of another size": (info(), IMAGES, {}, "logits"),
    "whole numbers for a model of fractions": (info(), IMAGES.astype(np.uint8), {}, "logits"),
    "float32 for a file that takes float64": (
        info([TensorInfo("x", "FP64", (-1, 3, 3))]),
        IMAGES.astype(np.float32),
        {},
        "logits",
    ),
    "halves for a run": (info(platform="weft_checkpoint"), IMAGES.astype(np.float16), {}, "logits"),
    "tokens": (info([TOKENS]), np.zeros((7, 5), np.int64), {}, "logits"),
    "an output by its name": (info(outputs=(SHARES, LOGITS)), IMAGES, {"output": "logits"}, "logits"),
}


@pytest.mark.parametrize(("model", "samples", "changes", "output"), FITTING.values(), ids=FITTING)
def test_fits(model, samples, changes, output):
    entry, chosen = require_fitting(model, samples, options(**changes))
    assert (entry, chosen.name) == (model.inputs[0], output)


WRONG = {
    "samples of another shape": (
        info(),
        IMAGES[:, None],
        {},
        r"float64 \(1, 3, 3\), and m takes float32 \(3, 3\)",
    ),
    "fractions for tokens": (
        info([TOKENS]),
        np.zeros((7, 5)),
        {},
        r"float64 \(5,\), and m takes int32 \(5,\)",
    ),
    "float32 for a run that tells more apart": (
        info([TensorInfo("x", "FP64", (-1, 3, 3))], platform="weft_checkpoint"),
        IMAGES.astype(np.float32),
        {},
        "holds float32, which tells too little of what m was trained on: save the samples as float64",
    ),
    "two inputs": (info([IMAGE, TOKENS]), IMAGES, {}, "m takes x, tokens: a file of samples has one input"),
    "two outputs": (info(outputs=(SHARES, LOGITS)), IMAGES, {}, "shares, logits: choose one with --output"),
    "no such output": (info(), IMAGES, {"output": "y"}, "m has no output 'y'; it has logits"),
}


@pytest.mark.parametrize(("model", "samples", "changes", "words"), WRONG.values(), ids=WRONG)
def test_does_not_fit(model, samples, changes, words):
    with pytest.raises(Mistake, match=words):
        require_fitting(model, samples, options(**changes))


@pytest.mark.parametrize(
    ("save", "words"),
    [
        (lambda path: None, "No such file or directory"),
        (lambda path: path.write_bytes(b""), "is no .npy file"),
        (lambda path: path.write_text("1,2,3"), "is no .npy file; write the samples, .*, by numpy.save$"),
        (lambda path: path.mkdir(), "cannot be read as an .npy file: Is a directory"),
        (lambda path: path.write_bytes(saved(path, IMAGES)[:-4]), "cannot be read as an .npy file"),
        (lambda path: saved(path, np.array(1.0)), r"float64 \(\), which are no samples"),
        (lambda path: saved(path, IMAGES[:0]), r"float64 \(0, 3, 3\), which are no samples"),
        (lambda path: saved(path, np.array(["a"])), "<U1 .*which are no samples of numbers"),
        (lambda path: several(path), "holds several arrays"),
        (os.mkfifo, "is a device or a pipe, which cannot be mapped; store the samples as a file$"),
        (lambda path: path.write_bytes(saved(path, IMAGES).replace(b"}", b"{")), "cannot be read as an .npy"),
    ],
    ids=[
        "none", "empty", "text", "a folder", "cut off", "no axis", "no samples", "words", "several arrays",
        "a pipe", "a damaged header",
    ],
)  # fmt: skip
def test_a_file_that_holds_no_samples(save, words, tmp_path):
    save(tmp_path / "x.npy")
    with pytest.raises(DataError, match=f"x.npy: .*{words}"):
        read_samples(tmp_path / "x.npy")


def test_a_token_that_would_become_another_is_refused_with_its_sample():
    tokens = np.array([[3, 4], [5, 2**32 + 7]])
    assert converted(tokens[:1], np.dtype("int32"), 8).tolist() == [[3, 4]]
    with pytest.raises(DataError, match="sample 9 holds a number that is no int32"):
        converted(tokens, np.dtype("int32"), 8)


def test_a_number_that_would_become_infinite_is_refused_with_its_sample():
    samples = np.array([[0.5, np.nan], [-np.inf, 3.0], [1.0, -1e300]])
    np.testing.assert_array_equal(converted(samples[:2], np.dtype("float32"), 8), samples[:2])
    with pytest.raises(DataError, match="sample 10 holds a number that is no float32"):
        converted(samples, np.dtype("float32"), 8)


def test_samples_that_fail_are_told_in_a_line_and_nothing_else_is_asked():
    class Client:
        asked = 0

        async def infer(self, *arguments: object, **wishes: object) -> None:
            self.asked += 1
            await asyncio.sleep(0)
            raise RequestError("batches", 1, "here", "Traceback …\nValueError: token 999 has no row\n")

    client, samples = Client(), np.zeros((1000, 5), np.int32)
    with pytest.raises(Mistake, match=r"^samples 0 to 7 failed: ValueError: token 999 has no row$"):
        asyncio.run(ask(client, 2, samples, TOKENS, LOGITS, np.zeros((1000, 4)), 8))
    assert client.asked == 2 * AHEAD


def several(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, a=IMAGES)


def saved(path: Path, array: np.ndarray) -> bytes:
    np.save(path, array)
    return path.read_bytes()


def test_predictions_are_there_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "y.npy"
    with written(path, (3, 2), np.dtype("float32")) as into:
        into[:] = 7
        assert not path.exists()
    assert np.load(path).tolist() == [[7, 7]] * 3
    with pytest.raises(ZeroDivisionError), written(path, (9,), np.dtype("int8")):
        raise ZeroDivisionError
    assert np.load(path).shape == (3, 2)

    def full(*arguments: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    message = "y.npy: cannot be written: No space left"
    with pytest.raises(MachineError, match=message), written(path, (9,), np.dtype("int8")):
        pass
    assert [each.name for each in path.parent.iterdir()] == ["y.npy"]


def test_a_folder_that_came_in_the_predictions_place_is_told(tmp_path):
    path = tmp_path / "y.npy"
    with (
        pytest.raises(MachineError, match=r"y\.npy: cannot be written: Is a directory"),
        written(path, (3, 2), np.dtype("float32")),
    ):
        path.mkdir()
    assert [each.name for each in tmp_path.iterdir()] == ["y.npy"]


def test_a_table_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "y.csv"

    async def stopped() -> None:
        task = asyncio.create_task(save(path, iter(lambda: "0,1\n", None)))  # without an end
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(stopped())
    assert list(tmp_path.iterdir()) == []
    asyncio.run(save(path, ["sample,y\n", "0,ö\n"]))
    assert path.read_bytes() == "sample,y\n0,ö\n".encode()
    assert [each.name for each in tmp_path.iterdir()] == ["y.csv"]
    path.unlink()
    path.mkdir()
    with pytest.raises(MachineError, match=r"y\.csv: cannot be written: Is a directory"):
        asyncio.run(save(path, ["sample,y\n"]))
    assert [each.name for each in tmp_path.iterdir()] == ["y.csv"]
