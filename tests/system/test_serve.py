"""weft serve under mpirun, asked by tritonclient: a run's checkpoint and ONNX files, from start to drain."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from safetensors.numpy import load_file
from sklearn.datasets import load_digits
from tritonclient.utils import InferenceServerException

from tests import launch
from tests.mpi.serve.models import dense, expected, put, samples
from tests.system.served import CLI, LIMIT_S, Running, running


def tensor(array: np.ndarray, name: str = "pixels") -> list[triton.InferInput]:
    given = triton.InferInput(name, list(array.shape), "FP32")
    given.set_data_from_numpy(array)
    return [given]


def agrees(result: triton.InferResult, given: np.ndarray, seed: int) -> None:
    np.testing.assert_allclose(result.as_numpy("scores"), expected(given, seed), rtol=1e-5, atol=1e-6)


ONES = np.ones((16, 1, 8, 8), np.float32)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits trained for two epochs, twice an ONNX model, and a damaged one."""
    root = tmp_path_factory.mktemp("models")
    runs = tmp_path_factory.mktemp("runs")
    trained = launch.mpiexec(
        2, [*CLI, "train", "digits-mlp", "--set", "train.epochs=2", "--folder", runs], timeout=LIMIT_S
    )
    assert trained.returncode == 0, trained.stderr
    (root / "digits").mkdir()
    (root / "digits" / "1").symlink_to(next(runs.iterdir()))
    put(root, "a", 1, dense(1))
    put(root, "a", 2, dense(2))
    put(root, "damaged", 1, b"no ONNX at all")
    return root


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    log = tmp_path_factory.mktemp("log") / "serve.txt"
    with running(2, ["serve", str(repository), "--port", "0"], log) as job:
        yield job.listen()


def test_it_says_what_is_served_and_where(server: Running):
    for words in (
        r"weft: digits 1 \(weft_checkpoint\): x FP32 \[-1, 1, 8, 8\]",
        r"weft: a 2 \(weft_onnx\): pixels FP32 \[-1, 4\]; up to 32 samples",
        r"weft: damaged 1 is not served: .*no ONNX model, or a damaged one",
        "weft: on rank 0 cpu, rank 1 cpu",
    ):
        assert re.search(words, server.text), server.text
    assert "nothing is served" not in server.text


def test_s5_3_a_checkpoint_answers_raw_samples_as_it_was_trained_to(server: Running, repository: Path):
    (newest,) = (repository / "digits" / "1" / "checkpoints").iterdir()
    weights = {name.removeprefix("weight/"): array for name, array in load_file(newest).items()}
    with triton.InferenceServerClient(server.address) as client:
        metadata = client.get_model_metadata("digits")
        (output,) = metadata["outputs"]
        # What README.md and docs/http.md ask of it, and the fake model of tests/serving.py stands for.
        assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 1, 8, 8]}]
        assert output == {"name": "dense_2", "datatype": "FP32", "shape": [-1, 10]}
        images, labels = load_digits(return_X_y=True)
        # The digits' pixels go from 0 to 16, and it was trained on 0 to 1.
        scores = (
            weights["dense_2.weight"]
            @ np.maximum(weights["dense_1.weight"] @ images[:32].T / 16 + weights["dense_1.bias"][:, None], 0)
            + weights["dense_2.bias"][:, None]
        )
        given = images[:32].astype(np.float32).reshape(-1, 1, 8, 8)
        result = client.infer("digits", tensor(given, "x"), timeout=60_000_000)
        np.testing.assert_allclose(result.as_numpy(output["name"]), scores.T, rtol=1e-4, atol=1e-4)
        right = 0
        for start in range(0, 1600, 32):
            given = images[start : start + 32].astype(np.float32).reshape(-1, 1, 8, 8)
            result = client.infer("digits", tensor(given, "x"), timeout=60_000_000)
            right += int((result.as_numpy(output["name"]).argmax(1) == labels[start : start + 32]).sum())
        assert right / 1600 > 0.8


