"""What a scan has found so far, and how a raw value becomes part of it.

Owns the limits on what one attribute may hold. Must not walk the top level of a dataset. Invariant:
empty values are left out; a sequence that is over its limit is left out whole, never cut.
"""

from appliance.dicom.attributes import ITEM_VRS, SCANNED
from appliance.dicom.elements import ByteOrder, Odd, Value
from appliance.dicom.items import UNKNOWN_FORM, Form, ItemReader
from appliance.dicom.layouts import CHARACTER_SET, EVIDENCE_SEQUENCE, SOP_CLASS_UID
from appliance.dicom.uid import KEY_OBJECT_SELECTION
from appliance.dicom.values import text_of

SEQUENCE_BYTES_MAX = 64 * 1024
"""Encoded bytes of one sequence that is kept."""

EVIDENCE_BYTES_MAX = 4 * 1024 * 1024
"""The same for the references of a key object document: a rejection note must be whole."""


def _item_vr(tag: int) -> str:
    return ITEM_VRS.get(tag, "")


class Gathering:
    """The attributes of one dataset while it is scanned. Used by one thread.

    Invariant: `character_set` is the dataset's raw value; `_effective` is what text is decoded by.
    """

    def __init__(self, order: ByteOrder, default_character_set: str, *, implicit: bool) -> None:
        self.found: dict[int, Value] = {}
        self.character_set = ""
        self._effective = default_character_set
        self._form = Form(order, implicit)
        self._mark = order.mark

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
        form = UNKNOWN_FORM if unknown else self._form
        reader = ItemReader(raw, _item_vr)
        items = reader.items(0, len(raw), form, self._effective, 1)
        if items:
            self.found[tag] = items
