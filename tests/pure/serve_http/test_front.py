"""From a request to its answer, without a socket: routes, statuses, documents, metrics, compression."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import re
import zlib
from socket import gethostname
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.serving import STATUS, Fake
from weft.runtime.errors import Mistake, RequestError
from weft.runtime.serve.http.compression import acceptable, compress, decompress
from weft.runtime.serve.http.front import Front
from weft.runtime.serve.http.messages import HttpRequest, HttpResponse
from weft.runtime.serve.http.metrics import exposition
from weft.runtime.serve.http.problem import Problem, problem_of, shown
from weft.runtime.serve.http.routes import Action, Route, route
from weft.runtime.serve.http.settings import HttpSettings
from weft.runtime.serve.http.sites import Sites, advice
from weft.runtime.serve.request import ModelStatistics, Reason, Refused, UnknownModel, WrongInput

INFER = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}).encode()


def ask(
    target: str, body: bytes | None = None, front: Front | None = None, **headers: str
) -> tuple[HttpResponse, Any]:
    """What the front answers to a GET, or with a body to a POST; and its JSON."""
    front = front or Front(Fake(), HttpSettings(), lambda error: None)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = HttpRequest("GET" if body is None else "POST", target, named, body or b"")
    response = asyncio.run(front.answer(request))
    text = b"".join(response.body)
    return response, json.loads(text) if response.content_type == "application/json" and text[
        :1
    ] in b"{[" else text


@pytest.mark.parametrize(
    ("method", "target", "found"),
    [
        ("GET", "/", Route(Action.PAGE)),
        ("GET", "/v2", Route(Action.SERVER)),
        ("GET", "//v2/", Route(Action.SERVER)),  # tritonclient with a base path of /
        ("GET", "/v2/health/live?verbose=1", Route(Action.LIVE)),
        ("HEAD", "/v2/health/ready", Route(Action.READY)),
        ("GET", "/v2/models/a%2Fb%20c", Route(Action.MODEL, "a/b c")),
        ("GET", "/v2/models/m/versions/3/ready", Route(Action.MODEL_READY, "m", "3")),
        ("GET", "/v2/models/stats", Route(Action.STATISTICS)),
        ("GET", "/v2/models/m/stats", Route(Action.STATISTICS, "m")),
        ("GET", "/v2/models/m/versions/3/config", Route(Action.CONFIG, "m", "3")),
        ("POST", "/v2/models/m/versions/3/infer", Route(Action.INFER, "m", "3")),
        ("POST", "/v2/repository/models/m/unload", Route(Action.UNLOAD, "m")),
        ("POST", "/v2/models/m", 405),
        ("GET", "/v2/models/m/infer", 405),
        ("HEAD", "/v2/models/m/infer", 405),
        ("GET", "/v2/models", 404),
        ("GET", "/v2/models/m/versions", 404),
        ("GET", "/v2/models/m/versions/3/4/infer", 404),
        ("GET", "*", 404),
        ("GET", "http://n0:8000/v2/models/m?x=1", Route(Action.MODEL, "m")),
        ("GET", "HTTP://n0", Route(Action.PAGE)),
        ("GET", "/http://n0/", 404),
    ],
)
def test_s5_a_method_and_a_path_are_a_question(method: str, target: str, found: Route | int):
    if isinstance(found, Route):
        assert route(method, target) == found
    else:
        with pytest.raises(Problem) as caught:
            route(method, target)
        assert caught.value.status == found


@pytest.mark.parametrize(
    ("error", "status", "reason", "again"),
    [
        (Refused(Reason.OVERLOAD, "late"), 503, "overload", True),
        (Refused(Reason.IMPOSSIBLE, "never"), 503, "impossible", False),
        (UnknownModel("no model"), 404, "", False),
        (WrongInput("no input"), 400, "", False),
        (Mistake("no"), 400, "", False),
        (RequestError("serve", 3, "n3", "File secret.py"), 500, "", False),
        (KeyError("secret"), 500, "", False),
    ],
)
def test_s5_5_an_error_is_a_status_and_says_no_more_than_it_should(
    error: Exception, status: int, reason: str, again: bool
):
    problem = problem_of(error)
    assert (problem.status, problem.reason, "Retry-After" in problem.headers) == (status, reason, again)
    assert "secret" not in str(problem)


def test_a_token_opens_all_but_health_and_the_page_which_need_none():
    front = Front(Fake(), HttpSettings(token="sésame"), lambda error: None)
    for target in ("/", "/v2/health/live", "/v2/health/ready"):
        assert ask(target, front=front)[0].status == 200
    for target in ("/v2", "/status", "/metrics", "/v2/models/echo"):
        assert ask(target, front=front)[0].status == 401
        assert ask(target, front=front, authorization="Bearer wrong")[0].status == 401
        assert ask(target, front=front, authorization="Bearer sésame")[0].status == 200


def test_a_token_beyond_ascii_may_be_sent_as_utf_8_or_latin_1():
    for token, forms in (("s\u00e9same \u00e0", ("utf-8", "latin-1")), ("\u79d8\u5bc6", ("utf-8",))):
        front = Front(Fake(), HttpSettings(token=token), lambda error: None)
        for form in forms:
            header = f"Bearer {token}".encode(form).decode("latin-1")
            assert ask("/v2", front=front, authorization=header)[0].status == 200
        assert ask("/v2", front=front, authorization="Bearer \xe9")[0].status == 401


def test_a_page_of_another_site_is_turned_away():
    here = {"host": "127.0.0.1:8000"}
    assert ask("/v2", origin="http://127.0.0.1:8000", **here)[0].status == 200
    for origin in ("https://example.org", "null", "http://["):
        assert ask("/v2/repository/models/echo/unload", b"{}", origin=origin, **here)[0].status == 403


LOCAL: dict[str, Any] = {}
NAMED = {"allowed_hosts": ("GPU7.example",)}
NODE = {"host": "Node7.cluster"}
HERE, THERE = ["127.0.0.1"], ["10.0.0.7"]


@pytest.mark.parametrize(
    ("settings", "addresses", "host", "status"),
    [
        (LOCAL, HERE, "localhost:8000", 200),
        (LOCAL, HERE, "LOCALHOST.", 200),
        (LOCAL, HERE, "weft.localhost", 200),
        (LOCAL, HERE, gethostname(), 200),
        (LOCAL, HERE, "127.8.8.8:9", 200),
        (LOCAL, HERE, "[::1]:8000", 200),
        pytest.param(LOCAL, HERE, "192.0.2.7:9000", 200, id="no address can be made to lead elsewhere"),
        ({"host": "::1"}, ["::1"], "[2001:db8::1]", 200),
        (LOCAL, HERE, "evil.example:8000", 403),
        ({"host": "localhost"}, ["127.0.0.1", "::1"], "127.0.0.1.evil.example", 403),
        ({"host": "::1"}, ["::1"], "localhost.evil.example", 403),
        ({"token": "open"}, HERE, "proxy.example", 200),
        ({"host": "0.0.0.0"}, ["0.0.0.0"], "gpu7.example:8000", 200),
        (NAMED, HERE, "gpu7.example:8000", 200),
        ({"allowed_hosts": ("gpu7.example.",)}, HERE, "gpu7.example.:8000", 200),
        (NAMED, HERE, "localhost", 200),
        (NAMED, HERE, "evil.example", 403),
        pytest.param(
            NAMED | {"host": "0.0.0.0"},
            ["0.0.0.0"],
            "evil.example",
            403,
            id="names that are given count anywhere",
        ),
        (NAMED | {"token": "open"}, THERE, "evil.example", 403),
        ({"allowed_hosts": ("*",)}, HERE, "any.example", 200),
        (NODE, HERE, "node7.cluster:8000", 200),
        pytest.param(NODE, HERE, "evil.example", 403, id="a name that leads to loopback is loopback"),
        pytest.param(NODE, THERE, "node7:8000", 200, id="to the network other names may lead, too"),
        pytest.param(NODE, [*HERE, *THERE], "node7:8000", 200, id="a name may lead to both"),
        (NODE | NAMED, THERE, "node7.cluster", 200),
        (NODE | NAMED, THERE, "evil.example", 403),
    ],
)
def test_a_page_whose_sites_name_leads_to_loopback_is_turned_away(
    settings: dict[str, Any], addresses: list[str], host: str, status: int
):
    front = Front(Fake(), HttpSettings(**settings), lambda error: None)
    front.sites = Sites(HttpSettings(**settings), addresses)
    about = {"host": host, "authorization": "Bearer open"}
    target = "/v2/repository/models/echo/load"
    assert ask(target, b"{}", front, origin=f"http://{host}", **about)[0].status == status
    response, content = ask("/status", front=front, **about)  # no origin: it reads from its own site
    assert response.status == status
    assert status == 200 or "--allowed-host" in content["error"]


@pytest.mark.parametrize(
    ("settings", "addresses", "told"),
    [
        (LOCAL, HERE, ""),
        ({"host": "LocalHost"}, [*HERE, "::1"], ""),
        ({"host": "127.0.0.2"}, ["127.0.0.2"], ""),
        (NODE, ["127.0.1.1"], "Node7.cluster is 127.0.1.1 here, which no other machine reaches: .* 0.0.0.0 "),
        (NODE | {"token": "open"}, HERE, "Node7.cluster is 127.0.0.1 here"),
        (NODE, THERE, "warning: whoever reaches URL may use .*; set WEFT_TOKEN"),
        (NODE, [*HERE, *THERE], "warning: whoever reaches"),
        ({"host": "0.0.0.0"}, ["0.0.0.0"], "warning: whoever reaches"),
        ({"host": ""}, ["0.0.0.0", "::"], "warning: whoever reaches"),
        (NODE | {"token": "open"}, THERE, ""),
    ],
)
def test_who_starts_a_server_is_told_who_reaches_it(
    settings: dict[str, Any], addresses: list[str], told: str
):
    said = advice(HttpSettings(**settings), addresses, "URL")
    assert re.match(told, said) if told else not said


def test_who_tells_no_host_is_no_browser():
    assert ask("/v2")[0].status == 200
    assert ask("/v2", origin="http://")[0].status == 403


def test_readiness_is_the_services_and_ends_with_draining():
    service = Fake()
    front = Front(service, HttpSettings(), lambda error: None)
    assert ask("/v2/health/ready", front=front)[0].status == 200
    service.ready = False
    assert ask("/v2/health/ready", front=front)[0].status == 503
    service.ready, front.draining = True, True
    assert ask("/v2/health/ready", front=front)[0].status == 503
    assert ask("/v2/health/live", front=front)[0].status == 200
    response, content = ask("/v2/models/echo/infer", INFER, front)
    assert (response.status, content["reason"], response.closes) == (503, "draining", True)


def test_an_error_that_nobody_foresaw_is_told_to_the_server_alone():
    told: list[Exception] = []
    front = Front(Fake(), HttpSettings(), told.append)
    response, content = ask("/v2/models/broken/infer", INFER, front)
    assert response.status == 500
    assert "secret" not in content["error"]
    assert [type(error) for error in told] == [ZeroDivisionError]


def test_models_are_loaded_with_a_configuration_and_unloaded():
    front = Front(service := Fake(), HttpSettings(), lambda error: None)
    config = json.dumps({"parameters": {"config": '{"max_batch_size": 4}'}}).encode()
    assert ask("/v2/repository/models/new/load", config, front)[0].status == 200
    assert ask("/v2/models/new/config", front=front)[1]["max_batch_size"] == 4
    assert ask("/v2/repository/models/new/unload", b"", front)[0].status == 200
    assert "new" not in service.loaded
    for body in (
        b'{"parameters": {"config": 1}}',
        b'{"parameters": {"config": "["}}',
        b'{"parameters": {"config": "{}", "file:1/model.onnx": "AAAA"}}',
        b'{"parameters": 1}',
        b"[",
    ):
        assert ask("/v2/repository/models/new/load", body, front)[0].status == 400


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"parameters": [1]}, "parameters is a JSON object, not [1]"),
        ({"parameters": {"config": 5}}, "parameters.config is text that is JSON, not 5"),
        ({"parameters": {"config": "{"}}, "parameters.config is not JSON: "),
        ({"parameters": {"config": "[1]"}}, "parameters.config is [1], not a JSON object"),
        ([], "the body is [], not a JSON object"),
    ],
)
def test_what_is_wrong_with_a_load_request_is_said_of_what_it_is_wrong_with(body: Any, words: str):
    response, content = ask("/v2/repository/models/echo/load", json.dumps(body).encode())
    assert response.status == 400
    assert content["error"].startswith(words)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "nothing"),
        (True, "true"),
        (-1.5, "-1.5"),
        ("größer\n", '"größer\\n"'),
        ("x" * 41, "text of 41 characters"),
        ("\n" * 40, '"' + "\\n" * 19 + "\\…"),
        ([-1, "a", None], '[-1, "a", null]'),
        ([1] * 21, "a list of 21"),
        ([[1]], "a list of 1"),
        ({"a": 1}, "an object"),
        (10**60, f"{10**39}…"),
    ],
)
def test_a_value_is_shown_as_its_sender_wrote_it_if_that_is_short(value: Any, words: str):
    assert shown(value) == words


def test_triton_names_bytes_a_string_and_leaves_the_batch_out():
    assert ask("/v2/models/echo/config")[1]["output"] == [
        {"name": "y", "data_type": "TYPE_FP32", "dims": [-1]},
        {"name": "half", "data_type": "TYPE_BF16", "dims": [-1]},
    ]


def test_s5_metrics_are_read_back_by_prometheus():
    of = ModelStatistics(inference_count=8, execution_count=2, refused={"overload": 3})
    of.success.count, of.success.ns, of.fail.count = 5, 9_000_000, 2
    page = exposition({('a"b\\c\nd', "1"): of}, STATUS)
    # As Triton has it; Prometheus' own reader in Python appends _total to the name of each counter.
    assert '\nnv_inference_request_success{model="a\\"b\\\\c\\nd",version="1"} 5\n' in page
    samples = {
        (sample.name.removesuffix("_total"), *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }
    assert samples["nv_inference_request_success", "1", 'a"b\\c\nd'] == 5
    assert samples["nv_inference_request_failure", "1", 'a"b\\c\nd'] == 5
    assert samples["nv_inference_request_duration_us", "1", 'a"b\\c\nd'] == 9000
    assert samples["nv_inference_count", "1", 'a"b\\c\nd'] == 8
    assert samples["weft_on_time", "interactive"] == 91812
    assert samples["weft_refused", "overload", "standard"] == 1900
    assert samples["weft_profile_error", "1", "digits", "rank 2 cpu"] == 0.19
    assert samples["weft_profile_availability", "1", "digits", "rank 2 cpu"] == 0.85
    assert ("weft_latency_ms", "0.5", "bulk") not in samples  # nothing was measured


def test_metrics_of_a_service_that_tells_little_are_still_metrics():
    assert "weft_draining 0" in exposition({}, {})


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_both_compressions_both_ways(encoding: str):
    content = b"weft " * 1000
    packed = compress([content[:100], content[100:]], encoding)
    assert (gzip.decompress if encoding == "gzip" else zlib.decompress)(packed) == content
    assert decompress(packed, encoding, len(content)) == content
    response, answer = ask("/v2/models/echo/infer", compress([INFER], encoding), content_encoding=encoding)
    assert (response.status, answer["outputs"][0]["data"]) == (200, [1.0, 2.0])
    response, _ = ask("/status", accept_encoding=f"{encoding};q=0.5")
    assert response.headers["Content-Encoding"] == encoding


def test_deflate_without_its_frame_is_read_too():
    bare = zlib.compressobj(wbits=-15)
    assert decompress(bare.compress(b"abc") + bare.flush(), "deflate", 10) == b"abc"


def test_gzip_of_several_members_is_all_of_them():
    words = [random.Random(seed).randbytes(300_000) for seed in range(3)] + [b"", b"end"]
    packed = b"".join(map(gzip.compress, words))
    assert decompress(packed, "gzip", 900_003) == b"".join(words)
    for body, limit, status in (
        (packed, 900_002, 413),
        (packed[:-1], 10**6, 400),
        (packed + b"\0", 10**6, 400),
        (gzip.compress(b"") * 5000, 10**6, 400),
    ):
        with pytest.raises(Problem) as caught:
            decompress(body, "gzip", limit)
        assert caught.value.status == status


@pytest.mark.parametrize(
    ("body", "encoding", "status"),
    [
        pytest.param(gzip.compress(b"\0" * 10_001), "gzip", 413, id="one byte too many"),
        pytest.param(gzip.compress(b"\0" * 50_000_000), "gzip", 413, id="a bomb"),
        pytest.param(gzip.compress(b"abc")[:-4], "gzip", 400, id="cut short"),
        pytest.param(gzip.compress(b"abc") + b"x", "gzip", 400, id="bytes behind the end"),
        pytest.param(b"abc", "gzip", 400, id="not gzip"),
        pytest.param(b"", "deflate", 400, id="nothing"),
        pytest.param(b"abc", "br", 415, id="an encoding we lack"),
    ],
)
def test_a_compressed_body_that_lies(body: bytes, encoding: str, status: int):
    with pytest.raises(Problem) as caught:
        decompress(body, encoding, 10_000)
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("gzip, deflate, br", "gzip"),
        ("deflate", "deflate"),
        ("gzip;q=0, deflate;q=0.1", "deflate"),
        ("gzip; q=0.000", ""),
        ("*", "gzip"),
        ("*;q=0, deflate", "deflate"),
        ("identity", ""),
        ("", ""),
    ],
)
def test_the_encoding_is_one_that_the_caller_accepts(accept: str, chosen: str):
    assert acceptable(accept) == chosen
