"""Whether copies in the bucket are what was verified: a sample a day, and what readers met.

Owns `state/cloud-scrub.json`. Must not evict, and never asks a replica for proof.

Invariants:
- Of a sampled copy the bucket's word is taken (a HEAD by version), and its list (delete markers,
  other versions); of one in REREAD_EVERY every byte is read back and opened.
- No more than the day's budget of requests is made, whatever there is to do.
- A copy that was found damaged or missing is a finding until a good one is in the bucket: the pack
  is sent again under another id as soon as a whole copy is at hand, here or at a replica. Until
  that is verified the pack on this disk is not evicted.
- A copy in an archive storage class is asked back (RestoreObject), again when that has run out,
  and is a finding for as long as it lies there.
"""

import os
import random
import threading
from typing import Literal

import msgspec

from appliance.archive.layout import Layout, salvaged_pack_id
from appliance.archive.problem import Problem
from appliance.archive.proof import look_over, prove, reread, reread_requests
from appliance.archive.recall import Recaller
from appliance.archive.salvage import Salvager
from appliance.config.care import Scrub as ScrubTable
from appliance.foundation import log
from appliance.foundation.clock import Clock, from_microseconds, isoformat, to_microseconds
from appliance.foundation.errors import (
    AzekuraError,
    Busy,
    CloudUnavailable,
    Damaged,
    DecryptionFailed,
    IndexDamaged,
    ObjectArchived,
    ObjectMissing,
    StorageFailed,
)
from appliance.foundation.files import FileSystem
from appliance.index.facts import CloudFacts
from appliance.index.index import Index
from appliance.index.records import PackRow
from appliance.remote.store import Lane, ObjectStore

FORMAT = 1
DAY_S = 86400.0
REREAD_EVERY = 10
DRAWN_FROM = 64
FINDINGS_MAX = 1000
AGAIN_S = {"damaged": DAY_S, "missing": 3600.0, "hidden": 3600.0, "archived": 600.0}
RESTORED_DAYS = 7
READ_BYTES_PER_S = 4 * 2**20

Kind = Literal["damaged", "missing", "hidden", "archived"]

_log = log.get("scrub")


class Finding(msgspec.Struct):
    """What is wrong with a copy, and when it was found and last looked at.

    `renewed`: its instances are on their way in another pack.
    """

    kind: str
    what: str
    at_us: int
    renewed: bool = False
    restore_asked_at_us: int = 0
    looked_at_us: int = 0


class _State(msgspec.Struct):
    """`day`: the UTC date that the counts are of."""

    day: str = ""
    proved: int = 0
    reread: int = 0
    requests: int = 0
    next_at_us: int = 0
    sampled: int = 0
    suspects: list[str] = []
    findings: dict[str, Finding] = {}
    format: int = FORMAT


