"""gzip and deflate, both ways, and never more than the limit: a bomb of 1 MB holds 1 GB.

`deflate` is the zlib format, as RFC 9110 says; the bare one that some senders mean by it is read too.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import Final

from .problem import Problem, wrong

GZIP_BITS: Final = 31
ZLIB_BITS: Final = 15
BARE_BITS: Final = -15
# Level 1: of float32 the others gain a few percent more at several times the time.
LEVEL: Final = 1
WORTHWHILE_BYTES: Final = 1024
ENCODINGS: Final = ("gzip", "deflate")
PIECE_BYTES: Final = 2**18
GZIP_MAGIC: Final = b"\x1f\x8b"
# Files that were compressed in parts are one behind the other. bgzip has a member every 64 KB, 1,024 in the
# largest body; of empty ones, which 20 bytes make, a body of 64 MB would hold 3 millions.
MAX_MEMBERS: Final = 4096


def inflate(body: bytes, encoding: str, max_bytes: int) -> Iterator[bytes]:
    """The body of a request with this Content-Encoding, in pieces, none of them empty."""
    if encoding not in ENCODINGS:
        raise Problem(415, f"Content-Encoding {encoding!r}: known are {', '.join(ENCODINGS)}")
    rest, total = memoryview(body), 0
    for _ in range(MAX_MEMBERS):
        member = _decompressor(body, encoding)
        while not member.eof:
            # In steps, since zlib copies what it leaves of its input: for the next piece or the next member.
            given = member.unconsumed_tail
            if not given:
                given, rest = bytes(rest[:PIECE_BYTES]), rest[PIECE_BYTES:]
            try:
                piece = member.decompress(given, PIECE_BYTES)
            except zlib.error as error:
                raise wrong(f"the body is not {encoding}: {error}") from None
            total += len(piece)
            if total > max_bytes:
                raise Problem(413, f"decompressed, the body is larger than the limit of {max_bytes} bytes")
            if piece:
                yield piece
            elif not given:
                raise wrong(f"the {encoding} stream is cut short")
        rest = memoryview(body)[len(body) - len(rest) - len(member.unused_data) :]
        if not rest:
            return
        if encoding != "gzip" or bytes(rest[:2]) != GZIP_MAGIC:
            raise wrong(f"the {encoding} stream has bytes behind its end")
    raise wrong(f"the gzip stream has more than {MAX_MEMBERS} members")


def decompress(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """All of it."""
    return b"".join(inflate(body, encoding, max_bytes))


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


def _decompressor(body: bytes, encoding: str) -> zlib._Decompress:
    if encoding == "gzip":
        return zlib.decompressobj(GZIP_BITS)
    return zlib.decompressobj(ZLIB_BITS if _is_zlib(body) else BARE_BITS)


def _is_zlib(body: bytes) -> bool:
    """The two bytes of RFC 1950's header: method 8, and a multiple of 31."""
    return len(body) > 1 and body[0] & 0x0F == 8 and int.from_bytes(body[:2], "big") % 31 == 0
