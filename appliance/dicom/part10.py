"""The front of a Part 10 file (PS3.10 section 7.1), read as it comes: what its dataset is.

Must not look into the dataset. Invariant: no more than META_MAX_BYTES are held.
"""

import struct
from collections.abc import Iterator

import msgspec

from appliance.dicom.elements import LITTLE, QUIRKS, element_at
from appliance.foundation.errors import DatasetNotUnderstood

META_MAX_BYTES = 64 * 1024
_PREAMBLE = 128
_PREFIX = b"DICM"
_SOP_CLASS, _SOP_INSTANCE, _SYNTAX = 0x00020002, 0x00020003, 0x00020010


class FileMeta(msgspec.Struct, frozen=True):
    """What the file meta group says."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str


def read_part10(pieces: Iterator[bytes]) -> tuple[FileMeta, bytes]:
    """Return the file meta and what was read of the dataset behind it; DatasetNotUnderstood.

    The rest of the dataset is still in `pieces`. The group length is not believed.
    """
    held = bytearray()
    for piece in pieces:
        held += piece
        if len(held) >= _PREAMBLE + 4 and held[_PREAMBLE : _PREAMBLE + 4] != _PREFIX:
            break
        found = _read(held)
        if found is not None:
            meta, end = found
            return meta, bytes(held[end:])
        if len(held) > META_MAX_BYTES:
            break
    else:
        # The dataset may be missing; then the group must end where the file does.
        found = _read(held, complete=True)
        if found is not None:
            return found[0], b""
    raise DatasetNotUnderstood("read a file", cause="it does not begin as a Part 10 file")


def _read(held: bytearray, *, complete: bool = False) -> tuple[FileMeta, int] | None:
    """Return the meta group and where it ends; None when more must come."""
    if held[_PREAMBLE : _PREAMBLE + 4] != _PREFIX:
        return None
    values: dict[int, str] = {}
    position = _PREAMBLE + 4
    try:
        while position < len(held):
            (group,) = struct.unpack_from("<H", held, position)
            if group != 2:
                break
            raw, _, _, length, start = element_at(LITTLE, held, position, implicit=False)
            if start + length > len(held):
                return None
            tag = LITTLE.tag(raw)
            if tag in (_SOP_CLASS, _SOP_INSTANCE, _SYNTAX):
                values[tag] = bytes(held[start : start + length]).decode("latin-1").strip("\0 ")
            position = start + length
        else:
            if not complete:
                return None
    except QUIRKS:
        return None
    if len(values) < 3:
        return None
    return FileMeta(values[_SOP_CLASS], values[_SOP_INSTANCE], values[_SYNTAX]), position
