"""To whom this node seals and with which key it signs: told in the ledger when it changes.

Owns `state/keys.json`. Invariant: every ledger entry from `since` on was sealed to the keys of now;
one before it, perhaps to others. A crash between the ledger's entry and the file tells the change
twice and moves `since` on, which covers more than is needed and never less.
"""

import os
from collections.abc import Sequence

import msgspec

from appliance.archive.layout import Layout
from appliance.archive.records import KeyRecord
from appliance.foundation.clock import Clock, isoformat
from appliance.foundation.files import FileSystem


class KnownKeys(msgspec.Struct, frozen=True):
    """The keys that the last `key` record told, and the first entry that is sealed to them."""

    recipients: list[str]
    signing: str
    since: int


class KeyChange:
    """Compares the keys of this start with those last told. Used by the ledger's thread.

    `since` may be read by any thread; it is None until the change, if there is one, is told.
    """

    def __init__(
        self,
        files: FileSystem,
        clock: Clock,
        layout: Layout,
        recipients: Sequence[str],
        signing: str,
    ) -> None:
        """`signing`: the public text of this node's signing key."""
        self._files = files
        self._clock = clock
        self._path = os.path.join(layout.state, "keys.json")
        self._recipients = sorted(set(recipients))
        self._signing = signing
        self._known = self._load()
        self._changed: KnownKeys | None = None

    @property
    def since(self) -> int | None:
        """The first entry that the keys of now open."""
        known = self._known
        return known.since if known is not None and self._is_of_now(known) else None

    def record(self, sequence: int) -> KeyRecord | None:
        """Return what the next entry must tell, if anything.

        `sequence`: the last entry before it, 0 for none.
        """
        if self.since is not None:
            return None
        self._changed = KnownKeys(self._recipients, self._signing, sequence + 1)
        return KeyRecord(
            recipients=self._recipients, signing=self._signing, at=isoformat(self._clock.now())
        )

    def settle(self) -> None:
        """Remember the change: the bucket has the entry that tells it."""
        if self._changed is None:
            return
        self._files.write_atomic(self._path, msgspec.json.encode(self._changed))
        self._known, self._changed = self._changed, None

    def _is_of_now(self, known: KnownKeys) -> bool:
        return (known.recipients, known.signing) == (self._recipients, self._signing)

    def _load(self) -> KnownKeys | None:
        try:
            with open(self._path, "rb") as file:
                return msgspec.json.decode(file.read(), type=KnownKeys)
        except (FileNotFoundError, msgspec.DecodeError):
            return None
