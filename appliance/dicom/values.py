"""One element's bytes as the text that the index keeps.

Must not raise on any input: what cannot be read in its VR gives "". Invariants: several values are
joined by a backslash; padding is gone; a text is at most VALUE_LENGTH_MAX characters.
"""

import struct
from functools import lru_cache

from appliance.dicom.character_set import decode_text
from appliance.dicom.elements import NUMBER_FORMATS, TEXT_VRS

VALUE_LENGTH_MAX = 1024
"""Characters of one attribute's text that are kept."""

VALUE_BYTES_MAX = 8 * VALUE_LENGTH_MAX
"""Bytes of one value that are looked at; more cannot contribute."""

_SINGLE = frozenset({"ST", "LT", "UT", "UR"})


@lru_cache(maxsize=64)
def _numbers(mark: str, letter: str, count: int) -> struct.Struct:
    return struct.Struct(f"{mark}{count}{letter}")


def number_text(raw: bytes, vr: str, mark: str) -> str:
    """Return binary numbers as decimal text; AT as eight hexadecimal digits."""
    if vr == "AT":
        words = _numbers(mark, "H", len(raw) // 4 * 2)
        pairs = words.unpack_from(raw)
        return "\\".join(
            f"{group:04X}{element:04X}"
            for group, element in zip(pairs[::2], pairs[1::2], strict=True)
        )
    letter = NUMBER_FORMATS[vr]
    count = min(len(raw) // struct.calcsize("=" + letter), 64)
    values = _numbers(mark, letter, count).unpack_from(raw)
    if vr == "FL":
        return "\\".join(format(value, ".9g") for value in values)
    return "\\".join(str(value) for value in values)


def value_text(raw: bytes, vr: str, mark: str, character_set: str, *, whole: bool = False) -> str:
    """Return the text of a value.

    raw: the bytes as stored. mark: struct's byte order mark. character_set: the value of
    (0008,0005) in force, several joined by a backslash. whole: no limit on the length (keys).
    """
    length_max = len(raw) if whole else VALUE_LENGTH_MAX
    if not whole:
        raw = raw[:VALUE_BYTES_MAX]
    if vr in NUMBER_FORMATS or vr == "AT":
        return number_text(raw, vr, mark)[:VALUE_LENGTH_MAX]
    if vr in TEXT_VRS and not (raw.isascii() and b"\x1b" not in raw):
        text = decode_text(raw, vr, character_set)
    else:
        text = raw.decode("latin-1")
    if vr in _SINGLE:
        return text.rstrip(" \0")[:length_max]
    if "\\" in text:
        text = "\\".join([part.strip(" \0") for part in text.split("\\")])
    return text.strip(" \0")[:length_max]


_QUICK_VRS = frozenset({"AE", "AS", "CS", "DA", "DS", "DT", "IS", "TM", "UI", "SH", "LO", "PN"})
_BINARY_VRS = frozenset({"OB", "OD", "OF", "OL", "OV", "OW"})


def text_of(raw: bytes, vr: str, mark: str, character_set: str, *, whole: bool = False) -> str:
    """Return the text of a value as value_text does, by a short way where there is one."""
    if vr in _QUICK_VRS and len(raw) <= VALUE_LENGTH_MAX and raw.isascii():
        text = raw.decode("ascii")
        if "\\" not in text and "\x1b" not in text:
            return text.strip(" \0")
    if vr in _BINARY_VRS:
        return ""
    return value_text(raw, vr, mark, character_set, whole=whole)
