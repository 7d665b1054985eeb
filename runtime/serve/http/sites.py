"""Whose pages may ask: a browser on this machine reaches loopback for whoever it shows.

    the address bar      Host            Origin                  may it ask?
    localhost:8000       localhost:8000  the same, or none       yes
    example.org          localhost:8000  https://example.org     no: another site's page
    evil.example:8000    the same        the same, or none       no: a name that was made to lead here

The last is DNS rebinding: to the browser the page is of its own site, and where it only reads no origin is
named. Nothing but the name tells. An address can't be made to lead elsewhere, a token is not the page's to
send, and what listens to a network may be asked from there anyway: so names are looked at on loopback without
a token, as Jupyter and Ollama do, or wherever some are named. Who tells no host is no browser.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address
from socket import gethostname
from typing import Final

from .messages import HttpRequest
from .problem import Problem
from .settings import HttpSettings

ANY: Final = "*"
_PORT: Final = re.compile(r":\d*$")


class Sites:
    """Those that `settings` lets ask."""

    def __init__(self, settings: HttpSettings) -> None:
        named = {name.rstrip(".").lower() for name in settings.allowed_hosts}
        looks = bool(named) or (not settings.token and is_loopback(settings.host))
        self._any = ANY in named or not looks
        self._names = named | {"localhost", gethostname().lower()}

    def admit(self, request: HttpRequest) -> None:
        """Raise Problem where a page asks that may not."""
        origin, host = request.header("origin"), request.header("host")
        if host and not (self._any or self._own(host)):
            raise Problem(
                403,
                f"{host[:200]!r} is not known as a name of this server: ask under localhost or an address, "
                "or start it with this --allowed-host (allowed_hosts in [serve]), or with a token",
            )
        if origin and (not host or origin.partition("://")[2] != host):
            raise Problem(403, f"pages of {origin[:200]} may not ask this server")

    def _own(self, host: str) -> bool:
        name = _PORT.sub("", host).rstrip(".").lower()
        return name in self._names or name.endswith(".localhost") or _address(name) is not None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    address = _address(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host.strip("[]"))
    except ValueError:
        return None
