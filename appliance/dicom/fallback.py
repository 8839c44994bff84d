"""What the quick scanners call odd, read by pydicom.

The only module of this layer that parses with pydicom. It must not let pydicom's errors, warnings
or log lines out: they quote values, and a value may be patient data. Only raw values are taken from
pydicom, so text is decoded by one code path. Sequences are read by pydicom's own parser.
"""

import contextlib
import io
import logging
import threading
import warnings
from collections.abc import Callable, Iterator

from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import Tag

from appliance.dicom.attributes import ITEM_VRS, SCANNED
from appliance.dicom.elements import SEQUENCE_DEPTH_MAX, UNDEFINED, Bytes, Value
from appliance.dicom.layouts import CHARACTER_SET, IDENTITY, LAST_SCANNED
from appliance.dicom.skipping import too_deep
from appliance.dicom.uid import is_big_endian, is_implicit
from appliance.dicom.values import text_of
from appliance.foundation.errors import DatasetNotUnderstood

HEADER_BYTES_MAX = 16 * 1024 * 1024
"""pydicom is shown at most this much of a dataset."""

READS_MAX = 20_000
"""Reads that pydicom may make of one dataset: two or three an element, one or two an item."""

SEQUENCE_ITEMS_MAX = 1024
"""Items of one sequence that are kept."""

# pydicom logs the values it stumbles over; this process writes no patient data to any log.
logging.getLogger("pydicom").setLevel(logging.CRITICAL)

# catch_warnings changes a global, so only one thread may be inside.
_ONE_AT_A_TIME = threading.Lock()


def identity(dataset: Bytes, transfer_syntax_uid: str) -> list[bytes]:
    """Return the five identity values in the order of layouts.IDENTITY.

    Raises DatasetNotUnderstood where pydicom does not find the four UIDs either.
    """
    with _quietly():
        read = _read(dataset, transfer_syntax_uid)
        found = [_raw(read, tag) for tag in IDENTITY]
    if not (found[0] and found[1] and found[2] and found[3]):
        raise DatasetNotUnderstood(
            "scan a dataset", cause="its elements do not parse up to the Series Instance UID"
        )
    return found


def attributes(
    dataset: Bytes, transfer_syntax_uid: str, default_character_set: str
) -> tuple[dict[int, Value], str]:
    """Return the index attributes and the character set. Raises DatasetNotUnderstood."""
    found: dict[int, Value] = {}
    with _quietly():
        read = _read(dataset, transfer_syntax_uid)
        text = _Converter(">" if is_big_endian(transfer_syntax_uid) else "<")
        character_set = text.character_set(read)
        effective = character_set or default_character_set
        for tag, vr in SCANNED.items():
            value = text.value(read, tag, vr, effective, 1)
            if value:
                found[tag] = value
    if not found:
        raise DatasetNotUnderstood("scan a dataset", cause="no element of its header parses")
    return found, character_set


class _BudgetedStream(io.BytesIO):
    """Ends pydicom's work after READS_MAX reads: an item of 8 bytes costs it 20 us and 3 kB."""

    _left = READS_MAX

    def read(self, size: int | None = -1, /) -> bytes:
        """Return bytes as BytesIO does; raises DatasetNotUnderstood past the budget."""
        self._left -= 1
        if self._left < 0:
            raise DatasetNotUnderstood(
                "scan a dataset", cause="it is odd and has too many elements to find out how"
            )
        return super().read(size)


def _behind_the_header(tag: int, _vr: str | None, _length: int) -> bool:
    return tag > LAST_SCANNED


def _read(dataset: Bytes, transfer_syntax_uid: str) -> Dataset:
    stream = _BudgetedStream(dataset[:HEADER_BYTES_MAX])
    return read_dataset(
        stream,
        is_implicit_VR=is_implicit(transfer_syntax_uid),
        is_little_endian=not is_big_endian(transfer_syntax_uid),
        stop_when=_behind_the_header,
    )


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Let nothing of pydicom's out but DatasetNotUnderstood: no warning, no other error."""
    with _ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except DatasetNotUnderstood:
            raise
        except Exception as error:  # noqa: BLE001 - pydicom raises nearly anything on hostile bytes
            raise DatasetNotUnderstood(
                "scan a dataset", cause=f"pydicom does not read it either ({type(error).__name__})"
            ) from None


def _raw(read: Dataset, tag: int) -> bytes:
    """Return an element's bytes, b"" where there are none or where they end too early."""
    element = read.get_item(tag) if Tag(tag) in read else None
    value = element.value if element is not None else None
    if not isinstance(value, bytes):
        return b""
    length = getattr(element, "length", len(value))
    return value if length in (len(value), UNDEFINED) else b""


class _Converter:
    """Makes text of pydicom's raw values, in one byte order."""

    def __init__(self, mark: str) -> None:
        self._mark = mark

    def character_set(self, read: Dataset) -> str:
        """Return the value of (0008,0005) in a dataset or item."""
        return text_of(_raw(read, CHARACTER_SET), "CS", self._mark, "")

    def value(self, read: Dataset, tag: int, vr: str, character_set: str, depth: int) -> Value:
        """Return the text or the items of an element, "" for none."""
        if vr != "SQ":
            return text_of(_raw(read, tag), vr, self._mark, character_set)
        if Tag(tag) not in read:
            return ""
        if depth > SEQUENCE_DEPTH_MAX:
            raise too_deep()
        try:
            sequence = read[tag].value
            items = list(sequence[:SEQUENCE_ITEMS_MAX]) if sequence else []
        except Exception:  # noqa: BLE001 - as in _quietly; the rest of the header still counts
            return ""
        return [self._item(i, character_set, depth) for i in items if isinstance(i, Dataset)]

    def _item(self, item: Dataset, character_set: str, depth: int) -> dict[int, Value]:
        character_set = self.character_set(item) or character_set
        kept: dict[int, Value] = {}
        for element_tag in list(item.keys()):
            tag = int(element_tag)
            if tag in ITEM_VRS:
                value = self.value(item, tag, ITEM_VRS[tag], character_set, depth + 1)
                if value:
                    kept[tag] = value
        return kept


def identifier(
    raw: bytes,
    transfer_syntax_uid: str,
    default_character_set: str,
    vr_of: Callable[[int], str],
) -> tuple[dict[int, Value], list[int]]:
    """Return the keys of an identifier and the tags that `vr_of` has no VR for.

    Raises DatasetNotUnderstood.
    """
    keys: dict[int, Value] = {}
    skipped: list[int] = []
    with _quietly():
        read = _read(raw, transfer_syntax_uid)
        text = _Converter(">" if is_big_endian(transfer_syntax_uid) else "<")
        character_set = text.character_set(read) or default_character_set
        for element_tag in list(read.keys()):
            tag = int(element_tag)
            vr = vr_of(tag)
            if vr:
                keys[tag] = text.value(read, tag, vr, character_set, 1)
            else:
                skipped.append(tag)
    if not keys:
        raise DatasetNotUnderstood("read an identifier", cause="no key of it parses")
    return keys, skipped
