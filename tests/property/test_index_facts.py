"""The index is a pure function of the set of facts, and counts what the set says."""

import os
import random
import shutil
import tempfile
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.dicom.attributes import BY_KEYWORD, Level
from appliance.dicom.matching import compile_key
from appliance.foundation.files import FileSystem
from appliance.index.dump import dump
from appliance.index.facts import PackFacts, RecordId
from appliance.index.index import Index
from appliance.index.keeping import erased_packs, holds, is_held, packs_of, studies_from
from appliance.index.verifying import verify
from tests.support.index_facts import (
    CT,
    EXPLICIT,
    JPEG,
    MR,
    PACK_IDS,
    Model,
    cloud_copy,
    instance,
    pack,
)

MAP_SIZE = 1 << 28
MEMORY = "/dev/shm"
"""Nothing here needs a disk, and hundreds of commits would wait for one."""
slow_disk = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])

contents = st.builds(
    lambda study, series, sop, variant: (study, series, sop, variant),
    st.integers(1, 2),
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(0, 3),
)


def facts_of(content: tuple[int, int, int, int], offset: int, at: int) -> Any:
    """Return an instance whose bytes and attributes follow from the content alone."""
    study, series, sop, variant = content
    return instance(
        f"1.2.{study}",
        f"1.2.{study}.{series}",
        f"1.2.{study}.9.{sop}",
        offset=offset,
        at=at,
        content=str(content),
        syntax=JPEG if variant == 2 else EXPLICIT,
        sop_class=MR if series == 2 else CT,
        PatientID=["P1", "P1", "P2", ""][variant],
        PatientName=["Suzuki^Hanako", "Suzuki^Hana=鈴木^花", "Sato", ""][variant],
        StudyDate=["20240102", "20240103", "", "20240102"][variant],
        AccessionNumber=["A1", "a1", "B2", ""][variant],
        Modality=["CT", "MR", "CT", "SR"][variant],
        InstanceNumber=str(sop),
        SeriesNumber=str(series),
    )


def keepings(number: int) -> Any:
    """Return what may be said of keeping a pack, or the study of its number."""
    return st.one_of(
        st.tuples(st.just("retain"), st.tuples(st.just(PACK_IDS[number]), st.integers(1, 12_000))),
        st.tuples(st.just("erase"), st.tuples(st.just(PACK_IDS[number]), st.integers(1, 3))),
        st.tuples(
            st.just("hold"),
            st.tuples(
                st.just(f"1.2.{number + 1}"),
                st.integers(1, 3),
                st.sampled_from("ab"),
                st.booleans(),
            ),
        ),
    )


@st.composite
def fact_sets(draw: Any) -> list[tuple[str, Any]]:
    """Return a list of (kind, arguments), whose order must not matter."""
    facts: list[tuple[str, Any]] = []
    for number in range(draw(st.integers(1, 4))):
        study = draw(st.integers(1, 2))
        node = draw(st.sampled_from(["site-a", "site-b"]))
        members = draw(st.lists(st.tuples(contents, st.integers(1, 6)), min_size=1, max_size=5))
        instances = [
            facts_of((study, *content[1:]), 1024 * (n + 1), at)
            for n, (content, at) in enumerate(members)
        ]
        local = draw(st.booleans())
        facts.append(("pack", pack(number, instances, node=node, local=local)))
        if draw(st.booleans()):
            facts.append(("cloud", (PACK_IDS[number], cloud_copy(number))))
        if draw(st.booleans()):
            locked = cloud_copy(number, at=6_000, locked=9_000)
            facts.append(("cloud", (PACK_IDS[number], locked)))
        if draw(st.booleans()):
            facts.append(("touch", ([PACK_IDS[number]], draw(st.integers(1, 9)))))
        facts.extend(draw(st.lists(keepings(number), max_size=3)))
    for position in range(draw(st.integers(0, 4))):
        study, sop = draw(st.integers(1, 2)), draw(st.integers(1, 3))
        record = RecordId(draw(st.integers(1, 3)), "site-a", 1, position)
        kind = draw(st.sampled_from(["hide", "restore"]))
        facts.append((kind, (record, f"1.2.{study}", f"1.2.{study}.9.{sop}", "someone")))
    facts.append(("remember", ("site-a", draw(st.integers(0, 5)))))
    return facts


