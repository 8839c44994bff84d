"""The file meta group of a Part 10 instance (PS3.10 section 7.1): the only bytes that are ours.

Must not look into the dataset. Invariant: what is built is explicit VR little endian with a right
group length, whatever the dataset's transfer syntax.
"""

import struct
from functools import lru_cache

from appliance.dicom.uid import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

PREAMBLE = b"\0" * 128 + b"DICM"

_SHORT = struct.Struct("<HH2sH")
_GROUP_LENGTH = struct.Struct("<HH2sHI")
_VERSION = struct.pack("<HH2sHI", 2, 1, b"OB", 0, 2) + b"\0\1"


def _element(element: int, vr: bytes, value: bytes) -> bytes:
    if len(value) % 2:
        value += b"\0" if vr == b"UI" else b" "
    return _SHORT.pack(2, element, vr, len(value)) + value


_IMPLEMENTATION = _element(0x12, b"UI", IMPLEMENTATION_CLASS_UID.encode()) + _element(
    0x13, b"SH", IMPLEMENTATION_VERSION_NAME.encode()
)


@lru_cache(maxsize=256)
def _class_part(sop_class_uid: str) -> bytes:
    return _VERSION + _element(2, b"UI", sop_class_uid.encode("ascii", "replace"))


@lru_cache(maxsize=256)
def _tail_part(transfer_syntax_uid: str, calling_ae: str) -> bytes:
    tail = _element(0x10, b"UI", transfer_syntax_uid.encode("ascii", "replace")) + _IMPLEMENTATION
    title = calling_ae.strip().encode("ascii", "replace")[:16]
    return tail + _element(0x16, b"AE", title) if title else tail


def build_file_meta(
    sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str, calling_ae: str
) -> bytes:
    """Return preamble, prefix and group 0002 for one instance.

    The Source Application Entity Title (0002,0016) is the calling AE, left out where it is empty.
    """
    group = (
        _class_part(sop_class_uid)
        + _element(3, b"UI", sop_instance_uid.encode("ascii", "replace"))
        + _tail_part(transfer_syntax_uid, calling_ae)
    )
    return PREAMBLE + _GROUP_LENGTH.pack(2, 0, b"UL", 4, len(group)) + group
