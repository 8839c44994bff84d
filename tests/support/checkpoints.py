"""Ledgers of small entries, and the checkpoints that a test makes of them by hand."""

import gzip
import hashlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from appliance.archive.checkpoint import (
    FORMAT,
    CheckpointReader,
    Closing,
    checkpoint_pieces,
    member,
    sealed_end,
)
from appliance.archive.checkpoint_name import CheckpointName, Range, keys_digest
from appliance.archive.ledger_entry import (
    FIRST_PREVIOUS,
    Entry,
    EntryLines,
    build_entry,
    open_lines,
    seal_entry,
)
from appliance.archive.records import Opened, Record
from appliance.seal.age import encrypt_stream
from appliance.seal.identity import Identity
from appliance.seal.signing import SigningKey
from appliance.seal.stream import PieceStream

AT = "2026-03-02T03:00:00.000000Z"


def new_signing_key() -> SigningKey:
    """Return a fresh key that lies in no file."""
    return SigningKey(Ed25519PrivateKey.generate())


def some_record(text: str = "x") -> Record:
    """Return a record that is of no use to an index."""
    return Opened(incarnation=text, software="test", at=AT)


def chain(node: str, count: int, key: SigningKey) -> list[Entry]:
    """Return the first entries of a ledger, of one and two records in turn."""
    found: list[Entry] = []
    previous = FIRST_PREVIOUS
    for sequence in range(1, count + 1):
        records = [some_record(f"{sequence}-{number}") for number in range(1 + sequence % 2)]
        entry = build_entry(node, sequence, "i" * 32, AT, previous, records, key)
        previous = entry.header_sha256
        found.append(entry)
    return found


class Maker:
    """Makes checkpoints of a node as that node would, or as a forger might."""

    def __init__(self, node: str, recipients: Sequence[str], key: SigningKey) -> None:
        self.node = node
        self.recipients = recipients
        self.key = key

    def name(self, level: int, first: int, last: int) -> CheckpointName:
        """Return the name of a checkpoint for this maker's keys."""
        keys = keys_digest(self.recipients, self.key.public_text)
        return CheckpointName(self.node, Range(level, first, last), keys)

    def write(
        self,
        path: Path,
        entries: Sequence[Entry],
        first: int,
        last: int,
        *,
        level: int = 1,
        change: Callable[[list[bytes]], list[bytes]] = list,
        sign_again: SigningKey | None = None,
    ) -> CheckpointName:
        """Write a checkpoint of some of a chain's entries.

        `change` sees its lines, without their newlines, before they are compressed. `sign_again`:
        who then makes a closing line that fits, and signs it.
        """
        previous = entries[first - 2].header_sha256 if first > 1 else FIRST_PREVIOUS
        name = self.name(level, first, last)
        chosen = map(lines_of, entries[first - 1 : last])
        pieces = checkpoint_pieces(self.node, name.range, previous, AT, chosen, self.key)
        lines = gzip.decompress(b"".join(pieces))[:-1].split(b"\n")
        changed = change(lines)
        if changed != lines or sign_again:
            body, end = changed[:-2], member(changed[-2:])
            if sign_again:
                end = sealed_end(closing_of(body, name, lines[-2]), sign_again)
            pieces = iter([member(body), end])
        else:
            chosen = map(lines_of, entries[first - 1 : last])
            pieces = checkpoint_pieces(self.node, name.range, previous, AT, chosen, self.key)
        encrypt_stream(PieceStream(pieces), str(path), self.recipients)
        return name


def closing_of(body: Sequence[bytes], name: CheckpointName, line: bytes) -> Closing:
    """Return a closing line that fits a body, its head as in another."""
    plain = b"".join(each + b"\n" for each in body)
    return Closing(
        FORMAT, name.node, name.range.first, name.range.last,
        msgspec.json.decode(line, type=Closing).head, hashlib.sha256(plain).hexdigest(),
        len(plain), len(member(body)),
    )  # fmt: skip


def lines_of(entry: Entry) -> EntryLines:
    """Return an entry with its records as they are written."""
    identity = Identity(bytes(range(32)))
    return open_lines(seal_entry(entry, [identity.recipient]), [identity])


def reader(
    sealed: bytes, identities: Sequence[Identity], name: CheckpointName, *keys: SigningKey
) -> CheckpointReader:
    """Return a reader of a checkpoint's bytes that believes these keys."""
    return CheckpointReader(io.BytesIO(sealed), identities, name, {key.public_text for key in keys})
