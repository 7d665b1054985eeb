"""The Open Inference Protocol v2 over HTTP, with Triton's extensions, metrics and a status page."""
