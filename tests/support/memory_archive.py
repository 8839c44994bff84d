"""An archive in memory for the tests of the DICOM services: it stores, finds, selects, opens.

It is real: it scans what it is given and matches with the matching rules. What a test wants to be
slow or gone is said by name: `away` instances are at hand only once `recall` is set, `broken` ones
never are.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from appliance.archive.commitment import Reached
from appliance.archive.query import Query
from appliance.dicom.attributes import BY_TAG, Level
from appliance.dicom.matching import compile_key
from appliance.dicom.scan import scan_attributes, scan_identity
from appliance.foundation.errors import AzekuraError, Damaged

RETRIEVE_AE_TITLE = 0x00080054
INSTANCE_AVAILABILITY = 0x00080056
CHARACTER_SET = 0x00080005
STUDY_INSTANCES = 0x00201208
_LEVELS = list(Level)
_UIDS = {
    Level.PATIENT: 0x00100020,
    Level.STUDY: 0x0020000D,
    Level.SERIES: 0x0020000E,
    Level.INSTANCE: 0x00080018,
}


@dataclass(frozen=True)
class MemoryInstance:
    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    dataset: bytes
    attributes: dict
    character_set: str
    online: bool = True

    @property
    def length(self) -> int:
        return len(self.dataset)


@dataclass(frozen=True)
class MemoryOpened:
    dataset: memoryview


@dataclass
class MemoryArchive:
    instances: list[MemoryInstance] = field(default_factory=list)
    away: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    recall: threading.Event = field(default_factory=threading.Event)
    reached: dict[str, Reached] = field(default_factory=dict)
    opened: list[str] = field(default_factory=list)
    closed_count: int = 0

    # --- storage

    def store(
        self, sender, sop_class_uid, sop_instance_uid, transfer_syntax_uid, dataset, sha256=b""
    ):
        raw = bytes(dataset)
        identity = scan_identity(raw, transfer_syntax_uid)
        header = scan_attributes(raw, transfer_syntax_uid)
        self.instances.append(
            MemoryInstance(
                identity.study_instance_uid,
                identity.series_instance_uid,
                sop_instance_uid,
                sop_class_uid,
                transfer_syntax_uid,
                raw,
                header.attributes,
                header.character_set,
            )
        )

    def open_stream(self, sender, sop_class_uid, sop_instance_uid, transfer_syntax_uid):
        raise NotImplementedError

    # --- query

    def _matching(self, query: Query) -> list[MemoryInstance]:
        level = _LEVELS.index(Level(query.level))
        matchers = {
            tag: compile_key(tag, BY_TAG[tag].vr, value)
            for tag, value in query.identifier.keys.items()
            if tag in BY_TAG
            and not BY_TAG[tag].computed
            and (query.relational or _LEVELS.index(BY_TAG[tag].level) <= level)
        }
        return [
            instance
            for instance in self.instances
            if all(m.matches(instance.attributes.get(tag)) for tag, m in matchers.items())
        ]

    def find(self, query: Query, retrieve_ae_title: str) -> Iterator[dict]:
        unique = _UIDS[Level(query.level)]
        groups: dict[str, list[MemoryInstance]] = {}
        for instance in self._matching(query):
            groups.setdefault(str(instance.attributes.get(unique, "")), []).append(instance)
        for group in groups.values():
            yield self._answer(query, group, retrieve_ae_title)

    def _answer(self, query: Query, group: list[MemoryInstance], retrieve_ae_title: str) -> dict:
        first = group[0]
        level = _LEVELS.index(Level(query.level))
        answer = {
            tag: first.attributes.get(tag, "")
            for tag in query.identifier.requested
            if tag in BY_TAG and _LEVELS.index(BY_TAG[tag].level) <= level
        }
        if STUDY_INSTANCES in answer:
            answer[STUDY_INSTANCES] = str(len(group))
        answer[0x00080052] = query.level
        answer[RETRIEVE_AE_TITLE] = retrieve_ae_title
        offline = any(each.sop_instance_uid in self.away for each in group)
        answer[INSTANCE_AVAILABILITY] = "NEARLINE" if offline else "ONLINE"
        if first.character_set:
            answer[CHARACTER_SET] = first.character_set
        return answer

    # --- retrieve

    def select(self, query: Query) -> list[MemoryInstance]:
        return [self._as_retrievable(instance) for instance in self._matching(query)]

    def _as_retrievable(self, instance: MemoryInstance) -> MemoryInstance:
        if instance.sop_instance_uid not in self.away:
            return instance
        return MemoryInstance(**{**instance.__dict__, "online": False})

    def open_all(
        self, wanted: Sequence[MemoryInstance]
    ) -> Iterator[tuple[MemoryInstance, MemoryOpened | AzekuraError]]:
        try:
            for instance in sorted(wanted, key=lambda each: not each.online):
                if not instance.online:
                    assert self.recall.wait(60)
                self.opened.append(instance.sop_instance_uid)
                if instance.sop_instance_uid in self.broken:
                    yield instance, Damaged("open", "pack", "as the test wants it")
                    continue
                view = memoryview(instance.dataset)
                yield instance, MemoryOpened(view)
                view.release()
        finally:
            self.closed_count += 1

    # --- commitment

    def lookup(self, sop_instance_uids: Sequence[str]) -> dict[str, Reached]:
        return {each: self.reached[each] for each in sop_instance_uids if each in self.reached}
