"""Reading a multipart body (RFC 2046 section 5.1) as it comes, part by part.

Must not hold a part. Invariants: memory holds the piece that came last and a delimiter; headers,
parts and what stands in front of the first part are bounded; nested multiparts are parts like any
other, and nothing is ever inflated.
"""

from collections.abc import Callable, Iterator

from appliance.web.limits import PART_HEADERS_MAX, PART_HEADERS_MAX_BYTES, PARTS_MAX
from appliance.web.problem import BadRequest, TooLarge

BOUNDARY_MAX = 70


class PartReader:
    """Reads one body from `read`, which gives b"" at the end. Used by one thread.

    Iterate over it for the headers of each part, names in small letters, and over `content` for the
    bytes of the part at hand; what is not read of a part is skipped.
    """

    def __init__(self, read: Callable[[], bytes], boundary: str) -> None:
        if not boundary or len(boundary) > BOUNDARY_MAX or not boundary.isascii():
            raise BadRequest("read the body", cause="the boundary is none")
        self._read = read
        self._delimiter = b"\r\n--" + boundary.encode()
        self._held = bytearray(b"\r\n")  # the first delimiter may stand at the very beginning
        self._inside = True
        self._ended = False

    def __iter__(self) -> Iterator[dict[str, str]]:
        for _ in self.content():  # the preamble
            pass
        count = 0
        while not self._ended:
            count += 1
            if count > PARTS_MAX:
                raise TooLarge("read the body", cause=f"there are more than {PARTS_MAX} parts")
            headers = self._headers()
            self._inside = True
            yield headers
            for _ in self.content():
                pass
        if count == 0:
            raise BadRequest("read the body", cause="it has no part")

    def content(self) -> Iterator[bytes]:
        """Yield the bytes of the part at hand, up to the delimiter."""
        while self._inside:
            at = self._held.find(self._delimiter)
            if at >= 0:
                content = bytes(self._held[:at])
                del self._held[: at + len(self._delimiter)]
                self._inside = False
                self._behind_delimiter()
                if content:
                    yield content
                return
            keep = len(self._delimiter) - 1
            if len(self._held) > keep:
                content = bytes(self._held[:-keep])
                del self._held[:-keep]
                yield content
            self._more()

    def _behind_delimiter(self) -> None:
        """Read what ends a delimiter's line, or the body."""
        while len(self._held) < 2:
            self._more()
        if self._held.startswith(b"--"):
            self._ended = True
            return
        line = self._line(PART_HEADERS_MAX_BYTES)
        if line.strip(b" \t"):
            raise BadRequest("read the body", cause="a delimiter is followed by something else")

    def _headers(self) -> dict[str, str]:
        found: dict[str, str] = {}
        left = PART_HEADERS_MAX_BYTES
        for _ in range(PART_HEADERS_MAX + 1):
            line = self._line(left)
            left -= len(line) + 2
            if not line:
                return found
            name, colon, value = line.decode("latin-1").partition(":")
            if not colon:
                break
            found[name.strip().lower()] = value.strip()
        raise BadRequest("read the body", cause="the headers of a part are none, or too many")

    def _line(self, length_max: int) -> bytes:
        while (at := self._held.find(b"\r\n")) < 0:
            if len(self._held) > length_max:
                raise TooLarge("read the body", cause="the headers of a part are too long")
            self._more()
        if at > length_max:
            raise TooLarge("read the body", cause="the headers of a part are too long")
        line = bytes(self._held[:at])
        del self._held[: at + 2]
        return line

    def _more(self) -> None:
        piece = self._read()
        if not piece:
            raise BadRequest("read the body", cause="it ends before its last delimiter")
        self._held += piece
