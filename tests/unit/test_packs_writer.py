"""Appending: what tar sees, when it is durable, and what a full or broken disk leaves."""

import hashlib
import os
import shutil
import subprocess
import tarfile
import threading
from pathlib import Path

import pytest

from appliance.foundation.errors import LimitExceeded, OutOfSpace, StorageFailed
from appliance.foundation.files import FileSystem
from appliance.packs import writer as writer_module
from appliance.packs.durable import durable_path, read_durable_length
from appliance.packs.header import encode_head
from appliance.packs.member import Provenance, member_name
from appliance.packs.reader import PackReader
from appliance.packs.writer import PackWriter, StreamedMember
from tests.support import pack_samples as samples


@pytest.fixture
def path(tmp_path: Path) -> str:
    return samples.pack_path(tmp_path)


@pytest.mark.parametrize("tar", ["tar", "bsdtar"])
def test_tar_extracts_a_pack_without_a_word(tmp_path, tar):
    """The archive is recovered by age and tar alone, with GNU tar and libarchive alike."""
    if shutil.which(tar) is None:
        pytest.skip(f"{tar} is not installed")
    path = samples.closed_pack(tmp_path, 3)
    target = tmp_path / "extracted"
    target.mkdir()
    done = subprocess.run(
        [tar, "-xf", path, "-C", target], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    for number in range(3):
        uid = f"{samples.SERIES}.{number}"
        extracted = target / samples.SERIES / f"{uid}.dcm"
        assert extracted.read_bytes() == samples.file_meta(uid) + samples.dataset(number)
        assert extracted.stat().st_mtime == 1_732_400_000


def test_python_tarfile_reads_the_longest_names_and_the_comment(path):
    """Both UIDs at their 64 characters fit the ustar fields, with no second record."""
    series, instance = "1." + "2" * 62, "1." + "3" * 62
    writer = PackWriter(FileSystem(), path, samples.STUDY)
    name = member_name(series, instance, "0a1b2c3d")
    writer.append(name, samples.provenance(), samples.EXPLICIT, b"", b"x", bytes(32))
    writer.close()
    with tarfile.open(path) as tar:
        (info,) = tar.getmembers()
    assert info.name == name
    assert (info.mode, info.uid, info.gid, info.uname, info.gname) == (0o640, 0, 0, "", "")
    assert list(info.pax_headers) == ["comment"]


def test_append_gives_the_member_that_the_reader_finds(path):
    """Writer and reader agree on every field, odd texts and odd lengths included."""
    writer = PackWriter(FileSystem(), path, samples.STUDY)
    sender = Provenance(1, 'A"\\', "日本", "::1", "CN=x\n" * 100)
    given = []
    for length in (0, 1, 511, 512, 513, 100_000):
        content = os.urandom(length)
        name = member_name("1.2", f"1.2.{length}")
        meta = samples.file_meta(f"1.2.{length}")
        digest = hashlib.sha256(content).digest()
        member = writer.append(name, sender, samples.EXPLICIT, meta, memoryview(content), digest)
        given.append((member, content))
    writer.close()
    with PackReader(path) as reader:
        assert list(reader.members()) == [member for member, _ in given]
        for member, content in given:
            assert reader.dataset(member) == content
            assert reader.read_dataset(member) == content
            assert reader.verify(member)
    assert os.path.getsize(path) == given[-1][0].member_end


@pytest.mark.parametrize("text", ["C" * 100_000, "\x01" * 100_000, "\udcff" * 50])
def test_append_cuts_texts_that_would_outgrow_the_headers(path, text):
    """No certificate subject makes a member that the reader then refuses."""
    writer = PackWriter(FileSystem(), path, samples.STUDY)
    texts = [text] * (len(Provenance.__struct_fields__) - 1)
    sender = Provenance(0, *texts)
    writer.append("1.2/1.3.dcm", sender, samples.EXPLICIT, b"", b"x", bytes(32))
    writer.close()
    with PackReader(path) as reader:
        assert len(list(reader.members())) == 1


def test_append_refuses_a_name_that_is_not_safe(path):
    """A name never comes from anywhere but `member_name`."""
    writer = PackWriter(FileSystem(), path, samples.STUDY)
    with pytest.raises(ValueError, match="no name of a member"):
        writer.append("../x.dcm", samples.provenance(), samples.EXPLICIT, b"", b"x", bytes(32))
    assert writer.size == 0


def test_append_refuses_a_member_too_many(path, monkeypatch):
    """A pack holds 4,096 instances at most."""
    monkeypatch.setattr(writer_module, "PACK_MEMBERS_MAX", 2)
    writer = PackWriter(FileSystem(), path, samples.STUDY)
    samples.append(writer, 0)
    samples.append(writer, 1)
    with pytest.raises(LimitExceeded):
        samples.append(writer, 2)
    assert writer.count == 2


def test_sync_flushes_the_file_and_once_its_directory_entry(path):
    """D1: Success is only said when file and name survive a power cut."""
    files = samples.FailingFiles()
    writer = PackWriter(files, path, samples.STUDY)
    samples.append(writer, 0)
    files.calls.clear()
    writer.sync()
    assert files.calls == ["fdatasync", "fsync_directory"]
    samples.append(writer, 1)
    files.calls.clear()
    writer.sync()
    writer.sync()
    assert files.calls == ["fdatasync"]


def test_sync_publishes_what_is_durable_and_append_does_not(path):
    """Another process may read exactly as far as a power cut would leave."""
    writer = PackWriter(FileSystem(), path, samples.STUDY)
    first = samples.append(writer, 0)
    assert read_durable_length(durable_path(path)) == 0
    writer.sync()
    assert read_durable_length(durable_path(path)) == first.member_end == writer.durable_size
    second = samples.append(writer, 1)
    assert read_durable_length(durable_path(path)) == first.member_end
    with PackReader(path) as reader:
        assert list(reader.members(limit=first.member_end)) == [first]
    writer.close()
    assert read_durable_length(durable_path(path)) == second.member_end


class SlowFlush(FileSystem):
    """A flush that waits until it is let go."""

    def __init__(self):
        self.entered = threading.Semaphore(0)
        self.go = threading.Semaphore(0)
        self.flushes = 0

    def fdatasync(self, fd):
        self.flushes += 1
        self.entered.release()
        assert self.go.acquire(timeout=30)
        super().fdatasync(fd)


def test_sync_lets_one_flush_serve_all_that_appended_before_it(path):
    """Group commit: who appends during a flush waits for the next one, and all share that."""
    files = SlowFlush()
    writer = PackWriter(files, path, samples.STUDY)
    samples.append(writer, 0)
    leader = threading.Thread(target=writer.sync)
    leader.start()
    assert files.entered.acquire(timeout=30)
    appended = threading.Barrier(9)

    def store(number: int) -> None:
        samples.append(writer, number)
        appended.wait(30)
        writer.sync()

    others = [threading.Thread(target=store, args=(number,)) for number in range(1, 9)]
    for thread in others:
        thread.start()
    appended.wait(30)
    assert writer.durable_size == 0
    files.go.release()
    leader.join(30)
    assert files.entered.acquire(timeout=30)
    files.go.release()
    for thread in others:
        thread.join(30)
    assert files.flushes == 2
    assert writer.durable_size == writer.size
    files.go.release()
    writer.close()


def test_close_waits_for_a_flush_that_is_under_way(path):
    """Nobody's flush loses its descriptor, and nobody is told of a length that was not flushed."""
    files = SlowFlush()
    writer = PackWriter(files, path, samples.STUDY)
    samples.append(writer, 0)
    syncing, closing = (threading.Thread(target=call) for call in (writer.sync, writer.close))
    syncing.start()
    assert files.entered.acquire(timeout=30)
    closing.start()
    assert not files.entered.acquire(timeout=0.2)
    files.go.release()
    syncing.join(30)
    assert files.entered.acquire(timeout=30)
    files.go.release()
    closing.join(30)
    assert writer.durable_size == writer.size == os.path.getsize(path)


def test_sync_that_fails_stops_everything_for_good(path):
    """D2: after a failed flush the kernel may have dropped the pages; nothing is tried again."""
    files = samples.FailingFiles(4, samples.broken_disk)
    writer = PackWriter(files, path, samples.STUDY)
    samples.append(writer, 0)
    with pytest.raises(StorageFailed):
        writer.sync()
    assert files.calls[3] == "fdatasync"
    for call in (writer.sync, writer.close, lambda: samples.append(writer, 1)):
        with pytest.raises(StorageFailed):
            call()
    assert len(files.calls) == 4
    assert read_durable_length(durable_path(path)) == 0


class SmallDisk(FileSystem):
    """Has room for so many bytes in the pack, reserved or written."""

    def __init__(self, room: int):
        self.room = room

    def preallocate(self, fd, offset, length, *, written=False):
        if offset + length > self.room:
            super().preallocate(fd, offset, self.room - offset)
            raise samples.full_disk("preallocate")
        super().preallocate(fd, offset, length)

    def pwritev(self, fd, buffers, offset):
        end = offset + sum(map(len, buffers))
        if end > self.room:
            whole = b"".join(buffers)
            super().pwritev(fd, [whole[: self.room - offset]], offset)
            raise samples.full_disk("write")
        return super().pwritev(fd, buffers, offset)


def test_append_fills_the_disk_to_its_last_member_and_goes_on_when_there_is_room(path):
    """D3: a full disk refuses one instance; what is stored stays, and the writer stays usable."""
    files = SmallDisk(101_000)
    writer = PackWriter(files, path, samples.STUDY)
    member = samples.append(writer, 0)
    count = files.room // member.member_end
    for number in range(1, count):
        samples.append(writer, number)
        assert os.path.getsize(path) == writer.size
    with pytest.raises(OutOfSpace):
        samples.append(writer, count)
    assert os.path.getsize(path) == writer.size
    small = samples.append(writer, count, b"small")
    files.room = 10**9
    big = samples.append(writer, count + 1, os.urandom(500_000))
    writer.sync()
    writer.close()
    with PackReader(path) as reader:
        found = list(reader.members())
        assert all(map(reader.verify, found))
    assert found[-2:] == [small, big]
    assert len(found) == count + 2


def test_append_works_where_space_cannot_be_reserved(path):
    """A file system without fallocate only costs speed."""

    class Unreserved(FileSystem):
        def preallocate(self, fd, offset, length, *, written=False):
            pass

    writer = PackWriter(Unreserved(), path, samples.STUDY)
    members = [samples.append(writer, number) for number in range(3)]
    writer.close()
    with PackReader(path) as reader:
        assert list(reader.members()) == members


def test_close_cuts_the_reserved_space_and_is_idempotent(path):
    """A closed pack is exactly its members."""
    writer = PackWriter(FileSystem(), path, samples.STUDY)
    member = samples.append(writer, 0)
    assert os.path.getsize(path) > member.member_end
    writer.close()
    writer.close()
    assert os.path.getsize(path) == member.member_end
    with pytest.raises(ValueError, match="closed"):
        samples.append(writer, 1)


def test_a_pack_is_never_opened_for_appending_twice(path):
    """A recovered or closed pack is never appended to."""
    PackWriter(FileSystem(), path, samples.STUDY).close()
    with pytest.raises(StorageFailed):
        PackWriter(FileSystem(), path, samples.STUDY)


def test_a_pack_that_could_not_be_begun_leaves_no_file(path):
    """A full disk does not fill up with empty packs."""
    with pytest.raises(OutOfSpace):
        PackWriter(samples.FailingFiles(1, samples.full_disk), path, samples.STUDY)
    assert not os.path.exists(path)


def streamed(path: str, files: FileSystem | None = None) -> StreamedMember:
    member = StreamedMember(files or FileSystem(), path)
    member.begin(samples.file_meta("1.2.3"))
    return member


def finish(stream: StreamedMember):
    return stream.finish(
        "1.2/1.2.3.dcm", samples.provenance(), samples.EXPLICIT, samples.CT_STORAGE
    )


def test_streamed_member_is_read_like_any_other(path):
    """An instance larger than memory becomes an ordinary pack of one."""
    pieces = [os.urandom(length) for length in (1, 700_000, 4095)]
    stream = streamed(path)
    for piece in pieces:
        stream.write(memoryview(piece))
    assert stream.dataset() == b"".join(pieces)
    member = finish(stream)
    assert member.sha256 == hashlib.sha256(b"".join(pieces)).digest()
    with PackReader(path) as reader:
        assert list(reader.members()) == [member]
        assert reader.read_dataset(member) == b"".join(pieces)
    stream.abort()
    assert os.path.getsize(path) == member.member_end
    with tarfile.open(path) as tar:
        assert tar.getnames() == ["1.2/1.2.3.dcm"]


@pytest.mark.parametrize("text", ["\x01" * 9000, "C" * 9000])
def test_streamed_member_has_room_for_the_longest_texts(path, text):
    """The header space is reserved before the last word of the provenance is known."""
    stream = streamed(path)
    stream.write(b"x" * 100)
    texts = [text] * (len(Provenance.__struct_fields__) - 1)
    sender = Provenance(2**50, *texts)
    stream.finish("1.2/1.2.3.dcm", sender, text, samples.CT_STORAGE)
    with PackReader(path) as reader:
        assert len(list(reader.members())) == 1


def test_streamed_member_that_is_not_finished_is_none(path):
    """Half an instance is never visible."""
    stream = streamed(path)
    stream.write(os.urandom(100_000))
    with PackReader(path) as reader:
        assert list(reader.members()) == []
    assert not os.path.exists(durable_path(path))
    stream.abort()
    stream.abort()
    assert not os.path.exists(path)


def test_streamed_member_flushes_as_it_comes(path, monkeypatch):
    """The sender of 2 GB does not wait for 2 GB to be flushed at the end."""
    monkeypatch.setattr(writer_module, "FLUSH_EVERY_BYTES", 100_000)
    files = samples.FailingFiles()
    stream = streamed(path, files)
    for _ in range(10):
        stream.write(bytes(50_000))
    assert files.calls.count("fdatasync") == 5
    finish(stream)
    assert files.calls[-1] == "fdatasync"


def test_a_member_beyond_8_gib_carries_its_size_in_a_pax_record(path):
    """The ustar field ends at 8 GiB; tar and reader take the size from the pax header."""
    length = 9 * 2**30
    head = encode_head(
        samples.PACK_ID, "1.2/1.2.3.dcm", samples.provenance(), samples.EXPLICIT, b"", length,
        bytes(32), writer_module.STREAMED_PAX_BYTES,
    )  # fmt: skip
    with open(path, "wb") as file:
        file.write(head)
        file.truncate(len(head) + length)
    with PackReader(path) as reader:
        (member,) = reader.members()
    assert member.length == length
    listed = subprocess.run(["tar", "-tvf", path], capture_output=True, text=True, check=True)
    assert str(length) in listed.stdout
    assert listed.stderr == ""
