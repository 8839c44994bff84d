"""Where frames lie in pixel data, by every way that the standard has of saying so."""

import struct
import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.archive.extent import Extent
from appliance.archive.retrieval import Opened
from appliance.dicom.json_model import JsonReader
from appliance.foundation.errors import DatasetNotUnderstood, NotFound
from appliance.packs.frames import BulkElement
from appliance.pixels.layout import (
    PIXEL_DATA,
    PixelLayout,
    encapsulated_frames,
    joined,
    native_frame,
)
from appliance.web.frames import Image
from tests.support.dimse import EXPLICIT, small_ct

SYNTAXES = ("1.2.840.10008.1.2", EXPLICIT, "1.2.840.10008.1.2.2")


def item(content: bytes) -> bytes:
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(content)) + content


def encapsulated(table: list[int], fragments: list[bytes]) -> memoryview:
    raw = item(struct.pack(f"<{len(table)}I", *table)) + b"".join(map(item, fragments))
    return memoryview(raw + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0))


def laid_out(value: memoryview, frames: int, **changes) -> PixelLayout:
    element = BulkElement(PIXEL_DATA, "OB", 0, len(value))
    fields = {
        "element": element, "rows": 3, "columns": 5, "samples": 1, "bits_allocated": 8,
        "photometric": "MONOCHROME2", "frames": frames,
    } | changes  # fmt: skip
    return PixelLayout(**fields)


def frames_of(value: memoryview, frames: int) -> list[bytes]:
    return [joined(value, each) for each in encapsulated_frames(value, laid_out(value, frames))]


def test_frames_by_the_basic_offset_table() -> None:
    """A frame of two fragments and one of one."""
    value = encapsulated([0, 2 * 8 + 6], [b"aaaa", b"bb", b"cccc"])
    assert frames_of(value, 2) == [b"aaaabb", b"cccc"]


def test_frames_without_a_table() -> None:
    """One frame of many fragments; a fragment each; by the marks that codestreams begin with."""
    assert frames_of(encapsulated([], [b"aa", b"bb"]), 1) == [b"aabb"]
    assert frames_of(encapsulated([], [b"aa", b"bb"]), 2) == [b"aa", b"bb"]
    marked = [b"\xff\xd8aa", b"bbbb", b"\xff\xd8cc"]
    assert frames_of(encapsulated([], marked), 2) == [marked[0] + marked[1], marked[2]]
    for fragments in ([b"aa", b"bb", b"cc"], []):
        with pytest.raises(DatasetNotUnderstood):
            frames_of(encapsulated([], fragments), 2)


@given(st.binary(max_size=200), st.integers(1, 4))
def test_broken_fragments_never_give_more_than_there_is(raw: bytes, frames: int) -> None:
    """An error, or ranges inside of the value."""
    value = memoryview(raw)
    try:
        found = encapsulated_frames(value, laid_out(value, frames))
    except DatasetNotUnderstood:
        return
    assert all(o >= 0 and o + n <= len(raw) for frame in found for o, n in frame)


def test_native_frames_of_one_bit_a_pixel() -> None:
    """A frame that begins inside a byte comes out as one that begins with it."""
    bits = np.random.default_rng(1).integers(0, 2, (4, 15), dtype=np.uint8)
    value = memoryview(np.packbits(bits.ravel(), bitorder="little").tobytes())
    for index in range(4):
        frame = bytes(native_frame(value, laid_out(value, 4, bits_allocated=1), index)[:])
        unpacked = np.unpackbits(np.frombuffer(frame, np.uint8), bitorder="little")[:15]
        assert np.array_equal(unpacked, bits[index])
    for index in (-1, 4):
        with pytest.raises(NotFound):
            native_frame(value, laid_out(value, 4, bits_allocated=1), index)


def test_a_frame_of_a_large_instance_is_read_alone() -> None:
    """Of an instance that is not held, only its header and the frame are read."""
    dataset, raw = small_ct(NumberOfFrames=400, PixelData=b"".join(
        bytes([number % 256]) * 32768 for number in range(400)
    ))  # fmt: skip
    read: list[int] = []

    def reading(offset: int, length: int) -> bytes:
        read.append(length)
        return raw[offset : offset + length]

    instance = types.SimpleNamespace(transfer_syntax_uid=EXPLICIT, pack_id="p")
    image = Image(instance, Opened(Extent(reading, 0, len(raw))))
    assert bytes(image.stored(399)[:]) == bytes([399 % 256]) * 32768
    assert sum(read) < 3 * 2**20
    assert int(dataset.NumberOfFrames) == image.layout.frames == 400


@given(st.binary(max_size=300), st.sampled_from(SYNTAXES))
def test_metadata_of_anything_is_json(raw: bytes, syntax: str) -> None:
    """Whatever the bytes, there is an object, and nothing is raised."""
    found = JsonReader(raw, syntax, lambda path: path).read()
    assert all(len(key) == 8 and element["vr"] for key, element in found.items())
