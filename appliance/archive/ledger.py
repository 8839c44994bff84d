"""This node's own log: appended to here and nowhere else.

Owns `ledger/<node>/` on disk and in the bucket, and `state/ledger.json`.

Invariants:
- An entry is durable on disk before its first PUT, and is put byte for byte until the bucket has
  it.
- Sequences are gap-free: number n+1 is made only when n is in the bucket and that is written down.
- A sequence that the bucket already holds with other bytes is never overwritten: it is adopted when
  this box wrote it, and stops uploading (ForeignWriter) when it did not.
Used by one thread of the uplink.
"""

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator, Sequence
from typing import NoReturn

import msgspec

from appliance.archive.layout import Layout
from appliance.archive.ledger_entry import (
    FIRST_PREVIOUS,
    Entry,
    build_entry,
    check_link,
    entry_key,
    entry_name,
    open_entry,
    seal_entry,
)
from appliance.archive.records import Record
from appliance.archive.retention import Retention
from appliance.foundation import log
from appliance.foundation.clock import Clock, isoformat
from appliance.foundation.errors import (
    Damaged,
    DecryptionFailed,
    ForeignWriter,
    ObjectExists,
)
from appliance.foundation.files import FileSystem
from appliance.remote.store import Lane, ObjectStore
from appliance.seal.identity import Identity
from appliance.seal.signing import SigningKey

INCARNATIONS_KEPT_MAX = 1000

_log = log.get("ledger")


class LedgerState(msgspec.Struct, frozen=True):
    """What this box remembers of its log: which starts were its own, and what the bucket has."""

    incarnations: list[str] = []
    confirmed_sequence: int = 0


