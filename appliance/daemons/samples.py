"""Sample studies for the demo, made from the small CT and MR that pydicom brings along.

Sent as a modality would send them, by pynetdicom. The UIDs are fixed: the second run of a demo
sends what is there already, and nothing is stored twice.
"""

import logging
import warnings
from collections.abc import Iterator
from typing import Any

from pydicom import dcmread
from pydicom.data import get_testdata_file
from pynetdicom import AE

from appliance.foundation.errors import PeerUnavailable

SAMPLE_AE = "MODALITY"
_ROOT = "2.25.312870194"
_STUDIES = (
    ("CT_small.dcm", 24, "Yamada^Tarou=山田^太郎=やまだ^たろう", "DEMO-0001", "20240311"),
    ("MR_small.dcm", 12, "Tanaka^Hanako=田中^花子=たなか^はなこ", "DEMO-0002", "20240702"),
    ("CT_small.dcm", 8, "Smith^John", "DEMO-0003", "20250115"),
)


def sample_datasets() -> Iterator[Any]:
    """Yield pydicom datasets, study by study."""
    for number, (file, slices, name, patient_id, date) in enumerate(_STUDIES, 1):
        path = get_testdata_file(file, download=False)
        assert path is not None, "pydicom brings it"
        for position in range(1, slices + 1):
            dataset = dcmread(str(path))
            study = f"{_ROOT}.{number}"
            dataset.SpecificCharacterSet = "ISO_IR 192"
            dataset.PatientName = name
            dataset.PatientID = patient_id
            dataset.StudyDate = dataset.SeriesDate = dataset.ContentDate = date
            dataset.AccessionNumber = f"A{number:05d}"
            dataset.StudyInstanceUID = study
            dataset.SeriesInstanceUID = f"{study}.1"
            dataset.SOPInstanceUID = f"{study}.1.{position}"
            dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
            dataset.InstanceNumber = position
            yield dataset


def send_samples(host: str, port: int, called_ae: str) -> str:
    """Send the samples; return the first study's UID. PeerUnavailable when it does not work."""
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        datasets = list(sample_datasets())
        client = AE(ae_title=SAMPLE_AE)
        for dataset in datasets:
            context = (dataset.SOPClassUID, dataset.file_meta.TransferSyntaxUID)
            if all(each.abstract_syntax != context[0] for each in client.requested_contexts):
                client.add_requested_context(*context)
        association = client.associate(host, port, ae_title=called_ae)
        if not association.is_established:
            raise PeerUnavailable("send samples", f"{host}:{port}", "no association")
        try:
            for dataset in datasets:
                answer = association.send_c_store(dataset)
                if answer.get("Status") != 0:
                    raise PeerUnavailable("send samples", f"{host}:{port}", "not stored")
        finally:
            association.release()
    return str(datasets[0].StudyInstanceUID)
