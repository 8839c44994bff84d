"""Sealing a closed pack: its last member `headers.gz`, and the end of the tar.

Owns the step from closed to sealed, but not the rename. Must not change a byte in front of
`headers.gz`.

Invariants:
- The gzip header of `headers.gz` names the pack and is on the medium before anything else of it:
  so what a crash left of an earlier attempt is told from a damaged member, and redone.
- A pack in which a member's header is damaged is not sealed, and not cut.
- Memory holds one small dataset, or the mapped pages of a large one, never the pack.
"""

import hashlib
import os
import struct
import zlib
from collections.abc import Iterator, Sequence

import msgspec

from appliance.dicom.scan import bulk_ranges
from appliance.foundation.errors import Damaged, OutOfSpace
from appliance.foundation.files import FileSystem
from appliance.packs.frames import encode_frame, stream_head
from appliance.packs.header import encode_head, pack_id_of
from appliance.packs.member import BLOCK_BYTES, HEADERS_NAME, Buffer, Member, Provenance
from appliance.packs.reader import PackReader

PAX_BYTES = 2 * BLOCK_BYTES
HEAD_BYTES = 2 * BLOCK_BYTES + PAX_BYTES
END_BYTES = 2 * BLOCK_BYTES
COPY_MAX_BYTES = 8 << 20
REST_MAX_BYTES = 16 << 20
GZIP_LEVEL = 6
_FCOMMENT = 0x10
_OS_UNKNOWN = 255


class SealedInfo(msgspec.Struct, frozen=True):
    """A sealed pack: where the gzip bytes of `headers.gz` lie in the plain tar, and its length."""

    headers_offset: int
    headers_length: int
    size: int
    members: list[Member]


def seal(files: FileSystem, path: str) -> SealedInfo:
    """Append `headers.gz` and the tar's end to a closed pack, durable; idempotent after a crash.

    A dataset that does not parse gets an empty frame with a note. Raises Damaged when a member's
    header is damaged (recovery comes first), UnsupportedFormat, OutOfSpace (the pack is then as it
    was), StorageFailed.
    """
    fd = files.open(path, os.O_RDWR)
    try:
        with PackReader(path) as reader:
            return _Sealing(files, fd, reader).run()
    finally:
        files.close(fd)


