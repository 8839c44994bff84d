"""A checkpoint as bytes: many entries of one node's ledger in one object, signed once.

No store, no decision. The form: JSON lines, gzip, age. The opening line says whose entries, which,
and what they follow; then of each entry the header line and its record lines, byte for byte; then
the closing line with the sha256 over every byte before it, and the node's signature over the
closing line. The signatures of the single entries are left out: one stands for all.

Invariants:
- What is given out of a checkpoint was authentic by age, stood in its place in the chain, and had
  the hashes that its header names. Who wrote it is known only when the iterator is exhausted:
  whoever applies it has read it to its end once before.
- Neither making nor reading one holds more than one entry.
"""

import gzip
import hashlib
import io
import re
import zlib
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import BinaryIO, NamedTuple

import msgspec

from appliance.archive.ledger_entry import (
    FIRST_PREVIOUS,
    SEQUENCE_DIGITS,
    EntryLines,
    decode_records,
)
from appliance.archive.records import ENTRY_BYTES_MAX, Header, Record, Signature
from appliance.archive.records import FORMAT as ENTRY_FORMAT
from appliance.foundation.errors import Damaged, UnsupportedFormat
from appliance.seal.age import decrypt_file
from appliance.seal.identity import Identity
from appliance.seal.signing import SigningKey, verify
from appliance.seal.stream import PieceStream

FORMAT = 1
LEVEL_ENTRIES = (1_024, 32_768, 1_048_576)
PARTIAL = 0
ENDING = ".json.gz.age"
KEYS_DIGITS = 8
LINE_BYTES_MAX = ENTRY_BYTES_MAX
GZIP_LEVEL = 6
_GZIP_WINDOW = 31  # zlib: the widest window, in gzip's frame, whose time is then 0
_READ_BYTES = 1024 * 1024
_KEY = re.compile(
    rf"checkpoints/(\d)/([^/]+)/(\d{{{SEQUENCE_DIGITS}}})-(\d{{{SEQUENCE_DIGITS}}})"
    rf"-([0-9a-f]{{{KEYS_DIGITS}}}){re.escape(ENDING)}"
)


class Range(NamedTuple):
    """Entries `first` to `last`, both included; level 0 is a partial range."""

    level: int
    first: int
    last: int

    @property
    def text(self) -> str:
        """The range as names have it."""
        return f"{self.first:0{SEQUENCE_DIGITS}d}-{self.last:0{SEQUENCE_DIGITS}d}"


class CheckpointName(NamedTuple):
    """Which checkpoint: of which node, of what range, for which keys (`keys_digest`)."""

    node: str
    range: Range
    keys: str

    @property
    def key(self) -> str:
        """The key in the bucket."""
        return f"{prefix(self.range.level, self.node)}{self.range.text}-{self.keys}{ENDING}"

    @property
    def file_name(self) -> str:
        """The name of a copy in its node's folder."""
        return f"{self.range.level}-{self.range.text}-{self.keys}{ENDING}"

    @classmethod
    def parse_file_name(cls, node: str, file_name: str) -> "CheckpointName | None":
        """Return the name of a copy in a node's folder; None for another file's."""
        level, _, rest = file_name.partition("-")
        return cls.parse(f"checkpoints/{level}/{node}/{rest}")

    @classmethod
    def parse(cls, key: str) -> "CheckpointName | None":
        """Return the name in a key of the bucket; None for another object's."""
        found = _KEY.fullmatch(key)
        if found is None:
            return None
        level, node, first, last, keys = found.groups()
        span = Range(int(level), int(first), int(last))
        return cls(node, span, keys) if 0 < span.first <= span.last else None


def prefix(level: int, node: str) -> str:
    """Return what the keys of a node's checkpoints of one level begin with."""
    return f"checkpoints/{level}/{node}/"


def keys_digest(recipients: Iterable[str], signer: str) -> str:
    """Return the 8 hex digits that tell checkpoints for these keys from those for others.

    The signer counts: a rotated signing key vouches for the whole history again.
    """
    text = "".join(f"{each}\n" for each in (*sorted(set(recipients)), signer))
    return hashlib.sha256(text.encode()).hexdigest()[:KEYS_DIGITS]


class Opening(msgspec.Struct, frozen=True):
    """The first line; `previous` is the header hash of entry `first - 1`."""

    format: int
    node: str
    first: int
    last: int
    previous: str
    written_at: str


class Closing(msgspec.Struct, frozen=True):
    """The last line but one; `head` is the header hash of entry `last`."""

    checkpoint: int
    node: str
    first: int
    last: int
    head: str
    sha256: str


class CheckpointEntry(NamedTuple):
    """One entry out of a checkpoint."""

    header: Header
    header_sha256: str
    record_lines: list[bytes]

    def records(self) -> list[Record]:
        """Return the records; UnsupportedFormat when one is of a later release."""
        return decode_records(self.record_lines)


# --- making


