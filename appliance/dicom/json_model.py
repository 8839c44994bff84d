"""A dataset's bytes as the DICOM JSON Model (PS3.18 annex F).

Must not hold or decode bulk: it is referred to by what `bulk_uri` gives for its path: the tag, or
for an element of an item `<tag>/<item from 1 on>/<tag>`, as deep as it lies. Invariants: time is
linear in the bytes; sequences past 32 levels end the dataset; nothing raises, what does not parse
ends what is given, as it ends what any reader gets.
"""

import base64
import math
import struct
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from pydicom.datadict import dictionary_VR, private_dictionary_VR

from appliance.dicom.character_set import decode_text
from appliance.dicom.elements import (
    BIG,
    LITTLE,
    NUMBER_FORMATS,
    QUIRKS,
    SEQUENCE_DEPTH_MAX,
    TEXT_VRS,
    UNDEFINED,
    Odd,
    element_at,
)
from appliance.dicom.items import UNKNOWN_FORM, Form
from appliance.dicom.json_values import CHARACTER_SET, ONE_VALUE_VRS, UTF_8, json_value
from appliance.dicom.skipping import skip_undefined
from appliance.dicom.uid import is_big_endian, is_implicit
from appliance.foundation.errors import DatasetNotUnderstood

INLINE_MAX_BYTES = 1024
"""Binary values that are longer are given by reference."""

BINARY_WIDTHS = {"OB": 1, "UN": 1, "OW": 2, "OL": 4, "OF": 4, "OD": 8, "OV": 8}
_PIXEL_REPRESENTATION = 0x00280103
_SIGNED = {"US or SS": "SS", "US or SS or OW": "SS"}
_UNSIGNED = {"US or SS": "US", "US or OW": "OW", "OB or OW": "OW", "US or SS or OW": "US"}
_KNOWN_UN_MAX_BYTES = 0xFFFF


class JsonReader:
    """Reads one dataset. `bulk_uri` gives the reference of a path.

    referred: by path, VR, start and end of each value that was referred to.
    """

    def __init__(
        self,
        dataset: bytes,
        transfer_syntax_uid: str,
        bulk_uri: Callable[[str], str],
        character_set: str = "",
    ) -> None:
        """`character_set`: in force where the dataset declares none."""
        self._buffer = dataset
        self._form = Form(
            BIG if is_big_endian(transfer_syntax_uid) else LITTLE, is_implicit(transfer_syntax_uid)
        )
        self._bulk_uri = bulk_uri
        self._character_set = character_set
        self._signed = False
        self.referred: dict[str, tuple[str, int, int]] = {}

    def read(self) -> dict[str, Any]:
        """Return the dataset as a JSON object, without group lengths."""
        found: dict[str, Any] = {}
        try:
            self._elements(found, 0, len(self._buffer), self._form, self._character_set, "", 0)
        except (*QUIRKS, DatasetNotUnderstood, RecursionError):
            pass
        return found

    def _elements(  # noqa: C901, PLR0912 - the loop stays in one frame for speed
        self,
        found: dict[str, Any],
        position: int,
        end: int,
        form: Form,
        character_set: str,
        path: str,
        depth: int,
    ) -> int:
        """Fill `found` and return where the elements end: at `end`, or behind an item's delimiter.

        Raises Odd, struct.error, IndexError, DatasetNotUnderstood.
        """
        order, buffer = form.order, self._buffer
        creators: dict[int, str] = {}
        while position < end:
            raw, number, vr, length, start = element_at(order, buffer, position, form.implicit)
            if raw == order.item_end:
                return start
            tag = order.tag(raw)
            if length == UNDEFINED:
                position = skip_undefined(order, buffer, start, number, form.implicit, depth + 1)
                stop = position - 8
            else:
                position = stop = start + length
            if position > end:
                raise Odd
            if tag & 0xFFFF == 0:
                continue
            vr = self._vr(tag, vr, length, creators)
            key = f"{tag:08X}"
            if vr == "SQ":
                inner = UNKNOWN_FORM if number == order.un and not form.implicit else form
                items = self._items(start, stop, inner, character_set, f"{path}{key}/", depth + 1)
                found[key] = {"vr": "SQ", "Value": items} if items else {"vr": "SQ"}
                continue
            if length == UNDEFINED:
                # fragments of pixel data inside an item: there is no JSON for them
                found[key] = {"vr": vr}
                continue
            value = buffer[start:stop]
            if tag == CHARACTER_SET:
                character_set = value.decode("latin-1").strip(" \0") or character_set
                found[key] = {"vr": "CS", "Value": [UTF_8]}
                continue
            if tag == _PIXEL_REPRESENTATION and len(value) == 2:
                self._signed = value != b"\0\0"
            if tag >> 16 & 1 and 0x10 <= tag & 0xFFFF <= 0xFF:
                creators[tag & 0xFFFF] = value.decode("latin-1").strip(" \0")
            if vr in BINARY_WIDTHS and len(value) > INLINE_MAX_BYTES:
                self.referred[path + key] = vr, start, stop
                found[key] = {"vr": vr, "BulkDataURI": self._bulk_uri(path + key)}
            else:
                found[key] = _element(vr, value, order.mark, character_set)
        if position != end:
            raise Odd
        return position

    def _items(
        self, position: int, end: int, form: Form, character_set: str, path: str, depth: int
    ) -> list[dict[str, Any]]:
        if depth > SEQUENCE_DEPTH_MAX:
            raise Odd
        order = form.order
        items: list[dict[str, Any]] = []
        while position < end:
            raw, length = order.implicit_header.unpack_from(self._buffer, position)
            position += 8
            if raw == order.sequence_end:
                break
            if raw != order.item:
                raise Odd
            stop = end if length == UNDEFINED else position + length
            if stop > end:
                raise Odd
            item: dict[str, Any] = {}
            inside = f"{path}{len(items) + 1}/"
            position = self._elements(item, position, stop, form, character_set, inside, depth)
            items.append(item)
        return items

    def _vr(self, tag: int, vr: str, length: int, creators: dict[int, str]) -> str:
        if vr and vr != "UN":
            return vr
        known = _dictionary_vr(tag, creators.get((tag & 0xFFFF) >> 8, ""))
        if vr == "UN" and (known == "UN" or length > _KNOWN_UN_MAX_BYTES) and length != UNDEFINED:
            return "UN"
        if length == UNDEFINED and known not in ("OB", "OW", "OB or OW"):
            return "SQ"
        if len(known) > 2:
            return (_SIGNED.get(known) if self._signed else None) or _UNSIGNED[known]
        return known


