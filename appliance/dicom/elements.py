"""The byte layouts of data elements (PS3.5 section 7) that the scanners share.

Owns the tables by which an element's header is read without making an object of it: a tag as the
32-bit number that its four bytes give in the byte order at hand ("raw"), a VR as a 16-bit number.
It must not decode text. Nothing here allocates by a length that the input claims.
"""

import struct
from collections.abc import Iterable

UNDEFINED = 0xFFFFFFFF
"""Undefined length (PS3.5 7.1.1)."""

SEQUENCE_DEPTH_MAX = 32
"""Sequences nested deeper than this are refused."""

ITEM = 0xFFFEE000
ITEM_END = 0xFFFEE00D
SEQUENCE_END = 0xFFFEE0DD

SHORT_VRS = (
    "AE", "AS", "AT", "CS", "DA", "DS", "DT", "FL", "FD", "IS", "LO", "LT", "PN", "SH", "SL", "SS",
    "ST", "TM", "UI", "UL", "US",
)  # fmt: skip
"""VRs with a length of 16 bits in explicit VR (PS3.5 7.1.2)."""

LONG_VRS = (
    "OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV",
)  # fmt: skip
"""VRs with two reserved bytes and a length of 32 bits."""

TEXT_VRS = frozenset({"SH", "LO", "ST", "PN", "LT", "UC", "UT"})
"""The VRs whose repertoire Specific Character Set (0008,0005) governs (PS3.5 6.1.2.3)."""

NUMBER_FORMATS = {
    "US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d", "SV": "q", "UV": "Q",
}  # fmt: skip

Bytes = bytes | bytearray | memoryview
"""Where a dataset may lie: also a memoryview of an mmap."""


Value = str | list[dict[int, "Value"]]
"""A value as the index keeps it: text with several values joined by a backslash, or items."""


class Odd(Exception):
    """The quick scanner does not take this; pydicom decides. Never leaves this package."""


QUIRKS = (Odd, struct.error, IndexError)
"""What a quick scanner raises on unusual bytes."""


class ByteOrder:
    """How one byte order reads element headers. Immutable after construction."""

    def __init__(self, little: bool) -> None:
        mark = "<" if little else ">"
        self.little = little
        self.mark = mark
        self.explicit_header = struct.Struct(mark + "IHH")
        self.implicit_header = struct.Struct(mark + "II")
        self.length = struct.Struct(mark + "I")
        self.short_length = struct.Struct(mark + "H")
        self.item = self.raw(ITEM)
        self.item_end = self.raw(ITEM_END)
        self.sequence_end = self.raw(SEQUENCE_END)
        self.short_vrs = frozenset(self.vr(name) for name in SHORT_VRS)
        self.long_vrs = frozenset(self.vr(name) for name in LONG_VRS)
        self.sq = self.vr("SQ")
        self.un = self.vr("UN")
        self.vr_names = {self.vr(name): name for name in SHORT_VRS + LONG_VRS}

    def raw(self, tag: int) -> int:
        """Return the number that the four bytes of `tag` give in this byte order."""
        return (tag >> 16 | (tag & 0xFFFF) << 16) if self.little else tag

    def tag(self, raw: int) -> int:
        """Return the tag of a raw number; the inverse of `raw`."""
        return (raw >> 16 | (raw & 0xFFFF) << 16) if self.little else raw

    def vr(self, name: str) -> int:
        """Return the number that the two letters of a VR give in this byte order."""
        return int.from_bytes(name.encode("ascii"), "little" if self.little else "big")

    def raws(self, tags: Iterable[int]) -> dict[int, int]:
        """Return raw number → tag for many tags."""
        return {self.raw(tag): tag for tag in tags}


LITTLE = ByteOrder(little=True)
BIG = ByteOrder(little=False)


def element_at(
    order: ByteOrder, buffer: Bytes, position: int, implicit: bool
) -> tuple[int, int, str, int, int]:
    """Return raw tag, VR as number and name, length, and where the value starts.

    The VR is 0 and "" in implicit VR and for an item delimiter. Raises Odd for an unknown VR.
    """
    if implicit:
        raw, length = order.implicit_header.unpack_from(buffer, position)
        return raw, 0, "", length, position + 8
    raw, number, length = order.explicit_header.unpack_from(buffer, position)
    if number in order.short_vrs:
        return raw, number, order.vr_names[number], length, position + 8
    if number in order.long_vrs:
        (length,) = order.length.unpack_from(buffer, position + 8)
        return raw, number, order.vr_names[number], length, position + 12
    if raw == order.item_end:
        return raw, 0, "", 0, position + 8
    raise Odd
