"""A checkpoint as bytes: many entries of one node's ledger in one object, signed once.

No store, no decision. The form: JSON lines, gzip, age. The body is one gzip member: the opening
line says whose entries, which, and what they follow; then of each entry the header line and its
record lines, byte for byte. A second, small member is the closing line, with the sha256 and the
sizes of the body, and the node's signature over that line. The signatures of the single entries are
left out: one stands for all.

Invariants:
- Nothing of the body is fetched or unpacked before the closing line is proved, whose sizes then
  bound both: whoever can only seal to us costs us a few kilobytes.
- What is given out of a checkpoint was authentic by age, stood in its place in the chain, and had
  the hashes that its header names. That it is the body which was signed is known only when the
  iterator is exhausted: whoever applies it has read it to its end once before.
- Neither making nor reading one holds more than one entry.
"""

import hashlib
import io
import zlib
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import BinaryIO, NamedTuple

import msgspec

from appliance.archive.checkpoint_name import CheckpointName, Range
from appliance.archive.ledger_entry import (
    FIRST_PREVIOUS,
    EntryLines,
    decode_records,
)
from appliance.archive.records import ENTRY_BYTES_MAX, Header, Record, Signature
from appliance.archive.records import FORMAT as ENTRY_FORMAT
from appliance.foundation.errors import Damaged, UnsupportedFormat
from appliance.seal.age import decrypt_end, decrypt_file
from appliance.seal.identity import Identity
from appliance.seal.signing import SigningKey, verify
from appliance.seal.stream import PieceStream

FORMAT = 1
LINE_BYTES_MAX = ENTRY_BYTES_MAX
GZIP_LEVEL = 6
_GZIP_WINDOW = 31  # zlib: the widest window, in gzip's frame, whose time is then 0
_READ_BYTES = 1024 * 1024
_MEMBER_START = b"\x1f\x8b\x08\0\0\0\0\0"  # gzip, deflate, no flags, no time
END_BYTES_MAX = 4096


class Opening(msgspec.Struct, frozen=True):
    """The first line; `previous` is the header hash of entry `first - 1`."""

    format: int
    node: str
    first: int
    last: int
    previous: str
    written_at: str


class Closing(msgspec.Struct, frozen=True):
    """The closing line.

    head: the header hash of entry `last`. sha256, bytes: of the body as lines; packed_bytes: of the
    body as it is compressed.
    """

    checkpoint: int
    node: str
    first: int
    last: int
    head: str
    sha256: str
    bytes: int
    packed_bytes: int


class CheckpointEntry(NamedTuple):
    """One entry out of a checkpoint."""

    header: Header
    header_sha256: str
    record_lines: list[bytes]

    def records(self) -> list[Record]:
        """Return the records; UnsupportedFormat when one is of a later release."""
        return decode_records(self.record_lines)


# --- making


def checkpoint_pieces(
    node: str,
    span: Range,
    previous: str,
    written_at: str,
    entries: Iterable[EntryLines],
    signing_key: SigningKey,
) -> Iterator[bytes]:
    """Yield a checkpoint as it is to be encrypted, in pieces.

    `entries` are those of the range in order; Damaged when they do not form a chain from
    `previous`. Nothing of the iterator is a checkpoint before its last piece.
    """
    body = _Body()
    opening = Opening(FORMAT, node, span.first, span.last, previous, written_at)
    yield body.add(msgspec.json.encode(opening))
    chain = _Chain(node, span, previous)
    for entry in entries:
        chain.add(entry.header, entry.header_line)
        yield body.add(entry.header_line)
        for line in entry.record_lines:
            yield body.add(line)
    chain.finish()
    yield body.end()
    closing = Closing(
        FORMAT, node, span.first, span.last, chain.head, body.digest.hexdigest(), body.bytes,
        body.packed_bytes,
    )  # fmt: skip
    yield sealed_end(closing, signing_key)


