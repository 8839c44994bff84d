"""What is to be erased, on paper first: the plan, and the intent that a run leaves behind.

A plan names studies, their packs and the very versions; its hash is what a person confirms. It
erases nothing. Format 1: JSON, `sha256` being over the compact JSON of `plan`. Invariants:
- A plan is carried out whole or refused: it is too old, or something of it is no longer so.
- An intent is durable before the first version is deleted, and stays until the ledger says what
  became of each.
"""

import hashlib
import os
from collections.abc import Sequence
from datetime import datetime, timedelta

import msgspec

from appliance.archive.expiry import Term
from appliance.foundation.clock import from_microseconds, isoformat
from appliance.foundation.errors import Damaged, Refused, UnsupportedFormat, UsageError
from appliance.foundation.files import FileSystem

FORMAT = 1
PLAN_AGE_MAX = timedelta(days=7)
CLOCKS_APART_MAX = timedelta(minutes=15)
STUDIES_MAX = 100_000
PLAN_BYTES_MAX = 512 * 2**20
_INTENT = ".intent.json"


class PlannedPack(msgspec.Struct, frozen=True):
    """One version to delete. locked_until: as the ledger last said, "" for no lock."""

    pack_id: str
    key: str
    version_id: str
    size_bytes: int
    checksum: str
    locked_until: str
    instances: int


class PlannedStudy(msgspec.Struct, frozen=True):
    """One study, all of it."""

    study_instance_uid: str
    patient_id: str
    study_date: str
    accession_number: str
    kept_until: str
    instances: int
    packs: list[PlannedPack]


class Plan(msgspec.Struct, frozen=True):
    """What a run will erase, where, and who wrote it down when."""

    format: int
    node: str
    endpoint_url: str
    bucket: str
    prefix: str
    made_at: str
    made_by: str
    studies: list[PlannedStudy]

    @property
    def packs(self) -> list[PlannedPack]:
        """Every version of the plan."""
        return [pack for study in self.studies for pack in study.packs]

    def sha256(self) -> str:
        """Return the hash that is confirmed, in hex."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()


class PlanFile(msgspec.Struct, frozen=True):
    """The file: a plan and its hash."""

    plan: Plan
    sha256: str


class Intent(msgspec.Struct, frozen=True):
    """A run that was begun: the plan, who confirmed it, and with which access key."""

    plan: Plan
    sha256: str
    by: str
    access_key_id: str
    begun_at: str


def planned(term: Term) -> PlannedStudy:
    """Return the part of a plan that is one study."""
    packs = []
    for row in term.packs:
        cloud = row.cloud
        if cloud is None or len(row.study_instance_uids) != 1:
            raise Refused("plan", f"pack {row.pack_id}", "it is pending, or holds several studies")
        until = isoformat(from_microseconds(cloud.locked_until_us)) if cloud.locked_until_us else ""
        packs.append(
            PlannedPack(
                row.pack_id, cloud.key, cloud.version_id, cloud.size, cloud.checksum, until,
                row.instance_count,
            )
        )  # fmt: skip
    return PlannedStudy(
        term.study_instance_uid, term.patient_id, term.study_date, term.accession_number,
        isoformat(from_microseconds(term.until_us)), term.instances, packs,
    )  # fmt: skip


def write_plan(path: str, plan: Plan, files: FileSystem) -> None:
    """Write a plan, mode 0600, durable: it names patients."""
    content = msgspec.json.encode(PlanFile(plan, plan.sha256()))
    files.write_atomic(path, msgspec.json.format(content, indent=2) + b"\n", 0o600)


def read_plan(path: str) -> PlanFile:
    """Return the plan of a file; Damaged when it is not what its hash says, UsageError, ..."""
    try:
        with open(path, "rb") as file:
            content = file.read(PLAN_BYTES_MAX)
    except OSError as cause:
        raise UsageError("read the plan", path, cause.strerror or "unreadable") from cause
    try:
        found = msgspec.json.decode(content, type=PlanFile)
    except msgspec.DecodeError as cause:
        raise Damaged("read the plan", path, str(cause), "azekura expire plan makes one") from cause
    if found.plan.format != FORMAT:
        raise UnsupportedFormat("read the plan", path, f"format {found.plan.format}")
    if found.plan.sha256() != found.sha256:
        raise Damaged("read the plan", path, "it was changed since it was made", "Make a new plan")
    return found


def check_age(plan: Plan, now: datetime) -> None:
    """Raise Refused for a plan that is too old, or from the future, by the bucket's clock."""
    age = now - datetime.fromisoformat(plan.made_at)
    if age > PLAN_AGE_MAX or age < -CLOCKS_APART_MAX:
        raise Refused(
            "carry out the plan", f"made at {plan.made_at}",
            f"a plan is good for {PLAN_AGE_MAX.days} days", "Make a new plan",
        )  # fmt: skip


def changes(study: PlannedStudy, term: Term, at_us: int) -> list[str]:
    """Return what is no longer as the plan has it; nothing for a study that may be erased."""
    found = []
    if term.held:
        found.append("it is under legal hold")
    if not term.packs:
        found.append("it is not here")
    elif term.pending:
        found.append("it has a pending pack")
    elif term.until_us > at_us:
        found.append(f"it is kept until {isoformat(from_microseconds(term.until_us))}")
    elif any(row.study_instance_uids != (study.study_instance_uid,) for row in term.packs):
        found.append("one of its packs holds another study too")
    elif planned(term).packs != study.packs:
        found.append("its packs are others, or their locks")
    return found


class Intents:
    """The runs that were begun and not settled yet, in `state/erasures/`."""

    def __init__(self, files: FileSystem, directory: str) -> None:
        self._files = files
        self._directory = directory

    @property
    def lock_path(self) -> str:
        """Where the flock of a run lies: nobody settles what is still being deleted."""
        return os.path.join(self._directory, "lock")

    def write(self, intent: Intent) -> None:
        """Make an intent durable."""
        self._files.write_atomic(self._path(intent.sha256), msgspec.json.encode(intent), 0o600)

    def read(self, sha256: str) -> Intent | None:
        """Return an intent; None when it is settled, or never was."""
        try:
            with open(self._path(sha256), "rb") as file:
                return msgspec.json.decode(file.read(), type=Intent)
        except FileNotFoundError:
            return None

    def open(self) -> Sequence[str]:
        """Return the hashes of the plans whose runs are not settled."""
        return sorted(
            name.removesuffix(_INTENT)
            for name in os.listdir(self._directory)
            if name.endswith(_INTENT)
        )

    def settle(self, sha256: str, certificate: bytes) -> str:
        """Keep the certificate, then drop the intent; return where the certificate lies."""
        path = self.certificate_path(sha256)
        self._files.write_atomic(path, certificate, 0o600)
        self._files.unlink(self._path(sha256))
        return path

    def certificate_path(self, sha256: str) -> str:
        """Return where the certificate of a plan lies, if it was carried out."""
        return os.path.join(self._directory, f"{sha256}.certificate.json")

    def _path(self, sha256: str) -> str:
        return os.path.join(self._directory, f"{sha256}{_INTENT}")
