"""Which top-level elements count as bulk: the rule by which sealing leaves values out.

Must not read bytes. Invariant: sequences are never bulk.
"""

from collections.abc import Iterator

BULK_VALUE_BYTES = 64 * 1024
"""A value longer than this is bulk, whatever it is."""

PIXEL_DATA = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
"""Float, Double Float and plain Pixel Data: bulk at any length."""

Bulk = tuple[int, str, int, int, int, int]
"""Tag, VR, start, end, value offset, value length: the fields of a BulkRange."""


def is_bulk(tag: int, sequence: bool, length: int) -> bool:
    """Tell whether an element is left out of a header copy."""
    return tag in PIXEL_DATA or (not sequence and length > BULK_VALUE_BYTES)


def rest(start: int, end: int) -> Iterator[Bulk]:
    """Yield the rest of a dataset that does not parse, where it is too long to keep."""
    if end - start > BULK_VALUE_BYTES:
        yield 0, "", start, end, start, end - start
