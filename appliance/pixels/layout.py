"""How the pixel data of a dataset is laid out, and where each of its frames lies.

Must not decode. Invariant: a frame is given only where the dataset has all of its bytes; the work
grows with the count of fragments, and never with their length.
"""

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

from appliance.archive.extent import Dataset, part_of
from appliance.dicom.uid import ENCAPSULATED_UNCOMPRESSED, is_uncompressed
from appliance.foundation.errors import DatasetNotUnderstood, NotFound
from appliance.packs.frames import BulkElement, InstanceHeader

PIXEL_DATA = 0x7FE00010
PIXEL_TAGS = {0x7FE00008: 32, 0x7FE00009: 64, PIXEL_DATA: 0}
"""Elements that hold frames, and the bits of a sample where the element itself says them."""

FRAGMENTS_MAX = 1_000_000
_ITEM = 0xE000FFFE
_ITEM_HEADER = struct.Struct("<II")
_STARTS = (b"\xff\xd8", b"\xff\x4f", b"\x00\x00\x00\x0c")


class PixelLayout(NamedTuple):
    """What an image's attributes say of its pixel data. frame_bits: of one native frame."""

    element: BulkElement
    rows: int
    columns: int
    samples: int
    bits_allocated: int
    photometric: str
    frames: int

    @property
    def frame_bits(self) -> int:
        """The length of one native frame in bits."""
        pixels = self.rows * self.columns
        if self.photometric in ("YBR_FULL_422", "YBR_PARTIAL_422"):
            return pixels * 2 * self.bits_allocated
        return pixels * self.samples * self.bits_allocated


def is_encapsulated(transfer_syntax_uid: str) -> bool:
    """Tell whether pixel data of a transfer syntax lies in fragments."""
    return transfer_syntax_uid == ENCAPSULATED_UNCOMPRESSED or not is_uncompressed(
        transfer_syntax_uid
    )


def layout_of(header: InstanceHeader, attributes: dict[str, Any]) -> PixelLayout:
    """Return the layout of an instance, given its attributes in JSON; NotFound without pixels."""
    element = next((each for each in header.bulk if each.tag in PIXEL_TAGS), None)
    rows, columns = _number(attributes, "00280010"), _number(attributes, "00280011")
    if element is None or not rows or not columns:
        raise NotFound("read frames", cause="the instance has no image")
    photometric = attributes.get("00280004", {}).get("Value") or [""]
    return PixelLayout(
        element,
        rows,
        columns,
        _number(attributes, "00280002") or 1,
        PIXEL_TAGS[element.tag] or _number(attributes, "00280100") or 8,
        str(photometric[0]),
        _number(attributes, "00280008") or 1,
    )


def _number(attributes: dict[str, Any], key: str) -> int:
    values = attributes.get(key, {}).get("Value") or [0]
    return values[0] if isinstance(values[0], int) else 0


def native_frame(dataset: Dataset, layout: PixelLayout, index: int) -> Dataset:
    """Return one native frame as it is stored, from 0 on; NotFound past the end."""
    bits = layout.frame_bits
    start = index * bits
    length = layout.element.value_length
    if index < 0 or index >= layout.frames or -(-(start + bits) // 8) > length:
        raise NotFound("read frames", cause="the instance has no such frame")
    value = part_of(dataset, layout.element.value_offset, length)
    if bits % 8 == 0 or start % 8 == 0:
        return part_of(value, start // 8, -(-bits // 8))
    # One bit a pixel, and a frame that begins inside a byte: moved to begin with one.
    raw = int.from_bytes(value[start // 8 : -(-(start + bits) // 8)], "little") >> start % 8
    return memoryview((raw & ((1 << bits) - 1)).to_bytes(-(-bits // 8), "little"))


def encapsulated_frames(dataset: Dataset, layout: PixelLayout) -> list[list[tuple[int, int]]]:
    """Return the fragments (offset in the dataset, length) of each frame (PS3.5 A.4).

    By the basic offset table; where it is empty, a fragment a frame; else by what each begins with.
    Raises DatasetNotUnderstood.
    """
    table, fragments = _fragments(dataset, layout.element)
    if layout.frames == 1:
        return [[(offset, length) for offset, length, _ in fragments]]
    if table:
        starts = [offset for offset in table if offset is not None]
        return _grouped(fragments, set(starts), layout.frames)
    if len(fragments) == layout.frames:
        return [[(offset, length)] for offset, length, _ in fragments]
    begun = {
        item
        for offset, _, item in fragments
        if bytes(dataset[offset : offset + 4]).startswith(_STARTS)
    }
    return _grouped(fragments, begun, layout.frames)


def _fragments(
    dataset: Dataset, element: BulkElement
) -> tuple[Sequence[int], list[tuple[int, int, int]]]:
    """Return the basic offset table, and of each fragment: offset, length, place of its item."""
    position = element.value_offset
    end = min(len(dataset), position + element.value_length)
    table: Sequence[int] = ()
    fragments: list[tuple[int, int, int]] = []
    first = 0
    number = 0
    while position + 8 <= end:
        tag, length = _ITEM_HEADER.unpack(dataset[position : position + 8])
        if tag != _ITEM:
            break
        if position + 8 + length > end or number > FRAGMENTS_MAX:
            raise _broken()
        if number == 0:
            raw = bytes(dataset[position + 8 : position + 8 + length // 4 * 4])
            table = struct.unpack(f"<{length // 4}I", raw)
            first = position + 8 + length
        else:
            fragments.append((position + 8, length, position - first))
        position += 8 + length
        number += 1
    if not fragments:
        raise _broken()
    return table, fragments


def _grouped(
    fragments: list[tuple[int, int, int]], starts: set[int], frames: int
) -> list[list[tuple[int, int]]]:
    found: list[list[tuple[int, int]]] = []
    for offset, length, item in fragments:
        if item in starts or not found:
            found.append([])
        found[-1].append((offset, length))
    if len(found) != frames:
        raise _broken()
    return found


def _broken() -> DatasetNotUnderstood:
    return DatasetNotUnderstood(
        "read frames", "pixel data", "its fragments do not say where each frame begins"
    )


def joined(dataset: Dataset, fragments: list[tuple[int, int]]) -> bytes:
    """Return the bytes of a frame: its fragments, one behind the other."""
    return b"".join(bytes(dataset[offset : offset + length]) for offset, length in fragments)
