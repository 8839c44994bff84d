"""Sealing: what `headers.gz` holds, and what is refused."""

import gzip
import hashlib
import os
import subprocess
import tracemalloc
from pathlib import Path

import pytest

from appliance.foundation.errors import Damaged, OutOfSpace, UnsupportedFormat
from appliance.foundation.files import FileSystem
from appliance.packs import sealing
from appliance.packs.frames import iter_headers, read_headers, stream_head
from appliance.packs.member import HEADERS_NAME
from appliance.packs.reader import PackReader
from appliance.packs.recovery import recover
from appliance.packs.sealing import seal
from appliance.packs.writer import PackWriter, StreamedMember
from tests.support import pack_samples as samples


def headers_of(path: str, info: sealing.SealedInfo):
    with PackReader(path) as reader:
        return read_headers(reader.read_range(info.headers_offset, info.headers_length))


def test_seal_keeps_every_dataset_without_its_bulk(tmp_path):
    """The metadata of an evicted study is one ranged GET a pack, byte for byte as it came."""
    writer = PackWriter(FileSystem(), samples.pack_path(tmp_path), samples.STUDY)
    long_value = samples.element(0x00091010, "OB", bytes(70_000))
    contents = [samples.dataset(0), long_value + samples.dataset(1, 300_000)]
    members = [samples.append(writer, n, content) for n, content in enumerate(contents)]
    writer.close()
    info = seal(FileSystem(), writer.path)
    assert info.members == members
    headers = headers_of(writer.path, info)
    assert [header.name for header in headers] == [member.name for member in members]
    assert headers[0].dataset == contents[0][: -12 - 2000]
    assert headers[1].dataset == contents[1][len(long_value) : -12 - 300_000]
    assert [element.tag for element in headers[1].bulk] == [0x00091010, 0x7FE00010]
    for header, content in zip(headers, contents, strict=True):
        pixels = header.bulk[-1]
        value = content[pixels.value_offset : pixels.value_offset + pixels.value_length]
        assert content.endswith(value)
        assert len(value) == pixels.value_length