def test_versions_are_answered_by_number_and_the_newest_without_one(server: Running):
    with triton.InferenceServerClient(server.address) as client:
        for version, seed in (("1", 1), ("2", 2), ("", 2)):
            result = client.infer("a", tensor(samples(3)), model_version=version, timeout=60_000_000)
            agrees(result, samples(3), seed)
        with pytest.raises(InferenceServerException, match="no version '3' loaded; there are '1', '2'"):
            client.infer("a", tensor(samples(1)), model_version="3")


def test_models_are_loaded_and_unloaded_while_others_answer(server: Running, repository: Path):
    with triton.InferenceServerClient(server.address) as client:
        index = {(each["name"], each["version"]): each for each in client.get_model_repository_index()}
        assert index["damaged", "1"]["state"] != "READY"
        assert "no ONNX model" in index["damaged", "1"]["reason"]
        put(repository, "later", 1, dense(7))
        client.load_model("later")
        result = client.infer("later", tensor(samples(2)), timeout=60_000_000)
        agrees(result, samples(2), 7)
        client.unload_model("later")
        assert not client.is_model_ready("later")
        with pytest.raises(InferenceServerException, match="no model 'later' is loaded"):
            client.infer("later", tensor(samples(1)))
        assert client.is_model_ready("a")


def test_s5_5_what_cannot_be_met_is_refused_with_the_reason(server: Running):
    with triton.InferenceServerClient(server.address) as client:
        with pytest.raises(InferenceServerException, match="late") as refused:
            client.infer("a", tensor(samples(32)), timeout=1)  # a microsecond, from arrival to answer
        assert refused.value.status() == "503"


def test_s5_3_1000_concurrent_requests_each_get_their_own_answer(server: Running):
    async def main() -> None:
        async with triton_aio.InferenceServerClient(server.address, conn_limit=64) as client:

            async def one(number: int) -> None:
                given = samples(1 + number % 4, number)
                result = await client.infer("a", tensor(given), timeout=60_000_000)
                agrees(result, given, 2)

            await asyncio.gather(*(one(number) for number in range(1000)))

    asyncio.run(main())
    with triton.InferenceServerClient(server.address) as client:
        (stats,) = client.get_inference_statistics("a", "2")["model_stats"]
        assert stats["execution_count"] < stats["inference_count"]