class CloudScrub:
    """One thread calls `run_once`; any may suspect, and ask.

    `_lock` guards `_state`, which is saved with every change.
    """

    def __init__(
        self,
        files: FileSystem,
        clock: Clock,
        layout: Layout,
        index: Index,
        store: ObjectStore,
        recaller: Recaller,
        salvager: Salvager,
        node: str,
        limits: ScrubTable,
        stop: threading.Event,
        source: random.Random | None = None,
    ) -> None:
        """Take over.

        `store`: the bucket alone; `recaller` may read replicas. `node`: whose packs are sent again
        when their copies are damaged; "" for nobody's, on a node that uploads nothing.
        """
        self._files = files
        self._clock = clock
        self._layout = layout
        self._index = index
        self._store = store
        self._recaller = recaller
        self._salvager = salvager
        self._node = node
        self._limits = limits
        self._stop = stop
        self._source = source or random.Random()  # noqa: S311 - a sample, no secret
        self._lock = threading.Lock()
        self._path = os.path.join(layout.state, "cloud-scrub.json")
        try:
            with open(self._path, "rb") as file:
                self._state = msgspec.json.decode(file.read(), type=_State)
        except (FileNotFoundError, msgspec.DecodeError):
            self._state = _State()

    def _save(self) -> None:
        self._files.write_atomic(self._path, msgspec.json.encode(self._state))

    def suspect(self, pack_id: str) -> None:
        """Have a copy looked at that somebody could not read; durable on return."""
        with self._lock:
            known = pack_id in self._state.suspects or pack_id in self._state.findings
            if not known and len(self._state.suspects) < FINDINGS_MAX:
                self._state.suspects.append(pack_id)
                self._save()

    def is_suspect(self, pack_id: str) -> bool:
        """Tell whether the bucket may not have the pack: it must not be evicted."""
        with self._lock:
            finding = self._state.findings.get(pack_id)
            return pack_id in self._state.suspects or (
                finding is not None and finding.kind != "hidden"
            )

    # --- work

    def run_once(self) -> int:
        """Look at what is due; return how many copies were looked at."""
        self._turn_day()
        self._settle_renewed()
        count = 0
        try:
            for pack_id in self._due():
                count += self._look(pack_id, whole=True)
            chosen = self._choose() if self._take_sample() else None
            if chosen is not None:
                self._state.sampled += 1
                count += self._look(chosen, whole=self._state.sampled % REREAD_EVERY == 1)
        except (CloudUnavailable, Busy):
            return count  # the line: it is tried again
        return count

    def _turn_day(self) -> None:
        day = f"{self._clock.now():%Y-%m-%d}"
        with self._lock:
            if day != self._state.day:
                self._state.day = day
                self._state.proved = self._state.reread = self._state.requests = 0
                self._save()

    def _due(self) -> list[str]:
        now_us = to_microseconds(self._clock.now())
        with self._lock:
            findings = [
                pack_id
                for pack_id, each in self._state.findings.items()
                if not 0 <= now_us - each.looked_at_us < AGAIN_S[each.kind] * 1e6
            ]
            return [*self._state.suspects, *findings]

    def _take_sample(self) -> bool:
        """Tell whether the next sample is due; spread over the day."""
        if not self._limits.cloud_sample_per_day:
            return False
        now_us = to_microseconds(self._clock.now())
        pause_us = int(DAY_S * 1e6 / self._limits.cloud_sample_per_day)
        with self._lock:
            late_us = now_us - self._state.next_at_us
            # A clock that was set back must not stop it for years.
            if -pause_us <= late_us < 0:
                return False
            self._state.next_at_us = now_us + pause_us - (late_us if 0 < late_us < pause_us else 0)
            self._save()
        return True

    def _choose(self) -> str | None:
        with self._index.read() as view:
            found = view.verified_from(self._source.random(), DRAWN_FROM)
        return self._source.choice(found) if found else None

    def _spend(self, requests: int) -> bool:
        """Take requests out of the day's budget; False when they are not in it."""
        with self._lock:
            if self._state.requests + requests > self._limits.cloud_requests_per_day:
                return False
            self._state.requests += requests
            self._save()
            return True

    def _look(self, pack_id: str, *, whole: bool) -> int:
        with self._index.read() as view:
            row = view.pack(pack_id)
        if row is None or row.cloud is None or row.erased_at_us:
            self._forget(pack_id)
            return 0
        cost = 2 + (reread_requests(row.cloud) if whole else 0)
        if not self._spend(cost):
            return 0
        try:
            found = self._examine(row, whole=whole)
        except (CloudUnavailable, Busy, StorageFailed, IndexDamaged):
            raise
        except AzekuraError as error:
            # Refused or misconfigured: it speaks of the bucket as a whole, which others watch.
            _log.warning("copy_not_looked_at", pack=pack_id, error=type(error).__name__)
            return 0
        if found is None:
            self._good(pack_id, whole=whole)
        else:
            self._found(row, *found)
        return 1

    def _examine(self, row: PackRow, *, whole: bool) -> tuple[Kind, str] | None:
        cloud = row.cloud
        assert cloud is not None
        try:
            prove(self._store, cloud)
            over = look_over(self._store, cloud)
            if whole:
                reread(self._store, cloud, self._pace)
        except ObjectMissing as error:
            return "missing", error.cause
        except ObjectArchived as error:
            return "archived", error.cause + (", restored for now" if self._reads(row) else "")
        except (Damaged, DecryptionFailed) as error:
            return "damaged", error.cause
        return ("hidden", over) if over else None

    def _reads(self, row: PackRow) -> bool:
        assert row.cloud is not None
        try:
            self._store.get(row.cloud.key, row.cloud.version_id, 0, 1, Lane.BACKFILL)
        except ObjectArchived:
            return False
        return True

    def _pace(self, size_bytes: int) -> None:
        if self._clock.wait(self._stop, size_bytes / READ_BYTES_PER_S):
            raise Busy("scrub", cause="the node stops")

    def _good(self, pack_id: str, *, whole: bool) -> None:
        at_us = to_microseconds(self._clock.now())
        self._index.transact(lambda txn: txn.set_verified_at(pack_id, at_us))
        with self._lock:
            self._state.proved += 1
            self._state.reread += whole
            if pack_id in self._state.suspects:
                self._state.suspects.remove(pack_id)
            over = self._state.findings.pop(pack_id, None)
            self._save()
        if over is not None:
            _log.info("copy_good_again", pack=pack_id)

    def _forget(self, pack_id: str) -> None:
        with self._lock:
            if pack_id in self._state.suspects:
                self._state.suspects.remove(pack_id)
            self._state.findings.pop(pack_id, None)
            self._save()

    # --- findings

    def _found(self, row: PackRow, kind: Kind, what: str) -> None:
        pack_id, now_us = row.pack_id, to_microseconds(self._clock.now())
        with self._lock:
            finding = self._state.findings.get(pack_id)
            new = finding is None or finding.kind != kind
            if finding is None or new:
                finding = Finding(kind, what, now_us)
            finding.what, finding.looked_at_us = what, now_us
            if pack_id in self._state.suspects:
                self._state.suspects.remove(pack_id)
            if len(self._state.findings) < FINDINGS_MAX or pack_id in self._state.findings:
                self._state.findings[pack_id] = finding
            self._save()
        if new:
            _log.error("copy_not_as_verified", pack=pack_id, kind=kind, what=what)
        self._mend(row, finding)

    def _mend(self, row: PackRow, finding: Finding) -> None:
        """Do what can be done: ask an archived copy back, send a damaged or missing one again."""
        assert row.cloud is not None
        try:
            if finding.kind == "archived":
                self._ask_back(row.cloud, finding)
            elif finding.kind in _LOST and row.node == self._node and not finding.renewed:
                # From a replica, if it is not here.
                self._recaller.recall(row.pack_id, row.cloud)
                finding.renewed = self._salvager.renew(row.pack_id)
        except (StorageFailed, IndexDamaged):
            raise
        except AzekuraError as error:
            _log.warning("copy_not_mended", pack=row.pack_id, error=type(error).__name__)
        with self._lock:
            self._save()

    def _ask_back(self, cloud: CloudFacts, finding: Finding) -> None:
        now_us = to_microseconds(self._clock.now())
        asked_s = (now_us - finding.restore_asked_at_us) / 1e6
        if not 0 <= asked_s < RESTORED_DAYS * DAY_S:
            self._store.restore(cloud.key, cloud.version_id, RESTORED_DAYS)
            finding.restore_asked_at_us = now_us
            _log.warning("restore_asked")

    def _settle_renewed(self) -> None:
        """Drop findings whose instances the bucket has again, in another pack."""
        with self._lock:
            renewed = [each for each, it in self._state.findings.items() if it.renewed]
        for pack_id in renewed:
            new_id = salvaged_pack_id(pack_id)
            with self._index.read() as view:
                row = view.pack(new_id)
            if row is not None and row.cloud is not None:
                _log.info("copy_renewed", pack=pack_id, by=new_id)
                self._forget(pack_id)

    def problems(self) -> list[Problem]:
        """Return what is wrong with copies in the bucket."""
        with self._lock:
            findings = dict(self._state.findings)
        kinds: dict[str, list[str]] = {}
        for pack_id, each in findings.items():
            kinds.setdefault(each.kind, []).append(pack_id)
        return [
            Problem(
                f"cloud_copy_{kind}",
                f"{_WORDS[kind].format(count=len(packs))}; the first is pack {packs[0]}: "
                f"{findings[packs[0]].what}",
                _HINTS[kind],
            )
            for kind, packs in kinds.items()
        ]

    def document(self) -> dict[str, object]:
        """Return what status shows of the cloud's part."""
        with self._lock:
            state = self._state
            return {
                "day": state.day,
                "sample_per_day": self._limits.cloud_sample_per_day,
                "proved_today": state.proved,
                "reread_today": state.reread,
                "requests_today": state.requests,
                "requests_per_day": self._limits.cloud_requests_per_day,
                "findings": {
                    pack_id: {
                        "kind": each.kind,
                        "what": each.what,
                        "renewed": each.renewed,
                        "found_at": isoformat(from_microseconds(each.at_us)),
                    }
                    for pack_id, each in state.findings.items()
                },
            }


_LOST = {"damaged", "missing"}
_WORDS = {
    "damaged": "{count} packs in the bucket are damaged",
    "missing": "{count} packs are missing in the bucket",
    "hidden": "{count} packs in the bucket are covered by something",
    "archived": "{count} packs lie in an archive storage class",
}
_HINTS = {
    "damaged": "Whole copies, here or at a replica, are sent again by themselves; the rest is "
    "lost but for other copies. Look at who may write to the bucket",
    "missing": "Whole copies, here or at a replica, are sent again by themselves. Look at who may "
    "delete versions in the bucket, and at the lock",
    "hidden": "They are read by their version ids all the same. Somebody else's key writes or "
    "deletes in the bucket: find it and revoke it",
    "archived": "A restore was asked for and takes hours; they can't be read until then. Take the "
    "lifecycle rule off the bucket",
}
