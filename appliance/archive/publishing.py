"""Publishing what a standby needs of this node's configuration, as a record of its ledger.

Owns `state/published.json`: what was published last. Losing it costs one more record.
"""

import os
from collections.abc import Callable

import msgspec

from appliance.archive.layout import Layout
from appliance.archive.records import Configured, Record
from appliance.config.adopting import published_of
from appliance.config.model import Dicom
from appliance.foundation import log
from appliance.foundation.clock import Clock, isoformat
from appliance.foundation.files import FileSystem

_log = log.get("publishing")


class Publisher:
    """Queues a record when the configuration is another than was published. One thread publishes.

    `_queued` is on its way into the ledger; the ledger's thread then writes it down.
    """

    def __init__(
        self,
        files: FileSystem,
        clock: Clock,
        layout: Layout,
        record: Callable[[Record, Callable[[], None]], None],
    ) -> None:
        self._files = files
        self._clock = clock
        self._path = os.path.join(layout.state, "published.json")
        self._record = record
        self._queued: bytes | None = None

    def publish(self, dicom: Dicom) -> None:
        """Have the ledger say this configuration, unless it does."""
        ae_titles, issuer, extra_sop_classes, peers = published_of(dicom)
        record = Configured(
            ae_titles=list(ae_titles),
            issuer=issuer,
            extra_sop_classes=list(extra_sop_classes),
            peers=[dict(peer) for peer in peers],
            at="",
        )
        content = msgspec.json.encode(record)
        if content == (self._queued or self._last()):
            return
        self._queued = content
        dated = msgspec.structs.replace(record, at=isoformat(self._clock.now()))

        def written() -> None:
            self._files.write_atomic(self._path, content)
            _log.info("configuration_published", peers=len(peers))

        self._record(dated, written)

    def _last(self) -> bytes:
        try:
            with open(self._path, "rb") as file:
                return file.read()
        except FileNotFoundError:
            return b""
