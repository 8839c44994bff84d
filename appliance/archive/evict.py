"""Making room: evicting verified packs, with fresh proof from the bucket for each.

Invariants:
- Nothing pending is ever evicted; there is no switch that would.
- Before a pack goes, the bucket has just said that it holds that version with our size and
  checksum.
- Order: index commit, then unlink, then the directory's flush. A crash in between leaves a file
  that the next start finds and counts as cached again.
"""

import os

from appliance.archive.layout import Layout
from appliance.archive.pins import Pins
from appliance.archive.space import Space
from appliance.archive.studies import study_packs
from appliance.foundation import log
from appliance.foundation.clock import Clock, to_microseconds
from appliance.foundation.errors import CloudMisconfigured, NotFound, Refused
from appliance.foundation.files import FileSystem
from appliance.index.facts import CloudFacts
from appliance.index.index import Index
from appliance.remote.store import ObjectStore

CANDIDATES_MAX = 64

_log = log.get("evict")


class Evictor:
    """Evicts by least recent use between two watermarks, or one study on request."""

    def __init__(
        self,
        files: FileSystem,
        clock: Clock,
        layout: Layout,
        index: Index,
        store: ObjectStore,
        space: Space,
        pins: Pins,
        high_water: float,
        low_water: float,
    ) -> None:
        self._files = files
        self._clock = clock
        self._layout = layout
        self._index = index
        self._store = store
        self._space = space
        self._pins = pins
        self._high_bytes = int(space.capacity_bytes * high_water)
        self._low_bytes = int(space.capacity_bytes * low_water)

    def keep_watermarks(self) -> int:
        """Evict while usage is above the high mark, down to the low one; return bytes freed.

        Ends early, with the error, when the bucket gives no proof.
        """
        used = self._space.measure()
        if used <= self._high_bytes:
            return 0
        freed = 0
        with self._index.read() as view:
            rows = list(view.evictable(CANDIDATES_MAX))
        for row in rows:
            if used - freed <= self._low_bytes:
                break
            if self._pins.pinned(row.study_instance_uid):
                continue
            freed += self.evict_pack(row.pack_id)
        self._space.measure()
        return freed

    def evict_study(self, study_instance_uid: str) -> tuple[int, int]:
        """Evict every verified pack of a study; return (packs evicted, packs kept as pending).

        Raises NotFound, Refused when it is pinned, CloudError when the bucket gives no proof.
        """
        if self._pins.pinned(study_instance_uid):
            raise Refused("evict", "the study", "it is pinned", "azekura study pin --off UID")
        with self._index.read() as view:
            rows = study_packs(view, study_instance_uid)
        if not rows:
            raise NotFound("evict", "the study", "no such study here", "azekura study list")
        evicted = pending = 0
        for row in rows:
            if row.cloud is None:
                pending += 1
            elif row.local:
                self.evict_pack(row.pack_id)
                evicted += 1
        self._space.measure()
        return evicted, pending

    def evict_pack(self, pack_id: str) -> int:
        """Evict one pack with fresh proof; return the bytes freed."""
        with self._index.read() as view:
            row = view.pack(pack_id)
        if row is None or row.cloud is None:
            raise Refused("evict", f"pack {pack_id}", "it is pending: the only copy is here")
        self.prove(row.cloud)
        with self._index.write() as txn:
            txn.set_local(pack_id, False)
            txn.set_verified_at(pack_id, to_microseconds(self._clock.now()))
        path = self._layout.sealed_path(pack_id)
        try:
            size = os.path.getsize(path)
        except FileNotFoundError:
            return 0
        self._files.unlink(path)
        _log.info("pack_evicted", pack=pack_id, size_bytes=size)
        return size

    def prove(self, cloud: CloudFacts) -> None:
        """Ask the bucket whether it still holds that version as it was; CloudError when not."""
        info = self._store.head(cloud.key, cloud.version_id)
        if info.size_bytes != cloud.size or str(info.checksum) != cloud.checksum:
            raise CloudMisconfigured(
                "prove before eviction", cloud.key, "the bucket's version is not what was verified",
                "Nothing is evicted; run azekura verify --cloud",
            )  # fmt: skip
        if cloud.locked_until_us:
            until = to_microseconds(info.lock.until) if info.lock is not None else 0
            if until < cloud.locked_until_us:
                raise CloudMisconfigured(
                    "prove before eviction", cloud.key, "its lock is gone or shorter",
                    "Nothing is evicted; look at the bucket's Object Lock",
                )  # fmt: skip
