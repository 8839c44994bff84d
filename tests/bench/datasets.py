"""Instances to measure with: CT images with random pixels and a header of about 900 bytes."""

import random
import warnings
from pathlib import Path

from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

_UID = "2.25.7331{run:04d}{part:02d}{number:05d}{size:04d}"


def _template(size: int) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = CTImageStorage
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.StudyDate = dataset.SeriesDate = dataset.ContentDate = "20240311"
    dataset.StudyTime = dataset.SeriesTime = dataset.ContentTime = "101500"
    dataset.Modality, dataset.Manufacturer = "CT", "Bench"
    dataset.InstitutionName, dataset.StationName = "Hospital", "CT01"
    dataset.StudyDescription, dataset.SeriesDescription = "Thorax", "Axial 1 mm"
    dataset.ReferringPhysicianName = "Referrer^R"
    dataset.PatientName, dataset.PatientID = "Bench^Patient", "BENCH-1"
    dataset.PatientBirthDate, dataset.PatientSex, dataset.PatientAge = "19600101", "O", "064Y"
    dataset.BodyPartExamined, dataset.SliceThickness, dataset.KVP = "CHEST", "1", "120"
    dataset.ProtocolName, dataset.PatientPosition = "Thorax", "HFS"
    dataset.StudyID, dataset.SeriesNumber, dataset.AcquisitionNumber = "1", 1, 1
    dataset.ImagePositionPatient, dataset.PixelSpacing = [0, 0, 0], [0.7, 0.7]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.FrameOfReferenceUID = "2.25.1"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows = dataset.Columns = size
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = 1
    dataset.RescaleIntercept, dataset.RescaleSlope = "-1024", "1"
    return dataset


def make_study(folder: Path, size: int, count: int, run: int, parts: int = 1) -> list[Path]:
    """Write one study of `count` CTs of `size` × `size` pixels into `parts` folders; return them.

    Study, Series and SOP Instance UIDs differ for every (size, run).
    """
    dataset = _template(size)
    source = random.Random(size * 1000 + run)
    folders = []
    dataset.StudyInstanceUID = _UID.format(run=run, part=99, number=0, size=size)
    for part in range(parts):
        target = folder / f"{size}-{run}-{part}"
        target.mkdir(parents=True, exist_ok=True)
        folders.append(target)
        dataset.SeriesInstanceUID = _UID.format(run=run, part=part, number=99999, size=size)
        for number in range(count // parts):
            uid = _UID.format(run=run, part=part, number=number, size=size)
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid
            dataset.InstanceNumber = part * count + number + 1
            dataset.PixelData = source.randbytes(size * size * 2)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                dataset.save_as(target / f"{number:05d}.dcm", enforce_file_format=True)
    return folders


def study_uid(size: int, run: int) -> str:
    """Return the Study Instance UID of `make_study`."""
    return _UID.format(run=run, part=99, number=0, size=size)
