"""Header scanners for implicit VR little endian (PS3.5 7.1.3), GE's private syntax included.

The VR of a wanted element is the table's. Must not copy a value that is not wanted. Anything
unusual raises Odd, struct.error or IndexError, never a wrong answer.
"""

from collections.abc import Iterator

from appliance.dicom.attributes import SCANNED
from appliance.dicom.bulk import PIXEL_DATA, Bulk, is_bulk, rest
from appliance.dicom.elements import QUIRKS, UNDEFINED, Bytes, Odd, Value
from appliance.dicom.gathering import Gathering
from appliance.dicom.layouts import LAST_SCANNED, Layout
from appliance.dicom.skipping import skip_fragments, skip_items
from appliance.foundation.errors import DatasetNotUnderstood


def identity(layout: Layout, buffer: Bytes) -> list[bytes]:
    """Return the five identity values in the order of layouts.IDENTITY, b"" where missing."""
    order = layout.order
    unpack = order.implicit_header.unpack_from
    wanted, series = layout.identity, layout.series
    found = [b""] * 5
    position, end = 0, len(buffer)
    while position < end:
        raw, length = unpack(buffer, position)
        position += 8
        if length == UNDEFINED:
            position = _skip(layout, buffer, position, raw)
            continue
        if raw in wanted:
            if position + length > end:
                raise Odd
            found[wanted[raw]] = bytes(buffer[position : position + length])
            if raw == series and found[0] and found[2] and found[3]:
                return found
        position += length
    if position != end:
        raise Odd
    return found


def attributes(
    layout: Layout, buffer: Bytes, default_character_set: str, *, complete: bool
) -> tuple[dict[int, Value], str]:
    """Return the index attributes and the character set.

    complete: whether `buffer` is the whole dataset; a window that ends before the last wanted tag
    is Odd.
    """
    order = layout.order
    unpack = order.implicit_header.unpack_from
    wanted = layout.scanned
    last_group = LAST_SCANNED >> 16
    gathering = Gathering(order, default_character_set, implicit=True)
    position, end = 0, len(buffer)
    while position < end:
        raw, length = unpack(buffer, position)
        position += 8
        if length == UNDEFINED:
            start = position
            position = _skip(layout, buffer, position, raw)
            if raw in wanted:
                value = bytes(buffer[start : position - 8])
                gathering.add_sequence(wanted[raw], value, unknown=False)
            continue
        if raw in wanted:
            if position + length > end:
                raise Odd
            if length:
                tag = wanted[raw]
                gathering.add(tag, SCANNED[tag], bytes(buffer[position : position + length]))
        elif raw & 0xFFFF > last_group:
            return gathering.found, gathering.character_set
        position += length
    if position != end or not complete:
        raise Odd
    return gathering.found, gathering.character_set


def _skip(layout: Layout, buffer: Bytes, position: int, raw: int) -> int:
    if layout.order.tag(raw) in PIXEL_DATA:
        return skip_fragments(layout.order, buffer, position)
    return skip_items(layout.order, buffer, position, True, 1)


def bulk(layout: Layout, buffer: Bytes) -> Iterator[Bulk]:
    """Yield the fields of each BulkRange. Never raises: what does not parse is one last range.

    A value of defined length that starts with an item is taken for a sequence.
    """
    order = layout.order
    unpack = order.implicit_header.unpack_from
    start, end = 0, len(buffer)
    try:
        while start < end:
            raw, length = unpack(buffer, start)
            value = start + 8
            position = value + length
            if length == UNDEFINED:
                position = _skip(layout, buffer, value, raw)
            if position > end:
                raise Odd
            tag = order.tag(raw)
            sequence = length == UNDEFINED
            if position - value >= 8 and not sequence:
                sequence = unpack(buffer, value)[0] == order.item
            if is_bulk(tag, sequence, position - value):
                yield tag, "", start, position, value, position - value
            start = position
    except (*QUIRKS, DatasetNotUnderstood):
        yield from rest(start, end)
