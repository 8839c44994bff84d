"""Where a search begins: ranges of keys that hold every study a matcher can mean.

Invariant: a source admits too much rather than too little; the query matches every record.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from appliance.dicom.matching import Matcher
from appliance.index.contexts import PATIENT_ID
from appliance.index.keys import PREFIX_LENGTH_MAX, pack_uid, text_key, text_prefix
from appliance.index.reading import Reader
from appliance.index.schema import Table, open_value
from appliance.index.secondary import (
    ACCESSION,
    ACCESSION_NUMBER,
    FOLDED_PATIENT_ID,
    KEYS_OF,
    PATIENT_NAME,
    STUDY_DATE,
)

STUDY_UID: Final = 0x0020000D
SERIES_UID: Final = 0x0020000E
SOP_UID: Final = 0x00080018
ESTIMATE_STEPS: Final = (64, 1_024, 16_384)
"""Cursor steps spent on each source before the search is made by the best one so far."""


class KeyRange(msgspec.Struct, frozen=True):
    """Keys of a table from `low` on that begin with `prefix` or, without one, are below `stop`.

    zeros: how many zero bytes stand in a key before the packed Study UID that ends it.
    """

    table: Table
    low: bytes
    stop: bytes
    zeros: int

    def keys(self, reader: Reader, start: bytes | None = None) -> Iterator[bytes]:
        """Yield the keys, from `start` on if given."""
        with reader.cursor(self.table) as cursor:
            if not cursor.set_range(self.low if start is None else start):
                return
            for key, value in cursor.iternext(keys=True, values=True):
                if key >= self.stop:
                    return
                open_value(self.table, key, value)
                yield key

    def holds(self, key: bytes) -> bool:
        """Return whether a key of its table lies in the range."""
        return self.low <= key < self.stop

    def study_of(self, key: bytes) -> bytes:
        """Return the packed Study UID of a key."""
        position = 0
        for _ in range(self.zeros):
            position = key.index(0, position) + 1
        return key[position:]


class Source(msgspec.Struct, frozen=True):
    """Key ranges, or a list of studies, that hold all candidates.

    repeats: a study may stand in it more than once.
    """

    ranges: tuple[KeyRange, ...] = ()
    studies: tuple[bytes, ...] | None = None
    repeats: bool = False

    def count(self, reader: Reader, limit: int) -> int:
        """Count candidates, up to a limit."""
        if self.studies is not None:
            return min(len(self.studies), limit)
        total = 0
        for part in self.ranges:
            for _ in part.keys(reader):
                total += 1
                if total >= limit:
                    return total
        return total

    def is_first(self, part: int, key: bytes, study: bytes, attributes: dict[int, Any]) -> bool:
        """Return whether a study with these attributes is met here first."""
        for index in range(part + 1):
            candidate = self.ranges[index]
            keys = KEYS_OF[candidate.table](study, attributes)
            found = [each for each in keys if candidate.holds(each)]
            if found:
                return index == part and min(found) == key
        return True


EVERYTHING: Final = Source((KeyRange(Table.STUDY, b"", b"\xff" * 512, 0),))


def _after(prefix: bytes) -> bytes:
    """Return the least key behind all that begin with `prefix`."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else b"\xff" * 512


def _beginning(table: Table, prefix: bytes, zeros: int) -> KeyRange:
    return KeyRange(table, prefix, _after(prefix), zeros)


def _patient_id(matcher: Matcher) -> Source:
    """PATIENT has identifiers as they are, FOLDED_PATIENT_ID those that folding changes."""
    folded = _folded(FOLDED_PATIENT_ID, matcher)
    if matcher.exact is not None:
        literal = _beginning(Table.PATIENT, text_key(matcher.exact), 2)
    else:
        prefix = text_prefix(matcher.prefix or "")[:PREFIX_LENGTH_MAX]
        literal = _beginning(Table.PATIENT, prefix, 2)
    return Source((literal, folded), repeats=True)


def _folded(kind: bytes, matcher: Matcher) -> KeyRange:
    """Return the range of IDENTIFIER for a matcher, whose prefix is folded and exact is not."""
    prefix = matcher.prefix or ""
    if matcher.exact is not None:
        return _beginning(Table.IDENTIFIER, kind + text_key(prefix), 1)
    return _beginning(Table.IDENTIFIER, kind + text_prefix(prefix)[:PREFIX_LENGTH_MAX], 1)


def _name(matcher: Matcher) -> Source:
    if matcher.exact is not None:
        part = _beginning(Table.NAME, text_key(matcher.exact), 1)
    else:
        prefix = text_prefix(matcher.prefix or "")[:PREFIX_LENGTH_MAX]
        part = _beginning(Table.NAME, prefix, 1)
    return Source((part,), repeats=True)


def _dates(matcher: Matcher) -> Source:
    low = (matcher.low or "").encode()
    stop = _after(matcher.high.encode()) if matcher.high is not None else b"\xff" * 512
    return Source((KeyRange(Table.DATE, low, stop, 1),), repeats=True)


def _by_uid(reader: Reader, table: Table, uids: tuple[str, ...]) -> Source:
    """Return the studies that have one of these Series or SOP Instance UIDs."""
    studies: set[bytes] = set()
    for uid in uids:
        packed = pack_uid(uid)
        studies.update(key[len(packed) :] for key, _ in reader.scan(table, packed))
    return Source(studies=tuple(sorted(studies)))


def _candidates(reader: Reader, matchers: Mapping[int, Matcher]) -> list[Source]:
    found: list[Source] = []
    matcher = matchers.get(STUDY_UID)
    if matcher is not None and matcher.uids is not None:
        found.append(Source(studies=tuple(sorted({pack_uid(uid) for uid in matcher.uids}))))
    for tag, table in ((SERIES_UID, Table.SERIES_STUDY), (SOP_UID, Table.SOP)):
        matcher = matchers.get(tag)
        if matcher is not None and matcher.uids is not None and not found:
            found.append(_by_uid(reader, table, matcher.uids))
    matcher = matchers.get(PATIENT_ID)
    if matcher is not None and matcher.prefix:
        found.append(_patient_id(matcher))
    matcher = matchers.get(ACCESSION_NUMBER)
    if matcher is not None and matcher.prefix:
        found.append(Source((_folded(ACCESSION, matcher),), repeats=True))
    matcher = matchers.get(PATIENT_NAME)
    if matcher is not None and matcher.prefix:
        found.append(_name(matcher))
    matcher = matchers.get(STUDY_DATE)
    if matcher is not None and (matcher.low is not None or matcher.high is not None):
        found.append(_dates(matcher))
    return found


def best_source(reader: Reader, matchers: Mapping[int, Matcher]) -> Source:
    """Return the source with the fewest candidates, by a bounded count of each."""
    found = _candidates(reader, matchers)
    if not found:
        return EVERYTHING
    if len(found) == 1:
        return found[0]
    best: tuple[int, Any] = (0, found[0])
    for steps in ESTIMATE_STEPS:
        best = min(((source.count(reader, steps), source) for source in found), key=lambda c: c[0])
        if best[0] < steps:
            break
    chosen: Source = best[1]
    return chosen