def pieces_of(facts: list[tuple[str, Any]], rng: random.Random) -> list[tuple[str, Any]]:
    """Return the same set of facts: packs cut up, some facts twice, all in another order."""
    found: list[tuple[str, Any]] = []
    for kind, what in facts:
        if kind == "pack":
            for _ in range(rng.randint(0, 2)):
                some = [each for each in what.instances if rng.random() < 0.6]
                found.append(
                    (kind, PackFacts(what.pack_id, what.node, some, what.local, what.size // 2))
                )
        found.append((kind, what))
        if rng.random() < 0.3:
            found.append((kind, what))
    rng.shuffle(found)
    return found


def apply(index: Index, facts: list[tuple[str, Any]], rng: random.Random) -> None:
    """Apply facts in transactions of random size, settling in the middle of some."""
    facts = list(facts)
    while facts:
        count = rng.randint(1, len(facts))
        with index.write() as txn:
            for kind, what in facts[:count]:
                match kind:
                    case "pack":
                        txn.apply_pack(what)
                    case "cloud":
                        txn.apply_cloud(*what)
                    case "hold":
                        study, at, record_id, on = what
                        txn.hold(study, at, record_id, on=on, by="someone", reason="")
                    case _:
                        getattr(txn, kind)(*what)
                if rng.random() < 0.2:
                    txn.flush()
        del facts[:count]


class Directory:
    """An index in a directory of its own, gone at the end."""

    def __enter__(self) -> Index:
        self.path = tempfile.mkdtemp(dir=MEMORY if os.path.isdir(MEMORY) else None)
        self.index = Index(FileSystem(), self.path + "/index", map_size=MAP_SIZE)
        return self.index.open()

    def __exit__(self, *_: object) -> None:
        self.index.close()
        shutil.rmtree(self.path)


@slow_disk
@given(fact_sets(), st.randoms(use_true_random=False))
def test_index_is_equal_bytes_for_equal_sets_of_facts(
    facts: list[tuple[str, Any]], rng: random.Random
) -> None:
    """Order, pieces, repetitions and transactions leave no trace in the index."""
    with Directory() as one, Directory() as other:
        apply(one, facts, random.Random(0))
        apply(other, pieces_of(facts, rng), rng)
        with one.read() as first, other.read() as second:
            assert dump(first).decode() == dump(second).decode()


def model_of(facts: list[tuple[str, Any]]) -> Model:
    """Return the model of a set of facts."""
    model = Model()
    for kind, what in facts:
        if kind == "pack":
            model.add(what)
        elif kind == "cloud":
            model.clouds.setdefault(*what)  # of two entries the one that sorts first counts
        elif kind in ("hide", "restore"):
            record, study, sop, _ = what
            model.visibility.setdefault((study, sop), set()).add((record, kind == "hide"))
        elif kind == "erase":
            model.erased.add(what[0])
        elif kind == "retain":
            model.retained[what[0]] = max(what[1], model.retained.get(what[0], 0))
        elif kind == "hold":
            model.holds.setdefault(what[0], set()).add(what[1:])
    return model


def ask(index: Index, level: Level, **keys: str) -> list[dict[int, Any]]:
    """Return the answers of a query, by keyword."""
    rows = [BY_KEYWORD[name] for name in keys]
    matchers = {row.tag: compile_key(row.tag, row.vr, keys[row.keyword]) for row in rows}
    return list(index.query(level, matchers))


def value(answer: dict[int, Any], keyword: str) -> Any:
    """Return an attribute of an answer."""
    return answer.get(BY_KEYWORD[keyword].tag)


@slow_disk
@given(fact_sets(), st.randoms(use_true_random=False))
def test_index_counts_and_serves_what_the_model_says(
    facts: list[tuple[str, Any]], rng: random.Random
) -> None:
    """Counts, served attributes, totals and patients equal a recount from the set."""
    model = model_of(facts)
    with Directory() as index:
        apply(index, pieces_of(facts, rng), rng)
        expected = model.studies()
        answers = {value(a, "StudyInstanceUID"): a for a in ask(index, Level.STUDY)}
        assert answers.keys() == expected.keys()
        for uid, study in expected.items():
            check_study(index, uid, study, answers[uid])
        check_patients(index, model)
        check_totals(index, model)
        check_keeping(index, model)
        with index.read() as view:
            assert verify(view) == []


def check_study(index: Index, uid: str, study: dict[str, Any], answer: dict[int, Any]) -> None:
    assert value(answer, "NumberOfStudyRelatedSeries") == str(len(study["series"]))
    assert value(answer, "NumberOfStudyRelatedInstances") == str(study["instances"])
    assert set(value(answer, "ModalitiesInStudy").split("\\")) == study["modalities"]
    assert set(value(answer, "SOPClassesInStudy").split("\\")) == study["sop_classes"]
    for keyword in ("PatientID", "PatientName", "StudyDate", "AccessionNumber"):
        assert value(answer, keyword) == study["attributes"][BY_KEYWORD[keyword].tag]
    rows = {
        value(a, "SeriesInstanceUID"): a for a in ask(index, Level.SERIES, StudyInstanceUID=uid)
    }
    assert rows.keys() == study["series"].keys()
    for series_uid, series in study["series"].items():
        row = rows[series_uid]
        assert value(row, "NumberOfSeriesRelatedInstances") == str(series["instances"])
        assert value(row, "Modality") == series["attributes"][BY_KEYWORD["Modality"].tag]


def check_patients(index: Index, model: Model) -> None:
    expected = model.patients()
    answers = ask(index, Level.PATIENT)
    found = sorted(
        (
            value(answer, "PatientID"),
            value(answer, "NumberOfPatientRelatedStudies"),
            value(answer, "NumberOfPatientRelatedSeries"),
            value(answer, "NumberOfPatientRelatedInstances"),
        )
        for answer in answers
    )
    assert found == sorted(
        (patient, str(n["studies"]), str(n["series"]), str(n["instances"]))
        for (patient, _), n in expected.items()
    )


def check_totals(index: Index, model: Model) -> None:
    pending = {
        key: v
        for key, v in model.kept().items()
        if key[0] not in model.clouds and key[0] in model.local
    }
    with index.read() as view:
        totals = view.counts()
        cached = {row.pack_id for row in view.evictable(100)}
    assert totals.studies == len(model.studies())
    assert totals.instances == len(model.served())
    assert totals.pending_instances == len(pending)
    assert totals.pending_bytes == sum(
        size
        for pack_id, size in model.sizes.items()
        if pack_id in model.local - model.clouds.keys()
    )
    assert totals.oldest_pending_us == min(
        (facts.received_at_us for _, facts in pending.values()), default=0
    )
    assert cached == {each for each in model.clouds.keys() & model.local if not model.gone(each)}
    assert totals.cached_bytes == sum(model.sizes[pack_id] for pack_id in cached)


def check_keeping(index: Index, model: Model) -> None:
    """Locks, holds, erased packs, and the packs of every study."""
    studies = {facts.study_instance_uid for _, facts in model.kept().values()}
    with index.read() as view:
        for study, said in model.holds.items():
            assert is_held(view, study) == max(said)[2]
        assert {each.study_instance_uid for each in holds(view)} == model.holds.keys()
        assert set(erased_packs(view)) == {each for each in model.erased if model.gone(each)}
        assert not {row.pack_id for row in view.packs()} & set(erased_packs(view))
        for pack_id, cloud in model.clouds.items():
            row = view.pack(pack_id)
            assert row is not None and row.cloud is not None
            until_us = max(cloud.locked_until_us, model.retained.get(pack_id, 0))
            assert row.cloud.locked_until_us == until_us
            assert (row.state == "erased") == model.gone(pack_id)
        for study in ("1.2.1", "1.2.2"):
            assert {row.pack_id for row in packs_of(view, study)} == model.packs_of(study)
            assert (view.study(study) is not None) == (study in studies)
        found: list[tuple[str, int]] = []
        while some := list(studies_from(view, found[-1][0] if found else "", 1)):
            found += some
    assert found == sorted((study, len(model.packs_of(study))) for study in studies)


QUERIES: list[dict[str, str]] = [
    {"PatientID": "P1"},
    {"PatientID": "p*"},
    {"PatientID": "P*"},
    {"PatientName": "suzuki*"},
    {"PatientName": "鈴木*"},
    {"PatientName": "Suzuki^Hanako"},
    {"StudyDate": "20240102"},
    {"StudyDate": "20240102-20240103"},
    {"StudyDate": "-20240102"},
    {"AccessionNumber": "A1"},
    {"AccessionNumber": "A*"},
    {"ModalitiesInStudy": "MR"},
    {"StudyInstanceUID": "1.2.1\\1.2.2"},
    {"SeriesInstanceUID": "1.2.1.1\\1.2.1.2"},
    {"SOPInstanceUID": "1.2.1.9.1\\1.2.1.9.2"},
    {"Modality": "CT", "PatientID": "P1"},
    {"PatientName": "s*", "StudyDate": "20240101-", "AccessionNumber": "*1"},
    {"InstanceNumber": "1", "StudyDate": "20240102"},
]


@slow_disk
@given(fact_sets(), st.sampled_from(QUERIES), st.randoms(use_true_random=False))
def test_index_query_answers_what_a_full_scan_would(
    facts: list[tuple[str, Any]], keys: dict[str, str], rng: random.Random
) -> None:
    """Whatever key the search starts from, it answers the records that match, each once."""
    with Directory() as index:
        apply(index, facts, rng)
        for level in Level:
            everything = ask(index, level)
            levels = list(Level)[: list(Level).index(level) + 1]
            rows = [BY_KEYWORD[name] for name in keys if BY_KEYWORD[name].level in levels]
            matchers = [(r.tag, compile_key(r.tag, r.vr, keys[r.keyword])) for r in rows]
            expected = [
                answer
                for answer in everything
                if all(matcher.matches(answer.get(tag)) for tag, matcher in matchers)
            ]
            found = ask(index, level, **keys)
            assert sorted(map(repr, found)) == sorted(map(repr, expected))
