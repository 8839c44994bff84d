"""Hostile datasets: only DatasetNotUnderstood or an answer, in bounded time and memory."""

import contextlib
import itertools
import struct
import time
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file

from appliance.dicom.identifier import parse_identifier
from appliance.dicom.scan import bulk_ranges, scan_attributes, scan_identity
from appliance.dicom.uid import (
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
)
from appliance.foundation.errors import DatasetNotUnderstood
from tests.support.dicom_oracle import raw_of

SYNTAXES = (IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_BIG_ENDIAN)
TIME_MAX_S = 5.0
MEMORY_MAX_BYTES = 64 * 1024 * 1024
UNDEFINED = 0xFFFFFFFF


def element(tag: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    """Return an explicit VR little endian element, on request with a length that lies."""
    length = len(value) if length is None else length
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr)
    if vr in (b"SQ", b"OB", b"OW", b"UN", b"UT", b"UC", b"OF", b"OV"):
        return head + struct.pack("<HI", 0, length) + value
    return head + struct.pack("<H", length) + value


def item(value: bytes, length: int | None = None) -> bytes:
    """Return an item."""
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(value) if length is None else length) + value


ITEM_END = struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
SEQUENCE_END = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
HEAD = element(0x00080016, b"UI", b"1.2.840.10008.5.1.4.1.1.2\0") + element(
    0x00080018, b"UI", b"1.2.3\0"
)
TAIL = element(0x0020000D, b"UI", b"1.2\0") + element(0x0020000E, b"UI", b"1.4\0")


def nested(depth: int, *, closed: bool = True, defined: bool = False, vr: bytes = b"SQ") -> bytes:
    """Return sequences in sequences."""
    value = b""
    for _ in range(depth):
        if defined:
            value = element(0x00081140, vr, item(value))
        else:
            end = (ITEM_END, SEQUENCE_END) if closed else (b"", b"")
            value = element(0x00081140, vr, item(value + end[0], UNDEFINED) + end[1], UNDEFINED)
    return value


CORPUS = {
    "nothing": b"",
    "one byte": b"\x08",
    "a header cut": HEAD[:7],
    "4 GiB of text": HEAD + element(0x00080060, b"UT", b"CT", 0xFFFFFFF0) + TAIL,
    "4 GiB of bytes": HEAD + element(0x00091001, b"OB", b"", 0xFFFFFFFE) + TAIL,
    "4 GiB sequence": HEAD + element(0x00081140, b"SQ", b"", 0xFFFFFFFE) + TAIL,
    "4 GiB item": HEAD + element(0x00081140, b"SQ", item(b"", 0xFFFFFFFE), UNDEFINED) + TAIL,
    "an odd length": HEAD + element(0x00080060, b"CS", b"CT1") + TAIL,
    "depth 300": HEAD + nested(300) + TAIL,
    "depth 300 of defined length": HEAD + nested(300, defined=True) + TAIL,
    "depth 300 of UN": HEAD + nested(300, vr=b"UN") + TAIL,
    "depth 5000 never closed": HEAD + nested(5000, closed=False),
    "a sequence never closed": HEAD + element(0x00081140, b"SQ", b"", UNDEFINED) + TAIL,
    "an item never closed": HEAD + element(0x00081140, b"SQ", item(b"", UNDEFINED), UNDEFINED),
    "a UI of undefined length": HEAD + element(0x00091001, b"UN", b"x" * 9999, UNDEFINED) + TAIL,
    "fragments never closed": HEAD + element(0x7FE00010, b"OB", item(b"x" * 100), UNDEFINED),
    "a delimiter at the top": HEAD + SEQUENCE_END + ITEM_END + TAIL,
    "no VR": HEAD + b"\x08\x00\x60\x00\0\0\x02\x00CT" + TAIL,
    "a VR of blanks": HEAD + b"\x08\x00\x60\x00  \x02\x00CT" + TAIL,
    "ten thousand empty items": HEAD
    + element(0x00081140, b"SQ", item(b"") * 10_000 + SEQUENCE_END, UNDEFINED)
    + TAIL,
    "a million empty items": HEAD
    + element(0x00081140, b"SQ", item(b"") * 1_000_000 + SEQUENCE_END, UNDEFINED)
    + TAIL,
    "a million empty items in something odd": HEAD
    + b"\x08\x00\x60\x00??\x02\x00CT"
    + element(0x00081140, b"SQ", item(b"") * 1_000_000 + SEQUENCE_END, UNDEFINED)
    + TAIL,
    "fifty thousand unclosed sequences": element(0x00081140, b"SQ", b"", UNDEFINED) * 50_000,
    "fifty thousand unclosed UN": element(0x00091140, b"UN", b"", UNDEFINED) * 50_000,
    "fifty thousand unclosed OB": element(0x00091140, b"OB", b"", UNDEFINED) * 50_000,
    "all zero": bytes(100_000),
    "all ones": b"\xff" * 100_000,
    "text": b"GET / HTTP/1.1\r\n" * 1000,
}


