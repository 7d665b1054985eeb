"""The HTTP front in the event loop of a rank, beside MPI: a request that fails is no failure of the job."""

from __future__ import annotations

from pathlib import Path

from tests.launch import ROOT, mpiexec

PROGRAM = """
import asyncio, json, sys, urllib.error, urllib.request
import numpy as np
from tests.serving import Fake
from weft.runtime.message import run
from weft.runtime.serve.http import HttpServer, HttpSettings

def ask(url, model):
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [7.0]}
    body = json.dumps({"inputs": [tensor]}).encode()
    request = urllib.request.Request(f"{url}/v2/models/{model}/infer", body)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.load(answer)["outputs"][0]["data"]
    except urllib.error.HTTPError as error:
        with error:
            return error.code, list(json.load(error))

async def main(world):
    port = np.zeros(1, np.int64)
    if world.rank == 0:
        server = HttpServer(Fake(), HttpSettings(port=0))
        await server.start()
        port[0] = server.port
    await world.allreduce(port)
    url = f"http://127.0.0.1:{port[0]}"
    models = ("echo", "broken", "echo")
    asked = await asyncio.gather(*[asyncio.to_thread(ask, url, model) for model in models])
    print(f"rank {world.rank}: {asked}\\n", end="", flush=True)  # in one write: the other rank prints, too
    await world.barrier()
    if world.rank == 0:
        await server.stop(drain_s=1)

run(main)
"""


def test_r4_ranks_ask_rank_0_over_http(tmp_path: Path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    result = mpiexec(2, [program], env={"PYTHONPATH": str(ROOT)})
    assert result.returncode == 0, result
    wanted = [(200, [7.0]), (500, ["error"]), (200, [7.0])]
    assert sorted(result.stdout.splitlines()) == [f"rank {rank}: {wanted}" for rank in range(2)]
    assert "ZeroDivisionError: a secret of the server" in result.stderr
