"""Reading the elements of sequence items: for the index's few sequences and for query identifiers.

Must not walk the top level of an instance. Invariants: what is kept is bounded by what is read; an
item's own (0008,0005) holds for that item and what is inside it (PS3.5 7.5.3).
"""

from collections.abc import Callable
from typing import NamedTuple

from appliance.dicom.elements import (
    LITTLE,
    SEQUENCE_DEPTH_MAX,
    UNDEFINED,
    ByteOrder,
    Odd,
    Value,
    element_at,
)
from appliance.dicom.layouts import CHARACTER_SET
from appliance.dicom.skipping import skip_undefined, too_deep
from appliance.dicom.values import text_of


class Form(NamedTuple):
    """How the elements at hand are written."""

    order: ByteOrder
    implicit: bool


UNKNOWN_FORM = Form(LITTLE, implicit=True)
"""The items of a UN are in implicit VR little endian whatever surrounds them (PS3.5 6.2.2)."""


class ItemReader:
    """Reads items out of one buffer. Used by one thread.

    vr_of: the VR of a tag that is kept, "" for one that is not. whole: keep empty values and values
    of any length, as keys need it. skipped: collects the tags without a VR.
    """

    def __init__(self, buffer: bytes, vr_of: Callable[[int], str], *, whole: bool = False) -> None:
        self._buffer = buffer
        self._vr_of = vr_of
        self._whole = whole
        self.skipped: dict[int, None] = {}

    def items(
        self, position: int, end: int, form: Form, character_set: str, depth: int
    ) -> list[dict[int, Value]]:
        """Return the items between two positions; raises Odd, or DatasetNotUnderstood."""
        if depth > SEQUENCE_DEPTH_MAX:
            raise too_deep()
        order = form.order
        items: list[dict[int, Value]] = []
        while position < end:
            raw, length = order.implicit_header.unpack_from(self._buffer, position)
            position += 8
            if raw == order.sequence_end:
                break
            stop = end if length == UNDEFINED else position + length
            if raw != order.item or stop > end:
                raise Odd
            item, position, closed = self.item(position, stop, form, character_set, depth)
            if closed != (length == UNDEFINED):
                raise Odd
            items.append(item)
        return items

    def item(
        self, position: int, end: int, form: Form, character_set: str, depth: int
    ) -> tuple[dict[int, Value], int, bool]:
        """Return the kept elements, where the item ends, and whether a delimiter closed it."""
        order, buffer = form.order, self._buffer
        kept: dict[int, Value] = {}
        while position < end:
            raw, number, vr, length, start = element_at(order, buffer, position, form.implicit)
            if raw == order.item_end:
                return kept, start, True
            if length == UNDEFINED:
                position = skip_undefined(order, buffer, start, number, form.implicit, depth + 1)
                stop = position - 8
            else:
                position = stop = start + length
            if position > end:
                raise Odd
            tag = order.tag(raw)
            known = self._vr_of(tag)
            if tag == CHARACTER_SET:
                character_set = buffer[start:stop].decode("latin-1").strip(" \0") or character_set
            if not known:
                self.skipped[tag] = None
                continue
            value: Value
            if known == "SQ":
                inner = UNKNOWN_FORM if vr == "UN" else form
                value = self.items(start, stop, inner, character_set, depth + 1)
            else:
                vr = known if vr in ("", "UN") else vr
                value = text_of(
                    buffer[start:stop], vr, order.mark, character_set, whole=self._whole
                )
            if value or self._whole:
                kept[tag] = value
        return kept, position, False
