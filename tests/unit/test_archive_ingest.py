"""Receiving: what is kept, under which name, when nothing more is accepted, what a start finds."""

import os
import tarfile
import threading
from pathlib import Path

import pytest

from appliance.archive.abandoned import recover_abandoned
from appliance.archive.layout import packs_in
from appliance.archive.open_packs import OpenPacks
from appliance.config.model import Packs
from appliance.foundation.errors import (
    Busy,
    DatasetMismatch,
    OutOfSpace,
    StorageFailed,
)
from appliance.foundation.files import FileLock, FileSystem
from appliance.packs.member import PACK_MEMBERS_MAX
from appliance.packs.reader import PackReader
from tests.support.archive_box import SENDER, Box, restarted, sample
from tests.support.manual_clock import ManualClock
from tests.support.mending import flip_dataset
from tests.support.pack_samples import CT_STORAGE, EXPLICIT, FailingFiles, broken_disk, full_disk


def _open_paths(box: Box) -> list[str]:
    directory = box.layout.writer_directory("receive")
    return [os.path.join(directory, f"{each}.tar") for each in packs_in(directory)]


def _member_names(box: Box) -> list[str]:
    names = []
    for pack_id in packs_in(box.layout.closed):
        with tarfile.open(box.layout.closed_path(pack_id)) as tar:
            names += tar.getnames()
    return sorted(names)


def test_an_indexed_pending_copy_is_read_again_though_nothing_came_since(box: Box) -> None:
    """The last instance received is damaged and sent again: it is not taken for a duplicate."""
    each = sample(1, 1)
    box.store_sample(each)
    box.indexer().run_once()
    (pack_id,) = box.pack_ids()
    flip_dataset(box, pack_id, each)
    box.store_sample(each)
    box.indexer().run_once()
    with box.index.read() as view:
        assert view.pack(pack_id).instance_count == 2


def test_store_writes_the_bytes_as_they_came(box: Box) -> None:
    """The dataset in the pack is the one on the wire, and its digest is in the member."""
    each = sample(1, 1)
    box.store_sample(each)
    with PackReader(_open_paths(box)[0]) as reader:
        (member,) = reader.members()
        assert reader.read_dataset(member) == each.dataset
        assert member.sha256 == each.sha256
        assert member.provenance.calling_ae == "MODALITY1"


def test_store_returns_only_after_flush_of_file_and_directory(tmp_path: Path, box: Box) -> None:
    """When store returns, the pack and its directory entry were flushed behind the write."""
    files = FailingFiles()
    second = Box(tmp_path / "second", box.store, files=files)
    second.ingest  # noqa: B018 - opened before the calls count
    files.calls.clear()
    second.store_sample(sample(1, 1))
    assert files.calls.index("fdatasync") > files.calls.index("pwritev")
    assert files.calls[-2:] == ["fdatasync", "fsync_directory"]
    second.close()


def test_the_same_bytes_again_are_answered_and_not_stored(box: Box) -> None:
    """Before the index knows them as well as after; a resend costs no space."""
    box.store_sample(sample(1, 1))
    box.store_sample(sample(1, 1))
    box.indexer().run_once()
    box.store_sample(sample(1, 2))  # lets the writer forget what is indexed
    box.store_sample(sample(1, 1))
    assert box.ingest._recent.keys() == {sample(1, 2).sop_instance_uid}
    box.close_packs()
    assert len(_member_names(box)) == 2


def test_other_bytes_under_the_same_uid_are_a_further_version(box: Box) -> None:
    """Both are kept, under names of which `tar x` overwrites none."""
    box.store_sample(sample(1, 1))
    other = sample(1, 1, version=1)
    box.store_sample(other)
    box.close_packs()
    names = _member_names(box)
    assert len(set(names)) == 2
    assert any(f"~{other.sha256.hex()[:8]}.dcm" in name for name in names)


def test_versions_that_come_at_once_get_different_names(box: Box) -> None:
    """Two associations send different bytes under one UID in the same moment."""
    gate = threading.Barrier(8)
    samples = [sample(1, 1, version=number) for number in range(8)]

    def store(each) -> None:
        gate.wait()
        box.store_sample(each)

    threads = [threading.Thread(target=store, args=(each,)) for each in samples]
    box.ingest  # noqa: B018
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    box.close_packs()
    names = _member_names(box)
    assert len(names) == len(set(names)) == 8


def test_a_resend_replaces_an_only_copy_that_is_damaged(box: Box) -> None:
    """A pending copy counts as good only when its bytes still are: else the resend is stored."""
    each = sample(1, 1)
    box.store_sample(each)
    box.close_packs()
    box.indexer().catch_up()
    (pack_id,) = box.pack_ids()
    path = Path(box.layout.closed_path(pack_id))
    raw = bytearray(path.read_bytes())
    raw[raw.index(each.dataset[-100:])] ^= 1
    path.write_bytes(raw)
    again = restarted(box)
    again.store_sample(each)
    again.close_packs()
    assert len(packs_in(again.layout.closed)) == 2
    again.indexer().catch_up()
    assert again.fetch() == {each.sop_instance_uid: each.dataset}
    again.close()


