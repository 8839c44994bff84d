"""The restore drill: a sample of studies from bucket and one identity alone, compared with here.

Reads the bucket; writes a scratch index into a folder that it is given, and nothing else: datasets
are hashed as they come out of their packs, and never lie on a disk in clear.

Invariants:
- What is restored comes from the bucket alone: no pack, no ledger copy and no file key of this disk
  is used. Packs are opened by the identity, as a recovery would.
- What differs is a finding. What changed while the drill looked (packs that no ledger read here
  names yet) is left out and counted, never a finding.
- A bucket that can't be asked ends the drill without a result.
"""

import io
import random
import tarfile
from collections.abc import Callable, Sequence

import msgspec

from appliance.archive.applying import apply_record
from appliance.archive.catalogue import Catalogue, LedgerRecord
from appliance.archive.comparing import Comparison
from appliance.archive.records import PackRecord
from appliance.archive.recover import part10_sha256
from appliance.foundation.clock import Clock, isoformat
from appliance.foundation.errors import (
    AzekuraError,
    CloudRefused,
    CloudUnavailable,
    NotFound,
    StorageFailed,
)
from appliance.index.index import Index
from appliance.index.writing import WriteTransaction
from appliance.remote.reading import ObjectReader
from appliance.remote.store import Lane, ObjectStore
from appliance.seal.age import decrypt_file
from appliance.seal.identity import Identity
from appliance.seal.stream import PieceStream

READ_BYTES = 4 * 2**20
FINDINGS_MAX = 100

Spend = Callable[[int], float]
"""Called with the bytes to be read: waits for the budget, and returns the seconds it waited."""


class Restored(msgspec.Struct):
    """What became of one study. `answers` of C-FIND were alike; seconds from its beginning."""

    study_instance_uid: str
    packs: int = 0
    instances: int = 0
    matched: int = 0
    answers: int = 0
    bytes: int = 0
    first_instance_s: float | None = None
    took_s: float = 0.0
    findings: list[str] = []


class DrillResult(msgspec.Struct):
    """What a drill brought. `identity` says whose key opened it; times are without pauses.

    `ledger_s`: until all ledgers were read; `first_instance_s`: from the beginning until the first
    instance was whole. `skipped`: studies whose answers could not be compared, being in change.
    """

    at: str
    identity: str
    known_studies: int = 0
    studies: list[Restored] = []
    ledger_s: float = 0.0
    first_instance_s: float = 0.0
    took_s: float = 0.0
    skipped: int = 0
    findings: list[str] = []

    @property
    def instances(self) -> int:
        """Instances that the ledger lists of the sample."""
        return sum(each.instances for each in self.studies)

    @property
    def matched(self) -> int:
        """Instances that came back as the ledger and the node's index say."""
        return sum(each.matched for each in self.studies)

    @property
    def all_findings(self) -> list[str]:
        """Everything that is wrong, at most FINDINGS_MAX lines."""
        found = [*self.findings, *(line for each in self.studies for line in each.findings)]
        if len(found) > FINDINGS_MAX:
            found[FINDINGS_MAX - 1 :] = [f"and {len(found) - FINDINGS_MAX + 1} more"]
        return found


