"""Legal holds in the bucket: every version of a held study's packs has one, new packs as well.

What is held is said by the ledger alone; the bucket's own hold is the second lock on the door, and
a store that knows none loses nothing but that. Invariant: what follows from the index is asked of
the bucket once a start for each pack, and again when the word changes; a turn asks a bounded
number. Used by one thread.
"""

from appliance.archive.bucket_watch import BucketWatch
from appliance.archive.problem import Problem
from appliance.foundation import log
from appliance.foundation.clock import Clock
from appliance.foundation.errors import (
    AzekuraError,
    CloudMisconfigured,
    CloudUnavailable,
    ObjectMissing,
    StorageFailed,
)
from appliance.index.facts import CloudFacts
from appliance.index.index import Index
from appliance.index.keeping import holds, packs_of
from appliance.remote.store import ObjectStore

PACKS_PER_TURN_MAX = 32
FAILED_RETRY_S = 600.0
CONDITION = "legal_hold"

_log = log.get("holds")


class Holder:
    """Sets and lifts the bucket's holds as the ledger says."""

    def __init__(
        self, clock: Clock, index: Index, store: ObjectStore, bucket: BucketWatch | None = None
    ) -> None:
        """`bucket`: what is known of it; without one it is taken for fit."""
        self._clock = clock
        self._index = index
        self._store = store
        self._bucket = bucket
        self._proved: dict[str, bool] = {}
        self._problem: Problem | None = None
        self._not_before_s = 0.0

    def problems(self) -> list[Problem]:
        """Return why a hold is not in the bucket, if one is not."""
        return [] if self._problem is None else [self._problem]

    def run_once(self) -> int:
        """Bring some packs' holds in line; return how many had to be changed."""
        if self._bucket is not None and not self._bucket.may_send:
            return 0
        if self._clock.monotonic_s() < self._not_before_s:
            return 0
        count = 0
        wanted = self._wanted()
        for pack_id, cloud, on in wanted:
            try:
                count += self._set(cloud, on=on)
            except (StorageFailed, CloudUnavailable):
                raise
            except ObjectMissing as error:
                self._note(error)
            except AzekuraError as error:
                self._note(error)
                return count  # the store or the permission: the next pack would meet the same
            self._proved[pack_id] = on
        if not wanted:
            self._problem = None
        return count

    def _wanted(self) -> list[tuple[str, CloudFacts, bool]]:
        found: list[tuple[str, CloudFacts, bool]] = []
        with self._index.read() as view:
            for hold in holds(view):
                found += [
                    (row.pack_id, row.cloud, hold.on)
                    for row in packs_of(view, hold.study_instance_uid)
                    if row.cloud is not None and self._proved.get(row.pack_id) != hold.on
                ]
                if len(found) >= PACKS_PER_TURN_MAX:
                    break
        return found[:PACKS_PER_TURN_MAX]

    def _set(self, cloud: CloudFacts, *, on: bool) -> int:
        if self._store.head(cloud.key, cloud.version_id).legal_hold == on:
            return 0
        self._store.set_legal_hold(cloud.key, cloud.version_id, on=on)
        if self._store.head(cloud.key, cloud.version_id).legal_hold != on:
            raise CloudMisconfigured(
                "set a legal hold", cloud.key, "the bucket took it and does not show it",
                "Give the node s3:GetObjectLegalHold; the hold stands in the ledger",
            )  # fmt: skip
        _log.info("bucket_hold_changed", key=cloud.key, on=on)
        return 1

    def _note(self, error: AzekuraError) -> None:
        hint = error.hint or "The hold stands in the ledger: nothing held is ever erased"
        self._problem = Problem(CONDITION, str(error), hint)
        self._not_before_s = self._clock.monotonic_s() + FAILED_RETRY_S
