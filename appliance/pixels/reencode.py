"""One dataset from one transfer syntax into an uncompressed one.

Runs in the transcoding worker only. Invariants: text is carried over byte for byte, so that a
wrong declared character set costs nothing; only what the change of syntax asks for is rewritten;
what can't be decoded raises, and never becomes a wrong image.
"""

import io
import struct
from collections.abc import Iterator

from pydicom.datadict import dictionary_VR, private_dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import correct_ambiguous_vr_element, write_data_element
from pydicom.pixels import get_decoder
from pydicom.pixels.utils import get_expected_length
from pydicom.uid import UID, JPEGExtended12Bit

from appliance.dicom.uid import (
    ENCAPSULATED_UNCOMPRESSED,
    EXPLICIT_VR_BIG_ENDIAN,
    GE_PRIVATE_IMPLICIT,
    is_big_endian,
    is_implicit,
    is_uncompressed,
)
from appliance.foundation.errors import DatasetNotUnderstood
from appliance.pixels.jpeg_extended import PLUGIN

DEPTH_MAX = 32
_PIXEL_DATA = 0x7FE00010
_ICON_IMAGE_SEQUENCE = 0x00880200
_UNDEFINED = 0xFFFFFFFF
_LONG_VRS = frozenset(
    {"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"}
)
_WIDTH_BYTES = {
    **dict.fromkeys(("US", "SS", "OW", "AT"), 2),
    **dict.fromkeys(("UL", "SL", "FL", "OF", "OL"), 4),
    **dict.fromkeys(("FD", "OD", "OV", "SV", "UV"), 8),
}
_LOSSY = frozenset({"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.91"})

get_decoder(JPEGExtended12Bit).add_plugin(*PLUGIN)


def reencode(raw: bytes, source: str, target: str) -> bytes:
    """Return the dataset in the uncompressed syntax `target`; DatasetNotUnderstood if it can't."""
    dataset = read_dataset(io.BytesIO(raw), is_implicit(source), not is_big_endian(source))
    if source == GE_PRIVATE_IMPLICIT:
        swap_pixel_data(dataset)
    elif source == ENCAPSULATED_UNCOMPRESSED or not is_uncompressed(source):
        decompress(dataset, source)
    return b"".join(_encode(dataset, source, target, 0))


def swap_pixel_data(dataset: Dataset) -> None:
    """Turn the 16-bit samples of a dataset round."""
    if _PIXEL_DATA in dataset and dataset.get("BitsAllocated", 0) == 16:
        element = dataset[_PIXEL_DATA]
        element.value = _swapped(element.value, 2)


def decompress(dataset: Dataset, source: str) -> None:
    """Decode the frames of an encapsulated dataset; DatasetNotUnderstood, or what pydicom raises.

    A lossy image becomes RGB, a lossless one keeps its photometric interpretation.
    """
    icon = dataset.get(_ICON_IMAGE_SEQUENCE)
    if icon is not None and any(_is_encapsulated(item) for item in icon.value):
        del dataset[_ICON_IMAGE_SEQUENCE]
    if _PIXEL_DATA not in dataset or not _is_encapsulated(dataset):
        return
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(source)
    # A lossless YBR image stays YBR: the step to RGB would round. A lossy one may be subsampled,
    # which native pixel data of most viewers can't be.
    as_rgb = source in _LOSSY
    try:
        dataset.decompress(as_rgb=as_rgb, generate_instance_uid=False)
    except ValueError:
        # pydicom 3.0.2 corrects the sign of JPEG 2000 samples in a read-only array, unless it is
        # asked for frames by index.
        frames = range(int(dataset.get("NumberOfFrames") or 1))
        dataset.decompress(as_rgb=as_rgb, generate_instance_uid=False, indices=frames)
    length_bytes = len(dataset.PixelData)
    expected_bytes = get_expected_length(dataset)
    if length_bytes != expected_bytes + expected_bytes % 2:
        raise DatasetNotUnderstood(
            "decompress", "pixel data", f"{length_bytes} bytes where {expected_bytes} are described"
        )


def _is_encapsulated(dataset: Dataset) -> bool:
    if _PIXEL_DATA not in dataset:
        return False
    item = dataset.get_item(_PIXEL_DATA)
    if isinstance(item, RawDataElement):
        return bool(item.length == _UNDEFINED)
    return bool(item is not None and item.is_undefined_length)


