"""The archive's parts over one folder and one object store, driven step by step.

What the daemons' threads do over and over is done here once, when a test says so, on the test's own
thread: no sleep, no race. A `Box` may be thrown away and made anew over the same folder, as a
restart does.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from appliance.archive.checkpoint_plan import Plan
from appliance.archive.checkpoint_write import CheckpointWriter
from appliance.archive.control import Control
from appliance.archive.evict import Evictor
from appliance.archive.indexer import Indexer
from appliance.archive.ingest import Ingest
from appliance.archive.key_change import KeyChange
from appliance.archive.layout import Layout, packs_in
from appliance.archive.ledger import Ledger
from appliance.archive.ledger_entry import Entry, open_entry
from appliance.archive.pins import Pins
from appliance.archive.queries import served_instances
from appliance.archive.recall import Recaller
from appliance.archive.records import PackRecord
from appliance.archive.requests import RequestBox
from appliance.archive.retention import Retention
from appliance.archive.retrieval import Opened, Retrievable, Retrieval
from appliance.archive.sender import Sender
from appliance.archive.space import Space
from appliance.archive.uplink import Queued, Uplink
from appliance.archive.upload import PackUpload
from appliance.config.model import Packs
from appliance.foundation.errors import AzekuraError, StorageFailed
from appliance.foundation.files import FileSystem
from appliance.index.index import Index
from appliance.packs.sealing import seal
from appliance.remote.store import Lane, ObjectStore
from appliance.seal.identity import load_identity, new_identity_file
from appliance.seal.signing import SigningKey
from tests.support.fake_store import FakeStore
from tests.support.manual_clock import ManualClock
from tests.support.pack_samples import CT_STORAGE, EXPLICIT, element

NODE = "site-a"
ROOT = "1.2.826.0.1.3680043.8.498"
SENDER = Sender("MODALITY1", "AZEKURA", "192.0.2.7")
DAY_S = 86400.0


class Sample(NamedTuple):
    """A dataset and what a C-STORE says of it."""

    study: str
    sop_instance_uid: str
    dataset: bytes

    @property
    def sha256(self) -> bytes:
        return hashlib.sha256(self.dataset).digest()


def sample(study: int, number: int, size_bytes: int = 2000, *, version: int = 0) -> Sample:
    """Return an instance of a study; other versions differ in their pixels."""
    study_uid = f"{ROOT}.{study}"
    uid = f"{study_uid}.1.{number}"
    pixels = hashlib.shake_128(f"{uid} {version}".encode()).digest(size_bytes)
    dataset = b"".join(
        (
            element(0x00080016, "UI", CT_STORAGE.encode()),
            element(0x00080018, "UI", uid.encode()),
            element(0x00080060, "CS", b"CT"),
            element(0x00100010, "PN", f"Study^{study}".encode()),
            element(0x00100020, "LO", f"P{study}".encode()),
            element(0x0020000D, "UI", study_uid.encode()),
            element(0x0020000E, "UI", f"{study_uid}.1".encode()),
            element(0x00200013, "IS", str(number).encode()),
            element(0x7FE00010, "OW", pixels),
        )
    )
    return Sample(study_uid, uid, dataset)


class StillClock(ManualClock):
    """The box's clock for the thread that closes packs: it waits until it is told to stop."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__()
        self.now = clock.now
        self.monotonic_s = clock.monotonic_s

    def wait(self, event, timeout_s):
        return event.wait()


def create_keys(folder: Path) -> None:
    """Write a node's keys into a folder."""
    for name in ("node.key", "recovery.key"):
        new_identity_file(str(folder / name))
    SigningKey.create(str(folder / "signing.pem"))