def test_a_resend_is_stored_when_the_index_cannot_be_read(box: Box, monkeypatch) -> None:
    """The pack is the journal: a broken index keeps nothing from being received."""
    box.store_sample(sample(1, 1))

    def broken():
        raise OutOfSpace("read the index", "", "all reader slots are taken")

    monkeypatch.setattr(box.index, "read", broken)
    box.store_sample(sample(1, 2))
    monkeypatch.undo()
    box.close_packs()
    assert len(_member_names(box)) == 2


@pytest.mark.parametrize("sop_class", ["1.2.3", CT_STORAGE])
def test_command_and_dataset_must_agree(box: Box, sop_class: str) -> None:
    each = sample(1, 1)
    uid = each.sop_instance_uid if sop_class != CT_STORAGE else "1.2.3.4"
    with pytest.raises(DatasetMismatch):
        box.ingest.store(SENDER, sop_class, uid, EXPLICIT, memoryview(each.dataset), each.sha256)
    box.close_packs()
    assert _member_names(box) == []


@pytest.mark.parametrize("streamed", [False, True])
def test_after_a_failed_flush_nothing_is_accepted(tmp_path: Path, box: Box, streamed: bool) -> None:
    """EIO at any operation of a store: no Success, the daemon is told, every later store fails."""
    total = _count_operations(tmp_path / "count", box, streamed)
    assert total > 3
    for at in range(1, total + 1):
        files = FailingFiles(0, broken_disk)
        other = Box(tmp_path / f"{at}-{streamed}", box.store)
        other.files = files
        other.ingest  # noqa: B018 - its own preparations meet no fault
        files.count = 0
        files._at = at
        with pytest.raises(StorageFailed):
            _receive(other, streamed)
        assert len(other.fatal) == 1, files.calls
        with pytest.raises(StorageFailed):
            other.store_sample(sample(2, 2))
        other.close()


@pytest.mark.parametrize("streamed", [False, True])
def test_a_full_disk_at_any_operation_refuses_one_instance(
    tmp_path: Path, box: Box, streamed: bool
) -> None:
    """ENOSPC: OutOfSpace or Success, nothing else; what was answered Success is there."""
    total = _count_operations(tmp_path / "count", box, streamed)
    for at in range(1, total + 1):
        other = Box(tmp_path / f"{at}-{streamed}", box.store)
        files = other.files = _FullFiles(0)
        other.ingest  # noqa: B018
        files.count = 0
        files._at = at
        expected = {sample(3, 3).sop_instance_uid}
        try:
            _receive(other, streamed)
            expected.add(sample(1, 1).sop_instance_uid)
        except OutOfSpace:
            pass
        files._at = 0
        assert other.fatal == []
        other.store_sample(sample(3, 3))
        other.close_packs()
        other.indexer().catch_up()
        assert other.fetch().keys() == expected, files.calls
        other.close()


class _FullFiles(FailingFiles):
    """A disk that is full at the N-th write or reservation; a flush does not say so."""

    def __init__(self, at: int) -> None:
        super().__init__(at, full_disk)

    def truncate(self, fd, length):
        FileSystem.truncate(self, fd, length)

    def fdatasync(self, fd):
        FileSystem.fdatasync(self, fd)

    def fsync_directory(self, path):
        FileSystem.fsync_directory(self, path)


def _receive(target: Box, streamed: bool) -> None:
    each = sample(1, 1)
    if not streamed:
        target.store_sample(each)
        return
    stream = target.ingest.open_stream(SENDER, CT_STORAGE, each.sop_instance_uid, EXPLICIT)
    try:
        for start in range(0, len(each.dataset), 700):
            stream.write(memoryview(each.dataset)[start : start + 700])
    except BaseException:
        stream.abort()
        raise
    stream.finish()


def _count_operations(folder: Path, box: Box, streamed: bool) -> int:
    counting = Box(folder, box.store)
    files = counting.files = FailingFiles()
    counting.ingest  # noqa: B018
    files.count = 0
    _receive(counting, streamed)
    count = files.count
    counting.close()
    return count


def test_a_streamed_instance_is_alone_in_a_closed_pack(box: Box) -> None:
    _receive(box, streamed=True)
    assert _open_paths(box) == []
    box.indexer().catch_up()
    assert box.fetch() == {sample(1, 1).sop_instance_uid: sample(1, 1).dataset}


def test_a_streamed_resend_leaves_nothing(box: Box) -> None:
    _receive(box, streamed=True)
    _receive(box, streamed=True)
    assert len(packs_in(box.layout.closed)) == 1
    assert _open_paths(box) == []


