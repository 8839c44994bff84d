"""The parts of a node that follows others, over one folder and one store, turned by the test."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from appliance.archive.adopted import AdoptedBook
from appliance.archive.checkpoint_plan import Plan
from appliance.archive.checkpoint_read import CheckpointSource
from appliance.archive.checkpoint_write import CheckpointWriter
from appliance.archive.findings import Kind
from appliance.archive.follow import Follower
from appliance.archive.layout import Layout
from appliance.archive.rebuild_followed import FollowedLedgers
from appliance.archive.retention import Retention
from appliance.foundation.files import FileSystem
from appliance.index.dump import fingerprint
from appliance.index.facts import PackFacts
from appliance.index.index import Index
from appliance.remote.store import ObjectStore
from appliance.seal.identity import Identity, load_identity, new_identity_file
from appliance.seal.signing import SigningKey
from tests.support.fake_store import FakeStore
from tests.support.index_facts import cloud_copy, instance, pack
from tests.support.made_ledger import MadeLedger, pack_record
from tests.support.manual_clock import ManualClock

AUDIT_S = 3600.0


def facts(number: int, node: str = "site-a", study_number: int = 0) -> PackFacts:
    """Return a pack with one instance, of a study of its own if none is named."""
    study = f"1.2.{study_number or number}"
    one = instance(study, f"{study}.1", f"{study}.1.1", PatientID=f"P{number}", content=node)
    return pack(number, [one], node=node, cloud=cloud_copy(number))


class StandbyBox:
    """A standby: its disk, its index, its follower. May be made anew over the same folder."""

    def __init__(
        self,
        folder: Path,
        store: ObjectStore,
        signers: Mapping[str, Sequence[str]],
        clock: ManualClock,
        identities: Sequence[Identity],
        *,
        files: FileSystem | None = None,
    ) -> None:
        self.store = store
        self.clock = clock
        self.signers = signers
        self.identities = identities
        self.files = files or FileSystem()
        self.layout = Layout(str(folder))
        self.layout.create(self.files)
        self.index = Index(self.files, self.layout.index).open()
        self.follower = Follower(
            self.files, clock, self.layout, self.index, store, "standby", identities, signers,
            audit_s=AUDIT_S,
            checkpoints=CheckpointSource(self.files, store, self.layout, identities),
            adopted=AdoptedBook(self.files, self.layout),
        )  # fmt: skip

    def close(self) -> None:
        """End it."""
        self.follower.close()
        self.index.close()

    def follow(self) -> None:
        """Take everything that is new."""
        self.follower.run(threading.Event())

    def audit(self) -> None:
        """Let the time of an audit come."""
        self.clock.advance(AUDIT_S + 1)
        self.follow()

    def others(self, *, offline: bool = False) -> FollowedLedgers:
        """Return what a rebuild takes of the followed ledgers."""
        store = None if offline else self.store
        return FollowedLedgers(self.files, self.layout, store, self.identities, self.signers)

    def studies(self) -> set[int]:
        """Return the numbers of the studies that are found."""
        with self.index.read() as view:
            uids = {uid for row in view.packs() for uid in row.study_instance_uids}
        return {int(uid.rpartition(".")[2]) for uid in uids}

    def fingerprint(self) -> str:
        """Return a hash of everything in the index."""
        with self.index.read() as view:
            return fingerprint(view)

    def found(self, node: str = "site-a") -> list[tuple[Kind, int, int]]:
        """Return the findings of a ledger: what, from where, to where."""
        findings = self.follower._followers[node].following.findings
        return [(each.what, each.first, each.last) for each in findings]

    def applied(self, node: str = "site-a") -> int:
        """Return up to which entry a ledger is applied."""
        (place,) = [each for each in self.follower.places() if each.node == node]
        return place.applied_sequence


class Sites:
    """A bucket with the ledgers of two sites, and a standby that follows both."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = ManualClock()
        self.store = FakeStore(self.clock)
        new_identity_file(str(folder / "standby.key"))
        self.identities = load_identity(str(folder / "standby.key"))
        self.recipients = [self.identities[0].recipient]
        self.a = self.ledger("site-a")
        self.b = self.ledger("site-b")
        self.signers = {
            each.node: (each.signing_key.public_text,) for each in (self.a, self.b)
        }  # fmt: skip
        self.boxes: list[StandbyBox] = []

    def ledger(self, node: str, key_name: str = "") -> MadeLedger:
        """Return a ledger of a node; `key_name` for one that another signs."""
        key = SigningKey.create(str(self.folder / f"{key_name or node}.pem"))
        return MadeLedger(node, key, self.recipients)

    def write(self, *numbers: int, ledger: MadeLedger | None = None, study_number: int = 0) -> None:
        """Write an entry with one pack for each number."""
        target = ledger or self.a
        for number in numbers:
            target.put(self.store, [pack_record(facts(number, target.node, study_number))])

    def write_checkpoints(
        self,
        ledger: MadeLedger | None = None,
        *,
        recipients: Sequence[str] = (),
        since: int = 1,
        level_entries: tuple[int, ...] = (4, 16),
        signing_key: SigningKey | None = None,
    ) -> None:
        """Let a site write the checkpoints that are due, sealed to its recipients or to others."""
        target = ledger or self.a
        layout = Layout(str(self.folder / f"{target.node}-{len(self.store.requests)}"))
        layout.create(FileSystem())
        writer = CheckpointWriter(
            FileSystem(), self.clock, self.store, layout, target.node,
            signing_key or target.signing_key, recipients or target.recipients, self.identities,
            Retention(self.store, "off", 0.0, self.clock), Plan(level_entries),
        )  # fmt: skip
        while writer.write_due(target.sequence, since):
            pass
        assert writer.problems() == []

    def box(self, name: str = "box", **options) -> StandbyBox:
        """Return a standby over a folder of that name."""
        found = StandbyBox(
            self.folder / name, self.store, options.pop("signers", self.signers), self.clock,
            options.pop("identities", self.identities), **options,
        )  # fmt: skip
        self.boxes.append(found)
        return found

    def restarted(self, old: StandbyBox, **options) -> StandbyBox:
        """Return a standby over the same folder, as after an end of its process."""
        old.close()
        self.boxes.remove(old)
        return self.box(Path(old.layout.data_dir).name, **options)


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[Sites]:
    """Two sites' ledgers in a fake bucket."""
    found = Sites(tmp_path)
    yield found
    for each in found.boxes:
        each.close()