class Box:
    """The parts of one node. `files` serves the writer and the uplink; what reads has its own."""

    def __init__(
        self,
        folder: Path,
        store: ObjectStore,
        *,
        files: FileSystem | None = None,
        clock: ManualClock | None = None,
        writer: str = "receive",
        lock_mode: str = "compliance",
        capacity_bytes: int = 2**40,
        target_size: str = "64 MiB",
        water: tuple[float, float] = (0.9, 0.8),
    ) -> None:
        self.folder = folder
        self.store = store
        self.files = files or FileSystem()
        self.clock = clock or ManualClock()
        self.layout = Layout(str(folder / "data"))
        self.layout.create(self.files)
        if not (folder / "node.key").exists():
            create_keys(folder)
        self.identities = load_identity(str(folder / "node.key"))
        self.recovery = load_identity(str(folder / "recovery.key"))
        self.fatal: list[StorageFailed] = []
        self.index = Index(self.files, self.layout.index).open()
        self.space = Space(self.files, self.layout, capacity_bytes, self.clock)
        self._writer = writer
        self._packs = Packs(target_size=target_size)
        self._ingest: Ingest | None = None
        self.requests = RequestBox(self.files, self.layout.requests)
        self.pins = Pins(self.files, self.layout.pins)
        self.retention = Retention(store, lock_mode, 30 * DAY_S, self.clock)
        self.recipients = [self.identities[0].recipient, self.recovery[0].recipient]
        self.evictor = Evictor(
            self.files, self.clock, self.layout, self.index, store, self.space, self.pins, *water
        )
        self.recaller = Recaller(self.files, self.clock, self.layout, store, self.index, self.space)
        self.retrieval = Retrieval(self.clock, self.layout, self.index, self.recaller)
        self._uplink: Uplink | None = None

    def close(self) -> None:
        """End it in order."""
        if self._ingest is not None:
            self._ingest.stop()
        self.retrieval.close()
        self.index.close()

    # --- receiving

    @property
    def ingest(self) -> Ingest:
        """The writer, started on first use."""
        if self._ingest is None:
            if isinstance(self.clock, ManualClock):
                self.clock.advance(0.002)  # ids of packs sort by time, of one writer only within it
            self._ingest = Ingest(
                self.files, StillClock(self.clock), self.layout, self._writer, self._packs,
                self.index, self.space, self.fatal.append,
            )  # fmt: skip
            self._ingest.start()
        return self._ingest

    def store_sample(self, each: Sample) -> None:
        """Have an instance received."""
        self.ingest.store(
            SENDER, CT_STORAGE, each.sop_instance_uid, EXPLICIT, memoryview(each.dataset),
            each.sha256,
        )  # fmt: skip

    def close_packs(self) -> None:
        """Close every open pack, by ending the writer."""
        if self._ingest is not None:
            self._ingest.stop()
            self._ingest = None

    def indexer(self) -> Indexer:
        """Return a new indexer, as a start of its process makes one."""
        return Indexer(self.clock, self.layout, self.index, NODE, self.requests)

    # --- the cloud

    def ledger(self) -> Ledger:
        """Return the ledger, as a start of the uplink finds it."""
        return Ledger(
            self.files, self.clock, self.store, self.layout, NODE,
            SigningKey.load(str(self.folder / "signing.pem")), self.recipients, self.identities,
            self.retention,
        )  # fmt: skip

    def upload(self) -> PackUpload:
        """Return what takes packs to the bucket."""
        return PackUpload(
            self.files, self.clock, self.store, self.layout, self.recipients, self.identities,
            self.retention,
        )  # fmt: skip

    @property
    def uplink(self) -> Uplink:
        """The uplink, its ledger opened on first use; its threads are not started."""
        if self._uplink is None:
            signing = SigningKey.load(str(self.folder / "signing.pem")).public_text
            self.keys = KeyChange(
                self.files, self.clock, self.layout, self.recipients, signing
            )  # fmt: skip
            uplink = Uplink(
                self.files, self.clock, self.layout, self.index, self.ledger(), self.upload(),
                "test", self.fatal.append, keys=self.keys,
            )  # fmt: skip
            uplink._open_ledger()
            self._uplink = uplink
        return self._uplink

    def lazy_uplink(self, opens: Callable[[], bool]) -> Uplink:
        """Return an uplink that begins its ledger when `opens` says so; nothing is started."""
        return Uplink(
            self.files, self.clock, self.layout, self.index, self.ledger(), self.upload(),
            "test", self.fatal.append, opens=opens,
        )  # fmt: skip

    def control(self) -> Control:
        """Return what answers requests."""
        return Control(
            self.clock, self.index, self.requests, self.uplink, self.evictor, self.recaller,
            self.pins, NODE,
        )  # fmt: skip

    def upload_all(self) -> int:
        """Seal and upload what is closed, and queue the records; return how many."""
        uplink = self.uplink
        uplink._seal_closed()
        uplink._find_pending()
        count = 0
        while uplink._waiting:
            lane, pack_id = uplink._take()
            record = uplink._upload.upload(pack_id, self.sealed(pack_id), Lane(lane))
            uplink._queue(Queued(record, None))
            count += 1
        return count

    def sealed(self, pack_id: str):
        """Return what is known of a sealed pack."""
        return seal(self.files, self.layout.sealed_path(pack_id))

    def write_ledger(self) -> None:
        """Write what is queued as one entry, and make it verified."""
        uplink = self.uplink
        if uplink._records:
            batch, uplink._records = uplink._records, []
            assert uplink._write_batch(batch)

    def write_checkpoints(self, level_entries: tuple[int, ...]) -> None:
        """Write the checkpoints that are due, of levels of so many entries."""
        writer = CheckpointWriter(
            self.files, self.clock, self.store, self.layout, NODE,
            SigningKey.load(str(self.folder / "signing.pem")), self.recipients, self.identities,
            self.retention, Plan(level_entries),
        )  # fmt: skip
        sequence = self.uplink.sequence
        while writer.write_due(sequence, self.keys.since or sequence + 1):
            pass
        assert writer.problems() == []

    def drain(self) -> None:
        """Bring everything that was received to verified."""
        self.close_packs()
        self.indexer().catch_up()
        self.upload_all()
        self.write_ledger()

    # --- looking

    def pack_ids(self) -> list[str]:
        """Return the ids of the packs that the index knows."""
        with self.index.read() as view:
            return [row.pack_id for row in view.packs()]

    def pack(self, pack_id: str):
        """Return a pack's row."""
        with self.index.read() as view:
            return view.pack(pack_id)

    def served(self) -> list[Retrievable]:
        """Return every instance that is served."""
        with self.index.read() as view:
            studies = {uid for row in view.packs() for uid in row.study_instance_uids}
            return list(served_instances(view, sorted(studies), {}))

    def fetch(self, wanted: list[Retrievable] | None = None) -> dict[str, bytes | AzekuraError]:
        """Return the bytes of instances, all by default, or why they can't be had."""
        found: dict[str, bytes | AzekuraError] = {}
        for instance, opened in self.retrieval.open_all(
            self.served() if wanted is None else wanted
        ):
            is_open = isinstance(opened, Opened)
            found[instance.sop_instance_uid] = bytes(opened.dataset[:]) if is_open else opened
        return found

    def sealed_ids(self) -> list[str]:
        """Return the packs that lie sealed on disk."""
        return packs_in(self.layout.sealed)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    """A node over an empty folder and an empty fake bucket, which share a clock."""
    clock = ManualClock()
    found = Box(tmp_path, FakeStore(clock), clock=clock)
    yield found
    found.close()


def restarted(old: Box, **options) -> Box:
    """Return a box over the same folder and bucket, as after a crash of every process."""
    old.retrieval.close()
    old.index.close()
    if old._ingest is not None:
        old._ingest._stop.set()
        old._ingest._housekeeper.join()
        old._ingest._flock.release()
        old._ingest = None
    return Box(old.folder, old.store, clock=old.clock, **options)


def entries(store, identities) -> list[Entry]:
    """Return every ledger entry in a fake bucket, by key."""
    keys = filter(lambda key: key.startswith("ledger/"), store.keys())
    return [open_entry(store.content(key), identities) for key in keys]


def packs_named(store, identities) -> list[str]:
    """Return the pack ids that the ledger in a fake bucket names, in order."""
    return [
        record.pack_id
        for entry in entries(store, identities)
        for record in entry.records
        if isinstance(record, PackRecord)
    ]


def open_descriptors() -> int:
    """Return how many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))