class Drill:
    """One drill; used by one thread."""

    def __init__(
        self,
        clock: Clock,
        store: ObjectStore,
        identities: Sequence[Identity],
        identity: str,
        scratch: Index,
        comparison: Comparison,
        spend: Spend = lambda _bytes: 0.0,
        source: random.Random | None = None,
    ) -> None:
        """`scratch`: an empty index. `identity`: what the result calls the identities."""
        self._clock = clock
        self._store = store
        self._identities = identities
        self._scratch = scratch
        self._comparison = comparison
        self._spend_outside = spend
        self._source = source or random.Random()  # noqa: S311 - a sample, no secret
        self._paused_s = 0.0
        self._began_s = clock.monotonic_s()
        self._result = DrillResult(isoformat(clock.now()), identity)

    def run(self, count: int, advance: Callable[[float], None] = lambda _: None) -> DrillResult:
        """Restore so many studies; return what was found.

        Raises CloudError when the bucket can't be asked, NotFound when no ledger names a study.
        """
        self._began_s = began_s = self._clock.monotonic_s()
        result = self._result
        catalogue = Catalogue(self._store, self._identities)
        catalogue.read(self._spend)
        result.known_studies = len(catalogue)
        result.findings = list(catalogue.findings)
        result.ledger_s = self._since(began_s)
        if not len(catalogue) and not catalogue.findings:
            raise NotFound("drill", "the bucket", "no ledger in it names a study")
        for study in catalogue.draw(count, self._source):
            restored = self._study(catalogue, study)
            if restored.packs:  # else all of it was erased since
                result.studies.append(restored)
            advance(1)
        result.took_s = self._since(began_s)
        return result

    def _spend(self, size_bytes: int) -> None:
        self._paused_s += self._spend_outside(size_bytes)

    def _since(self, began_s: float) -> float:
        return round(max(0.0, self._clock.monotonic_s() - began_s - self._paused_s), 3)

    def _study(self, catalogue: Catalogue, study: str) -> Restored:
        restored = Restored(study)
        began_s, paused_s = self._clock.monotonic_s(), self._paused_s
        records = list(catalogue.records(study, self._spend))

        def apply(txn: WriteTransaction) -> None:
            for each in records:
                apply_record(txn, each.record, each.node, each.sequence, each.position)

        self._scratch.transact(apply)
        packs = [each for each in records if isinstance(each.record, PackRecord)]
        for each in packs:
            before = restored.matched
            self._pack(each, restored)
            if restored.first_instance_s is None and restored.matched > before:
                elapsed_s = self._clock.monotonic_s() - began_s
                restored.first_instance_s = round(elapsed_s - (self._paused_s - paused_s), 3)
        elapsed_s = self._clock.monotonic_s() - began_s - (self._paused_s - paused_s)
        restored.took_s = round(max(0.0, elapsed_s), 3)
        compared = self._comparison.answers(study, packs, catalogue.last, restored.findings)
        if compared is None:
            self._result.skipped += 1
        else:
            restored.answers = compared
        return restored

    def _pack(self, listed: LedgerRecord, restored: Restored) -> None:
        """Read a pack whole; count the instances that are what ledger and index say."""
        record = listed.record
        assert isinstance(record, PackRecord)
        wanted = {(each.sop_instance_uid, each.sha256) for each in record.instances}
        restored.packs += 1
        restored.instances += len(wanted)
        self._spend(record.size_bytes)
        try:
            found = self._hashes(record)
        except (CloudUnavailable, CloudRefused, StorageFailed):
            raise
        except (tarfile.TarError, AzekuraError) as error:
            cause = error.cause if isinstance(error, AzekuraError) else type(error).__name__
            restored.findings.append(f"pack {record.pack_id}: {cause or type(error).__name__}")
            return
        restored.bytes += record.size_bytes
        # The member's name does not carry a UID that is no UID; the hash tells them apart.
        digests = {digest for _, digest in wanted}
        missing = digests - found
        odd = found - digests
        if missing or odd:
            restored.findings.append(
                f"pack {record.pack_id}: {len(missing)} datasets of the ledger are not in it, "
                f"{len(odd)} in it are not in the ledger"
            )
        good = {(uid, digest) for uid, digest in wanted if digest in found}
        differing = self._comparison.differing(record, good)
        if differing:
            restored.findings.append(
                f"pack {record.pack_id}: {differing} instances are not in this node's index "
                "as they came back"
            )
        restored.matched += len(good) - differing

    def _hashes(self, record: PackRecord) -> set[bytes]:
        """Return the sha256 of every dataset in the bucket's copy of a pack."""
        reader = ObjectReader(
            self._store, record.key, record.version_id, record.size_bytes, Lane.BACKFILL
        )
        pieces = decrypt_file(io.BufferedReader(reader, READ_BYTES), self._identities)
        found = set()
        with tarfile.open(fileobj=io.BufferedReader(PieceStream(pieces)), mode="r|") as tar:
            for member in tar:
                if member.isreg() and member.name.endswith(".dcm"):
                    file = tar.extractfile(member)
                    assert file is not None, "a regular file"
                    found.add(part10_sha256(file, f"pack {record.pack_id}"))
                    if not self._result.first_instance_s:
                        self._result.first_instance_s = self._since(self._began_s)
        return found
