"""The identifiers of queries and retrieves: keys from bytes, answers to bytes (PS3.4 C.4.1).

Must not log a key: keys are patient data. Invariants: keys are decoded before anything splits them;
an answer's (0008,0005) is the repertoire its text is really encoded in.
"""

import struct
from functools import lru_cache
from typing import NamedTuple

import msgspec

from appliance.dicom import fallback
from appliance.dicom.attributes import BY_TAG, ITEM_VRS
from appliance.dicom.character_set import defined_terms, encode_text
from appliance.dicom.elements import (
    BIG,
    LITTLE,
    LONG_VRS,
    NUMBER_FORMATS,
    QUIRKS,
    TEXT_VRS,
    ByteOrder,
    Bytes,
    Odd,
    Value,
)
from appliance.dicom.items import Form, ItemReader
from appliance.dicom.layouts import CHARACTER_SET
from appliance.dicom.uid import is_big_endian, is_implicit
from appliance.foundation.errors import DatasetNotUnderstood

QUERY_RETRIEVE_LEVEL = 0x00080052
QUERY_RETRIEVE_VIEW = 0x00080053
IDENTIFIER_BYTES_MAX = 1024 * 1024
"""An identifier longer than this is refused; a list of 10,000 UIDs takes 650 kB."""

_CONTROL_VRS = {
    CHARACTER_SET: "CS",
    QUERY_RETRIEVE_LEVEL: "CS",
    QUERY_RETRIEVE_VIEW: "CS",
    0x00880130: "SH",  # StorageMediaFileSetID
    0x00880140: "UI",  # StorageMediaFileSetUID
    0x00080058: "UI",  # FailedSOPInstanceUIDList
    0x00000901: "AT",
}


class Identifier(msgspec.Struct, frozen=True):
    """A query's identifier.

    level: the value of (0008,0052), upper case, "" where missing. keys: the supported ones, also
    those without a value (""). character_set: the raw value of (0008,0005). requested: the tags of
    `keys` in the order sent. unsupported: tags that no answer can hold.
    """

    level: str
    keys: dict[int, Value]
    character_set: str
    requested: list[int]
    unsupported: list[int]


def vr_of(tag: int) -> str:
    """Return the VR of an attribute that keys and answers may hold, "" for any other."""
    attribute = BY_TAG.get(tag)
    if attribute is not None:
        return attribute.vr
    return ITEM_VRS.get(tag) or _CONTROL_VRS.get(tag, "")


def parse_identifier(
    raw: Bytes, transfer_syntax_uid: str, default_character_set: str = ""
) -> Identifier:
    """Return the keys of an identifier. Raises DatasetNotUnderstood.

    default_character_set: in force where the identifier declares none.
    """
    if len(raw) > IDENTIFIER_BYTES_MAX:
        raise DatasetNotUnderstood("read an identifier", cause="it is longer than any query")
    form = Form(
        BIG if is_big_endian(transfer_syntax_uid) else LITTLE, is_implicit(transfer_syntax_uid)
    )
    buffer = bytes(raw)
    reader = ItemReader(buffer, vr_of, whole=True)
    try:
        keys, _, closed = reader.item(0, len(buffer), form, default_character_set, 0)
        if closed:
            raise Odd  # an item delimiter outside of any item
        skipped = list(reader.skipped)
    except QUIRKS:
        keys, skipped = fallback.identifier(
            buffer, transfer_syntax_uid, default_character_set, vr_of
        )
    character_set = keys.pop(CHARACTER_SET, "")
    level = keys.pop(QUERY_RETRIEVE_LEVEL, "")
    keys.pop(QUERY_RETRIEVE_VIEW, "")
    supported = {tag: value for tag, value in keys.items() if tag in BY_TAG}
    unsupported = [tag for tag in skipped if not _is_bookkeeping(tag)]
    return Identifier(
        level.upper() if isinstance(level, str) else "",
        supported,
        character_set if isinstance(character_set, str) else "",
        list(supported),
        unsupported + [tag for tag in keys if tag not in BY_TAG],
    )


def _is_bookkeeping(tag: int) -> bool:
    """Tell whether a tag is a group length or a private creator: no key anybody asks for."""
    element = tag & 0xFFFF
    return element == 0 or ((tag >> 16) % 2 == 1 and 0x10 <= element <= 0xFF)


