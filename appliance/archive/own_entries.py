"""The entries of this node's own ledger as they were written, for its checkpoints. Reads only.

Invariant: what comes from the bucket, because this disk lost it, is signed by this node: anybody
can put an object there and seal it to us.
"""

import os
from collections.abc import Iterator, Sequence

from appliance.archive.checkpoint_name import Range
from appliance.archive.layout import Layout
from appliance.archive.ledger_entry import (
    FIRST_PREVIOUS,
    EntryLines,
    check_link,
    entry_key,
    entry_name,
    open_lines,
)
from appliance.foundation import log
from appliance.foundation.errors import Damaged, DecryptionFailed
from appliance.remote.store import Lane, ObjectStore
from appliance.seal.identity import Identity

_log = log.get("checkpoint")


class OwnEntries:
    """Any thread; the ledger may grow meanwhile."""

    def __init__(
        self,
        store: ObjectStore,
        layout: Layout,
        node: str,
        signer: str,
        identities: Sequence[Identity],
    ) -> None:
        """`signer`: this node's public signing key."""
        self._store = store
        self._directory = os.path.join(layout.ledger, node)
        self._node = node
        self._signer = signer
        self._identities = identities

    def of(self, span: Range) -> Iterator[EntryLines]:
        """Yield the entries of a range; errors as for `entry`."""
        return map(self.entry, range(span.first, span.last + 1))

    def previous(self, sequence: int) -> str:
        """Return the header hash of the entry in front of one."""
        return FIRST_PREVIOUS if sequence == 1 else self.entry(sequence - 1).header_sha256

    def entry(self, sequence: int) -> EntryLines:
        """Return an entry from its copy here, else from the bucket.

        Raises Damaged when the bucket's is missing or not ours, CloudError.
        """
        try:
            with open(os.path.join(self._directory, entry_name(sequence)), "rb") as file:
                return open_lines(file.read(), self._identities)
        except FileNotFoundError:
            pass
        except (Damaged, DecryptionFailed, OSError) as error:
            _log.error("ledger_copy_unreadable", sequence=sequence, error=type(error).__name__)
        key = entry_key(self._node, sequence)
        version = self._store.oldest_version(key)
        if version is None:
            raise Damaged("write a checkpoint", key, "the entry is missing in the bucket")
        entry = open_lines(
            self._store.get(key, version.version_id, lane=Lane.BACKFILL), self._identities
        )
        check_link(entry, self._node, sequence, entry.header.previous, {self._signer})
        return entry
