"""The attribute table against PS3.6, and the page that is made from it."""

from pathlib import Path

import pytest
from pydicom.datadict import dictionary_VR, keyword_for_tag

from appliance.dicom.attributes import (
    ATTRIBUTES,
    BY_KEYWORD,
    BY_TAG,
    ITEM_VRS,
    UNIQUE_KEY,
    KeyType,
    Level,
    level_of,
    levels_of,
)
from appliance.dicom.conformance import query_keys_page

PAGE = Path(__file__).parents[2] / "docs" / "conformance" / "query-keys.md"
REQUIRED = {  # PS3.4 tables C.6-1 to C.6-5
    Level.PATIENT: {"PatientName": "R", "PatientID": "U"},
    Level.STUDY: {
        "StudyDate": "R",
        "StudyTime": "R",
        "AccessionNumber": "R",
        "StudyID": "R",
        "StudyInstanceUID": "U",
    },
    Level.SERIES: {"Modality": "R", "SeriesNumber": "R", "SeriesInstanceUID": "U"},
    Level.INSTANCE: {"InstanceNumber": "R", "SOPInstanceUID": "U"},
}


@pytest.mark.parametrize("attribute", ATTRIBUTES, ids=lambda attribute: attribute.keyword)
def test_an_attribute_is_the_standards(attribute):
    """Keyword and VR are those of PS3.6."""
    assert keyword_for_tag(attribute.tag) == attribute.keyword
    assert attribute.vr in dictionary_VR(attribute.tag).split(" or ")


def test_item_attributes_are_the_standards():
    """The VRs of what is kept inside items are those of PS3.6."""
    assert all(vr == dictionary_VR(tag) for tag, vr in ITEM_VRS.items())


def test_tags_and_keywords_are_unique():
    """No row shadows another."""
    assert len(ATTRIBUTES) == len(BY_TAG) == len(BY_KEYWORD)


def test_required_and_unique_keys_are_those_of_the_information_models():
    """PS3.4 C.6.1.1 and C.6.2.1."""
    for level, keys in REQUIRED.items():
        found = {
            a.keyword: a.key.value
            for a in ATTRIBUTES
            if a.level is level and a.key is not KeyType.OPTIONAL
        }
        assert found == keys
        assert BY_TAG[UNIQUE_KEY[level]].key is KeyType.UNIQUE


def test_study_root_takes_the_patients_attributes_to_the_study():
    """PS3.4 C.6.2.1.1: there is no patient level."""
    assert level_of(0x00100010, patient_root=True) is Level.PATIENT
    assert level_of(0x00100010, patient_root=False) is Level.STUDY
    assert level_of(0x00080060, patient_root=False) is Level.SERIES
    assert level_of(0x00091001, patient_root=True) is None
    assert levels_of(patient_root=False) == (Level.STUDY, Level.SERIES, Level.INSTANCE)


def test_the_conformance_page_is_made_from_the_table():
    """Run `python -m appliance.dicom.conformance > docs/conformance/query-keys.md` to renew it."""
    assert PAGE.read_text() == query_keys_page()
