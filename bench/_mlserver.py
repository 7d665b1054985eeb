"""MLServer, the model in the server's own process, for `bench http`. (It finds the class by name.)"""

from __future__ import annotations

import asyncio

from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput


class Model(MLModel):  # type: ignore[misc]
    """Returns its input."""

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        given = payload.inputs[0]
        output = ResponseOutput(name="x", shape=given.shape, datatype=given.datatype, data=given.data)
        return InferenceResponse(model_name=self.name, outputs=[output])


def serve(port: int) -> None:
    settings = Settings(
        host="127.0.0.1",
        http_port=port,
        grpc_port=port + 1000,
        parallel_workers=0,
        metrics_endpoint=None,
        debug=False,
        use_structured_logging=False,
    )
    asyncio.run(MLServer(settings).start([ModelSettings(name="noop", implementation=Model)]))
