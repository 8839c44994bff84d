"""Answering questions: C-FIND's, and what C-MOVE and C-GET select, over the index.

Owns what an answer says of the archive itself. Must not read a pack; the rules of a protocol are
judged by its edge.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast, overload

from appliance.archive.freshness import Freshness
from appliance.archive.query import Query
from appliance.archive.retrieval import Retrievable
from appliance.config.model import Config, Dicom
from appliance.dicom.attributes import BY_TAG, Level
from appliance.dicom.identifier import Identifier
from appliance.dicom.matching import Matcher, Stored, Universal, compile_key
from appliance.index.index import Index
from appliance.index.view import View

PATIENT_ID = 0x00100020
STUDY_UID = 0x0020000D
SERIES_UID = 0x0020000E
SOP_UID = 0x00080018
CHARACTER_SET = 0x00080005
RETRIEVE_AE_TITLE = 0x00080054
INSTANCE_AVAILABILITY = 0x00080056
QUERY_LEVEL = 0x00080052

ANSWERS_MAX = 100_000

Value = str | list[dict[int, Any]]


class Selection(Sequence[Retrievable]):
    """The instances of a study, listed when the second one is asked for.

    A retrieve of a large study would otherwise spend longer on the list than on its first image.
    """

    def __init__(
        self, first: Retrievable, count: int, listed: Callable[[], list[Retrievable]]
    ) -> None:
        self._first = first
        self._count = count
        self._load = listed
        self._all: list[Retrievable] | None = None

    def __len__(self) -> int:
        return self._count if self._all is None else len(self._all)

    def _listed(self) -> list[Retrievable]:
        if self._all is None:
            # What arrived in between was not counted, and is not sent. The first may lie elsewhere
            # by now: its pack may have come back from the bucket while it was sent.
            sent = self._first.sop_instance_uid
            rest = [each for each in self._load() if each.sop_instance_uid != sent]
            self._all = [self._first, *rest[: self._count - 1]]
        return self._all

    @overload
    def __getitem__(self, key: int) -> Retrievable: ...

    @overload
    def __getitem__(self, key: slice) -> list[Retrievable]: ...

    def __getitem__(self, key: int | slice) -> Retrievable | list[Retrievable]:
        if key == 0 and self._all is None:
            return self._first
        return self._listed()[key]

    def __iter__(self) -> Iterator[Retrievable]:
        yield self._first
        yield from self._listed()[1:]


class Queries:
    """Answers questions from the index. Shared by all associations."""

    def __init__(self, config: Config, index: Index, freshness: Freshness) -> None:
        self._dicom = config.dicom
        self._index = index
        self._freshness = freshness

    def take(self, dicom: Dicom) -> None:
        """Answer the peers of another configuration from now on."""
        self._dicom = dicom

    def find(self, query: Query, retrieve_ae_title: str) -> Iterator[dict[int, Value]]:
        """Yield the values of the requested keys for each match.

        The edge has judged the hierarchy. No read transaction is held between two answers.
        """
        level = Level(query.level)
        self._freshness.wait()
        matchers = matchers_of(query.identifier)
        nearline_as = self._nearline_as(query.calling_ae)
        requested = tuple(query.identifier.keys)
        wanted = (*requested, CHARACTER_SET, INSTANCE_AVAILABILITY)
        for row in self._index.query(level, matchers, limit=ANSWERS_MAX, wanted=wanted):
            answer: dict[int, Value] = {tag: row.get(tag, "") for tag in requested}
            answer[CHARACTER_SET] = row.get(CHARACTER_SET, "")
            answer[RETRIEVE_AE_TITLE] = retrieve_ae_title
            availability = row.get(INSTANCE_AVAILABILITY, "ONLINE")
            answer[INSTANCE_AVAILABILITY] = (
                nearline_as if availability == "NEARLINE" else availability
            )
            answer[QUERY_LEVEL] = query.level
            yield answer

    def _nearline_as(self, calling_ae: str) -> str:
        for peer in self._dicom.peers:
            if peer.ae_title == calling_ae:
                return peer.report_nearline_as
        return "NEARLINE"

    def select(self, query: Query) -> Sequence[Retrievable]:
        """Return the served instances that the unique keys name, study by study.

        Of one whole study only the first is looked up before this returns.
        """
        self._freshness.wait()
        matchers = {
            tag: compile_key(tag, BY_TAG[tag].vr, cast("Stored", value))
            for tag in (PATIENT_ID, STUDY_UID, SERIES_UID, SOP_UID)
            if (value := query.identifier.keys.get(tag))
        }
        studies = self._studies(matchers)
        with self._index.read() as view:
            if len(studies) == 1 and matchers.keys() <= {PATIENT_ID, STUDY_UID}:
                first = next(served_instances(view, studies, matchers), None)
                record = view.study(studies[0])
                if first is None or record is None:
                    return []
                return Selection(
                    first, record.instance_count, lambda: self._listed(studies, matchers)
                )
        return self._listed(studies, matchers)

    def _listed(self, studies: Sequence[str], matchers: Mapping[int, Matcher]) -> list[Retrievable]:
        with self._index.read() as view:
            return list(served_instances(view, studies, matchers))

    def _studies(self, matchers: dict[int, Matcher]) -> list[str]:
        """Return the Study UIDs in which the wanted instances can lie."""
        study = matchers.get(STUDY_UID)
        if study is not None and study.uids:
            return list(study.uids)
        if SOP_UID in matchers:
            level = Level.INSTANCE
        else:
            level = Level.SERIES if SERIES_UID in matchers else Level.STUDY
        answers = self._index.query(level, matchers, wanted=(STUDY_UID,))
        return list(dict.fromkeys(str(answer[STUDY_UID]) for answer in answers))


def served_instances(
    view: View, studies: Sequence[str], matchers: Mapping[int, Matcher]
) -> Iterator[Retrievable]:
    """Yield the served instances of studies that match the unique keys."""
    series, sop, patient = (matchers.get(tag) for tag in (SERIES_UID, SOP_UID, PATIENT_ID))
    packs: dict[str, bool] = {}

    def is_local(pack_id: str) -> bool:
        if pack_id not in packs:
            row = view.pack(pack_id)
            packs[pack_id] = row is not None and row.local
        return packs[pack_id]

    for study in studies:
        if patient is not None:
            record = view.study(study)
            if record is None or not patient.matches(record.attributes.get(PATIENT_ID, "")):
                continue
        for found in view.served(study):
            if series is not None and not series.matches(found.series_instance_uid):
                continue
            if sop is not None and not sop.matches(found.sop_instance_uid):
                continue
            pack_id, offset = next(
                (copy for copy in found.copies if is_local(copy[0])), found.copies[-1]
            )
            yield Retrievable(
                study_instance_uid=study,
                series_instance_uid=found.series_instance_uid,
                sop_instance_uid=found.sop_instance_uid,
                sop_class_uid=found.sop_class_uid,
                transfer_syntax_uid=found.transfer_syntax_uid,
                length=found.length,
                pack_id=pack_id,
                offset=offset,
                sha256=found.sha256,
                online=is_local(pack_id),
                character_set=found.character_set,
            )


def matchers_of(identifier: Identifier) -> dict[int, Matcher]:
    """Return the matchers of an identifier's keys, universal ones left out."""
    found = {}
    for tag, value in identifier.keys.items():
        attribute = BY_TAG.get(tag)
        if attribute is None or not value or tag in {CHARACTER_SET, QUERY_LEVEL}:
            continue
        matcher = compile_key(tag, attribute.vr, cast("Stored", value))
        if not isinstance(matcher, Universal):
            found[tag] = matcher
    return found
