"""One archive through deaths, outages and lost indexes, beside a dictionary of what was promised.

A `Life` has a node (`archive_box`), a bucket that outlives it, and the promises: every version that
was answered Success, which instances are rejected, which versions the bucket has locked. It does
what the daemons' threads do, on the caller's thread, and dies where it is told to. `look` compares
what is served with the promises; `settle` brings everything to an end and compares that too.

Oracle, after faults.md: P1 every promised version is readable by its hash; P2 nothing else is
served; P3 no locked version is gone; P6 all of it without hands.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from appliance.archive.indexer import mark_found
from appliance.archive.layout import packs_in
from appliance.archive.ledger_entry import FIRST_PREVIOUS, check_link
from appliance.archive.rebuild import rebuild
from appliance.archive.recall import Recaller, clear_abandoned
from appliance.archive.records import PackRecord
from appliance.archive.requests import Request
from appliance.archive.retrieval import Retrieval
from appliance.archive.uplink import Queued, Uplink
from appliance.foundation.clock import to_microseconds
from appliance.foundation.errors import (
    AzekuraError,
    CloudError,
    CloudRefused,
    Damaged,
    DecryptionFailed,
    Refused,
)
from appliance.foundation.files import FileLock, FileSystem
from appliance.index.environment import ENVIRONMENTS
from appliance.packs.reader import PackReader
from appliance.remote.link import Backoff
from appliance.remote.store import Lane
from appliance.seal.age import decrypt_bytes
from tests.support.archive_box import NODE, Box, Sample, entries, sample
from tests.support.dying_files import Mortal, PowerFiles, die_around_commits
from tests.support.fake_store import FakeStore
from tests.support.manual_clock import ManualClock
from tests.support.pack_samples import PowerCut

WAITS_MAX = 3
DEATHS_IN_A_ROW_MAX = 50


class Stalled(Exception):
    """The ledger's thread waits for a bucket that does not answer."""


class Impatient(ManualClock):
    """The clock of a thread that would wait for ever: it gives up after some waits."""

    def __init__(self) -> None:
        super().__init__()
        self._waits = 0

    def wait(self, event, timeout_s):
        self._waits += 1
        if self._waits > WAITS_MAX:
            raise Stalled
        return super().wait(event, timeout_s)


class DyingStore:
    """A store of which every request is two steps: in front and behind."""

    def __init__(self, store: FakeStore, steps: Mortal) -> None:
        self._store = store
        self._steps = steps

    def __getattr__(self, name: str):
        real = getattr(self._store, name)

        def request(*arguments, **named):
            self._steps.step()
            answer = real(*arguments, **named)
            answer = list(answer) if hasattr(answer, "__next__") else answer
            self._steps.step()
            return iter(answer) if isinstance(answer, list) else answer

        return request


class FullSpace:
    """No room: what is recalled is read past and not kept, so that looking changes nothing."""

    def try_claim(self, incoming_bytes: int) -> bool:
        return False