class _Sealing:
    """One attempt. `_at` is where the next compressed bytes go; all before it are written."""

    def __init__(self, files: FileSystem, fd: int, reader: PackReader) -> None:
        self._files = files
        self._fd = fd
        self._reader = reader
        self._pack_id = pack_id_of(reader.path)
        self._gzip_head = _gzip_head(self._pack_id)
        self._members: list[Member] = []
        self._at = 0

    def run(self) -> SealedInfo:
        end, sealed, bad = self._walk()
        if sealed is not None:
            self._files.fdatasync(self._fd)
            return self._info(sealed)
        if not self._members:
            raise Damaged("seal pack", self._reader.path, "it holds no instance")
        received_at_us = max(member.provenance.received_at_us for member in self._members)
        provenance = Provenance(received_at_us, "", "", "")
        self._check_rest(end, end + HEAD_BYTES, bad)
        try:
            if self._reader.size > end:
                self._files.truncate(self._fd, end)
            self._at = end + HEAD_BYTES
            length, sha256 = self._write_headers()
            head = encode_head(
                self._pack_id, HEADERS_NAME, provenance, "", b"", length, sha256, PAX_BYTES
            )
            rest = bytes(-self._at % BLOCK_BYTES + END_BYTES)
            self._files.pwritev(self._fd, [rest], self._at)
            self._files.pwritev(self._fd, [head], end)
        except OutOfSpace:
            self._files.truncate(self._fd, end)
            raise
        self._files.fdatasync(self._fd)
        return SealedInfo(end + HEAD_BYTES, length, self._at + len(rest), self._members)

    def _walk(self) -> tuple[int, Member | None, Damaged | None]:
        """Return where the instances end, `headers.gz` if the pack is sealed, and what is bad."""
        end = 0
        try:
            for found in self._reader.walk():
                if isinstance(found, Member):
                    if found.name == HEADERS_NAME:
                        return end, found if self._complete(found) else None, None
                    self._members.append(found)
                end = found.member_end
        except Damaged as cause:
            return end, None, cause
        return end, None, None

    def _complete(self, headers: Member) -> bool:
        size = headers.member_end + END_BYTES
        tail = self._reader.read_range(headers.member_end, END_BYTES)
        return (
            self._reader.size == size and tail == bytes(END_BYTES) and self._reader.verify(headers)
        )

    def _check_rest(self, end: int, gzip_at: int, bad: Damaged | None) -> None:
        """Raise Damaged unless what is behind `end` is an earlier attempt, or zeros."""
        if self._reader.read_range(gzip_at, len(self._gzip_head)) == self._gzip_head:
            return
        for at in range(end, self._reader.size, COPY_MAX_BYTES):
            if self._reader.read_range(at, COPY_MAX_BYTES).strip(b"\0"):
                raise Damaged(
                    "seal pack", self._reader.path, f"a member is damaged at byte {end}"
                ) from bad

    def _write_headers(self) -> tuple[int, bytes]:
        start = self._at
        self._write(self._gzip_head)
        self._files.fdatasync(self._fd)
        digest = hashlib.sha256(self._gzip_head)
        deflate = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
        checksum = length = 0
        for piece in self._frames():
            checksum = zlib.crc32(piece, checksum)
            length += len(piece)
            packed = deflate.compress(piece)
            digest.update(packed)
            self._write(packed)
        last = deflate.flush() + struct.pack("<II", checksum, length & 0xFFFFFFFF)
        digest.update(last)
        self._write(last)
        return self._at - start, digest.digest()

    def _write(self, data: bytes) -> None:
        if data:
            self._files.pwritev(self._fd, [data], self._at)
            self._at += len(data)

    def _frames(self) -> Iterator[bytes]:
        yield stream_head(self._pack_id, len(self._members))
        for member in self._members:
            yield self._frame(member)

    def _frame(self, member: Member) -> bytes:
        syntax = member.transfer_syntax_uid
        dataset: Buffer
        try:
            if member.length > COPY_MAX_BYTES:
                dataset = self._reader.dataset(member)
            else:
                dataset = self._reader.read_dataset(member)
            bulk = bulk_ranges(dataset, syntax)
            rest = _without(dataset, [(found.start, found.end) for found in bulk])
        except Exception as cause:  # noqa: BLE001 -- the pack must go to the bucket all the same
            return encode_frame(member.name, syntax, [], b"", note=type(cause).__name__)
        ranges = [(f.tag, f.vr, f.value_offset, f.value_length) for f in bulk]
        return encode_frame(member.name, syntax, ranges, rest, note="")

    def _info(self, headers: Member) -> SealedInfo:
        return SealedInfo(headers.dataset_offset, headers.length, self._reader.size, self._members)


def _without(dataset: Buffer, ranges: Sequence[tuple[int, int]]) -> bytes:
    view = memoryview(dataset)
    pieces: list[memoryview] = []
    at = 0
    for start, end in ranges:
        pieces.append(view[at:start])
        at = end
    pieces.append(view[at:])
    if sum(map(len, pieces)) > REST_MAX_BYTES:
        raise OverflowError
    return b"".join(pieces)


def _gzip_head(pack_id: str) -> bytes:
    """Return a gzip header (RFC 1952) without a time, whose comment names the pack."""
    fixed = struct.pack("<BBBBIBB", 0x1F, 0x8B, 8, _FCOMMENT, 0, 0, _OS_UNKNOWN)
    return fixed + b"azekura headers of " + pack_id.encode() + b"\0"
