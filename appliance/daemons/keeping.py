"""What the uplink does for records that are kept long: locks that follow a study, holds, erasures.

Owns how the parts are put together; decides nothing.
"""

from appliance.archive.bucket_watch import BucketWatch
from appliance.archive.disposal import Disposal
from appliance.archive.disposal_plan import Intents
from appliance.archive.erased_copies import ErasedCopies
from appliance.archive.holds import Holder
from appliance.archive.problem import Problem
from appliance.archive.retain import Retainer
from appliance.archive.uplink import Uplink
from appliance.daemons.parts import Parts
from appliance.remote.store import ObjectStore
from appliance.seal.signing import SigningKey

KEEPING_S = 5.0


class Keeping:
    """`turn` belongs to one thread. disposal: None on a node that writes nothing."""

    def __init__(
        self, parts: Parts, store: ObjectStore, uplink: Uplink | None, bucket: BucketWatch
    ) -> None:
        self._copies = ErasedCopies(parts.files, parts.layout, parts.index)
        self.disposal: Disposal | None = None
        if uplink is None:
            return
        self._retainer = Retainer(parts.clock, parts.index, store, uplink.record, bucket)
        self._holder = Holder(parts.clock, parts.index, store, bucket)
        self.disposal = Disposal(
            parts.clock, parts.index, store, Intents(parts.files, parts.layout.erasures),
            SigningKey.load(parts.config.keys.signing), uplink.record, self._copies,
        )  # fmt: skip

    def turn(self) -> None:
        """Do what is due, a bounded part of it."""
        self._copies.remove()
        if self.disposal is not None:
            self.disposal.run_once()
            self._holder.run_once()
            self._retainer.run_once()

    def problems(self) -> list[Problem]:
        """Return what could not be done."""
        if self.disposal is None:
            return []
        parts = (self._retainer, self._holder, self.disposal)
        return [problem for part in parts for problem in part.problems()]
