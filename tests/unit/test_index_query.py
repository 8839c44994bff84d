"""Searches: every level, in chunks, without holding a transaction while the caller works."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from appliance.dicom.attributes import BY_KEYWORD, Level
from appliance.dicom.matching import compile_key
from appliance.foundation.files import FileSystem
from appliance.index import query as query_module
from appliance.index.facts import RecordId
from appliance.index.index import Index
from appliance.index.query import CHUNK_ANSWERS
from appliance.index.sources import EVERYTHING, best_source
from tests.support.index_facts import cloud_copy, instance, pack


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with Index(FileSystem(), str(tmp_path / "index"), map_size=1 << 28) as opened:
        yield opened


def matchers(**keys: str) -> dict[int, Any]:
    rows = [BY_KEYWORD[name] for name in keys]
    return {row.tag: compile_key(row.tag, row.vr, keys[row.keyword]) for row in rows}


def ask(index: Index, level: Level, *, limit: int | None = None, **keys: str) -> list[Any]:
    return list(index.query(level, matchers(**keys), limit=limit))


def values(answers: list[Any], keyword: str) -> list[str]:
    return [answer[BY_KEYWORD[keyword].tag] for answer in answers]


def fill(index: Index, studies: int, instances: int = 1) -> None:
    with index.write() as txn:
        for n in range(studies):
            members = [
                instance(
                    f"1.2.{n}",
                    f"1.2.{n}.{m % 2}",
                    f"1.2.{n}.9.{m}",
                    offset=1_024 * (m + 1),
                    PatientID=f"P{n}",
                    PatientName=f"Yamada^{n}=山田^{n}",
                    InstanceNumber=str(m),
                )
                for m in range(instances)
            ]
            txn.apply_pack(pack(n % 20, members, local=True))


def test_query_goes_on_behind_every_chunk(index: Index) -> None:
    """A long answer is complete and without repetitions, from whatever source."""
    fill(index, 2 * CHUNK_ANSWERS + 10)
    for keys in ({}, {"PatientName": "yam*"}, {"StudyDate": "20240102"}, {"PatientID": "P*"}):
        found = values(ask(index, Level.STUDY, **keys), "StudyInstanceUID")
        assert len(found) == len(set(found)) == 2 * CHUNK_ANSWERS + 10
        assert len(ask(index, Level.PATIENT, **keys)) == 2 * CHUNK_ANSWERS + 10


def test_query_goes_on_inside_a_study(index: Index) -> None:
    """A study with more instances than a chunk is answered whole, each instance once."""
    fill(index, 2, instances=CHUNK_ANSWERS + 7)
    found = values(ask(index, Level.INSTANCE), "SOPInstanceUID")
    assert len(found) == len(set(found)) == 2 * (CHUNK_ANSWERS + 7)
    assert len(ask(index, Level.INSTANCE, StudyInstanceUID="1.2.1")) == CHUNK_ANSWERS + 7
    assert len(ask(index, Level.SERIES)) == 4


@pytest.mark.parametrize("level", list(Level))
def test_query_that_is_cut_after_every_record_answers_the_same(
    index: Index, level: Level, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cutting the transaction loses and repeats nothing."""
    fill(index, 3, instances=5)
    keys: list[dict[str, str]] = [
        {},
        {"PatientName": "yam*"},
        {"InstanceNumber": "3", "StudyDate": "2024-"},
        {"SOPInstanceUID": "1.2.0.9.1\\1.2.0.9.2\\1.2.2.9.4"},
        {"SeriesInstanceUID": "1.2.1.1"},
    ]
    whole = [ask(index, level, **each) for each in keys]
    monkeypatch.setattr(query_module, "TRANSACTION_S_MAX", -1.0)
    assert [ask(index, level, **each) for each in keys] == whole
    assert any(whole)


def test_query_holds_no_transaction_while_the_caller_works(index: Index) -> None:
    """A slow client does not keep pages from being used again."""
    fill(index, 2 * CHUNK_ANSWERS)
    environment = index.enter().environment
    answers = index.query(Level.STUDY, {})
    assert len(list(islice(answers, 3))) == 3
    assert environment.open_transactions == 0
    before = index.used_bytes()
    for at in range(1, 60):
        with index.write() as txn:
            txn.touch(["p"], at)
    assert index.used_bytes() <= before * 1.01 + 65_536
    assert len(list(answers)) == 2 * CHUNK_ANSWERS - 3


def test_query_stops_at_the_limit(index: Index) -> None:
    """No more answers than asked for."""
    fill(index, 9)
    assert len(ask(index, Level.STUDY, limit=4)) == 4
    assert ask(index, Level.STUDY, limit=0) == []


