"""Contexts of a C-MOVE, outcomes of sub-operations, and the dataset of failures."""

import io
from dataclasses import dataclass

import pytest
from pydicom.filereader import read_dataset

from appliance.dicom.uid import (
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
)
from appliance.dimse.move import CONTEXTS_MAX, plan_contexts
from appliance.dimse.suboperations import (
    COMPLETED,
    FAILED,
    WARNED,
    encode_failed_uids,
    outcome_of,
)

J2K = "1.2.840.10008.1.2.4.90"


@dataclass(frozen=True)
class Item:
    sop_class_uid: str
    transfer_syntax_uid: str
    sop_instance_uid: str = "1"
    online: bool = True


def syntaxes(proposals):
    return [(each.abstract_syntax, each.transfer_syntaxes) for each in proposals]


def test_contexts_offer_the_stored_syntax_alone_and_an_uncompressed_one():
    (plan,) = plan_contexts([Item("1.1", J2K), Item("1.1", J2K)])
    assert syntaxes(plan) == [
        ("1.1", (J2K,)),
        ("1.1", (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN)),
    ]


def test_contexts_do_not_offer_an_uncompressed_syntax_twice():
    (plan,) = plan_contexts([Item("1.1", EXPLICIT_VR_LITTLE_ENDIAN)])
    assert syntaxes(plan) == [
        ("1.1", (EXPLICIT_VR_LITTLE_ENDIAN,)),
        ("1.1", (IMPLICIT_VR_LITTLE_ENDIAN,)),
    ]
    (plan,) = plan_contexts(
        [Item("1.1", EXPLICIT_VR_LITTLE_ENDIAN), Item("1.1", IMPLICIT_VR_LITTLE_ENDIAN)]
    )
    assert len(plan) == 2


@pytest.mark.parametrize("classes_count", [1, 42, 43, 64, 65, 200])
def test_contexts_are_split_without_splitting_a_class(classes_count):
    wanted = [
        Item(f"1.{number}", syntax)
        for number in range(classes_count)
        for syntax in (J2K, EXPLICIT_VR_LITTLE_ENDIAN)
    ]
    plans = plan_contexts(wanted)
    assert all(0 < len(plan) <= CONTEXTS_MAX for plan in plans)
    placed = [{each.abstract_syntax for each in plan} for plan in plans]
    assert sum(map(len, placed)) == len(set().union(*placed)) == classes_count


def test_contexts_of_a_class_in_more_syntaxes_than_fit_keep_the_uncompressed_one():
    (plan,) = plan_contexts([Item("1.1", f"1.2.{number}") for number in range(300)])
    assert len(plan) == CONTEXTS_MAX
    assert plan[-1].transfer_syntaxes == (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN)


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (0x0000, COMPLETED),
        (0xB000, WARNED),
        (0xB006, WARNED),
        (0xB007, WARNED),
        (0x0107, WARNED),
        (0xA700, FAILED),
        (0xA900, FAILED),
        (0xC000, FAILED),
        (0x0122, FAILED),
        (0xFE00, FAILED),
    ],
)
def test_outcome_of_a_store_status(status, outcome):
    assert outcome_of(status) == outcome


@pytest.mark.parametrize(
    "syntax", [IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_BIG_ENDIAN]
)
@pytest.mark.parametrize("count", [1, 2, 3, 5000])
def test_failed_uids_are_encoded_as_many_as_fit(syntax, count):
    uids = [f"1.2.3.{number}" for number in range(count)]
    raw = encode_failed_uids(uids, syntax)
    dataset = read_dataset(
        io.BytesIO(raw), syntax == IMPLICIT_VR_LITTLE_ENDIAN, syntax != EXPLICIT_VR_BIG_ENDIAN
    )
    value = dataset.FailedSOPInstanceUIDList
    read = [value] if isinstance(value, str) else list(value)
    assert read == uids[: len(read)]
    assert len(read) == count or count == 5000
    assert len(raw) % 2 == 0
