"""What the quick scanners call odd, read by pydicom.

The only module of this layer that parses with pydicom. It must not let pydicom's errors, warnings
or log lines out: they quote values, and a value may be patient data. Only raw values are taken from
pydicom, so text is decoded by one code path. Sequences are read by pydicom's own parser.
"""

import io
import logging
import threading
import warnings
from collections.abc import Callable

from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import Tag

from appliance.dicom.attributes import ITEM_VRS, SCANNED
from appliance.dicom.elements import SEQUENCE_DEPTH_MAX, Bytes
from appliance.dicom.gathering import text_of
from appliance.dicom.layouts import CHARACTER_SET, IDENTITY, LAST_SCANNED
from appliance.dicom.skipping import too_deep
from appliance.dicom.uid import is_big_endian, is_implicit
from appliance.foundation.errors import DatasetNotUnderstood

HEADER_BYTES_MAX = 16 * 1024 * 1024
"""pydicom is shown at most this much of a dataset."""

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
    with _ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read = _read(dataset, transfer_syntax_uid)
        found = [_raw(read, tag) for tag in IDENTITY]
    if not (found[0] and found[1] and found[2] and found[3]):
        raise DatasetNotUnderstood(
            "scan a dataset", cause="its elements do not parse up to the Series Instance UID"
        )
    return found


def attributes(
    dataset: Bytes, transfer_syntax_uid: str, default_character_set: str
) -> tuple[dict[int, object], str]:
    """Return the index attributes and the character set. Raises DatasetNotUnderstood."""
    found: dict[int, object] = {}
    with _ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read = _read(dataset, transfer_syntax_uid)
        character_set = text_of(_raw(read, CHARACTER_SET), "CS", "<", "")
        effective = character_set or default_character_set
        mark = ">" if is_big_endian(transfer_syntax_uid) else "<"
        for tag, vr in SCANNED.items():
            value = _value(read, tag, vr, mark, effective, 1)
            if value:
                found[tag] = value
    if not found:
        raise DatasetNotUnderstood("scan a dataset", cause="no element of its header parses")
    return found, character_set


def _read(dataset: Bytes, transfer_syntax_uid: str) -> Dataset:
    stream = io.BytesIO(dataset[:HEADER_BYTES_MAX])
    try:
        return read_dataset(
            stream,
            is_implicit_VR=is_implicit(transfer_syntax_uid),
            is_little_endian=not is_big_endian(transfer_syntax_uid),
            stop_when=lambda tag, vr, length: tag > LAST_SCANNED,
        )
    except Exception as error:  # pydicom raises nearly anything on hostile bytes
        raise DatasetNotUnderstood(
            "scan a dataset", cause=f"pydicom does not read it either ({type(error).__name__})"
        ) from None


def _raw(read: Dataset, tag: int) -> bytes:
    element = read.get_item(tag) if Tag(tag) in read else None
    value = element.value if element is not None else None
    return value if isinstance(value, bytes) else b""


def _value(
    read: Dataset, tag: int, vr: str, mark: str, character_set: str, depth: int
) -> str | list[dict[int, object]]:
    if vr != "SQ":
        return text_of(_raw(read, tag), vr, mark, character_set)
    if Tag(tag) not in read:
        return ""
    if depth > SEQUENCE_DEPTH_MAX:
        raise too_deep()
    try:
        sequence = read[tag].value
        items = list(sequence[:SEQUENCE_ITEMS_MAX]) if sequence else []
    except Exception:  # noqa: BLE001 - as in _read; the rest of the header still counts
        return ""
    return [_item(item, mark, character_set, depth) for item in items if isinstance(item, Dataset)]


def _item(item: Dataset, mark: str, character_set: str, depth: int) -> dict[int, object]:
    character_set = text_of(_raw(item, CHARACTER_SET), "CS", mark, "") or character_set
    kept: dict[int, object] = {}
    for element_tag in list(item.keys()):
        tag = int(element_tag)
        if tag in ITEM_VRS:
            value = _value(item, tag, ITEM_VRS[tag], mark, character_set, depth + 1)
            if value:
                kept[tag] = value
    return kept


def identifier(
    raw: bytes,
    transfer_syntax_uid: str,
    default_character_set: str,
    vr_of: Callable[[int], str],
    unsupported: list[int],
) -> dict[int, object]:
    """Return the keys of an identifier; tags without a VR are added to `unsupported`.

    Raises DatasetNotUnderstood.
    """
    keys: dict[int, object] = {}
    with _ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read = _read(raw, transfer_syntax_uid)
        mark = ">" if is_big_endian(transfer_syntax_uid) else "<"
        character_set = text_of(_raw(read, CHARACTER_SET), "CS", mark, "") or default_character_set
        for element_tag in list(read.keys()):
            tag = int(element_tag)
            vr = vr_of(tag)
            if vr:
                keys[tag] = _value(read, tag, vr, mark, character_set, 1)
            elif tag & 0xFFFF:
                unsupported.append(tag)
    if not keys:
        raise DatasetNotUnderstood("read an identifier", cause="no key of it parses")
    return keys
