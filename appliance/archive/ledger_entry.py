"""One ledger entry as bytes: made, sealed, opened, checked. No store, no files.

The form is told in `records`; the checks are what tells a forged, altered or replaced entry.
"""

import gzip
import hashlib
import zlib
from collections.abc import Sequence

import msgspec

from appliance.archive.records import ENTRY_BYTES_MAX, FORMAT, Header, Record, Signature
from appliance.foundation.errors import Damaged, UnsupportedFormat
from appliance.seal.age import decrypt_bytes, encrypt_bytes
from appliance.seal.identity import Identity
from appliance.seal.signing import SigningKey, verify

FIRST_PREVIOUS = "0" * 64
SEQUENCE_DIGITS = 12
HEAD_READ_BYTES = 64 * 1024
HEAD_BYTES_MAX = 8 * 2**20
"""A header names the hash of each record: this is more than a hundred thousand of them."""
_GZIP_BITS = 31
_decode_record = msgspec.json.Decoder(Record).decode


def entry_name(sequence: int) -> str:
    """Return the last part of an entry's key and of its local file name."""
    return f"{sequence:0{SEQUENCE_DIGITS}d}.json.gz.age"


def entry_key(node: str, sequence: int) -> str:
    """Return the key of an entry in the bucket."""
    return f"ledger/{node}/{entry_name(sequence)}"


class Entry(msgspec.Struct, frozen=True):
    """A decoded entry; `header_sha256` is what the next entry's `previous` must be."""

    header: Header
    header_line: bytes
    signature: Signature
    records: list[Record]

    @property
    def header_sha256(self) -> str:
        """The hash by which the next entry names this one."""
        return hashlib.sha256(self.header_line).hexdigest()


def build_entry(
    node: str,
    sequence: int,
    incarnation: str,
    written_at: str,
    previous: str,
    records: Sequence[Record],
    signing_key: SigningKey,
) -> Entry:
    """Return a signed entry."""
    lines = [msgspec.json.encode(record) for record in records]
    header = Header(
        format=FORMAT,
        node=node,
        sequence=sequence,
        incarnation=incarnation,
        written_at=written_at,
        previous=previous,
        records=[hashlib.sha256(line).hexdigest() for line in lines],
    )
    header_line = msgspec.json.encode(header)
    signature = Signature(key=signing_key.public_text, signature=signing_key.sign(header_line))
    return Entry(header, header_line, signature, list(records))


def seal_entry(entry: Entry, recipients: Sequence[str]) -> bytes:
    """Return the object: JSON lines, gzip, age."""
    lines = [entry.header_line, msgspec.json.encode(entry.signature)]
    lines += [msgspec.json.encode(record) for record in entry.records]
    return encrypt_bytes(gzip.compress(b"\n".join(lines) + b"\n", mtime=0), recipients)


class EntryLines(msgspec.Struct, frozen=True):
    """An entry whose record lines are checked and kept as they were written."""

    header: Header
    header_line: bytes
    signature: Signature
    record_lines: list[bytes]

    @property
    def header_sha256(self) -> str:
        """The hash by which the next entry names this one."""
        return hashlib.sha256(self.header_line).hexdigest()


def open_entry(sealed: bytes, identities: Sequence[Identity]) -> Entry:
    """Return the entry in an object; its record hashes are checked, its signature is not.

    Raises DecryptionFailed, Damaged (a record is not what the header names), UnsupportedFormat.
    """
    return read_entry(decrypt_bytes(sealed, identities))


def read_entry(packed: bytes) -> Entry:
    """Return a decrypted entry; errors as for `open_entry`, but for decryption."""
    lines = read_lines(packed)
    records = decode_records(lines.record_lines)
    return Entry(lines.header, lines.header_line, lines.signature, records)


class EntryHead(msgspec.Struct, frozen=True):
    """The first two lines of an entry: enough to tell who wrote it, before the rest is unpacked."""

    header: Header
    header_line: bytes
    signature: Signature


def read_head(packed: bytes) -> EntryHead:
    """Return the head of a decrypted entry, with no more memory than a head may need.

    Raises Damaged, UnsupportedFormat.
    """
    inflating = zlib.decompressobj(_GZIP_BITS)
    plain = bytearray()
    try:
        while plain.count(b"\n") < 2 and packed and len(plain) < HEAD_BYTES_MAX:
            plain += inflating.decompress(packed, HEAD_READ_BYTES)
            packed = inflating.unconsumed_tail
    except zlib.error as cause:
        raise Damaged("open a ledger entry", "", str(cause)) from cause
    return _head(bytes(plain).split(b"\n", 2)[:2])


def _head(lines: list[bytes]) -> EntryHead:
    if len(lines) < 2:
        raise Damaged("open a ledger entry", "", "no header and signature")
    try:
        header = msgspec.json.decode(lines[0], type=Header)
        if header.format != FORMAT:
            raise UnsupportedFormat("open a ledger entry", f"format {header.format}")
        signature = msgspec.json.decode(lines[1], type=Signature)
    except msgspec.DecodeError as cause:
        raise Damaged("open a ledger entry", "", str(cause)) from cause
    return EntryHead(header, lines[0], signature)


def open_lines(sealed: bytes, identities: Sequence[Identity]) -> EntryLines:
    """Return the lines of the entry in an object; as `open_entry`, but for what records say."""
    return read_lines(decrypt_bytes(sealed, identities))


def read_lines(packed: bytes) -> EntryLines:
    """Return the lines of a decrypted entry. Raises Damaged, UnsupportedFormat."""
    try:
        inflating = zlib.decompressobj(_GZIP_BITS)
        plain = inflating.decompress(packed, ENTRY_BYTES_MAX + 1)
    except zlib.error as cause:
        raise Damaged("open a ledger entry", "", str(cause)) from cause
    if len(plain) <= ENTRY_BYTES_MAX and not inflating.eof:
        raise Damaged("open a ledger entry", "", "its end is missing")
    if len(plain) > ENTRY_BYTES_MAX:
        raise Damaged("open a ledger entry", "", "larger than any entry may be")
    lines = plain.rstrip(b"\n").split(b"\n")
    head = _head(lines[:2])
    hashes = [hashlib.sha256(line).hexdigest() for line in lines[2:]]
    if hashes != head.header.records:
        raise Damaged("open a ledger entry", f"sequence {head.header.sequence}", "record hash")
    return EntryLines(head.header, lines[0], head.signature, lines[2:])


def decode_records(lines: Sequence[bytes]) -> list[Record]:
    """Return the records on lines that the header names; UnsupportedFormat for a strange one."""
    try:
        return [_decode_record(line) for line in lines]
    except msgspec.DecodeError as cause:  # it is what the header names: others write otherwise
        raise UnsupportedFormat("open a ledger entry", f"a record: {cause}") from cause


def check_link(
    entry: Entry | EntryLines, node: str, sequence: int, previous: str, signers: set[str]
) -> None:
    """Raise Damaged unless the entry is that node's, in its place in the chain, rightly signed."""
    subject = f"ledger of {node}, sequence {sequence}"
    header = entry.header
    if (header.node, header.sequence) != (node, sequence):
        raise Damaged("check the ledger", subject, f"holds {header.node}'s {header.sequence}")
    if header.previous != previous:
        raise Damaged("check the ledger", subject, "does not follow from the entry before it")
    if entry.signature.key not in signers:
        raise Damaged("check the ledger", subject, "signed by a key that is not known")
    if not verify(entry.signature.key, entry.header_line, entry.signature.signature):
        raise Damaged("check the ledger", subject, "the signature is not the signer's")