def resident(pid: int) -> int:
    """Bytes of a process's memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_overload_with_deadlines_leaves_memory_as_it_was(server: Running):
    async def main() -> None:
        counts = {"answered": 0, "refused": 0, "failed": 0}
        async with triton_aio.InferenceServerClient(server.address, conn_limit=32) as client:

            async def ask(number: int, end_s: float) -> None:
                allowed_us = 20_000 if number else 60_000_000  # one has the time that any machine takes
                while time.monotonic() < end_s:
                    try:
                        await client.infer("digits", tensor(ONES, "x"), timeout=allowed_us)
                        counts["answered"] += 1
                    except InferenceServerException as error:
                        counts["refused" if error.status() == "503" else "failed"] += 1

            async def overload(seconds: float) -> list[int]:
                end_s = time.monotonic() + seconds
                await asyncio.gather(*(ask(number, end_s) for number in range(64)))
                return [resident(pid) for pid in server.ranks()]

            before = await overload(3)
            after = await overload(6)
            assert counts["answered"] > 0
            assert counts["failed"] == 0
            assert max(a - b for a, b in zip(after, before, strict=True)) < 8 * 2**20

    asyncio.run(main())


def test_draining_answers_what_was_accepted_and_ends_with_status_0(repository: Path, tmp_path: Path):
    with running(2, ["serve", str(repository), "--port", "0"], tmp_path / "log.txt") as job:
        job.listen()

        async def main() -> None:
            answered, after = 0, []
            async with triton_aio.InferenceServerClient(job.address, conn_limit=16) as client:

                async def ask(number: int) -> None:
                    nonlocal answered
                    given = samples(4, number)
                    for _ in range(10_000):
                        try:
                            result = await client.infer("a", tensor(given), timeout=60_000_000)
                        except InferenceServerException as error:
                            after.append(error.status())
                            return
                        except Exception as error:  # refused to connect: it is gone
                            after.append(type(error).__name__)
                            return
                        agrees(result, given, 2)
                        answered += 1
                        if answered == 50:
                            job.process.send_signal(signal.SIGTERM)

                await asyncio.gather(*(ask(number) for number in range(16)))
            assert len(after) == 16
            assert not [status for status in after if str(status).startswith(("500", "400"))]

        asyncio.run(main())
        assert job.end() == 0, job.text
        assert (repository / "profiles.json").exists()


def test_a_killed_rank_ends_the_job_with_a_clear_error(repository: Path, tmp_path: Path):
    with running(2, ["serve", str(repository), "--port", "0"], tmp_path / "log.txt") as job:
        job.listen()
        os.kill(max(job.ranks()), signal.SIGKILL)
        assert job.end() != 0
        assert re.search("KILLED BY SIGNAL: 9|signal 9|terminated", job.text), job.text


def test_one_rank_serves_without_mpirun_and_wants_its_token(repository: Path, tmp_path: Path):
    arguments = ["serve", str(repository), "--port", "0", "--profile", "--profiles", str(tmp_path / "p.json")]
    with running(0, arguments, tmp_path / "log.txt", WEFT_TOKEN="secret") as job:
        job.listen()
        assert re.search(r"rank 0 cpu +a/2 +32 +[\d.]+ +[\d.]+ +\d+", job.text), job.text
        with triton.InferenceServerClient(job.address) as client:
            assert client.is_server_ready()
            with pytest.raises(InferenceServerException):
                client.infer("a", tensor(samples(1)))
            headers = {"Authorization": "Bearer secret"}
            result = client.infer("a", tensor(samples(1)), headers=headers, timeout=60_000_000)
            agrees(result, samples(1), 2)
        assert job.stop() == 0, job.text
        assert (tmp_path / "p.json").exists()


def test_a_name_that_is_not_the_servers_is_refused_unless_it_is_allowed(repository: Path, tmp_path: Path):
    job_file = tmp_path / "job.toml"
    job_file.write_text(JOB.format(folder=tmp_path / "runs"))
    served, trained = ["serve", str(repository), "--port", "0"], ["run", str(job_file)]
    for arguments, name, status in (
        (served, "gpu7.example", 403),
        ([*served, "--allowed-host", "gpu7.example"], "gpu7.example", 200),
        ([*trained, "--set", 'serve.allowed_hosts=["gpu7.example"]'], "gpu7.example", 200),
    ):
        with running(0, arguments, tmp_path / "log.txt") as job:
            address = job.listen().address
            for host, wanted in ((name, status), ("localhost", 200)):
                connection = HTTPConnection(address, timeout=LIMIT_S)
                connection.request("GET", "/v2", headers={"Host": f"{host}:8000"})
                answer = connection.getresponse()
                assert answer.status == wanted
                assert (b"--allowed-host" in answer.read()) == (wanted == 403)
                connection.close()


def test_a_server_whose_output_nobody_reads_serves_all_the_same(repository: Path, tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with running(0, ["serve", str(repository), "--port", str(port)], Path("/dev/full")) as job:
        limit = time.monotonic() + LIMIT_S
        with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
            while True:
                with contextlib.suppress(ConnectionError):
                    result = client.infer("a", tensor(samples(1)), timeout=60_000_000)
                    break
                assert job.process.poll() is None
                assert time.monotonic() < limit
                time.sleep(0.05)
            agrees(result, samples(1), 2)
        job.process.send_signal(signal.SIGTERM)
        assert job.process.wait(LIMIT_S) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serve", "nowhere", "--port", "0"], "the model repository nowhere does not exist"),
        (
            ["serve", ".", "--port", "0", "--policy", "hope"],
            "there is no policy 'hope'; there are first_come",
        ),
        (
            ["run", "digits-mlp", "--set", 'serve.allowed_hosts=["http://gpu7"]'],
            "must be a host's name alone, such as gpu7.example.org, or *; not 'http://gpu7'",
        ),
        (
            ["run", "digits-mlp", "--set", "serve.repository=models", "--set", "serve.port=0"],
            "the repository models has a model 'digits-mlp', and this job's model",
        ),
        (
            [
                *("run", "digits-mlp", "--set", "serve.port=0"),
                *("--set", "serve.repository=digits-mlp-20260101-000000"),
            ],
            "the repository digits-mlp-20260101-000000 has a model 'digits-mlp', and this job's model",
        ),
    ],
    ids=[
        "no repository",
        "no policy",
        "a host's address",
        "a model of the job's name",
        "a run of the job's name",
    ],
)
def test_what_is_wrong_is_said_once(arguments: list[str], words: str, tmp_path: Path):
    (tmp_path / "models" / "digits-mlp").mkdir(parents=True)
    (tmp_path / "digits-mlp-20260101-000000" / "checkpoints").mkdir(parents=True)
    (tmp_path / "digits-mlp-20260101-000000" / "job.toml").touch()
    result = launch.mpiexec(2, [*CLI, *arguments], cwd=tmp_path, timeout=LIMIT_S)
    assert result.returncode == 2
    assert result.stderr.count(words) == 1


@pytest.mark.parametrize(
    ("arguments", "ways"),
    [
        (["serve", "."], "--host and --port"),
        (["run", "digits-mlp"], "--set serve.host=ADDRESS and --set serve"),
    ],
    ids=["serve", "run"],
)
def test_an_address_that_is_taken_is_told_in_a_line(arguments: list[str], ways: str, tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        option = ["--port", f"{port}"] if arguments[0] == "serve" else ["--set", f"serve.port={port}"]
        result = launch.mpiexec(2, [*CLI, *arguments, *option], cwd=tmp_path, timeout=LIMIT_S)
    assert result.returncode == 3
    (line,) = re.findall("weft: .*", result.stderr)
    assert re.search(rf"can't listen on 127.0.0.1 port {port}: .* in use; choose another with {ways}", line)
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_repository_without_a_model_is_told(tmp_path: Path):
    (tmp_path / "models").mkdir()
    arguments = ["serve", str(tmp_path / "models"), "--port", "0", "--host", "0.0.0.0"]
    with running(0, arguments, tmp_path / "log.txt") as job:
        job.wait_for("weft: warning: whoever reaches .*WEFT_TOKEN")
        assert f"weft: no model in {tmp_path / 'models'}" in job.text
        assert job.stop() == 0


def test_where_nothing_can_be_served_it_says_how_to_load(tmp_path: Path):
    models = tmp_path / "models"
    put(models, "a", 1, b"no ONNX at all")
    (models / "digits").mkdir()
    (models / "digits" / "1").symlink_to("../../runs/x")
    with running(0, ["serve", str(models), "--port", "0"], tmp_path / "log.txt") as job:
        job.listen()
        job.wait_for("weft: nothing is served yet: .* POST v2/repository/models/NAME/load\n")
        assert re.search("digits 1 is not served: .*/1 is a link to ../../runs/x, which does not", job.text)
        put(models, "a", 1, dense(1))
        with triton.InferenceServerClient(job.address) as client:
            client.load_model("a")
            agrees(client.infer("a", tensor(samples(3)), timeout=60_000_000), samples(3), 1)
        assert job.stop() == 0


def test_a_run_is_served_by_its_folder_and_goes_on_afterwards(repository: Path, tmp_path: Path):
    run = shutil.copytree(repository / "digits" / "1", tmp_path / "digits-mlp-20260101-000000")
    with running(0, ["serve", str(run), "--port", "0"], tmp_path / "log.txt") as job:
        job.wait_for(r"weft: digits-mlp 1 \(weft_checkpoint\): x FP32 \[-1, 1, 8, 8\]")
        assert "not served" not in job.listen().text
        with triton.InferenceServerClient(job.address) as client:
            result = client.infer("digits-mlp", tensor(ONES, "x"), timeout=60_000_000)
            assert result.as_numpy("dense_2").shape == (16, 10)
            client.load_model("digits-mlp")
        assert job.stop() == 0, job.text
    again = launch.mpiexec(2, [*CLI, "train", "--resume", run, "--set", "train.epochs=3"], timeout=LIMIT_S)
    assert again.returncode == 0, again.stderr
    assert "all steps done after step 60" in again.stdout


def test_a_model_is_asked_while_it_is_trained(tmp_path: Path):
    job_file = tmp_path / "job.toml"
    job_file.write_text(JOB.format(folder=tmp_path / "runs"))
    with running(2, ["run", str(job_file)], tmp_path / "log.txt") as job:
        job.listen()
        with triton.InferenceServerClient(job.address) as client:
            versions = set[str]()
            while len(versions) < 2:  # at least two checkpoints, one after the other
                with contextlib.suppress(InferenceServerException):  # none yet, or none soon enough
                    given = tensor(ONES[:2], "x")
                    result = client.infer("job", given, timeout=60_000_000)
                    assert result.as_numpy("dense_2").shape == (2, 10)
                    versions.add(result.get_response()["model_version"])
            assert all(int(version) % 50 == 0 for version in versions)
        assert job.stop() == 128 + signal.SIGTERM
        assert "weft: job is not served: no checkpoint yet: the first comes after step 50" in job.text
        told = "stopped by a signal after step .*\n.*go on with: mpirun -n 2 weft run --resume "
        assert re.search(told, job.text)


def test_who_has_trained_serves_on_and_a_run_brings_its_job(tmp_path: Path):
    job_file = tmp_path / "job.toml"
    job_file.write_text(JOB.format(folder=tmp_path / "runs").replace("steps = 1000000", "steps = 20"))
    with running(0, ["run", str(job_file)], tmp_path / "log.txt") as job:
        job.wait_for("weft: training has ended; serving until Ctrl-C or SIGTERM")
        assert job.stop() == 0
    (run,) = (tmp_path / "runs").iterdir()
    with running(
        0, ["run", "--resume", str(run), "--set", "serve.after='end'"], tmp_path / "again.txt"
    ) as job:
        assert job.end() == 0, job.text


JOB = """
seed = 1
device = "cpu"
[data]
source = "digits"
[model]
layers = [
    {{ kernel = "flatten" }},
    {{ kernel = "dense", features = 32 }}, {{ kernel = "relu" }}, {{ kernel = "dense", features = 10 }},
]
[train]
batch = 32
steps = 1000000
evaluate_every = 1000000
optimizer = {{ name = "sgd", rate = 0.01 }}
[checkpoint]
every = 50
[run]
folder = "{folder}"
trace = false
[serve]
port = 0
"""


STOPPED = """
import asyncio, os, signal, sys
from pathlib import Path
from weft.runtime.message import World, run
from weft.runtime.serve.server import Server

async def main(world: World) -> None:
    async with await Server.open(world, Path(sys.argv[1])):
        await world.barrier()
        if world.rank == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(60)

run(main)
"""


def test_a_stop_that_cancels_a_program_with_a_server_ends_mpi_in_order(tmp_path: Path) -> None:
    """The window with a model's weights was left open, and MPI_Finalize failed."""
    put(tmp_path, "dense", 1, dense(1))
    result = launch.mpiexec(2, ["-c", STOPPED, tmp_path], timeout=60)
    assert result.returncode == 143, result.stderr
    assert "Fatal" not in result.stderr
    assert "Traceback" not in result.stderr
