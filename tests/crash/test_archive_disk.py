"""The disk is full, or fails, at the N-th file operation of an instance's whole way, for all N.

Received, streamed, indexed, sealed, spooled, uploaded, named in the ledger, evicted, recalled, and
the index made anew. A full disk (D3) is waited out by the same processes; a failed one (D2) ends
them, and they are started again. Then the promises are looked at as after a crash.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.archive.rebuild import rebuild
from appliance.archive.requests import Request
from appliance.foundation.errors import AzekuraError, OutOfSpace, StorageFailed
from appliance.foundation.files import FileSystem
from appliance.remote.link import Backoff
from tests.support.archive_box import EXPLICIT, NODE, SENDER, Box, create_keys, restarted
from tests.support.crash_runner import SAMPLES, check
from tests.support.fake_store import FakeStore
from tests.support.manual_clock import ManualClock
from tests.support.memory_folder import memory_path  # noqa: F401
from tests.support.pack_samples import CT_STORAGE, FailingFiles, broken_disk, full_disk

OPERATIONS_LEAST = 100
TRIES_MAX = 3


class FailingDisk(FailingFiles):
    """Fails at the N-th operation of any kind that can fail so, on any thread; once."""

    def __init__(self, at: int, fail: Callable[[str], AzekuraError]) -> None:
        super().__init__(at, fail)
        self._is_full = fail is full_disk

    def open(self, path, flags, mode=0o660):
        if flags & (os.O_WRONLY | os.O_RDWR):
            self._step("open")
        return super().open(path, flags, mode)

    def truncate(self, fd, length):
        if self._is_full:  # cutting needs no room
            FileSystem.truncate(self, fd, length)
        else:
            super().truncate(fd, length)

    def fdatasync(self, fd):
        if self._is_full:  # a flush that finds no room has failed (D2)
            FileSystem.fdatasync(self, fd)
        else:
            super().fdatasync(fd)

    def fsync_directory(self, path):
        if self._is_full:
            FileSystem.fsync_directory(self, path)
        else:
            super().fsync_directory(path)

    def rename(self, source, target):
        self._step("rename")
        super().rename(source, target)

    def unlink(self, path):
        self._step("unlink")
        super().unlink(path)

    def write_volatile(self, path, content):
        self._step("write_volatile")
        super().write_volatile(path, content)


class Way:
    """The deeds of the daemons, one after another, over one box or those that follow it."""

    def __init__(self, folder: Path, files: FileSystem) -> None:
        self.promised: set[str] = set()
        clock = ManualClock()
        self.box = Box(folder, FakeStore(clock), files=files, clock=clock)
        self.restarts = 0

    def go(self) -> None:
        for deed in self._deeds():
            for _ in range(TRIES_MAX):
                try:
                    deed()
                except OutOfSpace:
                    continue  # there is room again
                except StorageFailed:
                    self.restarts += 1
                    self.box = restarted(self.box)
                    self.box.ingest  # noqa: B018 - the start recovers
                    continue
                break
            else:
                raise AssertionError("it fails again and again")

    def _deeds(self) -> list[Callable[[], object]]:
        deeds: list[Callable[[], object]] = [
            lambda each=each: self._store(each) for each in SAMPLES[:3]
        ]
        deeds += [lambda: self.box.indexer().run_once()]
        deeds += [lambda each=each: self._store(each) for each in SAMPLES[3:5]]
        deeds += [
            self._stream,
            self._close,
            self._upload,
            lambda: self.box.evictor.evict_pack(self.box.pack_ids()[0]),
            self._recall,
            self._ask,
            lambda: self.box.control().run_once(),
            self._rebuild,
        ]
        return deeds

    def _store(self, each) -> None:
        self.box.store_sample(each)
        self.promised.add(each.sop_instance_uid)

    def _stream(self) -> None:
        each = SAMPLES[5]
        stream = self.box.ingest.open_stream(SENDER, CT_STORAGE, each.sop_instance_uid, EXPLICIT)
        try:
            for start in range(0, len(each.dataset), 20_000):
                stream.write(memoryview(each.dataset)[start : start + 20_000])
        except BaseException:
            stream.abort()
            raise
        stream.finish()
        self.promised.add(each.sop_instance_uid)

    def _close(self) -> None:
        self.box.close_packs()
        self.box.indexer().catch_up()

    def _upload(self) -> None:
        uplink = self.box.uplink
        for _ in range(TRIES_MAX):
            uplink._seal_closed()
            uplink._find_pending()
            while uplink._waiting:
                uplink._upload_one(*uplink._take(), Backoff())
                uplink._find_pending()
            self.box.write_ledger()

    def _recall(self) -> None:
        away = [each for each in self.box.pack_ids() if not self.box.pack(each).local]
        for pack_id in away:
            cloud = self.box.pack(pack_id).cloud
            assert cloud is not None, "evicted, and in no bucket"
            self.box.recaller.recall(pack_id, cloud)

    def _ask(self) -> None:
        self.box.requests.put(Request(kind="evict", study_instance_uid=SAMPLES[1].study))

    def _rebuild(self) -> None:
        box = self.box
        rebuild(box.layout, box.index, NODE, box.identities, box.store, lambda _: None)


def _count(folder: Path, keys: Path, fail) -> int:
    shutil.copytree(keys, folder)
    files = FailingDisk(0, fail)
    way = Way(folder, files)
    files.count = 0
    way.go()
    way.box.close()
    return files.count


def _run(folder: Path, fail, stride: int, capsys) -> None:
    keys = folder / "keys"
    keys.mkdir()
    create_keys(keys)
    total = _count(folder / "count", keys, fail)
    assert total > OPERATIONS_LEAST
    for at in range(1, total + 1, stride):
        place = folder / str(at)
        shutil.copytree(keys, place)
        files = FailingDisk(0, fail)
        way = Way(place, files)
        files.count, files._at = 0, at
        way.go()
        assert files.count >= at
        assert way.restarts == 0 or fail is broken_disk
        files._at = 0
        box = restarted(way.box)
        assert check(box, way.promised) == [], f"operation {at}: {files.calls[-1]}"
        box.close()
        shutil.rmtree(place)
    with capsys.disabled():
        print(f"\n{fail.__name__}: {-(-total // stride)} of {total} operations failed in turn")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("fail", [full_disk, broken_disk])
def test_a_disk_that_fails_at_some_operations_loses_nothing(
    memory_path: Path, fail, capsys
) -> None:
    """Every nineteenth operation; all of them in `make soak`."""
    _run(memory_path, fail, 19, capsys)


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("fail", [full_disk, broken_disk])
def test_a_disk_that_fails_at_any_operation_loses_nothing(memory_path: Path, fail, capsys) -> None:
    """Every single one."""
    _run(memory_path, fail, 1, capsys)
