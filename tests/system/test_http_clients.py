"""tritonclient, unmodified, against the HTTP front: both of its HTTP clients, and all that they ask."""

from __future__ import annotations

import asyncio
import json
import urllib.request
import warnings
from collections.abc import Iterator

import ml_dtypes
import numpy as np
import pytest

from tests.launch import ROOT
from tests.serving import Fake, Serving, serving

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # gevent's and aiohttp's, at their import
    import tritonclient.http as http
    import tritonclient.http.aio as aio
    from tritonclient.utils import InferenceServerException

ARRAYS = {
    "BOOL": np.array([[True, False, True]]),
    **{f"UINT{bits}": np.array([[0, 1, 2**bits - 1]], f"u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": np.array([[-(2 ** (bits - 1)), 0, 7]], f"i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.array([[-0.5, 0, 1.5]], f"f{bits // 8}") for bits in (16, 32, 64)},
    "BF16": np.array([[-0.5, 0, 1.5]], ml_dtypes.bfloat16),
    "BYTES": np.array([[b"a", b"", "é".encode()]], object),
}


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Serving) -> Iterator[http.InferenceServerClient]:
    made = http.InferenceServerClient(server.url.removeprefix("http://"))
    yield made
    made.close()


def given(array: np.ndarray, datatype: str, *, binary: bool = True) -> http.InferInput:
    made = http.InferInput("x", list(array.shape), datatype)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


@pytest.mark.parametrize("datatype", ARRAYS)
def test_s5_every_datatype_comes_back_as_it_went(client: http.InferenceServerClient, datatype: str):
    array = ARRAYS[datatype]
    wanted = http.InferRequestedOutput("half" if datatype == "BF16" else "y")
    result = client.infer("echo", [given(array, datatype)], outputs=[wanted])
    answered = result.as_numpy(wanted.name())
    assert answered.tolist() == array.tolist()
    assert result.get_output(wanted.name())["datatype"] == datatype


@pytest.mark.parametrize("datatype", [name for name in ARRAYS if name not in ("FP16", "BF16")])
def test_s5_every_datatype_travels_as_json(client: http.InferenceServerClient, datatype: str):
    # (Its two half floats tritonclient itself refuses to send as JSON.)
    array = ARRAYS[datatype]
    wanted = http.InferRequestedOutput("y", binary_data=False)
    answered = client.infer("echo", [given(array, datatype, binary=False)], outputs=[wanted]).as_numpy("y")
    assert (
        answered.tolist() == [[text.decode() for text in array[0]]] if datatype == "BYTES" else array.tolist()
    )


@pytest.mark.parametrize("request_compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("response_compression", [None, "gzip", "deflate"])
def test_s5_compressed_both_ways(
    client: http.InferenceServerClient, request_compression: str | None, response_compression: str | None
):
    array = np.tile(np.arange(1000, dtype=np.float32), (3, 1))
    result = client.infer(
        "echo",
        [given(array, "FP32")],
        request_compression_algorithm=request_compression,
        response_compression_algorithm=response_compression,
    )
    np.testing.assert_array_equal(result.as_numpy("y"), array)


def test_s5_2_a_request_brings_its_quality_of_service(server: Serving, client: http.InferenceServerClient):
    client.infer(
        "echo",
        [given(ARRAYS["FP32"], "FP32")],
        model_version="1",
        request_id="7",
        priority=2,
        timeout=50_000,
        parameters={"class": "interactive", "accuracy": 0.9, "best_effort": True, "client": "me"},
    )
    request = server.service.requests[-1]
    assert (request.model, request.version, request.id) == ("echo", "1", "7")
    assert request.qos.deadline_s == 0.05
    assert (request.qos.priority, request.qos.service_class, request.qos.client) == (2, "interactive", "me")
    assert (request.qos.accuracy, request.qos.best_effort) == (0.9, True)


def test_s5_classification(client: http.InferenceServerClient):
    wanted = http.InferRequestedOutput("y", class_count=2)
    result = client.infer("echo", [given(ARRAYS["FP32"], "FP32")], outputs=[wanted])
    assert result.as_numpy("y").tolist() == [[b"1.500000:2", b"0.000000:1"]]


def test_s5_all_that_is_told_of_server_and_models(client: http.InferenceServerClient):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.get_server_metadata()["name"] == "weft"
    assert client.get_model_metadata("echo", "1")["inputs"] == [
        {"name": "x", "datatype": "FP32", "shape": [-1, -1]}
    ]
    assert client.is_model_ready("echo", "2")
    assert not client.is_model_ready("sleeping")
    assert client.get_model_config("echo")["max_batch_size"] == 8
    client.infer("echo", [given(ARRAYS["FP32"], "FP32")])
    (of_model,) = client.get_inference_statistics("echo")["model_stats"]
    assert of_model["inference_stats"]["success"]["count"] >= 1


def test_s5_models_are_loaded_and_unloaded():
    with serving() as server:
        client = http.InferenceServerClient(server.url.removeprefix("http://"))
        client.load_model("sleeping", config='{"max_batch_size": 4}')
        assert client.is_model_ready("sleeping")
        assert client.get_model_config("sleeping")["max_batch_size"] == 4
        client.unload_model("sleeping")
        states = {entry["name"]: entry["state"] for entry in client.get_model_repository_index()}
        assert (states["sleeping"], states["echo"]) == ("UNAVAILABLE", "READY")
        client.close()


@pytest.mark.parametrize(
    ("model", "status", "words"),
    [
        ("absent", "404", "no model 'absent'"),
        ("full", "503", "12 ms late"),
        ("broken", "500", "terminal says more"),
    ],
)
def test_s5_5_an_error_has_a_status_and_a_reason(
    client: http.InferenceServerClient, model: str, status: str, words: str
):
    with pytest.raises(InferenceServerException, match=words) as caught:
        client.infer(model, [given(ARRAYS["FP32"], "FP32")])
    assert caught.value.status() == status


def test_s5_answers_never_cross_between_callers(server: Serving):
    with http.InferenceServerClient(server.url.removeprefix("http://"), concurrency=8) as client:
        arrays = [np.full((1, 50), number, np.float32) for number in range(200)]
        waiting = [client.async_infer("echo", [given(array, "FP32")]) for array in arrays]
        for array, result in zip(arrays, waiting, strict=True):
            np.testing.assert_array_equal(result.get_result().as_numpy("y"), array)


def test_s5_the_asyncio_client_too():
    async def session(url: str) -> None:
        async with aio.InferenceServerClient(url) as client:
            assert await client.is_server_ready()
            assert (await client.get_model_metadata("echo"))["name"] == "echo"
            arrays = [np.full((1, 500), number, np.float32) for number in range(50)]

            async def ask(array: np.ndarray) -> None:
                made = aio.InferInput("x", list(array.shape), "FP32")
                made.set_data_from_numpy(array)
                compression = {"response_compression_algorithm": "gzip"} if array[0, 0] % 2 else {}
                result = await client.infer("echo", [made], **compression)
                np.testing.assert_array_equal(result.as_numpy("y"), array)

            await asyncio.gather(*map(ask, arrays))
            with pytest.raises(InferenceServerException, match="12 ms late"):
                await client.infer("full", [given(arrays[0], "FP32")])

    with serving(Fake()) as server:
        asyncio.run(session(server.url.removeprefix("http://")))


def test_the_session_that_the_readme_shows(server: Serving):
    text = (ROOT / "README.md").read_text().partition("## Answers on time")[2]
    session = text.partition("```python\n")[2].partition("```")[0].replace("localhost:8000", server.url[7:])
    assert "tritonclient" in session
    exec(compile(session, "README.md", "exec"), {})


def test_the_request_that_the_page_on_http_shows(server: Serving):
    text = (ROOT / "docs" / "http.md").read_text().partition("v2/models/digits/infer -d '")[2]
    with urllib.request.urlopen(
        f"{server.url}/v2/models/digits/infer", text.partition("'")[0].encode()
    ) as answer:
        (output,) = json.load(answer)["outputs"]
    assert (output["name"], output["shape"]) == ("dense_2", [1, 10])
