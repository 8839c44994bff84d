"""What recovery keeps, what it cuts, and that tar reads the pack afterwards."""

import os
import subprocess
from pathlib import Path

import pytest

from appliance.foundation.errors import UnsupportedFormat
from appliance.foundation.files import FileSystem
from appliance.packs.member import BLOCK_BYTES, Member
from appliance.packs.reader import PackReader
from appliance.packs.recovery import recover
from appliance.packs.writer import PackWriter, StreamedMember
from tests.support import pack_samples as samples


def damage(path: str, offset: int, content: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(content)


def members_of(path: str) -> list[Member]:
    with PackReader(path) as reader:
        return list(reader.members())


def tar_lists(path: str) -> list[str]:
    done = subprocess.run(["tar", "-tf", path], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.fixture
def aside(tmp_path: Path) -> str:
    return str(tmp_path / "set-aside")


def test_recover_keeps_a_pack_that_was_left_open(tmp_path, aside):
    """After SIGKILL only the reserved space goes; nothing is set aside for it."""
    writer = PackWriter(FileSystem(), samples.pack_path(tmp_path), samples.STUDY)
    members = [samples.append(writer, number) for number in range(3)]
    recovered = recover(FileSystem(), writer.path, aside)
    assert recovered.members == members
    assert (recovered.lost, recovered.set_aside) == ([], [])
    assert os.path.getsize(writer.path) == recovered.size == members[-1].member_end
    assert not os.path.exists(aside)


def test_recover_cuts_a_torn_tail_and_sets_it_aside(tmp_path, aside):
    """Fault 1: the torn tail goes, its bytes are kept, and what was whole stays."""
    path = samples.closed_pack(tmp_path, 3)
    *kept, torn = members_of(path)
    os.truncate(path, torn.dataset_offset + 100)
    tail = Path(path).read_bytes()[torn.header_offset :]
    recovered = recover(FileSystem(), path, aside)
    assert recovered.members == kept
    assert recovered.lost == [torn]
    assert os.path.getsize(path) == torn.header_offset
    (copy,) = recovered.set_aside
    assert Path(copy).name == f"{samples.PACK_ID}.{torn.header_offset}.tail"
    assert Path(copy).read_bytes() == tail.rstrip(b"\0")


@pytest.mark.parametrize("part", ["header_offset", "file_offset", "dataset_offset"])
def test_recover_steps_over_a_damaged_member_and_leaves_a_tar(tmp_path, aside, part):
    """What is behind a damaged member is found, by recovery, by every reader, and by tar."""
    path = samples.closed_pack(tmp_path, 4)
    first, bad, third, fourth = members_of(path)
    damage(path, getattr(bad, part) + 3, b"\xff\xff")
    recovered = recover(FileSystem(), path, aside)
    assert recovered.members == [first, third, fourth] == members_of(path)
    assert recovered.lost == ([bad] if part == "dataset_offset" else [])
    assert tar_lists(path) == [
        first.name, f"damaged/{bad.header_offset}.bin", third.name, fourth.name,
    ]  # fmt: skip
    again = recover(FileSystem(), path, aside)
    assert again.members == recovered.members


def test_recover_steps_over_zero_blocks(tmp_path, aside):
    """A page that never reached the medium is zeros, and takes no other member with it."""
    path = samples.closed_pack(tmp_path, 3)
    first, bad, third = members_of(path)
    damage(path, bad.header_offset, bytes(bad.member_end - bad.header_offset))
    recovered = recover(FileSystem(), path, aside)
    assert recovered.members == [first, third] == members_of(path)
    assert recovered.set_aside == []
    assert tar_lists(path)[1] == f"damaged/{bad.header_offset}.bin"


def test_recover_keeps_the_block_that_its_own_header_replaces(tmp_path, aside):
    """Bytes that are no member are never destroyed."""
    path = samples.closed_pack(tmp_path, 3)
    _, bad, _ = members_of(path)
    damage(path, bad.dataset_offset, b"\xff")
    before = Path(path).read_bytes()
    (copy,) = recover(FileSystem(), path, aside).set_aside
    after = Path(path).read_bytes()
    start, end = bad.header_offset, bad.header_offset + BLOCK_BYTES
    assert Path(copy).read_bytes() == before[start:end]
    assert after[:start] == before[:start]
    assert after[end:] == before[end:]


def test_recover_sets_a_pack_without_a_member_aside_whole(tmp_path, aside):
    """An unfinished 2 GB instance is moved, not copied."""
    stream = StreamedMember(FileSystem(), samples.pack_path(tmp_path))
    stream.begin(samples.file_meta("1.2.3"))
    stream.write(b"x" * 100_000)
    recovered = recover(FileSystem(), stream.path, aside)
    assert recovered.members == []
    assert not os.path.exists(stream.path)
    (moved,) = recovered.set_aside
    assert Path(moved).read_bytes().endswith(b"x" * 100_000)


def test_recover_of_a_pack_without_a_byte_leaves_nothing(tmp_path, aside):
    """A writer that died before its first instance leaves an empty file to unlink."""
    path = samples.pack_path(tmp_path)
    Path(path).write_bytes(bytes(1 << 20))
    recovered = recover(FileSystem(), path, aside)
    assert (recovered.members, recovered.set_aside, recovered.size) == ([], [], 0)
    assert os.path.getsize(path) == 0


def test_recover_takes_no_member_from_inside_a_dataset(tmp_path, aside):
    """A sender who hides a member in a dataset gains nothing when the member around it tears."""
    forged_path = samples.closed_pack(tmp_path, 1)
    forged = Path(forged_path).read_bytes()
    path = samples.pack_path(tmp_path, "01jd2m6yt0v9rk3sa5xw7hq4zz")
    writer = PackWriter(FileSystem(), path, samples.STUDY)
    shift = -samples.append(writer, 0, b"").member_end % BLOCK_BYTES
    meta = len(samples.file_meta(f"{samples.SERIES}.1"))
    content = bytes((shift - meta) % BLOCK_BYTES) + forged
    outer = samples.append(writer, 1, content)
    last = samples.append(writer, 2)
    writer.close()
    inner = outer.dataset_offset + content.index(b"PaxHeaders/azekura")
    assert inner % BLOCK_BYTES == 0
    damage(path, outer.header_offset, b"?")
    assert [member.name for member in recover(FileSystem(), path, aside).members][1:] == [last.name]


def test_recover_refuses_another_format_version_and_changes_nothing(tmp_path, aside):
    """A release that was rolled back must not cut what a newer one wrote."""
    path = samples.closed_pack(tmp_path, 2)
    content = Path(path).read_bytes().replace(b'{"azekura":1,', b'{"azekura":2,')
    Path(path).write_bytes(content)
    with pytest.raises(UnsupportedFormat):
        recover(FileSystem(), path, aside)
    assert Path(path).read_bytes() == content


def test_recover_on_a_full_disk_cuts_nothing_and_still_ends(tmp_path, aside):
    """Without room for a copy the tail stays in the pack, as a plain file of the tar."""

    class Full(FileSystem):
        def pwritev(self, fd, buffers, offset):
            if "set-aside" in os.readlink(f"/proc/self/fd/{fd}"):
                raise samples.full_disk("write")
            return super().pwritev(fd, buffers, offset)

    path = samples.closed_pack(tmp_path, 2)
    kept, torn = members_of(path)
    damage(path, torn.dataset_offset, b"\xff")
    recovered = recover(Full(), path, aside)
    assert recovered.members == [kept] == members_of(path)
    assert tar_lists(path) == [kept.name, f"damaged/{torn.header_offset}.bin"]
    assert os.listdir(aside) == []
    assert recover(FileSystem(), path, aside).size == torn.header_offset
    assert len(os.listdir(aside)) == 1


def test_recover_goes_on_past_a_sector_that_cannot_be_read(tmp_path, aside, monkeypatch):
    """Fault 20: EIO costs the member that it hits, not the daemon's start."""
    path = samples.closed_pack(tmp_path, 3)
    first, bad, third = members_of(path)
    real_pread = os.pread

    def pread(fd, length, offset):
        if offset <= bad.dataset_offset < offset + length:
            raise OSError(5, "Input/output error")
        return real_pread(fd, length, offset)

    monkeypatch.setattr(os, "pread", pread)
    recovered = recover(FileSystem(), path, aside)
    monkeypatch.undo()
    assert recovered.members == [first, third]