def encode_answer(
    values: dict[int, Value], transfer_syntax_uid: str, character_set: str = ""
) -> bytes:
    """Return the bytes of an answer, by ascending tag.

    character_set: the repertoire to answer in; where a text is not in it, ISO_IR 192. (0008,0005)
    says which, in the standard's terms whatever the study's own were, and is left out where every
    text is ASCII and none is asked for. Values of tags without a VR here are left out.
    """
    character_set = defined_terms(character_set)
    order = BIG if is_big_endian(transfer_syntax_uid) else LITTLE
    implicit = is_implicit(transfer_syntax_uid)
    values = {tag: value for tag, value in values.items() if tag != CHARACTER_SET}
    try:
        return _writer(order, implicit, character_set).dataset(values)
    except UnicodeEncodeError:
        return _writer(order, implicit, "ISO_IR 192").dataset(values)


class _Head(NamedTuple):
    """How an element of a tag begins: VR, the bytes up to its length, and the length's form."""

    vr: str
    start: bytes
    length: struct.Struct


class _Writer:
    """Encodes answers in one repertoire."""

    def __init__(self, order: ByteOrder, implicit: bool, character_set: str) -> None:
        self._order = order
        self._implicit = implicit
        self._character_set = character_set
        self._heads: dict[int, _Head | None] = {}  # as many as there are attributes

    def dataset(self, values: dict[int, Value]) -> bytes:
        """Return the elements, (0008,0005) among them where a repertoire is set."""
        if self._character_set:
            values = {**values, CHARACTER_SET: self._character_set}
        return self._elements(values)

    def _elements(self, values: dict[int, Value]) -> bytes:
        return b"".join([self._element(tag, values[tag]) for tag in sorted(values)])

    def _element(self, tag: int, value: Value) -> bytes:
        try:
            head = self._heads[tag]
        except KeyError:
            head = self._heads[tag] = self._head(tag)
        if head is None:
            return b""
        if head.vr == "SQ":
            raw = self._items(value) if isinstance(value, list) else b""
        elif isinstance(value, list):
            raw = b""
        else:
            raw = self._value(value, head.vr) if value else b""
        return head.start + head.length.pack(len(raw)) + raw

    def _head(self, tag: int) -> _Head | None:
        vr, order = vr_of(tag), self._order
        if not vr:
            return None
        start = order.length.pack(order.raw(tag))
        if self._implicit:
            return _Head(vr, start, order.length)
        if vr in LONG_VRS:
            return _Head(vr, start + vr.encode() + bytes(2), order.length)
        return _Head(vr, start + vr.encode(), order.short_length)

    def _items(self, items: list[dict[int, Value]]) -> bytes:
        order = self._order
        parts = []
        for item in items:
            raw = self._elements(item)
            parts.append(order.implicit_header.pack(order.item, len(raw)) + raw)
        return b"".join(parts)

    def _value(self, text: str, vr: str) -> bytes:
        if vr in NUMBER_FORMATS or vr == "AT":
            return _binary(text, vr, self._order.mark)
        if vr in TEXT_VRS:
            raw = encode_text(text, vr, self._character_set)
        else:
            raw = text.encode("ascii", "replace")
        if vr not in LONG_VRS and len(raw) > SHORT_VALUE_BYTES_MAX:
            raw = raw[:SHORT_VALUE_BYTES_MAX].rpartition(b"\\")[0]
        if len(raw) % 2:
            raw += b"\0" if vr == "UI" else b" "
        return raw


@lru_cache(maxsize=64)
def _writer(order: ByteOrder, implicit: bool, character_set: str) -> _Writer:
    return _Writer(order, implicit, character_set)


SHORT_VALUE_BYTES_MAX = 0xFFFE
"""A value of a VR with a 16-bit length; a longer list of values is cut between values."""


def _binary(text: str, vr: str, mark: str) -> bytes:
    """Return the bytes of numbers; text that is not one gives an empty value."""
    try:
        if vr == "AT":
            tags = [int(part, 16) for part in text.split("\\") if part]
            return b"".join(struct.pack(mark + "HH", tag >> 16, tag & 0xFFFF) for tag in tags)
        kind = float if vr in ("FL", "FD") else int
        numbers = [kind(part) for part in text.split("\\") if part]
        return struct.pack(f"{mark}{len(numbers)}{NUMBER_FORMATS[vr]}", *numbers)
    except (ValueError, struct.error, OverflowError):
        return b""