def _encode(dataset: Dataset, source: str, target: str, depth: int) -> Iterator[bytes]:
    if depth > DEPTH_MAX:
        raise DatasetNotUnderstood("re-encode", "sequence", f"deeper than {DEPTH_MAX}")
    swap = is_big_endian(source) != is_big_endian(target)
    for tag in sorted(dataset.keys()):
        if tag.element == 0:
            continue  # group lengths are retired, and would be wrong now
        item = dataset.get_item(tag)
        vr = _value_representation(dataset, item)
        if vr == "SQ":
            value = b"".join(_encode_items(dataset[tag], source, target, depth))
            yield _header(tag, "SQ", len(value), target)
            yield value
            continue
        if len(vr) > 2:
            item = correct_ambiguous_vr_element(dataset[tag], dataset, not is_big_endian(source))
            vr = item.VR if len(item.VR) == 2 else "UN"
        if isinstance(item, RawDataElement):
            if item.length == _UNDEFINED:
                raise DatasetNotUnderstood(
                    "re-encode", "element", "encapsulated in a native syntax"
                )
            value = item.value or b""
            if swap and vr in _WIDTH_BYTES:
                value = _swapped(value, _width_bytes(dataset, tag, vr))
            yield _header(tag, vr, len(value), target)
            yield value
        else:
            yield _encode_changed(item, vr, target)


def _encode_items(element: DataElement, source: str, target: str, depth: int) -> Iterator[bytes]:
    layout = ">HHL" if target == EXPLICIT_VR_BIG_ENDIAN else "<HHL"
    for item in element.value or ():
        content = b"".join(_encode(item, source, target, depth + 1))
        yield struct.pack(layout, 0xFFFE, 0xE000, len(content))
        yield content


def _encode_changed(element: DataElement, vr: str, target: str) -> bytes:
    out = DicomBytesIO()
    out.is_implicit_VR = is_implicit(target)
    out.is_little_endian = not is_big_endian(target)
    element.VR = vr
    write_data_element(out, element)
    encoded: bytes = out.getvalue()
    if element.tag == _PIXEL_DATA and is_big_endian(target) and vr == "OW":
        raise DatasetNotUnderstood("re-encode", "pixel data", "never decoded to big endian")
    return encoded


def _value_representation(dataset: Dataset, item: RawDataElement | DataElement) -> str:
    if item.VR is not None:
        return str(item.VR)
    tag = item.tag
    try:
        if not tag.is_private:
            return str(dictionary_VR(tag))
        if tag.is_private_creator:
            return "LO"
        creator = dataset.get((tag.group << 16) | (tag.element >> 8))
        if creator is not None and creator.value:
            return str(private_dictionary_VR(tag, str(creator.value)))
    except KeyError:
        pass
    return "UN"


def _width_bytes(dataset: Dataset, tag: int, vr: str) -> int:
    if tag == _PIXEL_DATA and vr == "OW":
        return max(2, int(dataset.get("BitsAllocated") or 16) // 8)
    return _WIDTH_BYTES[vr]


def _header(tag: int, vr: str, length: int, target: str) -> bytes:
    order = ">" if target == EXPLICIT_VR_BIG_ENDIAN else "<"
    group, element = tag >> 16, tag & 0xFFFF
    if is_implicit(target):
        return struct.pack("<HHL", group, element, length)
    if vr not in _LONG_VRS and length > 0xFFFF:
        vr = "UN"  # PS3.5 6.2.2: a value too long for its VR's 16-bit length
    if vr in _LONG_VRS:
        return struct.pack(f"{order}HH2s2xL", group, element, vr.encode("ascii"), length)
    return struct.pack(f"{order}HH2sH", group, element, vr.encode("ascii"), length)


def _swapped(value: bytes, width_bytes: int) -> bytes:
    if len(value) % width_bytes:
        raise DatasetNotUnderstood("re-encode", "element", "length is no multiple of its unit")
    swapped = bytearray(len(value))
    for index in range(width_bytes):
        swapped[index::width_bytes] = value[width_bytes - 1 - index :: width_bytes]
    return bytes(swapped)
