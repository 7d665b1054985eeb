"""Whose pages may ask: a browser on this machine reaches loopback for whoever it shows.

    the address bar      Host            Origin                  may it ask?
    localhost:8000       localhost:8000  the same, or none       yes
    example.org          localhost:8000  https://example.org     no: another site's page
    evil.example:8000    the same        the same, or none       no: a name that was made to lead here

The last is DNS rebinding: to the browser the page is of its own site, and where it only reads no origin is
named. Nothing but the name tells. An address can't be made to lead elsewhere, a token is not the page's to
send, and what listens to a network may be asked from there anyway: so names are looked at on loopback without
a token, as Jupyter and Ollama do, or wherever some are named. Who tells no host is no browser.

Whether it is loopback the sockets tell, and not the host that was named: a machine's own name leads there on
some systems (Debian's 127.0.1.1), and to its network on others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from socket import gethostname
from typing import Final

from .messages import HttpRequest
from .problem import Problem
from .settings import HttpSettings

ANY: Final = "*"
_PORT: Final = re.compile(r":\d*$")


class Sites:
    """Those that `settings` lets ask a server that listens on these addresses; with none, on loopback."""

    def __init__(self, settings: HttpSettings, addresses: Iterable[str] = ()) -> None:
        named = {name.rstrip(".").lower() for name in settings.allowed_hosts}
        looks = bool(named) or (not settings.token and are_loopback(addresses))
        self._any = ANY in named or not looks
        own = (settings.host, gethostname(), "localhost")
        self._names = named | {name.rstrip(".").lower() for name in own}

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


def are_loopback(addresses: Iterable[str]) -> bool:
    """Whether only this machine reaches what listens there."""
    return all(ip_address(each).is_loopback for each in addresses)


def advice(settings: HttpSettings, addresses: Sequence[str], url: str) -> str:
    """What whoever started a server is to know of who reaches it; nothing where that is plain."""
    host = settings.host
    if are_loopback(addresses):
        if host.lower() == "localhost" or _address(host) is not None:
            return ""
        return (
            f"{host} is {', '.join(addresses)} here, which no other machine reaches: to be asked from "
            "others, listen on one of this machine's addresses, or on 0.0.0.0 for all of them"
        )
    if settings.token:
        return ""
    return (
        f"warning: whoever reaches {url} may use this machine and load models; "
        "set WEFT_TOKEN to ask for a token"
    )


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host.strip("[]"))
    except ValueError:
        return None
