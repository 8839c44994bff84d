"""The file meta group, as pydicom reads it."""

import io

import pydicom
import pytest

from appliance.dicom import status, uid
from appliance.dicom.file_meta import build_file_meta
from appliance.foundation import errors


@pytest.mark.parametrize("calling_ae", ["MODALITY1", "ODD", "", " PADDED ", "A" * 30])
@pytest.mark.parametrize("transfer_syntax_uid", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.4.50"])
def test_file_meta_is_a_valid_group_0002(calling_ae: str, transfer_syntax_uid: str):
    """Every element reads back, the group length counts right, and the dataset follows."""
    raw = build_file_meta("1.2.840.10008.5.1.4.1.1.2", "1.2.3", transfer_syntax_uid, calling_ae)
    assert len(raw) % 2 == 0
    assert raw[128:132] == b"DICM"
    meta = pydicom.dcmread(io.BytesIO(raw)).file_meta
    assert meta.FileMetaInformationGroupLength == len(raw) - 132 - 12
    assert meta.FileMetaInformationVersion == b"\0\1"
    assert meta.MediaStorageSOPClassUID == "1.2.840.10008.5.1.4.1.1.2"
    assert meta.MediaStorageSOPInstanceUID == "1.2.3"
    assert meta.TransferSyntaxUID == transfer_syntax_uid
    assert meta.ImplementationClassUID == uid.IMPLEMENTATION_CLASS_UID
    assert meta.ImplementationVersionName == "AZEKURA_0_1"
    assert meta.get("SourceApplicationEntityTitle", "") == calling_ae.strip()[:16]


def test_our_uid_is_valid_and_ours_alone():
    """2.25 and the number of a UUID (PS3.5 B.2)."""
    assert uid.is_valid_uid(uid.IMPLEMENTATION_CLASS_UID)
    assert uid.IMPLEMENTATION_CLASS_UID.startswith("2.25.")
    assert int(uid.IMPLEMENTATION_CLASS_UID[5:]) < 2**128


@pytest.mark.parametrize(
    ("text", "valid", "path_safe"),
    [
        ("1.2.3", True, True),
        ("0.0", True, True),
        ("1.02", False, True),
        ("1..2", False, False),
        ("", False, False),
        (".", False, False),
        ("..", False, False),
        ("1.2/3", False, False),
        ("1" * 64, True, True),
        ("1" * 65, False, False),
        ("1.2\n", False, False),
        ("१.२", False, False),
    ],
)
def test_what_a_uid_may_be(text: str, valid: bool, path_safe: bool):
    """PS3.5 section 9, and what may become a path."""
    assert uid.is_valid_uid(text) is valid
    assert uid.is_path_safe_uid(text) is path_safe


def test_no_deflated_syntax_is_accepted():
    """Deflated syntaxes are not offered."""
    assert not [ts for ts in uid.ACCEPTED_TRANSFER_SYNTAXES if uid.is_deflated(ts)]
    assert len(set(uid.ACCEPTED_TRANSFER_SYNTAXES)) == len(uid.ACCEPTED_TRANSFER_SYNTAXES)


def test_every_uid_of_the_tables_is_valid():
    """No slip of the pen in the lists."""
    listed = (*uid.ACCEPTED_TRANSFER_SYNTAXES, *uid.STORAGE_SOP_CLASSES)
    assert all(uid.is_valid_uid(text) for text in listed)
    assert len(uid.STORAGE_SOP_CLASSES) > 170


def test_every_transfer_syntax_that_pydicom_knows_is_accepted_or_deflated():
    """New syntaxes of the library show up here."""
    known = {str(ts) for ts in pydicom.uid.AllTransferSyntaxes}
    assert known <= set(uid.ACCEPTED_TRANSFER_SYNTAXES) | uid.DEFLATED_TRANSFER_SYNTAXES


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.DatasetNotUnderstood("x"), 0xC000),
        (errors.DatasetMismatch("x"), 0xA900),
        (errors.OutOfSpace("x"), 0xA700),
        (errors.LimitExceeded("x"), 0xA700),
        (errors.Busy("x"), 0xA700),
        (ValueError("x"), 0x0110),
    ],
)
def test_an_error_has_its_c_store_status(error: Exception, code: int):
    """PS3.4 B.2.3."""
    assert status.store_status(error) == code


def test_an_error_has_its_query_and_retrieve_status():
    """PS3.4 C.4.1.1.4 and C.4.2.1.5."""
    assert status.find_status(errors.DatasetMismatch("x")) == 0xA900
    assert status.find_status(ValueError()) == 0xC001
    assert status.retrieve_status(errors.NotFound("x")) == 0xA801
    assert status.retrieve_status(errors.CloudUnavailable("x")) == 0xA702