def _element(vr: str, value: bytes, mark: str, character_set: str) -> dict[str, Any]:
    if not value:
        return {"vr": vr}
    width = BINARY_WIDTHS.get(vr)
    if width is not None:
        if mark == ">" and width > 1:
            value = swapped(value, width)
        return {"vr": vr, "InlineBinary": base64.b64encode(value).decode("ascii")}
    values = _values(vr, value, mark, character_set)
    return {"vr": vr, "Value": values} if values else {"vr": vr}


def _values(vr: str, value: bytes, mark: str, character_set: str) -> list[Any]:
    letter = NUMBER_FORMATS.get(vr)
    if letter is not None:
        count = len(value) // struct.calcsize(letter)
        numbers = struct.unpack_from(f"{mark}{count}{letter}", value)
        return [_finite(number) for number in numbers] if letter in "fd" else list(numbers)
    if vr == "AT":
        count = len(value) // 4
        parts = struct.unpack_from(f"{mark}{2 * count}H", value)
        return [f"{parts[2 * n]:04X}{parts[2 * n + 1]:04X}" for n in range(count)]
    text = decode_text(value, vr, character_set) if vr in TEXT_VRS else value.decode("latin-1")
    if vr in ONE_VALUE_VRS:
        text = text.rstrip(" \0")
        return [text] if text else []
    if "\\" not in text:
        text = text.strip(" \0")
        return [json_value(vr, text)] if text else []
    return [json_value(vr, part.strip(" \0")) for part in text.split("\\")]


def _finite(number: float) -> Any:
    """Return a number that JSON has, or its name (PS3.18 F.2.3)."""
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "inf" if number > 0 else "-inf"


def swapped(value: bytes, width_bytes: int) -> bytes:
    """Return a value's units in the other byte order; a rest that is no unit stays as it is."""
    whole = len(value) - len(value) % width_bytes
    turned = bytearray(value)
    for index in range(width_bytes):
        turned[index:whole:width_bytes] = value[width_bytes - 1 - index : whole : width_bytes]
    return bytes(turned)


def json_vr(tag: int, vr: str) -> str:
    """Return the VR to give for an element that is left out; "" and ambiguous ones are decided."""
    if not vr:
        known = _dictionary_vr(tag, "")
        return _UNSIGNED.get(known, known)
    return vr


@lru_cache(maxsize=16384)
def _dictionary_vr(tag: int, creator: str) -> str:
    """Return the VR of the standard's or of a private dictionary, "UN" where there is none."""
    try:
        if not tag >> 16 & 1:
            return str(dictionary_VR(tag))
        if 0x10 <= tag & 0xFFFF <= 0xFF:
            return "LO"
        return str(private_dictionary_VR(tag, creator)) if creator else "UN"
    except KeyError:
        return "UN"