def test_a_sealed_pack_is_a_whole_tar(tmp_path):
    """tar and gzip open everything, and the file ends with the tar's end."""
    path = samples.closed_pack(tmp_path, 2)
    before = Path(path).read_bytes()
    info = seal(FileSystem(), path)
    assert os.path.getsize(path) == info.size
    assert Path(path).read_bytes()[: len(before)] == before
    done = subprocess.run(
        ["tar", "-xf", path, "-C", tmp_path], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    frames = gzip.decompress((tmp_path / HEADERS_NAME).read_bytes())
    assert frames.startswith(stream_head(samples.PACK_ID, 2))
    with PackReader(path) as reader:
        assert list(reader.members()) == info.members
        assert [found.name for found in reader.walk()][-1] == HEADERS_NAME


def test_seal_again_changes_nothing(tmp_path):
    """A daemon that died behind its last write finds its work done."""
    path = samples.closed_pack(tmp_path, 3)
    info = seal(FileSystem(), path)
    before = Path(path).read_bytes()
    assert seal(FileSystem(), path) == info
    assert Path(path).read_bytes() == before


def test_seal_gives_a_dataset_that_does_not_parse_a_frame(tmp_path):
    """What was received is sent to the bucket, whatever it is."""
    writer = PackWriter(FileSystem(), samples.pack_path(tmp_path), samples.STUDY)
    noise = b"\xff" * 100_000
    samples.append(writer, 0, noise)
    samples.append(writer, 1)
    writer.close()
    bad, good = headers_of(writer.path, seal(FileSystem(), writer.path))
    assert len(bad.dataset) < 70_000
    assert good.dataset
    assert good.note == ""


def test_seal_notes_a_dataset_whose_rest_is_too_large(tmp_path, monkeypatch):
    """Memory has a bound that no dataset moves."""
    monkeypatch.setattr(sealing, "REST_MAX_BYTES", 50)
    path = samples.closed_pack(tmp_path, 1)
    (header,) = headers_of(path, seal(FileSystem(), path))
    assert (header.dataset, header.bulk, header.note) == (b"", [], "OverflowError")


def test_seal_maps_a_large_instance_and_does_not_read_it(tmp_path):
    """An instance of hundreds of megabytes costs the memory of its header."""
    stream = StreamedMember(FileSystem(), samples.pack_path(tmp_path))
    stream.begin(samples.file_meta("1.2.3"))
    head = samples.dataset(0, 0)[:-12]
    length = 200 << 20
    pixels = samples.element(0x7FE00010, "OW", b"")[:-4] + length.to_bytes(4, "little")
    stream.write(head + pixels)
    for _ in range(200):
        stream.write(bytes(1 << 20))
    stream.finish("1.2/1.2.3.dcm", samples.provenance(), samples.EXPLICIT, samples.CT_STORAGE)
    tracemalloc.start()
    info = seal(FileSystem(), stream.path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20
    (header,) = headers_of(stream.path, info)
    assert header.dataset == head
    assert header.bulk[0].value_length == length


@pytest.mark.parametrize("part", ["header_offset", "file_offset"])
def test_seal_refuses_a_damaged_header_and_cuts_nothing(tmp_path, part):
    """Damage is not taken for a sealing that a crash cut short; recovery then repairs it."""
    path = samples.closed_pack(tmp_path, 3)
    with PackReader(path) as reader:
        _, bad, _ = reader.members()
    with open(path, "r+b") as file:
        file.seek(getattr(bad, part))
        file.write(bytes(512) if part == "header_offset" else b"?")
    before = Path(path).read_bytes()
    with pytest.raises(Damaged):
        seal(FileSystem(), path)
    assert Path(path).read_bytes() == before
    recover(FileSystem(), path, str(tmp_path / "set-aside"))
    assert len(seal(FileSystem(), path).members) == 2


def test_seal_on_a_full_disk_leaves_the_pack_as_it_was(tmp_path):
    """The pack stays closed, and is sealed when there is room."""
    path = samples.closed_pack(tmp_path, 3)
    before = Path(path).read_bytes()
    for at in (1, 3, 4, 5):
        with pytest.raises(OutOfSpace):
            seal(samples.FailingFiles(at, samples.full_disk), path)
        assert Path(path).read_bytes() == before
    assert len(seal(FileSystem(), path).members) == 3


def test_seal_refuses_an_empty_pack(tmp_path):
    """A pack without an instance never reaches the bucket."""
    Path(samples.pack_path(tmp_path)).touch()
    with pytest.raises(Damaged):
        seal(FileSystem(), samples.pack_path(tmp_path))


def packed_headers(tmp_path) -> bytes:
    path = samples.closed_pack(tmp_path, 3)
    info = seal(FileSystem(), path)
    with PackReader(path) as reader:
        return reader.read_range(info.headers_offset, info.headers_length)


def test_read_headers_takes_pieces_of_any_size(tmp_path):
    """The bytes come from ranged GETs."""
    packed = packed_headers(tmp_path)
    pieces = [packed[at : at + 7] for at in range(0, len(packed), 7)]
    assert list(iter_headers(pieces)) == read_headers(packed)


def test_read_headers_refuses_a_cut_stream(tmp_path):
    """Half the headers are never taken for all of them."""
    packed = packed_headers(tmp_path)
    for length in range(0, len(packed), 11):
        with pytest.raises(Damaged):
            read_headers(packed[:length])


def test_read_headers_refuses_other_formats():
    """A later format version is refused by name; noise is damage."""
    head = stream_head("p", 0)
    assert read_headers(gzip.compress(head)) == []
    with pytest.raises(UnsupportedFormat):
        read_headers(gzip.compress(head.replace(b'headers":1', b'headers":2')))
    for noise in (b"noise", gzip.compress(b"\xff" * 100), gzip.compress(head + b"x")):
        with pytest.raises(Damaged):
            read_headers(noise)


def test_sealing_is_repeatable(tmp_path):
    """The same members make the same bytes: nothing of the clock or the process is in them."""
    digests = set()
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        path = samples.closed_pack(tmp_path / folder, 3)
        seal(FileSystem(), path)
        digests.add(hashlib.sha256(Path(path).read_bytes()).digest())
    assert len(digests) == 1
