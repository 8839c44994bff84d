"""What the ledgers in the bucket say, read with one identity and nothing of this disk.

Owns the list of studies and where each one's records lie, for the restore drill. Reads only. It
holds a few hundred bytes a study, never the records themselves: those are read once more for the
studies that are drawn. What is wrong with a ledger becomes a finding, and the rest goes on.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from appliance.archive.ledger_entry import FIRST_PREVIOUS, Entry, open_entry
from appliance.archive.records import Erased, PackRecord, Record, Rejected, Restored
from appliance.foundation.errors import AzekuraError, CloudError, StorageFailed
from appliance.remote.reading import oldest_versions
from appliance.remote.store import Lane, ObjectStore, VersionInfo
from appliance.seal.identity import Identity


class Place(NamedTuple):
    """Where a record stands in the ledgers; `entry` is a position in the catalogue's list."""

    entry: int
    position: int


class LedgerRecord(NamedTuple):
    """A record as it is applied to an index: with the node, sequence and position of it."""

    record: Record
    node: str
    sequence: int
    position: int


class Catalogue:
    """The studies of all ledgers. Made by `read`; owned by one thread."""

    def __init__(
        self, store: ObjectStore, identities: Sequence[Identity], lane: Lane = Lane.BACKFILL
    ) -> None:
        self._store = store
        self._identities = identities
        self._lane = lane
        self._entries: list[VersionInfo] = []
        self._places: dict[str, list[Place]] = {}
        self._first_at_us: dict[str, int] = {}
        self._erased: set[str] = set()
        self.findings: list[str] = []
        # The last sequence that was read of each node.
        self.last: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._first_at_us)

    def read(self, spend: Callable[[int], object]) -> None:
        """Read every entry in the bucket once; `spend` is called with the bytes before each."""
        previous: dict[str, str] = {}
        for version in oldest_versions(self._store, "ledger/"):
            spend(version.size_bytes)
            try:
                entry = self._open(version)
            except (CloudError, StorageFailed):
                raise
            except AzekuraError as error:
                self.findings.append(f"{version.key}: {error.operation}: {error.cause}")
                continue
            node, sequence = entry.header.node, entry.header.sequence
            follows = entry.header.previous == previous.get(node, FIRST_PREVIOUS)
            if sequence != self.last.get(node, 0) + 1 or not follows:
                self.findings.append(f"{version.key}: does not follow from the entry before it")
            previous[node], self.last[node] = entry.header_sha256, sequence
            self._note(len(self._entries), entry.records)
            self._entries.append(version)

    def _open(self, version: VersionInfo) -> Entry:
        sealed = self._store.get(version.key, version.version_id, lane=self._lane)
        return open_entry(sealed, self._identities)

    def _note(self, number: int, records: Sequence[Record]) -> None:
        for position, record in enumerate(records):
            studies: set[str] = set()
            match record:
                case PackRecord():
                    studies = {each.study_instance_uid for each in record.contexts}
                    for study in studies:
                        at_us = self._first_at_us.get(study, record.verified_at_us)
                        self._first_at_us[study] = min(at_us, record.verified_at_us)
                case Rejected() | Restored():
                    studies = {record.study_instance_uid}
                case Erased():
                    self._erased.add(record.pack_id)
                case _:
                    pass
            for study in studies:
                self._places.setdefault(study, []).append(Place(number, position))

    def draw(self, count: int, source: random.Random) -> list[str]:
        """Return so many studies, old and new: one from each of as many equal parts by age."""
        studies = sorted(self._first_at_us, key=lambda each: (self._first_at_us[each], each))
        if count >= len(studies):
            return studies
        bounds = [len(studies) * part // count for part in range(count + 1)]
        return [studies[source.randrange(start, end)] for start, end in pairwise(bounds)]

    def records(
        self, study_instance_uid: str, spend: Callable[[int], object]
    ) -> Iterator[LedgerRecord]:
        """Yield a study's records in the order of the ledgers, without packs that were erased."""
        number, entry = -1, None
        for place in self._places[study_instance_uid]:
            if place.entry != number or entry is None:
                number = place.entry
                spend(self._entries[number].size_bytes)
                entry = self._open(self._entries[number])
            record = entry.records[place.position]
            if isinstance(record, PackRecord) and record.pack_id in self._erased:
                continue
            yield LedgerRecord(record, entry.header.node, entry.header.sequence, place.position)