def sealed_end(closing: Closing, signing_key: SigningKey) -> bytes:
    """Return the last member: the closing line and the signature over it."""
    line = msgspec.json.encode(closing)
    signature = Signature(key=signing_key.public_text, signature=signing_key.sign(line))
    return member([line, msgspec.json.encode(signature)])


def member(lines: Iterable[bytes]) -> bytes:
    """Return lines, given without their newlines, as one gzip member."""
    body = _Body()
    return b"".join([*map(body.add, lines), body.end()])


class _Body:
    """Lines becoming a gzip member, counted and hashed."""

    def __init__(self) -> None:
        self._deflate = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, _GZIP_WINDOW)
        self.digest = hashlib.sha256()
        self.bytes = 0
        self.packed_bytes = 0

    def add(self, line: bytes) -> bytes:
        """Take a line in; return what is compressed by now."""
        whole = line + b"\n"
        self.digest.update(whole)
        self.bytes += len(whole)
        return self._packed(self._deflate.compress(whole))

    def end(self) -> bytes:
        """Return the rest."""
        return self._packed(self._deflate.flush())

    def _packed(self, piece: bytes) -> bytes:
        self.packed_bytes += len(piece)
        return piece


# --- reading


class Proof(NamedTuple):
    """What a checkpoint that was read to its end has proved: the hashes around its range."""

    previous: str
    head: str


class CheckpointReader:
    """Reads one checkpoint from an age file, entry by entry.

    `proof` is set once every entry was given out and the end was proved.
    """

    def __init__(
        self,
        source: BinaryIO,
        identities: Sequence[Identity],
        name: CheckpointName,
        signers: Container[str],
    ) -> None:
        """`signers`: the public keys of which one must have signed it."""
        self._source = source
        self._identities = identities
        self._name = name
        self._signers = signers
        self._digest = hashlib.sha256()
        self._left_bytes = 0
        self.proof: Proof | None = None

    def closing(self) -> Closing:
        """Return the proved closing line, reading no more than both ends of the file.

        Errors as for `entries`.
        """
        total, end = decrypt_end(self._source, self._identities, END_BYTES_MAX)
        start = end.rfind(_MEMBER_START)
        lines = _unpacked(end[start:]) if start >= 0 else []
        if len(lines) != 2:
            raise self._damaged("it has no closing line")
        try:
            closing = msgspec.json.decode(lines[0], type=Closing)
            signature = msgspec.json.decode(lines[1], type=Signature)
        except msgspec.DecodeError as cause:
            raise self._damaged(f"closing line: {cause}") from cause
        if closing.checkpoint != FORMAT:
            raise UnsupportedFormat("read a checkpoint", f"format {closing.checkpoint}")
        if signature.key not in self._signers:
            raise self._damaged("signed by a key that is not known")
        if not verify(signature.key, lines[0], signature.signature):
            raise self._damaged("the signature is not the signer's")
        span = self._name.range
        if (closing.node, closing.first, closing.last) != (self._name.node, span.first, span.last):
            raise self._damaged("it holds other entries than its name says")
        if closing.packed_bytes != total - (len(end) - start):
            raise self._damaged("its body has another size than was signed")
        return closing

    def entries(self) -> Iterator[CheckpointEntry]:
        """Yield the entries in order.

        Raises DecryptionFailed (not for these identities, or a damaged byte), Damaged (not what
        its name, its hashes or its signature say), UnsupportedFormat.
        """
        closing = self.closing()
        self._left_bytes = closing.bytes
        pieces = decrypt_file(self._source, self._identities)
        lines = io.BufferedReader(PieceStream(_body(pieces)), _READ_BYTES)
        try:
            yield from self._read(lines, closing)
        except (zlib.error, EOFError) as cause:
            raise self._damaged(f"not gzip: {cause}") from cause
        except msgspec.DecodeError as cause:
            raise self._damaged(str(cause)) from cause

    def prove(self) -> Proof:
        """Read it to its end; return what it proves. Errors as for `entries`."""
        for _ in self.entries():
            pass
        assert self.proof is not None
        return self.proof

    def _read(self, lines: BinaryIO, closing: Closing) -> Iterator[CheckpointEntry]:
        name, span = self._name, self._name.range
        opening = msgspec.json.decode(self._line(lines), type=Opening)
        if opening.format != FORMAT:
            raise UnsupportedFormat("read a checkpoint", f"{name.key}, format {opening.format}")
        if (opening.node, opening.first, opening.last) != (name.node, span.first, span.last):
            raise self._damaged("it holds other entries than its name says")
        if span.first == 1 and opening.previous != FIRST_PREVIOUS:
            raise self._damaged("it does not begin the chain")
        chain = _Chain(name.node, span, opening.previous)
        while chain.sequence < span.last:
            header_line = self._line(lines)
            header = msgspec.json.decode(header_line, type=Header)
            chain.add(header, header_line)
            record_lines = []
            for expected in header.records:
                line = self._line(lines)
                if hashlib.sha256(line).hexdigest() != expected:
                    raise self._damaged(f"a record of sequence {header.sequence} is another")
                record_lines.append(line)
            yield CheckpointEntry(header, chain.head, record_lines)
        if self._left_bytes or lines.read(1) or chain.head != closing.head:
            raise self._damaged("its body is not the one that was signed")
        if self._digest.hexdigest() != closing.sha256:
            raise self._damaged("its body is not the one that was signed")
        self.proof = Proof(opening.previous, chain.head)

    def _line(self, lines: BinaryIO) -> bytes:
        """Return the next line without its newline, hashed; never more than was signed."""
        line = lines.readline(min(self._left_bytes, LINE_BYTES_MAX))
        self._left_bytes -= len(line)
        if not line.endswith(b"\n"):
            raise self._damaged("it ends too early" if line == b"" else "a line does not end")
        self._digest.update(line)
        return line[:-1]

    def _damaged(self, cause: str) -> Damaged:
        return Damaged("read a checkpoint", self._name.key, cause)


