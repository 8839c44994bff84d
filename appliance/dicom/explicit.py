"""Header scanners for explicit VR in either byte order (PS3.5 7.1.2).

Must not make an object per element, and must not copy a value that is not wanted. Anything unusual
raises Odd, struct.error or IndexError, never a wrong answer.
"""

from collections.abc import Iterator

from appliance.dicom.bulk import Bulk, is_bulk, rest
from appliance.dicom.elements import QUIRKS, UNDEFINED, Bytes, Odd, Value
from appliance.dicom.gathering import Gathering
from appliance.dicom.layouts import LAST_SCANNED, Layout
from appliance.dicom.skipping import skip_undefined
from appliance.foundation.errors import DatasetNotUnderstood


def identity(layout: Layout, buffer: Bytes) -> list[bytes]:
    """Return the five identity values in the order of layouts.IDENTITY, b"" where missing."""
    order = layout.order
    unpack, unpack_length = order.explicit_header.unpack_from, order.length.unpack_from
    short, long = order.short_vrs, order.long_vrs
    wanted, series = layout.identity, layout.series
    found = [b""] * 5
    position, end = 0, len(buffer)
    while position < end:
        raw, vr, length = unpack(buffer, position)
        if vr in short:
            position += 8
        elif vr in long:
            (length,) = unpack_length(buffer, position + 8)
            position += 12
            if length == UNDEFINED:
                position = skip_undefined(order, buffer, position, vr, False)
                continue
        else:
            raise Odd
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


def attributes(  # noqa: C901 - the loop stays in one frame for speed
    layout: Layout, buffer: Bytes, default_character_set: str, *, complete: bool
) -> tuple[dict[int, Value], str]:
    """Return the index attributes and the character set.

    complete: whether `buffer` is the whole dataset; a window that ends before the last wanted tag
    is Odd.
    """
    order = layout.order
    unpack, unpack_length = order.explicit_header.unpack_from, order.length.unpack_from
    short, long, names = order.short_vrs, order.long_vrs, order.vr_names
    wanted, little = layout.scanned, order.little
    last_group = LAST_SCANNED >> 16
    gathering = Gathering(order, default_character_set, implicit=False)
    add = gathering.add
    position, end = 0, len(buffer)
    while position < end:
        raw, vr, length = unpack(buffer, position)
        if vr in short:
            position += 8
        elif vr in long:
            (length,) = unpack_length(buffer, position + 8)
            position += 12
            if length == UNDEFINED:
                start = position
                position = skip_undefined(order, buffer, position, vr, False)
                if raw in wanted:
                    value = bytes(buffer[start : position - 8])
                    gathering.add_sequence(wanted[raw], value, unknown=vr == order.un)
                continue
        else:
            raise Odd
        if raw in wanted:
            if position + length > end:
                raise Odd
            if length:
                add(wanted[raw], names[vr], bytes(buffer[position : position + length]))
        elif (raw & 0xFFFF if little else raw >> 16) > last_group:
            return gathering.found, gathering.character_set
        position += length
    if position != end or not complete:
        raise Odd
    return gathering.found, gathering.character_set


def bulk(layout: Layout, buffer: Bytes) -> Iterator[Bulk]:
    """Yield the fields of each BulkRange. Never raises: what does not parse is one last range."""
    order = layout.order
    unpack, unpack_length = order.explicit_header.unpack_from, order.length.unpack_from
    start, end = 0, len(buffer)
    try:
        while start < end:
            raw, vr, length = unpack(buffer, start)
            if vr in order.short_vrs:
                start += 8 + length
                continue
            if vr not in order.long_vrs:
                raise Odd
            (length,) = unpack_length(buffer, start + 8)
            value = start + 12
            position = value + length
            if length == UNDEFINED:
                position = skip_undefined(order, buffer, value, vr, False)
            if position > end:
                raise Odd
            tag = order.tag(raw)
            if is_bulk(tag, vr == order.sq or length == UNDEFINED, position - value):
                yield tag, order.vr_names[vr], start, position, value, position - value
            start = position
        if start > end:
            raise Odd
    except (*QUIRKS, DatasetNotUnderstood):
        yield from rest(start, end)