def checkpoint_lines(
    node: str,
    span: Range,
    previous: str,
    written_at: str,
    entries: Iterable[EntryLines],
    signing_key: SigningKey,
) -> Iterator[bytes]:
    """Yield a checkpoint's lines, newline and all.

    `entries` are those of the range in order; Damaged when they do not form a chain from
    `previous`. Nothing of the iterator is a checkpoint before its last line.
    """
    digest = hashlib.sha256()

    def hashed(line: bytes) -> bytes:
        whole = line + b"\n"
        digest.update(whole)
        return whole

    opening = Opening(FORMAT, node, span.first, span.last, previous, written_at)
    yield hashed(msgspec.json.encode(opening))
    chain = _Chain(node, span, previous)
    for entry in entries:
        chain.add(entry.header, entry.header_line)
        yield hashed(entry.header_line)
        for line in entry.record_lines:
            yield hashed(line)
    chain.finish()
    closing = msgspec.json.encode(
        Closing(FORMAT, node, span.first, span.last, chain.head, digest.hexdigest())
    )
    yield closing + b"\n"
    signature = Signature(key=signing_key.public_text, signature=signing_key.sign(closing))
    yield msgspec.json.encode(signature) + b"\n"


def compressed(lines: Iterator[bytes]) -> io.RawIOBase:
    """Return a stream of the lines in gzip's form."""

    def pieces() -> Iterator[bytes]:
        deflate = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, _GZIP_WINDOW)
        for line in lines:
            if piece := deflate.compress(line):
                yield piece
        yield deflate.flush()

    return PieceStream(pieces())


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
        self.proof: Proof | None = None

    def entries(self) -> Iterator[CheckpointEntry]:
        """Yield the entries in order.

        Raises DecryptionFailed (not for these identities, or a damaged byte), Damaged (not what
        its name, its hashes or its signature say), UnsupportedFormat.
        """
        pieces = decrypt_file(self._source, self._identities)
        stream = gzip.GzipFile(fileobj=io.BufferedReader(PieceStream(pieces), _READ_BYTES))
        try:
            yield from self._read(io.BufferedReader(stream, _READ_BYTES))
        except (gzip.BadGzipFile, EOFError, zlib.error) as cause:
            raise self._damaged(f"not gzip: {cause}") from cause
        except msgspec.DecodeError as cause:
            raise self._damaged(str(cause)) from cause

    def prove(self) -> Proof:
        """Read it to its end; return what it proves. Errors as for `entries`."""
        for _ in self.entries():
            pass
        assert self.proof is not None
        return self.proof

    def _read(self, lines: BinaryIO) -> Iterator[CheckpointEntry]:
        name, span = self._name, self._name.range
        opening = msgspec.json.decode(self._hashed(lines), type=Opening)
        if opening.format != FORMAT:
            raise UnsupportedFormat("read a checkpoint", f"{name.key}, format {opening.format}")
        if (opening.node, opening.first, opening.last) != (name.node, span.first, span.last):
            raise self._damaged("it holds other entries than its name says")
        if span.first == 1 and opening.previous != FIRST_PREVIOUS:
            raise self._damaged("it does not begin the chain")
        chain = _Chain(name.node, span, opening.previous)
        while chain.sequence < span.last:
            header_line = self._hashed(lines)
            header = msgspec.json.decode(header_line, type=Header)
            chain.add(header, header_line)
            record_lines = []
            for expected in header.records:
                line = self._hashed(lines)
                if hashlib.sha256(line).hexdigest() != expected:
                    raise self._damaged(f"a record of sequence {header.sequence} is another")
                record_lines.append(line)
            yield CheckpointEntry(header, chain.head, record_lines)
        self._close(lines, chain.head)
        self.proof = Proof(opening.previous, chain.head)

    def _close(self, lines: BinaryIO, head: str) -> None:
        digest = self._digest.hexdigest()
        closing_line = self._line(lines)
        span = self._name.range
        expected = Closing(FORMAT, self._name.node, span.first, span.last, head, digest)
        if msgspec.json.decode(closing_line, type=Closing) != expected:
            raise self._damaged("its closing line is not that of what it holds")
        signature = msgspec.json.decode(self._line(lines), type=Signature)
        if lines.read(1):
            raise self._damaged("something follows its end")
        if signature.key not in self._signers:
            raise self._damaged("signed by a key that is not known")
        if not verify(signature.key, closing_line, signature.signature):
            raise self._damaged("the signature is not the signer's")

    def _line(self, lines: BinaryIO) -> bytes:
        line = lines.readline(LINE_BYTES_MAX + 1)
        if not line.endswith(b"\n"):
            raise self._damaged("it ends too early" if line == b"" else "a line does not end")
        return line[:-1]

    def _hashed(self, lines: BinaryIO) -> bytes:
        line = self._line(lines)
        self._digest.update(line)
        self._digest.update(b"\n")
        return line

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
