"""Stepping over sequences and fragments without reading them (PS3.5 7.5, A.4).

Owns the bound on depth. Must not decode values. Every step moves forward, so time is linear in the
bytes stepped over; a structure that does not close raises Odd, one too deep DatasetNotUnderstood.
"""

from appliance.dicom.elements import LITTLE, SEQUENCE_DEPTH_MAX, UNDEFINED, ByteOrder, Bytes, Odd
from appliance.foundation.errors import DatasetNotUnderstood


def too_deep() -> DatasetNotUnderstood:
    """Return the error for sequences nested past the limit."""
    return DatasetNotUnderstood(
        "scan a dataset", cause=f"sequences are nested deeper than {SEQUENCE_DEPTH_MAX}"
    )


def skip_undefined(
    order: ByteOrder, buffer: Bytes, position: int, vr: int, implicit: bool, depth: int = 1
) -> int:
    """Return where the value of undefined length that starts at `position` ends.

    vr: the element's VR as `order.vr` gives it, 0 in implicit VR. A UN of undefined length holds
    items in implicit VR little endian (PS3.5 6.2.2).
    """
    if vr == order.un and not implicit:
        return skip_items(LITTLE, buffer, position, True, depth)
    if vr in (order.sq, 0):
        return skip_items(order, buffer, position, implicit, depth)
    return skip_fragments(order, buffer, position)


def skip_fragments(order: ByteOrder, buffer: Bytes, position: int) -> int:
    """Return the end of encapsulated fragments: items of defined length (PS3.5 A.4)."""
    unpack = order.implicit_header.unpack_from
    item, stop = order.item, order.sequence_end
    while True:
        raw, length = unpack(buffer, position)
        position += 8
        if raw == item and length != UNDEFINED:
            position += length
        elif raw == stop:
            return position
        else:
            raise Odd


def skip_items(order: ByteOrder, buffer: Bytes, position: int, implicit: bool, depth: int) -> int:
    """Return the end of a sequence of undefined length: the byte after its delimiter."""
    if depth > SEQUENCE_DEPTH_MAX:
        raise too_deep()
    unpack = order.implicit_header.unpack_from
    item, stop = order.item, order.sequence_end
    skip_item = skip_implicit_item if implicit else skip_explicit_item
    while True:
        raw, length = unpack(buffer, position)
        position += 8
        if raw == item:
            if length == UNDEFINED:
                position = skip_item(order, buffer, position, depth)
            else:
                position += length
        elif raw == stop:
            return position
        else:
            raise Odd


def skip_explicit_item(order: ByteOrder, buffer: Bytes, position: int, depth: int) -> int:
    """Return the byte after the delimiter of an item of undefined length, explicit VR."""
    unpack, unpack_length = order.explicit_header.unpack_from, order.length.unpack_from
    short, long = order.short_vrs, order.long_vrs
    stop = order.item_end
    while True:
        raw, vr, length = unpack(buffer, position)
        if vr in short:
            position += 8 + length
        elif vr in long:
            (length,) = unpack_length(buffer, position + 8)
            position += 12
            if length == UNDEFINED:
                position = skip_undefined(order, buffer, position, vr, False, depth + 1)
            else:
                position += length
        elif raw == stop:
            return position + 8
        else:
            raise Odd


def skip_implicit_item(order: ByteOrder, buffer: Bytes, position: int, depth: int) -> int:
    """Return the byte after the delimiter of an item of undefined length, implicit VR."""
    unpack = order.implicit_header.unpack_from
    stop = order.item_end
    while True:
        raw, length = unpack(buffer, position)
        position += 8
        if raw == stop:
            return position
        if length == UNDEFINED:
            position = skip_items(order, buffer, position, True, depth + 1)
        else:
            position += length
