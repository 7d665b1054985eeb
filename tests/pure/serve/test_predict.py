"""What weft predict takes and writes; system/test_predict.py runs it."""

from __future__ import annotations

import asyncio
import errno
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from weft.runtime.errors import DataError, MachineError, Mistake, RequestError
from weft.runtime.serve.predict import (
    AHEAD,
    Options,
    ask,
    beside,
    converted,
    require_fitting,
    samples_for,
    save,
    written,
)
from weft.runtime.serve.request import ModelInfo, TensorInfo
from weft.runtime.train.data.inputs import Inputs

IMAGE, TOKENS = TensorInfo("x", "FP32", (-1, 3, 3)), TensorInfo("tokens", "INT32", (-1, 5))
SHARES, LOGITS = TensorInfo("shares", "FP32", (-1, 4)), TensorInfo("logits", "FP32", (-1, 4))


def options(**changes: object) -> Options:
    found = {"output": "", "batch": 8, "device": "cpu", **changes}
    return Options(Path("m"), "x.npy", Path("y.npy"), **found)


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
    assert (entry, [each.name for each in chosen]) == (model.inputs[0], [output])


def test_a_table_has_room_for_all_outputs():
    both = info(outputs=(SHARES, LOGITS))
    assert require_fitting(both, IMAGES, options(), several=True)[1] == (SHARES, LOGITS)
    assert require_fitting(both, IMAGES, options(output="logits"), several=True)[1] == (LOGITS,)


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
    "two outputs": (
        info(outputs=(SHARES, LOGITS)),
        IMAGES,
        {},
        "shares, logits: .* --output, or name a .csv",
    ),
    "no such output": (info(), IMAGES, {"output": "y"}, "m has no output 'y'; it has logits"),
}


@pytest.mark.parametrize(("model", "samples", "changes", "words"), WRONG.values(), ids=WRONG)
def test_does_not_fit(model, samples, changes, words):
    with pytest.raises(Mistake, match=words):
        require_fitting(model, samples, options(**changes))


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
        asyncio.run(ask(client, 2, samples, TOKENS, {"logits": np.zeros((1000, 4))}, 8))
    assert client.asked == 2 * AHEAD


def test_what_a_shell_made_of_a_pattern_is_not_written_over(tmp_path):
    """`weft predict RUN new/*` with two files there: the second is in the predictions' place."""
    (tmp_path / "run.onnx").touch()
    first, second = tmp_path / "a.npy", tmp_path / "b.npy"
    np.save(first, IMAGES)
    asked = replace(options(), model=tmp_path / "run.onnx", samples=str(first), predictions=second)
    assert samples_for(asked)[1] == second
    for other in (np.zeros((5, 4)), IMAGES.astype(np.float32)):  # predictions of before
        np.save(second, other)
        samples_for(asked)
    np.save(second, IMAGES[:2])
    with pytest.raises(Mistake, match=r"b\.npy would be written over.*quotation marks"):
        samples_for(asked)
    for name in ("b.npz", "b.h5"):
        (tmp_path / name).touch()
        with pytest.raises(Mistake, match="would be written over"):
            samples_for(replace(asked, predictions=tmp_path / name))
    second.write_bytes(b"")
    assert samples_for(asked)[1] == second


def test_where_no_file_is_named_it_is_beside_the_samples(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parts").mkdir()
    for name in ("new.npy", "parts/a.npy"):
        np.save(name, IMAGES)
    np.savez("new.npz", x=IMAGES)
    assert beside(Inputs.find("new.npy")) == Path("new-predictions.npy")
    assert beside(Inputs.find("new.npz:x")) == Path("new-predictions.npy")
    assert beside(Inputs.find("parts")) == tmp_path / "parts-predictions.npy"
    with pytest.raises(Mistake, match=r"^\*\.npy is a pattern: name a file for the predictions"):
        beside(Inputs.find("*.npy"))


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