def test_a_restart_finds_everything_that_was_answered(box: Box) -> None:
    """The owner died with its packs open: they are recovered, closed and never appended to."""
    stored = [sample(number % 3, number) for number in range(9)]
    for each in stored:
        box.store_sample(each)
    again = restarted(box)
    again.store_sample(sample(1, 100))
    assert len(packs_in(again.layout.closed)) == 3
    assert len(_open_paths(again)) == 1
    again.close_packs()
    again.indexer().catch_up()
    assert again.fetch() == {
        each.sop_instance_uid: each.dataset for each in [*stored, sample(1, 100)]
    }
    again.close()


def test_a_live_owners_packs_are_left_alone(box: Box) -> None:
    """Only whoever gets a dead owner's lock recovers its packs."""
    box.store_sample(sample(1, 1))
    assert recover_abandoned(FileSystem(), box.layout) == 0
    assert len(_open_paths(box)) == 1
    again = restarted(box)
    assert recover_abandoned(FileSystem(), again.layout) == 1
    again.close()


def test_a_start_waits_while_its_folder_is_recovered(tmp_path: Path, box: Box) -> None:
    """The uplink may hold the lock for a moment; a start must not fail for it."""
    directory = box.layout.writer_directory("receive")
    os.makedirs(directory)
    recovering = FileLock(os.path.join(directory, "lock"))
    recovering.acquire()
    timer = threading.Timer(0.3, recovering.release)
    timer.start()

    class Waiting(ManualClock):
        def wait(self, event, timeout_s):
            return event.wait(timeout_s)

    from appliance.archive.ingest import Ingest

    ingest = Ingest(
        box.files, Waiting(), box.layout, "receive", Packs(), box.index, box.space, print
    )
    timer.join()
    ingest._flock.release()


def test_a_stopped_writer_answers_busy(box: Box) -> None:
    """A thread that is late must not append to packs that somebody else may recover by now."""
    ingest = box.ingest
    box.close_packs()
    each = sample(1, 1)
    with pytest.raises(Busy):
        ingest.store(
            SENDER, CT_STORAGE, each.sop_instance_uid, EXPLICIT, memoryview(each.dataset),
            each.sha256,
        )  # fmt: skip


class TestOpenPacks:
    """When a pack closes."""

    def _packs(self, box: Box, clock: ManualClock, files: FileSystem | None = None, **limits):
        directory = box.layout.writer_directory("test")
        os.makedirs(directory, exist_ok=True)
        return OpenPacks(files or box.files, clock, box.layout, directory, Packs(**limits))

    def _append(self, packs: OpenPacks, each) -> None:
        from tests.support import pack_samples

        packs.append(
            each.study, f"{each.study}.1/{each.sop_instance_uid}.dcm", pack_samples.provenance(),
            EXPLICIT, pack_samples.file_meta(each.sop_instance_uid), memoryview(each.dataset),
            each.sha256,
        )  # fmt: skip

    def test_closes_a_quiet_one_and_an_old_one(self, box: Box) -> None:
        clock = ManualClock()
        packs = self._packs(box, clock, quiet="10 s", max_age="60 s")
        self._append(packs, sample(1, 1))
        clock.advance(9)
        assert packs.close_due() == 0
        clock.advance(1)
        assert packs.close_due() == 1
        for number in range(8):
            self._append(packs, sample(2, number))
            clock.advance(8)
        assert packs.close_due() == 1

    def test_an_old_one_in_steady_use_takes_no_more(self, box: Box) -> None:
        """Somebody is always inside it: it closes all the same, when the last one left."""
        clock = ManualClock()
        packs = self._packs(box, clock, max_age="60 s")
        used = packs._enter("1.2.3", 100)
        clock.advance(61)
        assert packs.close_due() == 0
        assert packs._enter("1.2.3", 100) is not used
        used.users -= 1
        assert packs.close_due() == 1

    def test_another_begins_at_the_size_and_at_the_count(self, box: Box) -> None:
        packs = self._packs(box, ManualClock(), target_size="64 KiB")
        for number in range(4):
            self._append(packs, sample(1, number, 30_000))
        assert packs.close_due() == 1
        packs._by_study[sample(1, 1).study].count = PACK_MEMBERS_MAX
        self._append(packs, sample(1, 50))
        assert packs.close_due() == 1
        packs.close_all()
        assert len(packs_in(box.layout.closed)) == 3

    def test_a_full_disk_while_closing_is_tried_again(self, box: Box) -> None:
        clock = ManualClock()

        class Files(FileSystem):
            full = True

            def rename(self, source, target):
                if self.full:
                    raise full_disk("rename")
                super().rename(source, target)

        files = Files()
        packs = self._packs(box, clock, files)
        self._append(packs, sample(1, 1))
        clock.advance(3600)
        with pytest.raises(OutOfSpace):
            packs.close_due()
        files.full = False
        assert packs.close_due() == 1
        assert len(packs_in(box.layout.closed)) == 1