class Ledger:
    """Appends entries; adopts or refuses what it finds in the bucket in their place."""

    def __init__(
        self,
        files: FileSystem,
        clock: Clock,
        store: ObjectStore,
        layout: Layout,
        node: str,
        signing_key: SigningKey,
        recipients: Sequence[str],
        identities: Sequence[Identity],
        retention: Retention,
    ) -> None:
        self.node = node
        self.incarnation = secrets.token_hex(16)
        self._files = files
        self._clock = clock
        self._store = store
        self._directory = os.path.join(layout.ledger, node)
        self._state_path = state_path(layout)
        self._signing_key = signing_key
        self._recipients = recipients
        self._identities = identities
        self._retention = retention
        files.make_directory(self._directory)
        self._state = load_state(self._state_path)
        self._last, self._last_hash = self._find_last()
        self.opened = False

    @property
    def sequence(self) -> int:
        """The last sequence that the bucket is known to have."""
        return self._state.confirmed_sequence

    @property
    def begun(self) -> bool:
        """Whether this box has ever written to it, or tried to."""
        return self._last > 0 or bool(self._state.incarnations)

    @property
    def unconfirmed(self) -> bool:
        """Whether the last entry on disk is not known to be in the bucket yet."""
        return self._last > self._state.confirmed_sequence

    def start(self) -> None:
        """Bring disk and bucket to agreement, then make this start's incarnation known.

        May be called again after an error. Raises ForeignWriter when the bucket has entries under
        this name that this box never wrote, and CloudError when the bucket can't be asked.
        """
        self.resume()
        while self._adopt(self._last + 1):
            pass
        if self.incarnation not in self._state.incarnations:
            kept = [*self._state.incarnations[-INCARNATIONS_KEPT_MAX:], self.incarnation]
            self._save(LedgerState(kept, self._state.confirmed_sequence))

    def append(self, records: Sequence[Record]) -> Entry:
        """Return the entry that carries the records, once the bucket has it.

        An error may leave the entry on disk: it is `unconfirmed` then, and `resume` puts it again.
        ForeignWriter when somebody else wrote this sequence.
        """
        assert not self.unconfirmed
        sequence = self._last + 1
        entry = build_entry(
            self.node, sequence, self.incarnation, isoformat(self._clock.now()), self._last_hash,
            records, self._signing_key,
        )  # fmt: skip
        sealed = seal_entry(entry, self._recipients)
        self._files.write_atomic(self._path(sequence), sealed)
        self._last, self._last_hash = sequence, entry.header_sha256
        self.opened = True
        self._put(sequence, sealed)
        return entry

    def resume(self) -> None:
        """Put an unconfirmed entry again; errors as for `append`."""
        if self.unconfirmed:
            self._put(self._last, self._read(self._last))

    def entries(self, first: int = 1) -> Iterator[Entry]:
        """Yield this node's confirmed entries from disk, and from the bucket where disk has none.

        Raises Damaged at the first entry whose place in the chain or signature is wrong.
        """
        previous = FIRST_PREVIOUS if first == 1 else self._entry(first - 1).header_sha256
        for sequence in range(first, self._state.confirmed_sequence + 1):
            entry = self._entry(sequence)
            check_link(entry, self.node, sequence, previous, {self._signing_key.public_text})
            previous = entry.header_sha256
            yield entry

    # --- inside

    def _entry(self, sequence: int) -> Entry:
        try:
            sealed = self._read(sequence)
        except FileNotFoundError:
            sealed = self._fetch(sequence)
            self._files.write_atomic(self._path(sequence), sealed)
        return open_entry(sealed, self._identities)

    def _put(self, sequence: int, sealed: bytes) -> None:
        try:
            self._store.put(
                entry_key(self.node, sequence),
                sealed,
                sha256=hashlib.sha256(sealed).digest(),
                create_only=True,
                lock=self._retention.lock(), lane=Lane.URGENT,
            )  # fmt: skip
        except ObjectExists:
            if self._fetch(sequence) != sealed:
                self._refuse(sequence)
        self._save(LedgerState(self._state.incarnations, sequence))

    def _adopt(self, sequence: int) -> bool:
        """Take an entry of ours that the disk has lost; say whether there was one."""
        key = entry_key(self.node, sequence)
        if self._store.oldest_version(key) is None:
            return False
        sealed = self._fetch(sequence)
        try:
            entry = open_entry(sealed, self._identities)
        except DecryptionFailed as cause:
            # What this box writes, it can read: its own identity is always among the recipients.
            self._refuse(sequence, cause)
        if entry.header.incarnation not in self._state.incarnations:
            self._refuse(sequence)
        check_link(entry, self.node, sequence, self._last_hash, {self._signing_key.public_text})
        self._files.write_atomic(self._path(sequence), sealed)
        self._last, self._last_hash = sequence, entry.header_sha256
        self._save(LedgerState(self._state.incarnations, sequence))
        _log.warning("ledger_entry_adopted", sequence=sequence)
        return True

    def _refuse(self, sequence: int, cause: DecryptionFailed | None = None) -> NoReturn:
        raise ForeignWriter(
            "append to the ledger",
            f"{self.node}, sequence {sequence}",
            "the bucket holds an entry that this box did not write",
            "If this box lost its state/ or takes a lost box's place: azekura replace. If two "
            "boxes have this name: give one another. Receiving goes on; uploads stand still",
        ) from cause

    def _fetch(self, sequence: int) -> bytes:
        key = entry_key(self.node, sequence)
        version = self._store.oldest_version(key)
        if version is None:
            raise Damaged("read the ledger", key, "the entry is missing in the bucket")
        return self._store.get(key, version.version_id)

    def _path(self, sequence: int) -> str:
        return os.path.join(self._directory, entry_name(sequence))

    def _read(self, sequence: int) -> bytes:
        with open(self._path(sequence), "rb") as file:
            return file.read()

    def _find_last(self) -> tuple[int, str]:
        numbers = []
        for name in os.listdir(self._directory):
            with contextlib.suppress(ValueError):
                numbers.append(int(name.removesuffix(".json.gz.age")))
        if not numbers:
            return 0, FIRST_PREVIOUS
        last = max(numbers)
        return last, open_entry(self._read(last), self._identities).header_sha256

    def _save(self, state: LedgerState) -> None:
        """Make a state durable, then ours: one that could not be written did not happen."""
        self._files.write_atomic(self._state_path, msgspec.json.encode(state))
        self._state = state


def state_path(layout: Layout) -> str:
    """Return where the box remembers its log."""
    return os.path.join(layout.state, "ledger.json")


def load_state(path: str) -> LedgerState:
    """Return what the box remembers of its log; of a new box, nothing."""
    try:
        with open(path, "rb") as file:
            return msgspec.json.decode(file.read(), type=LedgerState)
    except FileNotFoundError:
        return LedgerState()
