"""Bodies of stores: however they come cut into pieces, the same parts come out."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.dicom.file_meta import build_file_meta
from appliance.dicom.part10 import META_MAX_BYTES, read_part10
from appliance.foundation.errors import DatasetNotUnderstood
from appliance.web.multipart_reading import PartReader
from appliance.web.problem import BadRequest, TooLarge

HEAD = b"--B\r\nContent-Type: application/dicom\r\n\r\n"
CONTENT = st.lists(
    st.sampled_from([b"\r\n", b"--", b"\r\n--", b"B", b"\r", b"\n", b"x", b"\0" * 9, b"\r\n--A"]),
    max_size=12,
).map(b"".join)


def cut(body: bytes, sizes: list[int]) -> Iterator[bytes]:
    position = 0
    while position < len(body):
        size = sizes[position % len(sizes)] if sizes else len(body)
        yield body[position : position + size]
        position += size
    while True:
        yield b""


def read(body: bytes, sizes: list[int], boundary: str = "B") -> list[bytes]:
    pieces = cut(body, sizes)
    reader = PartReader(lambda: next(pieces), boundary)
    return [b"".join(reader.content()) for _ in reader]


@given(st.lists(CONTENT, min_size=1, max_size=4), st.lists(st.integers(1, 9), max_size=5))
def test_parts_are_what_was_put_into_them(contents: list[bytes], sizes: list[int]) -> None:
    """Contents full of what looks like delimiters, cut anywhere."""
    contents = [each for each in contents if b"\r\n--B" not in b"\r\n" + each] or [b""]
    body = b"preamble\r\n" + b"".join(HEAD + each + b"\r\n" for each in contents)
    assert read(body + b"--B--\r\nepilogue", sizes) == contents


def test_parts_that_are_not_read_are_skipped() -> None:
    body = HEAD + b"first\r\n" + HEAD + b"second\r\n--B--"
    pieces = cut(body, [3])
    reader = PartReader(lambda: next(pieces), "B")
    found = []
    for number, headers in enumerate(reader):
        assert headers == {"content-type": "application/dicom"}
        if number == 1:
            found.append(b"".join(reader.content()))
    assert found == [b"second"]


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", BadRequest),
        (HEAD + b"never ends", BadRequest),
        (b"--B--", BadRequest),
        (b"--Bx\r\n\r\n\r\n--B--", BadRequest),
        (b"--B\r\nno header\r\n\r\n\r\n--B--", BadRequest),
        (b"--B\r\n" + b"a: b\r\n" * 17 + b"\r\n\r\n--B--", BadRequest),
        (b"--B\r\n" + b"a" * 9000, TooLarge),
    ],
)
def test_what_is_no_multipart_is_refused(body: bytes, error: type[Exception]) -> None:
    for sizes in ([], [1], [7]):
        with pytest.raises(error):
            read(body, sizes)


@given(st.binary(max_size=40), st.lists(st.integers(1, 50), max_size=4))
def test_the_dataset_begins_behind_the_meta_group(dataset: bytes, sizes: list[int]) -> None:
    """Whatever pieces it comes in; nothing of the dataset is lost or added."""
    dataset = b"\x08\0\x05\0" + dataset
    meta = build_file_meta("1.2.3", "4.5.6", "1.2.840.10008.1.2.1", "CT")
    pieces = iter([each for each, _ in zip(cut(meta + dataset, sizes), range(2000), strict=False)])
    found, front = read_part10(pieces)
    assert (found.sop_class_uid, found.sop_instance_uid) == ("1.2.3", "4.5.6")
    assert front + b"".join(pieces) == dataset


@pytest.mark.parametrize(
    "content",
    [b"", b"DICM", bytes(128) + b"DICX" + bytes(200), bytes(128) + b"DICM", bytes(300)],
)
def test_what_is_no_part_10_file_is_refused(content: bytes) -> None:
    with pytest.raises(DatasetNotUnderstood):
        read_part10(iter([content]))


def test_a_meta_group_without_end_is_not_held() -> None:
    """It is given up once more came than any has."""
    element = b"\x02\0\x02\x01OB\0\0" + (1 << 30).to_bytes(4, "little")
    given_out = 0

    def endless() -> Iterator[bytes]:
        nonlocal given_out
        yield bytes(128) + b"DICM" + element
        while True:
            given_out += 4096
            yield bytes(4096)

    with pytest.raises(DatasetNotUnderstood):
        read_part10(endless())
    assert given_out <= META_MAX_BYTES + 8192
