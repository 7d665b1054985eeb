"""LitServe, with one worker, for `bench http`. (That is a new process, which must find the class by name.)"""

from __future__ import annotations

from typing import Any

import litserve as ls


class Api(ls.LitAPI):  # type: ignore[misc]
    """Returns its input."""

    def setup(self, device: str) -> None: ...

    def predict(self, content: Any) -> Any:
        return {"data": content["inputs"][0]["data"]}


def serve(port: int) -> None:
    server = ls.LitServer(Api(api_path="/v2/models/noop/infer"), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="error")
