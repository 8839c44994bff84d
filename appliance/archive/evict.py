"""Making room: evicting verified packs, with fresh proof from the bucket for each.

Invariants:
- Nothing pending is ever evicted; there is no switch that would.
- Before a pack goes, the bucket has just said that it holds that version with our size and
  checksum. A pack of which it says otherwise stays; the others go on.
- While the bucket as a whole is unfit (gone, elsewhere, unlocked), nothing goes.
- Order: index commit, then unlink, then the directory's flush. A crash in between leaves a file
  that the next start finds and counts as cached again.
- Both are done under the index's gate, shared: a rebuild sees either none of them or both.
"""

import os
from collections.abc import Callable

from appliance.archive.bucket_watch import BucketWatch
from appliance.archive.layout import Layout
from appliance.archive.pins import Pins
from appliance.archive.proof import prove
from appliance.archive.space import Space
from appliance.archive.studies import study_packs
from appliance.foundation import log
from appliance.foundation.clock import Clock, to_microseconds
from appliance.foundation.errors import (
    AzekuraError,
    Damaged,
    NotFound,
    ObjectArchived,
    ObjectMissing,
    Refused,
)
from appliance.foundation.files import FileSystem
from appliance.index.facts import CloudFacts
from appliance.index.index import Index
from appliance.index.records import PackRow
from appliance.remote.store import ObjectStore

CANDIDATES_MAX = 64
UNPROVED_MAX = 3

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
        bucket: BucketWatch | None = None,
        suspect: Callable[[str], bool] | None = None,
    ) -> None:
        """Take over.

        `bucket`: what is known of it; without one it is taken for fit. `suspect` tells whether a
        pack's copy was found to be other than was verified.
        """
        self._suspect = suspect
        self._bucket = bucket
        self._files = files
        self._clock = clock
        self._layout = layout
        self._index = index
        self._store = store
        self._space = space
        self._pins = pins
        self._high_water = high_water
        self._low_water = low_water

    def keep_watermarks(self) -> int:
        """Evict while usage is above the high mark, down to the low one; return bytes freed.

        Does nothing while something is known against the bucket as a whole.
        Raises, at the end, the first error of a pack whose copy is not as it was verified; at once
        a CloudError of a bucket that can't be asked, or after UNPROVED_MAX such packs.
        """
        if self._bucket is not None and not self._bucket.trusted:
            return 0
        used, usable = self._space.measure(), self._space.usable_bytes
        if used <= usable * self._high_water:
            return 0
        target = usable * self._low_water
        freed = 0
        unproved: list[AzekuraError] = []
        for row in self._candidates():
            if used - freed <= target or len(unproved) >= UNPROVED_MAX:
                break
            try:
                freed += self.evict_pack(row.pack_id)
            except (Damaged, ObjectArchived, ObjectMissing) as error:
                _log.error("pack_not_proved", pack=row.pack_id, error=type(error).__name__)
                unproved.append(error)
        self._space.measure()
        if unproved:
            raise unproved[0]
        return freed

    def _candidates(self) -> list[PackRow]:
        """Return cached packs, the least recently used first, some at least that aren't pinned."""
        limit = CANDIDATES_MAX
        while True:
            with self._index.read() as view:
                rows = view.evictable(limit)
            found = [row for row in rows if not self._pins.pinned(row.study_instance_uid)]
            if len(found) >= CANDIDATES_MAX // 2 or len(rows) < limit:
                return found
            limit *= 4

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
        """Evict one pack with fresh proof; return the bytes freed.

        Raises Refused when it is pending, Damaged, ObjectMissing or another CloudError when the
        bucket gives no proof, CloudMisconfigured while the bucket as a whole is unfit.
        """
        if self._bucket is not None:
            self._bucket.require("evict", f"pack {pack_id}")
        with self._index.read() as view:
            row = view.pack(pack_id)
        if row is None or row.cloud is None:
            raise Refused("evict", f"pack {pack_id}", "it is pending: the only copy is here")
        if self._suspect is not None and self._suspect(pack_id):
            raise Damaged(
                "evict", f"pack {pack_id}", "its copy in the bucket was found damaged",
                "The good copy is here, and stays; see docs/operations/repair.md",
            )  # fmt: skip
        self.prove(row.cloud)
        path = self._layout.sealed_path(pack_id)
        with self._index.generations.gate().holding(shared=True):
            with self._index.write() as txn:
                txn.set_local(pack_id, False)
                txn.set_verified_at(pack_id, to_microseconds(self._clock.now()))
            try:
                size = os.path.getsize(path)
            except FileNotFoundError:
                return 0
            self._files.unlink(path)
        _log.info("pack_evicted", pack=pack_id, size_bytes=size)
        return size

    def prove(self, cloud: CloudFacts) -> None:
        """Ask the bucket whether it still holds that version as it was.

        Damaged when it is another than was verified, ObjectMissing when it is gone, CloudError.
        """
        prove(self._store, cloud)