class _Chain:
    """How far the chain of a range has come: the last sequence, and its header's hash."""

    def __init__(self, node: str, span: Range, previous: str) -> None:
        self._node = node
        self._span = span
        self.sequence = span.first - 1
        self.head = previous

    def add(self, header: Header, header_line: bytes) -> None:
        """Go one entry on; Damaged when this is not the next one."""
        subject = f"{self._node}, sequence {self.sequence + 1}"
        if header.format != ENTRY_FORMAT:
            raise UnsupportedFormat("read a checkpoint", f"{subject}, format {header.format}")
        if (header.node, header.sequence) != (self._node, self.sequence + 1):
            raise Damaged("follow the chain", subject, f"{header.node}'s {header.sequence} came")
        if header.previous != self.head:
            raise Damaged(
                "follow the chain", subject, "it does not follow from the entry before it"
            )
        self.sequence += 1
        self.head = hashlib.sha256(header_line).hexdigest()

    def finish(self) -> None:
        """Raise Damaged unless the range is complete."""
        if self.sequence != self._span.last:
            raise Damaged("follow the chain", self._node, f"it ends behind {self.sequence}")


def _body(pieces: Iterator[bytearray]) -> Iterator[bytes]:
    """Yield what is packed in the first gzip member; EOFError when that does not end."""
    inflate = zlib.decompressobj(_GZIP_WINDOW)
    for piece in pieces:
        packed: bytes | bytearray = piece
        while packed and not inflate.eof:
            yield inflate.decompress(packed, _READ_BYTES)
            packed = inflate.unconsumed_tail
        if inflate.eof:
            for _ in pieces:  # to its end: age says there whether a byte is missing
                pass
            return
    raise EOFError("it ends too early")


def _unpacked(packed: bytes) -> list[bytes]:
    """Return the lines of the one gzip member that these bytes are; none when they are not."""
    inflate = zlib.decompressobj(_GZIP_WINDOW)
    try:
        plain = inflate.decompress(packed, END_BYTES_MAX)
    except zlib.error:
        return []
    whole = inflate.eof and not inflate.unused_data and plain.endswith(b"\n")
    return plain[:-1].split(b"\n") if whole else []
