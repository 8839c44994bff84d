"""Writing multipart/related bodies (RFC 2387, PS3.18 section 8.6.1) as pieces of bounded size.

Must not know what the parts are. Invariant: a piece holds about PIECE_BYTES, whatever the sizes of
parts; small parts share one, large ones take many, each copied once.
"""

import secrets
from collections.abc import Iterator

from appliance.archive.extent import Dataset
from appliance.web.limits import PIECE_BYTES


class MultipartWriter:
    """One body. Used by one thread."""

    def __init__(self, media_type: str) -> None:
        """`media_type`: of the parts, for the body's own Content-Type."""
        self._boundary = secrets.token_hex(16)
        self.content_type = f'multipart/related; type="{media_type}"; boundary={self._boundary}'
        self._held: list[bytes | memoryview] = []
        self._held_bytes = 0

    def part(
        self, content_type: str, location: str, front: bytes, body: Dataset
    ) -> Iterator[bytes]:
        """Yield the pieces that a part fills; the rest is held until the next ones.

        The part is `front` followed by `body`, of which nothing is used after the last piece.
        """
        head = (
            f"--{self._boundary}\r\nContent-Type: {content_type}\r\n"
            f"Content-Length: {len(front) + len(body)}\r\n"
        )
        if location:
            head += f"Content-Location: {location}\r\n"
        self._hold(f"{head}\r\n".encode() + front)
        position = 0
        while position < len(body):
            step = body[position : position + max(1, PIECE_BYTES - self._held_bytes)]
            position += len(step)
            self._hold(step)
            if self._held_bytes >= PIECE_BYTES:
                yield self._taken()
        self._hold(b"\r\n")
        # A view of the body must not be held over its end.
        self._held = [b"".join(self._held)]

    def end(self) -> bytes:
        """Return what is held, and the end of the body."""
        self._hold(f"--{self._boundary}--\r\n".encode())
        return self._taken()

    def held(self) -> bytes:
        """Return what is held, without an end: something is missing."""
        return self._taken()

    def _hold(self, data: bytes | memoryview) -> None:
        self._held.append(data)
        self._held_bytes += len(data)

    def _taken(self) -> bytes:
        piece = b"".join(self._held)
        self._held, self._held_bytes = [], 0
        return piece


def whole(front: bytes, body: Dataset) -> Iterator[bytes]:
    """Yield a body that is no multipart in pieces."""
    if len(front) + len(body) <= PIECE_BYTES:
        yield front + bytes(body[:])
        return
    if front:
        yield front
    for position in range(0, len(body), PIECE_BYTES):
        yield bytes(body[position : position + PIECE_BYTES])
