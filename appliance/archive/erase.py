"""Erasing what has expired: the one place that deletes versions, with the administrator's key.

Runs in the administrator's process, never in a daemon: the box's own credential has no right to
delete. Invariants:
- Nothing is deleted before the whole plan was proved: age, hold, packs, and from the bucket, for
  each version, that it is the planned one and that neither lock nor hold stands on it.
- The intent is durable before the first deletion. What became of each version is then told by the
  bucket, not by this process, and written down by the uplink (disposal.py), also after a crash.
- Governance is never bypassed. Exactly the planned versions are deleted; each is proved once more
  right before, and read back as gone right after. The first that is refused ends the run.
"""

from collections.abc import Callable
from datetime import datetime

from appliance.archive.disposal_plan import (
    Intent,
    Intents,
    Plan,
    PlanFile,
    PlannedPack,
    PlannedStudy,
    changes,
    check_age,
)
from appliance.archive.expiry import term_of
from appliance.foundation import log
from appliance.foundation.clock import Clock, isoformat, to_microseconds
from appliance.foundation.errors import CloudMisconfigured, Damaged, ObjectMissing, Refused
from appliance.index.index import Index
from appliance.remote.store import ObjectStore

FINDINGS_SHOWN_MAX = 20

_log = log.get("erase")


class Erasure:
    """One run over one plan. `store` is the bucket under the administrator's credential."""

    def __init__(
        self,
        clock: Clock,
        index: Index,
        store: ObjectStore,
        intents: Intents,
        retention_s: float,
    ) -> None:
        self._clock = clock
        self._index = index
        self._store = store
        self._intents = intents
        self._retention_s = retention_s

    def prove(self, plan: Plan, advance: Callable[[float], None]) -> None:
        """Raise Refused unless every study and version may be erased now; deletes nothing."""
        now = self._store.server_time()
        check_age(plan, now)
        if self._intents.open():
            raise Refused(
                "erase", "this node", "an earlier run is not settled yet",
                "azekura uplink settles it; run it, and look at azekura status",
            )  # fmt: skip
        findings = []
        for number, study in enumerate(plan.studies, 1):
            found = self._changes(study, now) or self._refusals(study, now)
            findings += [f"study {number} of the plan: {each}" for each in found]
            advance(len(study.packs))
        if findings:
            more = len(findings) - FINDINGS_SHOWN_MAX
            raise Refused(
                "erase", f"{len(plan.studies)} studies",
                "; ".join(findings[:FINDINGS_SHOWN_MAX]) + (f"; {more} more" if more > 0 else ""),
                "Nothing was erased. Make a new plan without them",
            )  # fmt: skip

    def _changes(self, study: PlannedStudy, now: datetime) -> list[str]:
        with self._index.read() as view:
            term = term_of(view, study.study_instance_uid, self._retention_s)
        return changes(study, term, to_microseconds(now))

    def _refusals(self, study: PlannedStudy, now: datetime) -> list[str]:
        return [
            f"pack {pack.pack_id}: {found}"
            for pack in study.packs
            if (found := self._standing(pack, now))
        ]

    def _standing(self, pack: PlannedPack, now: datetime) -> str:
        """Return what stands against deleting a version, by the bucket; "" when nothing does."""
        try:
            info = self._store.head(pack.key, pack.version_id)
        except ObjectMissing:
            return "its version is gone already"
        if info.size_bytes != pack.size_bytes or str(info.checksum) != pack.checksum:
            return "the bucket's version is not what was verified"
        if info.legal_hold:
            return "the bucket holds it"
        if info.lock is not None and info.lock.until > now:
            return f"it is locked until {isoformat(info.lock.until)}"
        return ""

    def run(
        self, file: PlanFile, by: str, access_key_id: str, advance: Callable[[float], None]
    ) -> int:
        """Delete what was proved; return how many versions were. Call `prove` before.

        Raises what ended it early; the intent tells the uplink to settle in either case.
        """
        began = isoformat(self._clock.now())
        self._intents.write(Intent(file.plan, file.sha256, by, access_key_id, began))
        _log.warning("erasure_begun", plan=file.sha256, packs=len(file.plan.packs))
        count = 0
        for study in file.plan.studies:
            found = self._changes(study, self._store.server_time())
            if found:
                raise Refused("erase", f"after {count} packs", "; ".join(found), "Make a new plan")
            for pack in study.packs:
                self._delete(pack)
                count += 1
                advance(1)
        return count

    def _delete(self, pack: PlannedPack) -> None:
        standing = self._standing(pack, self._store.server_time())
        if standing:
            raise Damaged("erase", f"pack {pack.pack_id}", standing, "It was not deleted")
        self._store.delete_version(pack.key, pack.version_id)
        try:
            self._store.head(pack.key, pack.version_id)
        except ObjectMissing:
            _log.warning("version_deleted", key=pack.key)
            return
        raise CloudMisconfigured(
            "erase", pack.key, "the bucket took the deletion and still shows the version",
            "Nothing more was deleted; look at the bucket",
        )  # fmt: skip
