"""Where the HTTP front listens, and how much it takes from whom."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """Loopback unless told otherwise: whoever reaches the port may load models and use the machine."""

    host: str = "127.0.0.1"
    port: int = 8000  # Triton's; 0 for any that is free
    token: str = ""  # with one, all but the health checks want "Authorization: Bearer TOKEN"
    allowed_hosts: tuple[str, ...] = ()  # names that browsers may ask under (sites.py)

    max_connections: int = 512
    max_requests: int = 1024  # of inference, read and not answered
    max_head_bytes: int = 16 * 1024  # request line and headers
    # JSON is read on the loop's thread, whose other callers wait: 8 MB of numbers take 0.1 s. Larger tensors
    # travel as binary data.
    max_json_bytes: int = 8 * 2**20
    max_body_bytes: int = 64 * 2**20  # also when decompressed
    max_held_bytes: int = 2**30  # of all bodies together, from their first byte to the answer

    receive_s: float = 30.0  # from a request's first byte to its last
    send_s: float = 30.0  # for the caller to take the answer
    idle_s: float = 75.0  # between requests on a connection that is kept
    idle_least_s: float = 5.0  # of these, where somebody else wants to connect and all places are taken
    linger_s: float = 2.0  # for what still comes after an answer that ends the connection
