"""What a scan has found so far, and how a raw value becomes part of it.

Owns the limits on what one attribute may hold. Must not walk the top level of a dataset. Invariant:
empty values are left out; a sequence that is over its limit is left out whole, never cut.
"""

from appliance.dicom.attributes import ITEM_VRS, SCANNED
from appliance.dicom.elements import (
    LITTLE,
    SEQUENCE_DEPTH_MAX,
    UNDEFINED,
    ByteOrder,
    Odd,
    element_at,
)
from appliance.dicom.layouts import CHARACTER_SET, EVIDENCE_SEQUENCE, SOP_CLASS_UID
from appliance.dicom.skipping import skip_undefined, too_deep
from appliance.dicom.uid import KEY_OBJECT_SELECTION
from appliance.dicom.values import VALUE_LENGTH_MAX, value_text

SEQUENCE_BYTES_MAX = 64 * 1024
"""Encoded bytes of one sequence that is kept."""

EVIDENCE_BYTES_MAX = 4 * 1024 * 1024
"""The same for the references of a key object document: a rejection note must be whole."""

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


class Gathering:
    """The attributes of one dataset while it is scanned. Used by one thread.

    Invariant: `character_set` is the dataset's raw value; `_effective` is what text is decoded by.
    """

    def __init__(self, order: ByteOrder, default_character_set: str, *, implicit: bool) -> None:
        self.found: dict[int, object] = {}
        self.character_set = ""
        self._effective = default_character_set
        self._order = order
        self._mark = order.mark
        self._implicit = implicit

    def add(self, tag: int, vr: str, raw: bytes) -> None:
        """Keep the value of a wanted element whose length is defined."""
        if vr == "UN":
            vr = SCANNED[tag]
            if vr == "SQ":
                self.add_sequence(tag, raw, unknown=True)
                return
        if vr == "SQ":
            self.add_sequence(tag, raw, unknown=False)
            return
        text = text_of(raw, vr, self._mark, self._effective)
        if text:
            self.found[tag] = text
            if tag == CHARACTER_SET:
                self.character_set = self._effective = text

    def add_sequence(self, tag: int, raw: bytes, *, unknown: bool) -> None:
        """Keep the items in `raw`, which ends before a sequence delimiter.

        unknown: the element was a UN, whose items are in implicit VR little endian.
        """
        if SCANNED[tag] != "SQ":
            raise Odd
        limit = SEQUENCE_BYTES_MAX
        if tag == EVIDENCE_SEQUENCE:
            if self.found.get(SOP_CLASS_UID) != KEY_OBJECT_SELECTION:
                return
            limit = EVIDENCE_BYTES_MAX
        if len(raw) > limit:
            return
        order = LITTLE if unknown else self._order
        items = read_items(order, raw, unknown or self._implicit, self._effective, 1)
        if items:
            self.found[tag] = items


def read_items(
    order: ByteOrder, buffer: bytes, implicit: bool, character_set: str, depth: int
) -> list[dict[int, object]]:
    """Return the items of a sequence value, each with the attributes of ITEM_VRS it holds."""
    if depth > SEQUENCE_DEPTH_MAX:
        raise too_deep()
    items: list[dict[int, object]] = []
    unpack = order.implicit_header.unpack_from
    position, end = 0, len(buffer)
    while position < end:
        raw, length = unpack(buffer, position)
        position += 8
        if raw == order.item:
            stop = end if length == UNDEFINED else position + length
            if stop > end:
                raise Odd
            item, position = _read_item(
                order, buffer, position, stop, implicit, character_set, depth, length == UNDEFINED
            )
            items.append(item)
        elif raw == order.sequence_end:
            break
        else:
            raise Odd
    return items


def _read_item(
    order: ByteOrder,
    buffer: bytes,
    position: int,
    end: int,
    implicit: bool,
    character_set: str,
    depth: int,
    delimited: bool,
) -> tuple[dict[int, object], int]:
    """Return an item and the position behind it."""
    item: dict[int, object] = {}
    while position < end:
        raw, number, vr, length, position = element_at(order, buffer, position, implicit)
        if raw == order.item_end:
            if not delimited:
                raise Odd
            return item, position
        tag = order.tag(raw)
        known = ITEM_VRS.get(tag, "CS" if tag == CHARACTER_SET else "")
        start = position
        if length == UNDEFINED:
            position = skip_undefined(order, buffer, position, number, implicit, depth + 1)
            value = buffer[start : position - 8] if known else b""
        else:
            position += length
            value = buffer[start:position] if known else b""
        if position > end:
            raise Odd
        if not known or not value:
            continue
        unknown = vr == "UN"
        vr = known if unknown or not vr else vr
        if vr == "SQ":
            nested = read_items(
                LITTLE if unknown else order, value, unknown or implicit, character_set, depth + 1
            )
            if nested and known == "SQ":
                item[tag] = nested
        elif known != "SQ":
            text = text_of(value, vr, order.mark, character_set)
            if tag == CHARACTER_SET:
                character_set = text
            elif text:
                item[tag] = text
    if delimited:
        raise Odd
    return item, position
