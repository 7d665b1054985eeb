"""gzip and deflate, both ways, and never more than the limit: a bomb of 1 MB holds 1 GB.

`deflate` is the zlib format, as RFC 9110 says; the bare one that some senders mean by it is read too.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Final

from .problem import Problem, wrong

GZIP_BITS: Final = 31
ZLIB_BITS: Final = 15
BARE_BITS: Final = -15
# Level 1: of float32 the others gain a few percent more at several times the time.
LEVEL: Final = 1
WORTHWHILE_BYTES: Final = 1024
ENCODINGS: Final = ("gzip", "deflate")


def decompress(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """The body of a request with this Content-Encoding."""
    if encoding in ("", "identity"):
        return body
    if encoding not in ENCODINGS:
        raise Problem(415, f"Content-Encoding {encoding!r}: known are {', '.join(ENCODINGS)}")
    bits = GZIP_BITS if encoding == "gzip" else ZLIB_BITS
    if encoding == "deflate" and not _is_zlib(body):
        bits = BARE_BITS
    inflate = zlib.decompressobj(bits)
    try:
        # One byte more than allowed tells a full buffer from an overflowing one.
        content = inflate.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise wrong(f"the body is not {encoding}: {error}") from None
    if len(content) > max_bytes:
        raise Problem(413, f"decompressed, the body is larger than the limit of {max_bytes} bytes")
    if not inflate.eof or inflate.unused_data:
        raise wrong(f"the {encoding} stream {'has bytes behind its end' if inflate.eof else 'is cut short'}")
    return content


def compress(parts: Iterable[bytes], encoding: str) -> bytes:
    """The body of an answer, compressed."""
    deflate = zlib.compressobj(LEVEL, wbits=GZIP_BITS if encoding == "gzip" else ZLIB_BITS)
    return b"".join([*map(deflate.compress, parts), deflate.flush()])


def acceptable(accept: str) -> str:
    """The first encoding of ours that Accept-Encoding allows; "" for none."""
    allowed = {}
    for entry in accept.lower().split(","):
        name, _, quality = entry.partition(";")
        allowed[name.strip()] = quality.replace(" ", "").rstrip("0.") != "q="
    return next((name for name in ENCODINGS if allowed.get(name, allowed.get("*", False))), "")


def _is_zlib(body: bytes) -> bool:
    """The two bytes of RFC 1950's header: method 8, and a multiple of 31."""
    return len(body) > 1 and body[0] & 0x0F == 8 and int.from_bytes(body[:2], "big") % 31 == 0
