"""Raw dataset bytes of real instances, and what pydicom makes of them: the oracle of scan tests."""

import io
import warnings
from pathlib import Path
from typing import NamedTuple

from pydicom.dataset import Dataset
from pydicom.filereader import _read_file_meta_info, read_dataset
from pydicom.multival import MultiValue

from appliance.dicom.attributes import ITEM_VRS, SCANNED
from appliance.dicom.uid import is_big_endian, is_implicit
from appliance.dicom.values import VALUE_LENGTH_MAX
from tests.support.real_files import files_of_pydicom


class Raw(NamedTuple):
    """A dataset as it came over the wire."""

    name: str
    data: bytes
    transfer_syntax_uid: str


def raw_of(path: str) -> Raw | None:
    """Return the dataset of a Part 10 file, None where the file does not tell its syntax."""
    data = Path(path).read_bytes()
    if data[128:132] != b"DICM":
        return None
    stream = io.BytesIO(data)
    stream.seek(132)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        meta = _read_file_meta_info(stream)
    syntax = meta.get("TransferSyntaxUID")
    if not syntax:
        return None
    return Raw(Path(path).name, data[stream.tell() :], str(syntax))


def real_datasets() -> list[Raw]:
    """Return every dataset that pydicom and its data package ship, once each."""
    found: dict[tuple[str, int], Raw] = {}
    for path in files_of_pydicom():
        if "DICOMDIR" not in path.name:
            raw = raw_of(str(path))
            if raw is not None:
                found.setdefault((raw.name, len(raw.data)), raw)
    return list(found.values())


def read_by_pydicom(raw: Raw, *, pixels: bool = True) -> Dataset:
    """Return pydicom's view of a dataset, on request only of what is in front of pixel data."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read_dataset(
            io.BytesIO(raw.data),
            is_implicit_VR=is_implicit(raw.transfer_syntax_uid),
            is_little_endian=not is_big_endian(raw.transfer_syntax_uid),
            stop_when=None if pixels else (lambda tag, vr, length: tag >= 0x7FE00008),
        )


def expected_attributes(dataset: Dataset) -> dict[int, object]:
    """Return what a scan must find, as pydicom reads it."""
    return _expected(dataset, SCANNED)


def _expected(dataset: Dataset, vrs: dict[int, str]) -> dict[int, object]:
    found: dict[int, object] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.decode()
    for tag, vr in vrs.items():
        if tag not in dataset:
            continue
        value = dataset[tag].value
        if vr == "SQ":
            items = [_expected(item, ITEM_VRS) for item in value or []]
            if items:
                found[tag] = items
            continue
        text = _text(value, vr)
        if text:
            found[tag] = text[:VALUE_LENGTH_MAX]
    return found


def without_empty_groups(attributes: dict[int, object]) -> dict[int, object]:
    """Return attributes with names as pydicom prints them: without empty groups at the end."""
    return {
        tag: value.rstrip("=") if SCANNED[tag] == "PN" and isinstance(value, str) else value
        for tag, value in attributes.items()
    }


def _text(value: object, vr: str) -> str:
    if value is None:
        return ""
    if isinstance(value, (MultiValue, list)):
        return "\\".join(_text(part, vr) for part in value).strip()
    if isinstance(value, bytes):
        return value.decode("latin-1").strip(" \0")
    original = getattr(value, "original_string", None)
    text = original if isinstance(original, str) else str(value)
    return text.rstrip(" \0") if vr in ("ST", "LT", "UT", "UR") else text.strip(" \0")
