"""Reading a pack that grows, is cut, or is not what it should be."""

import os

import pytest

from appliance.foundation.errors import Damaged, UnsupportedFormat
from appliance.foundation.files import FileSystem
from appliance.packs.member import BLOCK_BYTES
from appliance.packs.reader import PackReader
from appliance.packs.writer import PackWriter
from tests.support import pack_samples as samples


def test_members_follow_a_growing_pack(tmp_path):
    """The indexer reads on from where it stopped, through one open reader."""
    writer = PackWriter(FileSystem(), samples.pack_path(tmp_path), samples.STUDY)
    first = samples.append(writer, 0)
    with PackReader(writer.path) as reader:
        assert list(reader.members()) == [first]
        view = reader.dataset(first)
        grown = [samples.append(writer, number, os.urandom(600_000)) for number in range(1, 6)]
        assert list(reader.members(first.member_end)) == grown
        assert all(reader.dataset(member).nbytes == 600_000 for member in grown)
        writer.close()
        assert list(reader.members()) == [first, *grown]
        assert view == samples.dataset(0)
    assert view == samples.dataset(0)


@pytest.mark.parametrize("short", [1, 100, 1500, 3000])
def test_a_file_that_was_cut_is_damaged_and_not_a_fault(tmp_path, short):
    """A cut file gives an error where a map would kill the process."""
    path = samples.closed_pack(tmp_path, 1)
    with PackReader(path) as reader:
        (member,) = reader.members()
        os.truncate(path, member.dataset_end - short)
        with pytest.raises(Damaged):
            reader.dataset(member)
        with pytest.raises(Damaged):
            reader.read_dataset(member)
        assert not reader.verify(member)


def test_members_refuse_what_is_not_ours(tmp_path):
    """A foreign tar, or noise, is damage and never a member."""
    path = tmp_path / "foreign.tar"
    path.write_bytes(os.urandom(5000))
    with PackReader(str(path)) as reader, pytest.raises(Damaged):
        list(reader.members())


def test_members_refuse_another_format_version(tmp_path):
    """A pack of a later release is refused by name, not taken for damage."""
    path = samples.closed_pack(tmp_path, 1)
    with open(path, "r+b") as file:
        content = file.read().replace(b'{"azekura":1,', b'{"azekura":2,')
        file.seek(0)
        file.write(content)
    with PackReader(path) as reader, pytest.raises(UnsupportedFormat):
        list(reader.members())


def test_every_bit_of_a_header_is_covered_by_the_check(tmp_path):
    """No changed header byte gives a member, whether tar's own checksum sees it or not."""
    path = samples.closed_pack(tmp_path, 1)
    with open(path, "rb") as file:
        whole = bytearray(file.read())
    with PackReader(path) as reader:
        (member,) = reader.members()
    for at in range(member.dataset_offset):
        changed = bytearray(whole)
        changed[at] ^= 1 << (at % 8)
        with open(path, "wb") as file:
            file.write(changed)
        with PackReader(path) as reader, pytest.raises((Damaged, UnsupportedFormat)):
            list(reader.members())


def test_verify_sees_one_flipped_bit_of_a_dataset(tmp_path):
    """Silent rot is found by scrub."""
    path = samples.closed_pack(tmp_path, 2)
    with PackReader(path) as reader:
        first, second = reader.members()
        with open(path, "r+b") as file:
            file.seek(first.dataset_offset + 700)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 4]))
        assert not reader.verify(first)
        assert reader.verify(second)
        assert list(reader.members()) == [first, second]


def test_members_end_at_a_zero_block(tmp_path):
    """The reserved space of an open pack holds no member."""
    path = samples.closed_pack(tmp_path, 1)
    os.truncate(path, os.path.getsize(path) + 20 * BLOCK_BYTES)
    with PackReader(path) as reader:
        assert len(list(reader.members())) == 1


def test_members_stop_in_front_of_what_reaches_beyond_the_limit(tmp_path):
    """A member that is durable only in part is not read, whatever else of it is there."""
    path = samples.closed_pack(tmp_path, 2)
    with PackReader(path) as reader:
        first, second = reader.members()
        assert list(reader.members(limit=second.member_end - 1)) == [first]
        assert list(reader.members(limit=second.member_end)) == [first, second]


def test_member_at_gives_one_member_or_says_there_is_none(tmp_path):
    """An offset from the index is checked, not trusted."""
    path = samples.closed_pack(tmp_path, 2)
    with PackReader(path) as reader:
        _, second = reader.members()
        assert reader.member_at(second.header_offset) == second
        for offset in (512, second.member_end):
            with pytest.raises(Damaged):
                reader.member_at(offset)
