"""The frames inside `headers.gz`: every instance's dataset without its bulk.

Owns the framing, both directions. Must not touch files.

The stream is `u32 length, JSON` once, saying the format version, then for each member
`u32 length, JSON, u32 length, dataset bytes`, lengths little endian. The dataset bytes are raw, in
the member's transfer syntax, with the elements that `bulk` lists left out.
"""

import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from appliance.foundation.errors import Damaged, UnsupportedFormat
from appliance.packs.member import PACK_MEMBERS_MAX

FRAMES_VERSION = 1
FRAME_MAX_BYTES = 64 << 20
_INFLATE_STEP_BYTES = 1 << 20
_LENGTH = struct.Struct("<I")


class BulkElement(msgspec.Struct, frozen=True, array_like=True):
    """An element that was left out; its value lies at `value_offset` of the member's dataset."""

    tag: int
    vr: str
    value_offset: int
    value_length: int


class InstanceHeader(msgspec.Struct, frozen=True):
    """One member's dataset without bulk; empty, with a note why, when it did not parse."""

    name: str
    transfer_syntax_uid: str
    dataset: bytes
    bulk: list[BulkElement]
    note: str


class _Head(msgspec.Struct):
    azekura_headers: int
    pack: str
    members: int


class _Frame(msgspec.Struct):
    name: str
    transfer_syntax_uid: str
    bulk: list[BulkElement]
    note: str = ""


def stream_head(pack_id: str, member_count: int) -> bytes:
    """Return the head of the stream."""
    return _chunk(msgspec.json.encode(_Head(FRAMES_VERSION, pack_id, member_count)))


def encode_frame(
    name: str,
    transfer_syntax_uid: str,
    bulk: Sequence[tuple[int, str, int, int]],
    dataset: bytes,
    *,
    note: str,
) -> bytes:
    """Return one member's frame; `bulk` has tag, VR, value offset and value length of each."""
    elements = [BulkElement(*element) for element in bulk]
    frame = msgspec.json.encode(_Frame(name, transfer_syntax_uid, elements, note))
    return _chunk(frame) + _chunk(dataset)


def _chunk(data: bytes) -> bytes:
    return _LENGTH.pack(len(data)) + data


def read_headers(gzip_bytes: bytes) -> list[InstanceHeader]:
    """Return every member's header, given the bytes of `headers.gz`. See `iter_headers`."""
    return list(iter_headers([gzip_bytes]))


def iter_headers(pieces: Iterable[bytes]) -> Iterator[InstanceHeader]:
    """Give every member's header, given `headers.gz` in pieces; memory holds one frame.

    Raises Damaged when the stream is cut or malformed, UnsupportedFormat for another version.
    """
    stream = _Stream(pieces)
    try:
        head = msgspec.json.decode(stream.chunk(), type=_Head)
        if head.azekura_headers != FRAMES_VERSION:
            raise UnsupportedFormat("read headers", f"format {head.azekura_headers}")
        if not 0 <= head.members <= PACK_MEMBERS_MAX:
            raise Damaged("read headers", cause="the count of members cannot be")
        for _ in range(head.members):
            frame = msgspec.json.decode(stream.chunk(), type=_Frame)
            dataset = stream.chunk()
            yield InstanceHeader(
                frame.name, frame.transfer_syntax_uid, dataset, frame.bulk, frame.note
            )
        stream.expect_end()
    except (msgspec.DecodeError, zlib.error) as cause:
        raise Damaged("read headers", cause=str(cause)) from cause


class _Stream:
    """Length-prefixed chunks out of gzip pieces. Invariant: `_plain` is not yet given out."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._inflate = zlib.decompressobj(16 + zlib.MAX_WBITS)
        self._plain = bytearray()

    def chunk(self) -> bytes:
        length = _LENGTH.unpack(self._take(_LENGTH.size))[0]
        if length > FRAME_MAX_BYTES:
            raise Damaged("read headers", cause="a frame is longer than any that is written")
        return self._take(length)

    def expect_end(self) -> None:
        # The gzip trailer's CRC is only checked once it was read.
        while not self._inflate.eof and self._more():
            pass
        if self._plain or not self._inflate.eof:
            raise Damaged("read headers", cause="the stream does not end behind its last frame")

    def _take(self, length: int) -> bytes:
        while len(self._plain) < length:
            if not self._more():
                raise Damaged("read headers", cause="the stream is cut")
        taken = bytes(self._plain[:length])
        del self._plain[:length]
        return taken

    def _more(self) -> bool:
        source = self._inflate.unconsumed_tail or next(self._pieces, b"")
        if not source:
            return False
        self._plain += self._inflate.decompress(source, _INFLATE_STEP_BYTES)
        return True