class Life:
    """See above. One thread; `close` ends it."""

    def __init__(self, folder: Path, keys: Path) -> None:
        self.folder = folder
        shutil.copytree(keys, folder, dirs_exist_ok=True)
        self.clock = ManualClock()
        self.bucket = FakeStore(self.clock)
        self.steps = Mortal()
        self._undo = die_around_commits(self.steps)
        self._store = DyingStore(self.bucket, self.steps)
        self._locks: list[FileLock] = []
        self._acquire = FileLock.acquire
        FileLock.acquire = self._remembering_locks()
        # Each instance's versions, in the order in which they were answered Success.
        self.promised: dict[str, list[Sample]] = {}
        self.doubtful: Sample | None = None
        # Of an instance, whether it may be hidden: both while a request for it is under way.
        self.hidden: dict[str, set[bool]] = {}
        self.locked: set[tuple[str, str]] = set()
        self.marked = False
        self.armed: list[tuple[int, bool, int]] = []
        self.deaths = 0
        self._was_troubled = False
        self.box: Box | None = None
        self.start()

    # --- life and death

    def _remembering_locks(self):
        locks, acquire = self._locks, self._acquire

        def remembering(lock: FileLock, **named) -> None:
            acquire(lock, **named)
            locks.append(lock)

        return remembering

    def start(self) -> None:
        """Start as the daemons do, until it holds."""
        for _ in range(DEATHS_IN_A_ROW_MAX):
            try:
                self._start()
            except PowerCut:
                self.bury()
            else:
                return
        raise AssertionError("it dies at every start")

    def _start(self) -> None:
        self.files = PowerFiles(self.steps, self.folder, self.deaths)
        self.steps.last_act = int
        self._uplink: Uplink | None = None
        self._control = None
        self._stalled: list[Queued] = []
        self.box = None
        self._arm_next()
        self.box = box = Box(self.folder, self._store, files=self.files, clock=self.clock)
        clear_abandoned(box.files, box.layout)
        box.ingest  # noqa: B018 - the start recovers
        box.indexer().catch_up()
        mark_found(box.layout, box.index)
        self._resolve_doubt()

    def _arm_next(self) -> None:
        if self.armed:
            steps, power, seed = self.armed.pop(0)
            self.files.reseed(seed)
            self.steps.arm(steps, self.files.cut if power else int)

    def arm(self, deaths: list[tuple[int, bool, int]]) -> None:
        """Let it die after so many steps: (steps, whether the power goes, what that leaves)."""
        self.armed = list(deaths)
        self._arm_next()

    def bury(self) -> None:
        """Let go what a dead process lets go."""
        self.deaths += 1
        box = self.box
        if box is not None:
            box.retrieval.close()
            if box._ingest is not None:
                box._ingest._stop.set()
                if box._ingest._housekeeper.ident is not None:
                    box._ingest._housekeeper.join()
        for lock in self._locks:
            lock.release()
        self._locks.clear()
        for directory, environment in list(ENVIRONMENTS._open.items()):
            if directory.startswith(os.path.realpath(self.folder)):
                del ENVIRONMENTS._open[directory]
                environment.close()
        self.steps.revive()

    def live(self, deed: Callable[[], object]) -> None:
        """Do something; if it dies of it, start anew."""
        self._was_troubled = self._is_in_trouble()
        try:
            deed()
        except PowerCut:
            self.bury()
            self.start()
        finally:
            self._was_troubled = False

    def end(self, lost_index: Callable[[Path], object] | None = None) -> None:
        """End every process at once, without the disk losing anything, and start again."""
        self.steps.arm(0)
        self.bury()
        if lost_index is not None:
            lost_index(self.folder / "data" / "index")
        self.start()

    def close(self) -> None:
        """End it for good."""
        self.steps.arm(0)
        self.bury()
        FileLock.acquire = self._acquire
        self._undo()

    # --- receiving

    def store(self, each: Sample) -> None:
        """Have an instance received, and note the promise."""
        self.clock.advance(1)
        self.doubtful = each
        self.box.store_sample(each)
        self._promise(each)

    def _promise(self, each: Sample) -> None:
        self.doubtful = None
        versions = self.promised.setdefault(each.sop_instance_uid, [])
        if each not in versions:
            versions.append(each)

    def _resolve_doubt(self) -> None:
        """An instance that was kept and not answered is as good as promised from now on."""
        each = self.doubtful
        if each is None:
            return
        with self.box.index.read() as view:
            found = view.instance(each.study, each.sop_instance_uid)
        kept = found is not None and each.sha256 in {one.sha256 for one in found.versions}
        self.doubtful = None
        if kept:
            self._promise(each)

    def close_packs(self) -> None:
        """Let every study be quiet for so long that its pack is closed."""
        self.clock.advance(11)
        self.box.ingest._packs.close_due()

    def receiver_dies(self) -> None:
        """Only the receiver dies; its packs are recovered by the next, and indexed.

        A resend that comes before they are would be stored once more, and be the newest.
        """
        box = self.box
        if box._ingest is not None:
            box._ingest._stop.set()
            box._ingest._housekeeper.join()
            box._ingest._flock.release()
            box._ingest = None
        box.ingest  # noqa: B018
        box.indexer().catch_up()

    # --- the uplink

    def uplink_dies(self) -> None:
        """Only the uplink dies, with all that it had in memory."""
        self._uplink = self._control = None
        self._stalled = []

    def uplink(self) -> Uplink | None:
        """Return the uplink; None while the bucket does not let it begin."""
        if self._uplink is None:
            self.box._uplink = None
            try:
                self._uplink = self.box.uplink
            except (CloudError, Damaged, DecryptionFailed):
                assert self._is_troubled
                return None
            self._control = self.box.control()
        return self._uplink

    def _is_in_trouble(self) -> bool:
        bucket = self.bucket
        refuses = bucket.offline or bucket.missing or not bucket.carries_lock
        return refuses or any(bucket._faults.values())

    @property
    def _is_troubled(self) -> bool:
        """Whether the bucket may have refused what is being done now."""
        return self._was_troubled or self._is_in_trouble()

    def upload(self) -> None:
        """Seal what is closed and bring it to the bucket, as far as the bucket lets it."""
        uplink = self.uplink()
        if uplink is None:
            return
        uplink._seal_closed()
        uplink._find_pending()
        while uplink._waiting:
            if "ledger" in uplink._problems:
                return  # no worker would be given a pack
            if uplink._upload_one(*uplink._take(), Backoff()):
                assert "cloud" in uplink._problems, uplink._problems
                return

    def write_ledger(self) -> None:
        """Write what is queued as one entry, or stall in the middle of it."""
        uplink = self.uplink()
        if uplink is None:
            return
        batch = self._stalled
        if not batch:
            batch, uplink._records = uplink._records, []
        if not batch:
            return
        uplink._clock = Impatient()
        self._stalled = batch
        try:
            assert uplink._write_batch(batch)
        except Stalled:
            assert self._is_troubled
        else:
            self._stalled = []
        finally:
            uplink._clock = self.clock

    def answer_requests(self) -> None:
        """Carry out what was asked for."""
        if self.uplink() is not None:
            self._control.run_once()

    def ask(self, kind: str, each: Sample) -> None:
        """Reject or restore one instance, unless something is under way for it."""
        uid = each.sop_instance_uid
        before = self.hidden.get(uid, {False})
        if len(before) > 1:
            return
        self.clock.advance(1)
        self.hidden[uid] = before | {kind == "reject"}
        self.box.requests.put(
            Request(kind=kind, study_instance_uid=each.study, sop_instance_uids=(uid,), by="test")
        )

    def drain(self) -> None:
        """Everything from the open packs to the ledger, as far as it goes."""
        self.box.close_packs()
        self.box.indexer().catch_up()
        self.upload()
        self.write_ledger()
        self.answer_requests()

    # --- the cache and the index

    def packs(self) -> list[str]:
        """Return the ids of all packs, the oldest first."""
        return sorted(self.box.pack_ids())

    def evict(self, pack_id: str) -> None:
        """Evict a pack; only what is verified goes, and only with the bucket's word."""
        row = self.box.pack(pack_id)
        try:
            self.box.evictor.evict_pack(pack_id)
        except Refused:
            assert row.cloud is None
        except CloudError:
            assert self._is_troubled or self.marked
        else:
            assert row.cloud is not None
            assert not self.bucket.offline

    def recall(self, pack_id: str) -> None:
        """Bring a pack back into the cache."""
        row = self.box.pack(pack_id)
        if row.cloud is None:
            return
        try:
            self.box.recaller.recall(pack_id, row.cloud)
        except AzekuraError:
            assert self._is_troubled

    def rebuild(self) -> None:
        """Make the index anew while everything else stays; an entry may come damaged."""
        box = self.box
        try:
            rebuild(box.layout, box.index, NODE, box.identities, box.store, lambda _: None)
        except (Damaged, DecryptionFailed):
            assert self._is_troubled

    def damage(self, pack_id: str) -> None:
        """Let a bit rot in a cached pack that the bucket has too."""
        row = self.box.pack(pack_id)
        path = Path(self.box.layout.sealed_path(pack_id))
        if row.cloud is None or not path.exists():
            return
        with PackReader(str(path)) as reader:
            offset = next(iter(reader.members())).dataset_offset
        with open(path, "r+b") as file:
            file.seek(offset + 20)
            byte = file.read(1)
            file.seek(offset + 20)
            file.write(bytes([byte[0] ^ 1]))

    # --- the bucket

    def thief(self) -> None:
        """A stolen key hides everything behind delete markers, and tries to delete for good."""
        self.marked = True
        self.note_locked()
        for key in self.bucket.keys():  # noqa: SIM118
            self.bucket.put_delete_marker(key)
        with self._sound_bucket():
            for key, version_id in sorted(self.locked):
                with contextlib.suppress(CloudRefused):
                    self.bucket.delete_version(key, version_id)
                    raise AssertionError("a locked version was deleted")

    def note_locked(self) -> None:
        """Remember which versions are locked: they are to be there for ever."""
        self.locked |= {
            (key, version.version_id)
            for key, versions in self.bucket._keys.items()
            for version in versions
            if version.lock is not None
        }

    @contextlib.contextmanager
    def _sound_bucket(self) -> Iterator[None]:
        """Let the bucket answer over the block."""
        before = self.bucket.offline, self.bucket.missing
        faults = {name: list(queue) for name, queue in self.bucket._faults.items()}
        self.bucket._faults.clear()
        self.bucket.offline = self.bucket.missing = False
        yield
        self.bucket.offline, self.bucket.missing = before
        for name, queue in faults.items():
            self.bucket._faults[name].extend(queue)

    # --- the oracle

    def look(self) -> None:
        """Compare what is served with what was promised; change nothing."""
        with self.steps.paused(), self._sound_bucket():
            self.box.indexer().catch_up()
            found = self._fetch()
            for uid, versions in self.promised.items():
                hidden = self.hidden.get(uid, {False})
                if uid in found:
                    assert False in hidden, "a rejected instance is served"
                    assert found[uid] == versions[-1].dataset, f"not what was promised: {uid}"
                else:
                    assert True in hidden, f"lost: {uid}"
            assert found.keys() <= self.promised.keys(), "something is served that was never stored"
            self.note_locked()
            for key, version_id in self.locked:
                assert self.bucket.head(key, version_id).lock is not None

    def _fetch(self) -> dict[str, bytes | AzekuraError]:
        box = self.box
        recaller = Recaller(
            FileSystem(), self.clock, box.layout, self.bucket, box.index, FullSpace()
        )
        kept, box.retrieval = box.retrieval, Retrieval(self.clock, box.layout, box.index, recaller)
        box.retrieval._hydrate_rest = lambda _studies: None
        try:
            return box.fetch()
        finally:
            box.retrieval.close()
            box.retrieval = kept

    def settle(self) -> None:
        """Let the bucket answer, die no more, finish all work; then nothing may be left open."""
        self.steps.arm(0)
        self.armed = []
        self.bucket._faults.clear()
        self.bucket.offline = self.bucket.missing = False
        self.bucket.carries_lock = True
        for _ in range(3):
            self.drain()
        self._observe_hidden()
        self.look()
        box = self.box
        pending = [each for each in self.packs() if box.pack(each).cloud is None]
        assert pending == [], "something is pending still"
        assert os.listdir(box.layout.spool) == []
        assert os.listdir(box.layout.recalled) == []
        assert box.requests.pending() == []
        assert packs_in(box.layout.closed) == []
        self._check_bucket()

    def _observe_hidden(self) -> None:
        """A request that died before it was written may hold or not; from now on it is known."""
        served = {each.sop_instance_uid for each in self.box.served()}
        for uid, hidden in self.hidden.items():
            if len(hidden) > 1:
                self.hidden[uid] = {uid not in served}

    def _check_bucket(self) -> None:
        """Bucket and recovery key alone have all that was promised, once, in a whole chain."""
        box, previous = self.box, FIRST_PREVIOUS
        signer = box.ledger()._signing_key.public_text
        found = entries(self.bucket, box.recovery)
        for sequence, entry in enumerate(found, 1):
            check_link(entry, NODE, sequence, previous, {signer})
            previous = entry.header_sha256
        records = [each for entry in found for each in entry.records if type(each) is PackRecord]
        named = [each.pack_id for each in records]
        assert sorted(named) == self.packs(), "ledger and index name other packs, or one twice"
        there = set()
        for record in records:
            lock = self.bucket.head(record.key, record.version_id).lock
            assert lock is not None, "verified without its lock"
            assert to_microseconds(lock.until) >= record.locked_until_us
            sealed = self.bucket.get(record.key, record.version_id, 0, None, Lane.URGENT)
            path = self.folder / f"{record.pack_id}.tar"
            path.write_bytes(decrypt_bytes(sealed, box.recovery))
            with PackReader(str(path)) as reader:
                there |= {each.sha256 for each in reader.members() if reader.verify(each)}
            path.unlink()
        wanted = {each.sha256 for versions in self.promised.values() for each in versions}
        assert wanted <= there, "the bucket lacks what was promised"
        if not self.marked:
            twice = [key for key, versions in self.bucket._keys.items() if len(versions) > 1]
            assert twice == [], "an object has a second version"


def samples() -> list[Sample]:
    """Return the datasets that a life stores: two instances of each of three studies, versions."""
    return [
        sample(study, number, 600, version=version)
        for study in range(3)
        for number in range(2)
        for version in range(2)
    ]
