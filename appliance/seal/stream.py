"""Pieces of bytes as a file that can be read and not sought in."""

import io
from collections.abc import Iterator


class PieceStream(io.RawIOBase):
    """Reads what an iterator gives, piece after piece; an error of the iterator goes through."""

    def __init__(self, pieces: Iterator[bytes | bytearray]) -> None:
        super().__init__()
        self._pieces = pieces
        self._left = memoryview(b"")

    def readable(self) -> bool:
        """Return that it can be read."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill a buffer with what is there of the next piece; 0 at the end."""
        while not self._left:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._left = memoryview(piece)
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count
