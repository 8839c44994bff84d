"""What became of an erasure: told by the bucket, written into the ledger, certified.

Part of the uplink. Deletes no version and has no right to. Invariants:
- An `erased` record is written only for a planned version of which the bucket has just said that it
  is not there; it is written once, because the index knows which were.
- Local copies go after the ledger has the record.
- The certificate is written, and with it the intent ends, when every planned version is either
  recorded as erased or still in the bucket.
Used by two threads, one at a time: `_lock`.
"""

import hashlib
import os
import re
import threading

import msgspec

from appliance.archive.disposal_plan import Intent, Intents, PlannedPack
from appliance.archive.erased_copies import ErasedCopies
from appliance.archive.problem import Problem
from appliance.archive.records import Erased, Signature
from appliance.archive.retain import AddRecord
from appliance.foundation import log
from appliance.foundation.clock import Clock, from_microseconds, isoformat
from appliance.foundation.errors import (
    AzekuraError,
    Busy,
    NotFound,
    ObjectMissing,
    StorageFailed,
    UsageError,
)
from appliance.foundation.files import FileLock
from appliance.index.index import Index
from appliance.remote.store import ObjectStore
from appliance.seal.signing import SigningKey

CERTIFICATE_FORMAT = 1
CONDITION = "erasure"
_HASH = re.compile(r"[0-9a-f]{64}")

_log = log.get("disposal")


class DisposedPack(msgspec.Struct, frozen=True):
    """One version that is no more. erased_at: of its ledger record."""

    pack_id: str
    key: str
    version_id: str
    size_bytes: int
    checksum: str
    locked_until: str
    instances: int
    erased_at: str


class DisposedStudy(msgspec.Struct, frozen=True):
    """A study, what of it is no more, and the ids of packs that are still there."""

    study_instance_uid: str
    patient_id: str
    study_date: str
    accession_number: str
    kept_until: str
    erased: list[DisposedPack]
    left: list[str]


class Certificate(msgspec.Struct, frozen=True):
    """What was erased, when, where, by whom, after which plan. complete: nothing was left."""

    format: int
    node: str
    endpoint_url: str
    bucket: str
    prefix: str
    plan_sha256: str
    plan_made_at: str
    plan_made_by: str
    confirmed_by: str
    access_key_id: str
    begun_at: str
    certified_at: str
    complete: bool
    ledger_sequence: int
    studies: list[DisposedStudy]


class Disposal:
    """Settles the intents of erasures, and removes local copies of what is erased."""

    def __init__(
        self,
        clock: Clock,
        index: Index,
        store: ObjectStore,
        intents: Intents,
        signing_key: SigningKey,
        add_record: AddRecord,
        copies: ErasedCopies,
    ) -> None:
        self._clock = clock
        self._index = index
        self._store = store
        self._intents = intents
        self._signing_key = signing_key
        self._add_record = add_record
        self._copies = copies
        self._lock = threading.Lock()
        self._queued: set[str] = set()
        self._problem: Problem | None = None

    def problems(self) -> list[Problem]:
        """Return why an erasure is not settled, if one is not."""
        return [] if self._problem is None else [self._problem]

    def run_once(self) -> None:
        """Settle what crashed runs left."""
        self._problem = None
        for sha256 in self._intents.open():
            alone = FileLock(self._intents.lock_path)
            try:
                alone.acquire()
            except Busy:
                return  # a run is under way; it asks for the settlement itself
            try:
                self.settle(sha256)
            except StorageFailed:
                raise
            except AzekuraError as error:
                self._problem = Problem(CONDITION, f"an erasure is not settled: {error}", "")
            finally:
                alone.release()

    def settle(self, sha256: str) -> str | None:
        """Return where the certificate of a run lies; None while the ledger is being written.

        Raises NotFound when no such run was begun, CloudError when the bucket can't be asked.
        """
        with self._lock:
            return self._settle(sha256)

    def _settle(self, sha256: str) -> str | None:
        if not _HASH.fullmatch(sha256):
            raise UsageError("settle an erasure", "the plan's hash", "is no sha256 in hex")
        intent = self._intents.read(sha256)
        if intent is None:
            path = self._intents.certificate_path(sha256)
            if os.path.exists(path):
                return path
            raise NotFound("settle an erasure", f"plan {sha256[:8]}", "no such run was begun")
        open_packs = [pack for pack in intent.plan.packs if self._erased_at(pack) is None]
        if any(pack.pack_id in self._queued for pack in open_packs):
            return None
        gone = [pack for pack in open_packs if self._is_gone(pack)]
        for pack in gone:
            self._record(intent, pack)
        if gone:
            return None
        self._copies.remove()
        path = self._intents.settle(sha256, self._certified(intent))
        _log.warning("erasure_settled", plan=sha256)
        return path

    def _erased_at(self, pack: PlannedPack) -> str | None:
        with self._index.read() as view:
            row = view.pack(pack.pack_id)
        if row is None or not row.erased_at_us:
            return None
        return isoformat(from_microseconds(row.erased_at_us))

    def _is_gone(self, pack: PlannedPack) -> bool:
        try:
            self._store.head(pack.key, pack.version_id)
        except ObjectMissing:
            return True
        return False

    def _record(self, intent: Intent, pack: PlannedPack) -> None:
        self._queued.add(pack.pack_id)
        record = Erased(
            pack_id=pack.pack_id,
            key=pack.key,
            version_id=pack.version_id,
            by=intent.by,
            reason=f"plan {intent.sha256}",
            at=isoformat(self._clock.now()),
        )
        self._add_record(record, None)
        _log.warning("pack_erased", pack=pack.pack_id)

    # --- the certificate

    def _certified(self, intent: Intent) -> bytes:
        plan = intent.plan
        studies = []
        for study in plan.studies:
            erased, left = [], []
            for pack in study.packs:
                at = self._erased_at(pack)
                if at is None:
                    left.append(pack.pack_id)
                    continue
                erased.append(
                    DisposedPack(
                        pack.pack_id, pack.key, pack.version_id, pack.size_bytes, pack.checksum,
                        pack.locked_until, pack.instances, at,
                    )
                )  # fmt: skip
            studies.append(
                DisposedStudy(
                    study.study_instance_uid, study.patient_id, study.study_date,
                    study.accession_number, study.kept_until, erased, left,
                )
            )  # fmt: skip
        with self._index.read() as view:
            sequence = view.progress(plan.node)
        certificate = Certificate(
            format=CERTIFICATE_FORMAT,
            node=plan.node,
            endpoint_url=plan.endpoint_url,
            bucket=plan.bucket,
            prefix=plan.prefix,
            plan_sha256=intent.sha256,
            plan_made_at=plan.made_at,
            plan_made_by=plan.made_by,
            confirmed_by=intent.by,
            access_key_id=intent.access_key_id,
            begun_at=intent.begun_at,
            certified_at=isoformat(self._clock.now()),
            complete=not any(study.left for study in studies),
            ledger_sequence=sequence,
            studies=studies,
        )
        line = msgspec.json.encode(certificate)
        signature = Signature(self._signing_key.public_text, self._signing_key.sign(line))
        return line + b"\n" + msgspec.json.encode(signature) + b"\n"


def read_certificate(content: bytes) -> tuple[Certificate, str]:
    """Return a certificate and the sha256 of the line that was signed, in hex."""
    line = content.partition(b"\n")[0]
    return msgspec.json.decode(line, type=Certificate), hashlib.sha256(line).hexdigest()
