"""One frame of an instance as a dataset of its own, for the confined worker.

So that a frame of a long run costs what one image costs. Must not decode. Invariant: what lies in
front of pixel data is the instance's own, byte for byte, in the same transfer syntax; it still says
how many frames there were, so whoever reads it must know that it holds one.
"""

import struct

from appliance.archive.extent import Dataset
from appliance.dicom.uid import is_big_endian, is_implicit
from appliance.foundation.errors import LimitExceeded
from appliance.pixels.layout import PixelLayout, is_encapsulated

FRONT_MAX_BYTES = 64 * 2**20
_VRS = {0x7FE00008: b"OF", 0x7FE00009: b"OD"}
_UNDEFINED = 0xFFFFFFFF
_EMPTY_TABLE = struct.pack("<HHI", 0xFFFE, 0xE000, 0)
_END = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


def single_frame_dataset(
    dataset: Dataset, layout: PixelLayout, transfer_syntax_uid: str, frame: bytes
) -> memoryview:
    """Return the dataset with one frame, given as it is stored; LimitExceeded."""
    implicit = is_implicit(transfer_syntax_uid)
    start = layout.element.value_offset - (8 if implicit else 12)
    if start > FRONT_MAX_BYTES:
        raise LimitExceeded("read frames", cause=f"{start} bytes lie in front of the pixel data")
    tag = layout.element.tag
    group, element = tag >> 16, tag & 0xFFFF
    if len(frame) % 2:
        frame += b"\0"
    if is_encapsulated(transfer_syntax_uid):
        head = struct.pack("<HH2s2xI", group, element, b"OB", _UNDEFINED)
        item = struct.pack("<HHI", 0xFFFE, 0xE000, len(frame))
        value = _EMPTY_TABLE + item + frame + _END
    elif implicit:
        head, value = struct.pack("<HHI", group, element, len(frame)), frame
    else:
        vr = _VRS.get(tag) or (b"OB" if layout.element.vr == "OB" else b"OW")
        order = ">" if is_big_endian(transfer_syntax_uid) else "<"
        head, value = struct.pack(f"{order}HH2s2xI", group, element, vr, len(frame)), frame
    return memoryview(bytes(dataset[:start]) + head + value)
