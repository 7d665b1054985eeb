"""The Open Inference Protocol v2 over HTTP, with Triton's extensions, metrics and a status page."""

from .server import HttpServer, require_address
from .settings import HttpSettings

__all__ = ["HttpServer", "HttpSettings", "require_address"]
