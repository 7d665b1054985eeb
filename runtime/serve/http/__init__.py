"""The Open Inference Protocol v2 over HTTP, with Triton's extensions, metrics and a status page."""

from .server import HttpServer, require_address
from .settings import HttpSettings
from .sites import is_loopback

__all__ = ["HttpServer", "HttpSettings", "is_loopback", "require_address"]