def test_query_answers_counts_and_what_is_above(index: Index) -> None:
    """An answer has the attributes of its level and of the levels above, and computed ones."""
    with index.write() as txn:
        txn.apply_pack(
            pack(
                0,
                [
                    instance(sop="1", offset=1, Modality="CT"),
                    instance(sop="2", offset=2, series="1.2.1.2", Modality="SR"),
                ],
                cloud=cloud_copy(0),
            )
        )
    (study,) = ask(index, Level.STUDY)
    assert values([study], "ModalitiesInStudy") == ["CT\\SR"]
    assert values([study], "NumberOfStudyRelatedSeries") == ["2"]
    assert values([study], "NumberOfPatientRelatedInstances") == ["2"]
    assert values([study], "InstanceAvailability") == ["NEARLINE"]
    assert values([study], "SpecificCharacterSet") == ["ISO_IR 192"]
    series = ask(index, Level.SERIES, Modality="SR")
    assert values(series, "SeriesInstanceUID") == ["1.2.1.2"]
    assert values(series, "PatientID") == ["P1"]
    (image,) = ask(index, Level.INSTANCE, SOPInstanceUID="2")
    assert image[BY_KEYWORD["SOPClassUID"].tag] == "1.2.840.10008.5.1.4.1.1.2"
    (patient,) = ask(index, Level.PATIENT)
    assert BY_KEYWORD["StudyDate"].tag not in patient
    with index.write() as txn:
        txn.set_local(pack(0, []).pack_id, local=True)
    assert values(ask(index, Level.STUDY), "InstanceAvailability") == ["ONLINE"]
    assert values(ask(index, Level.INSTANCE), "InstanceAvailability") == ["ONLINE", "ONLINE"]


def test_query_never_answers_what_is_hidden(index: Index) -> None:
    """Not at any level, and not by its own UID."""
    fill(index, 1, instances=2)
    with index.write() as txn:
        txn.hide(RecordId(1, "site-a", 1, 0), "1.2.0", "1.2.0.9.1", "QA")
    assert values(ask(index, Level.INSTANCE), "SOPInstanceUID") == ["1.2.0.9.0"]
    assert ask(index, Level.INSTANCE, SOPInstanceUID="1.2.0.9.1") == []
    assert values(ask(index, Level.SERIES), "SeriesInstanceUID") == ["1.2.0.0"]
    assert values(ask(index, Level.STUDY), "NumberOfStudyRelatedInstances") == ["1"]


def test_query_without_patient_id_keeps_patients_apart(index: Index) -> None:
    """Two studies without a PatientID are not one patient."""
    with index.write() as txn:
        txn.apply_pack(pack(0, [instance("1.2.1", sop="1", PatientID="", PatientName="A")]))
        txn.apply_pack(pack(1, [instance("1.2.2", sop="2", PatientID="", PatientName="B")]))
    assert sorted(values(ask(index, Level.PATIENT), "PatientName")) == ["A", "B"]
    assert values(ask(index, Level.STUDY), "NumberOfPatientRelatedStudies") == ["1", "1"]


@pytest.mark.parametrize(
    ("stored", "key"),
    [
        ("ABC-12", "ABC-12"),
        ("ABC-12", "ABC*"),
        ("１２３", "１２３"),
        ("１２３", "１２*"),
        (" 77 ", "77"),
        ("A\\B", "B"),
        ("A\\B", "A\\B"),
        ("山" * 60, "山" * 60),
        ("山" * 60, "山" * 50 + "*"),
    ],
)
def test_query_finds_an_identifier_however_it_is_written(
    index: Index, stored: str, key: str
) -> None:
    """The index leads to whatever the matcher accepts."""
    with index.write() as txn:
        txn.apply_pack(pack(0, [instance(PatientID=stored, AccessionNumber=stored)]))
    assert len(ask(index, Level.STUDY, PatientID=key)) == 1
    assert len(ask(index, Level.STUDY, AccessionNumber=key)) == 1


def test_query_starts_from_the_most_selective_key(index: Index) -> None:
    """With a name that all share and a date that few have, it reads the few."""
    with index.write() as txn:
        for n in range(200):
            date = "20240102" if n else "20230101"
            txn.apply_pack(pack(n % 20, [instance(f"1.2.{n}", sop=f"9.{n}", StudyDate=date)]))
    keys = matchers(PatientName="yamada*", StudyDate="20230101", PatientID="P1")
    with index.read() as view:
        source = best_source(view.reader, keys)
        assert source.count(view.reader, 1_000) == 1
        assert best_source(view.reader, matchers(StudyDescription="*lung*")) is EVERYTHING
