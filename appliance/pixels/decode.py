"""A dataset with one frame into that frame's samples. Runs in the confined worker only.

Invariant: samples are little endian and as the explicit little endian form of the instance has
them; what can't be decoded raises, and never becomes a wrong image.
"""

import io

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_dataset
from pydicom.pixels.utils import get_expected_length
from pydicom.uid import UID

from appliance.dicom.uid import GE_PRIVATE_IMPLICIT, is_big_endian, is_implicit
from appliance.pixels.layout import is_encapsulated
from appliance.pixels.reencode import decompress, swap_pixel_data


def read_single(raw: bytes, source: str) -> Dataset:
    """Return the dataset, its one frame still as stored."""
    dataset = read_dataset(io.BytesIO(raw), is_implicit(source), not is_big_endian(source))
    if "NumberOfFrames" in dataset:
        dataset.NumberOfFrames = 1
    for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
        if keyword in dataset:
            del dataset[keyword]
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(source)
    if source == GE_PRIVATE_IMPLICIT:
        swap_pixel_data(dataset)
        dataset.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2")
    return dataset


def decode_frame(raw: bytes, source: str) -> bytes:
    """Return the native samples of the one frame of an encapsulated dataset."""
    dataset = read_single(raw, source)
    if is_encapsulated(source):
        decompress(dataset, source)
    samples: bytes = dataset.PixelData
    return samples[: get_expected_length(dataset)]
