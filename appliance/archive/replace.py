"""Taking a lost box's place: its ledger is followed from the bucket, proved, and gone on with.

Owns the decision that an existing ledger of this node's name is ours. The caller holds
`state/uplink.lock` and has asked whoever is responsible.

Invariants:
- Nothing of the bucket is changed; of an entry its oldest version counts.
- Every entry is proved before it is kept: its place in the chain, its record hashes, and the
  signature of this node's own key.
- What the disk holds in an entry's place with other bytes is put aside, never destroyed.
- `state/ledger.json` takes up the incarnations last, when every entry is durable: a run that is cut
  short leaves a box that still refuses to write.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec

from appliance.archive.layout import Layout
from appliance.archive.ledger import INCARNATIONS_KEPT_MAX, LedgerState, load_state, state_path
from appliance.archive.ledger_entry import (
    FIRST_PREVIOUS,
    Entry,
    check_link,
    entry_key,
    entry_name,
    open_entry,
)
from appliance.archive.ledger_listing import FETCHES_MAX, ahead, listed
from appliance.foundation import log
from appliance.foundation.errors import (
    AzekuraError,
    Damaged,
    DecryptionFailed,
    KeyUnavailable,
    NotFound,
)
from appliance.foundation.files import FileSystem
from appliance.remote.store import ObjectStore
from appliance.seal.identity import Identity
from appliance.seal.signing import SigningKey

ASIDE = ".replaced"

_log = log.get("replace")


class FoundLedger(msgspec.Struct):
    """A ledger in the bucket: its last entry, and the version id of each, sequence 1 first."""

    node: str
    sequence: int
    written_at: str
    incarnation: str
    version_ids: list[str]


class Replacement:
    """One replacement of a lost box, or of a lost `state/`. Used by one thread."""

    def __init__(
        self,
        files: FileSystem,
        layout: Layout,
        node: str,
        store: ObjectStore,
        identities: Sequence[Identity],
        signing_key: SigningKey,
    ) -> None:
        self._files = files
        self._layout = layout
        self._node = node
        self._store = store
        self._identities = identities
        self._signing_key = signing_key
        self._directory = os.path.join(layout.ledger, node)

    def find(self) -> FoundLedger:
        """Return what the bucket has under this node's name.

        Raises NotFound when that is nothing, Damaged when an entry is missing, KeyUnavailable when
        this node's keys are not those of the box that wrote it, CloudError.
        """
        oldest = {
            each.sequence: each.version_id
            for each in listed(self._store, self._node)
            if each.version_id
        }
        if not oldest:
            raise NotFound(
                "replace", self._node, "the bucket has no ledger of this name",
                "There is nothing to take over: start azekura uplink",
            )  # fmt: skip
        last = max(oldest)
        missing = next((each for each in range(1, last) if each not in oldest), None)
        if missing is not None:
            raise Damaged(
                "replace", f"{self._node}, sequence {missing}", "it is missing in the bucket",
                "azekura recover reads what is there; give this node another node.name",
            )  # fmt: skip
        version_ids = [oldest[sequence] for sequence in range(1, last + 1)]
        header = self._open(last, self._fetch(last, version_ids[-1])).header
        return FoundLedger(
            self._node, last, header.written_at, header.incarnation, version_ids
        )  # fmt: skip

    def is_ours(self, found: FoundLedger) -> bool:
        """Tell whether this box wrote the last entry itself, so that there is nothing to take."""
        state = load_state(state_path(self._layout))
        return found.incarnation in state.incarnations

    def take_over(self, found: FoundLedger, advance: Callable[[float], None]) -> None:
        """Prove and keep every entry, then make the ledger this box's own.

        `advance` is called with 1 for each entry. Raises Damaged at the first entry that does not
        hold, KeyUnavailable, CloudError, StorageFailed: nothing is taken over then.
        """
        self._files.make_directory(self._directory)
        incarnations: dict[str, None] = {}
        previous = FIRST_PREVIOUS
        for sequence, sealed in self._fetched(found):
            entry = self._open(sequence, sealed)
            check_link(
                entry, self._node, sequence, previous, {self._signing_key.public_text}
            )  # fmt: skip
            self._keep(sequence, sealed)
            previous = entry.header_sha256
            incarnations[entry.header.incarnation] = None
            advance(1)
        self._clear_behind(found.sequence, previous)
        own = dict.fromkeys(load_state(state_path(self._layout)).incarnations)
        kept = [*(incarnations | own)][-INCARNATIONS_KEPT_MAX:]
        state = LedgerState(kept, found.sequence)
        self._files.write_atomic(state_path(self._layout), msgspec.json.encode(state))
        _log.warning("ledger_taken_over", sequence=found.sequence)

    # --- inside

    def _fetched(self, found: FoundLedger) -> Iterator[tuple[int, bytes]]:
        """Yield every entry's sequence and bytes in order, some fetched ahead."""

        def fetch(wanted: tuple[int, str]) -> tuple[int, bytes]:
            return wanted[0], self._fetch(*wanted)

        with ThreadPoolExecutor(FETCHES_MAX, thread_name_prefix="replace") as pool:
            yield from ahead(pool, fetch, enumerate(found.version_ids, 1))

    def _fetch(self, sequence: int, version_id: str) -> bytes:
        return self._store.get(entry_key(self._node, sequence), version_id)

    def _open(self, sequence: int, sealed: bytes) -> Entry:
        """Return an entry that this node's own keys open and have signed; KeyUnavailable else."""
        subject = f"ledger of {self._node}, sequence {sequence}"
        try:
            entry = open_entry(sealed, self._identities)
        except DecryptionFailed as cause:
            raise KeyUnavailable(
                "replace", subject, "this node's identity does not open it",
                "Restore the lost box's keys.identity, or give this node another node.name",
            ) from cause  # fmt: skip
        if entry.signature.key != self._signing_key.public_text:
            raise KeyUnavailable(
                "replace", subject,
                f"it is signed by {entry.signature.key}, and this node's key is "
                f"{self._signing_key.public_text}",
                "Restore the lost box's keys.signing, or give this node another node.name",
            )  # fmt: skip
        return entry

    def _keep(self, sequence: int, sealed: bytes) -> None:
        path = os.path.join(self._directory, entry_name(sequence))
        with contextlib.suppress(FileNotFoundError):
            with open(path, "rb") as file:
                if file.read() == sealed:
                    return
            self._put_aside(path)
        self._files.write_atomic(path, sealed)

    def _clear_behind(self, sequence: int, header_sha256: str) -> None:
        """Put aside what the disk has behind the last entry, unless it goes on from there."""
        for name in sorted(os.listdir(self._directory)):
            number = name.removesuffix(".json.gz.age")
            if not number.isdecimal() or int(number) <= sequence:
                continue
            path = os.path.join(self._directory, name)
            if int(number) == sequence + 1 and self._follows(path, sequence + 1, header_sha256):
                continue
            self._put_aside(path)

    def _follows(self, path: str, sequence: int, previous: str) -> bool:
        try:
            with open(path, "rb") as file:
                entry = open_entry(file.read(), self._identities)
            check_link(entry, self._node, sequence, previous, {self._signing_key.public_text})
        except (AzekuraError, OSError):
            return False
        return True

    def _put_aside(self, path: str) -> None:
        self._files.rename(path, path + ASIDE)
        _log.warning("ledger_copy_put_aside", name=os.path.basename(path))
