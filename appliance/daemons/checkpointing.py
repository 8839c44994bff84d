"""The uplink's part that tells of changed keys and writes checkpoints, in the last place.

It only puts parts together and says when: never while packs wait, or ledger or bucket stand still.
"""

import threading

from appliance.archive.checkpoint_write import CheckpointWriter
from appliance.archive.key_change import KeyChange
from appliance.archive.retention import Retention
from appliance.archive.uplink import Uplink
from appliance.daemons.parts import Parts
from appliance.remote.store import ObjectStore
from appliance.seal.signing import SigningKey

TURN_S = 3.0


class Checkpointing:
    """`keys` belongs to the ledger's thread, `turn` to one thread."""

    def __init__(
        self,
        parts: Parts,
        store: ObjectStore,
        signing_key: SigningKey,
        retention: Retention,
    ) -> None:
        recipients = parts.recipients()
        self.keys = KeyChange(
            parts.files, parts.clock, parts.layout, recipients, signing_key.public_text
        )
        self._writer = CheckpointWriter(
            parts.files, parts.clock, store, parts.layout, parts.config.node.name, signing_key,
            recipients, parts.identities(), retention, reserve_bytes=parts.space().reserve_bytes,
        )  # fmt: skip
        self.problems = self._writer.problems
        self.upload_ids = self._writer.upload_ids

    def turn(self, uplink: Uplink, stop: threading.Event) -> None:
        """Write what is due, as long as nothing else is; StorageFailed."""
        more = True
        while more and uplink.may_write and not uplink.backlogged and not stop.is_set():
            since = self.keys.since
            more = since is not None and self._writer.write_due(uplink.sequence, since)