def check(data: bytes, syntax: str) -> None:
    """Run every reader; anything but an answer or a clean refusal fails."""
    for reader in (scan_identity, scan_attributes, parse_identifier):
        with contextlib.suppress(DatasetNotUnderstood):
            reader(memoryview(data), syntax)
    end = 0
    for bulk in bulk_ranges(memoryview(data), syntax):
        assert end <= bulk.start < bulk.end <= len(data)
        end = bulk.end


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("name", CORPUS)
def test_the_corpus_is_read_or_refused_in_bounded_time(name: str, syntax: str):
    """Each known attack costs no more than seconds of this thread."""
    started = time.thread_time()
    check(CORPUS[name], syntax)
    assert time.thread_time() - started < TIME_MAX_S


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("name", CORPUS)
def test_the_corpus_is_read_or_refused_in_bounded_memory(name: str, syntax: str):
    """Each known attack costs a small multiple of its own size, whatever lengths it claims."""
    tracemalloc.start()
    try:
        check(CORPUS[name], syntax)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MEMORY_MAX_BYTES + 4 * len(CORPUS[name])


@pytest.mark.parametrize("name", ["depth 300", "depth 300 of defined length", "depth 300 of UN"])
def test_attributes_of_too_deep_sequences_are_refused(name: str):
    """A sequence that the index keeps is not followed past the limit."""
    with pytest.raises(DatasetNotUnderstood):
        scan_attributes(CORPUS[name], EXPLICIT_VR_LITTLE_ENDIAN)


def test_identity_behind_too_deep_sequences_is_refused():
    """Undefined lengths must be followed to be skipped, and are not followed past the limit."""
    with pytest.raises(DatasetNotUnderstood):
        scan_identity(CORPUS["depth 300"], EXPLICIT_VR_LITTLE_ENDIAN)


def test_32_levels_are_read():
    """The limit is what is said."""
    assert scan_identity(HEAD + nested(32) + TAIL, EXPLICIT_VR_LITTLE_ENDIAN).study_instance_uid
    with pytest.raises(DatasetNotUnderstood):
        scan_identity(HEAD + nested(33) + TAIL, EXPLICIT_VR_LITTLE_ENDIAN)


def test_identity_is_not_taken_from_inside_a_value():
    """Bytes that look like an element inside a value or a sequence are not the identity."""
    decoy = element(0x0020000D, b"UI", b"6.6\0") + element(0x0020000E, b"UI", b"6.6\0")
    for wrapped in (
        element(0x00081140, b"SQ", item(decoy)),
        element(0x00081140, b"SQ", item(decoy + ITEM_END, UNDEFINED) + SEQUENCE_END, UNDEFINED),
        element(0x00091001, b"OB", decoy),
        element(0x00091001, b"UN", item(decoy) + SEQUENCE_END, len(item(decoy)) + 8),
    ):
        identity = scan_identity(HEAD + wrapped + TAIL, EXPLICIT_VR_LITTLE_ENDIAN)
        assert (identity.study_instance_uid, identity.series_instance_uid) == ("1.2", "1.4")


REAL = [
    raw
    for name in ("CT_small.dcm", "MR_small_implicit.dcm", "MR_small_bigendian.dcm", "reportsi.dcm")
    if (raw := raw_of(str(get_testdata_file(name)))) is not None
]

fuzzing = settings(
    max_examples=300, deadline=2000, suppress_health_check=[HealthCheck.too_slow], database=None
)


@fuzzing
@given(st.binary(max_size=600), st.sampled_from(SYNTAXES))
def test_any_bytes_are_read_or_refused(data: bytes, syntax: str):
    """No bytes raise anything but DatasetNotUnderstood."""
    check(data, syntax)
    check(HEAD + data + TAIL, syntax)


@fuzzing
@given(
    st.sampled_from(REAL),
    st.lists(st.tuples(st.integers(0, 4000), st.binary(min_size=1, max_size=6)), max_size=6),
    st.integers(0, 6000),
)
def test_mutated_real_headers_are_read_or_refused(raw, changes, cut):
    """Neither do real headers with bytes changed and the end cut off."""
    data = bytearray(raw.data[:6000])
    for position, change in changes:
        data[position : position + len(change)] = change
    check(bytes(data), raw.transfer_syntax_uid)
    check(bytes(data[:cut]), raw.transfer_syntax_uid)


@pytest.mark.parametrize("raw", REAL, ids=lambda raw: raw.name)
def test_every_cut_of_a_real_header_is_read_or_refused(raw):
    """A header cut anywhere never gives another identity than the whole one."""
    whole = scan_identity(raw.data, raw.transfer_syntax_uid)
    for cut in itertools.chain(range(0, 1500, 7), range(1500, 6000, 131)):
        try:
            found = scan_identity(raw.data[:cut], raw.transfer_syntax_uid)
        except DatasetNotUnderstood:
            continue
        assert found == whole or not found.series_instance_uid
