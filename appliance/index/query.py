"""Searching: which records match, as answers of a level, in short read transactions.

Every matcher is tried on the record itself, whatever source it came from. Invariants:
- No transaction is open while the caller works on an answer, and none lasts longer than
  `TRANSACTION_S_MAX`; the search goes on behind the key where it stopped.
- What is hidden is in no answer and no count.
- A study or patient is answered once, unless it changed while the search went on.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from appliance.dicom.attributes import BY_TAG, Level
from appliance.dicom.matching import Matcher
from appliance.index.answering import Answering
from appliance.index.keys import pack_uid
from appliance.index.reading import Reader
from appliance.index.schema import (
    SeriesRow,
    StudyRow,
    Table,
    decode_copies,
    decode_series,
)
from appliance.index.sources import SOP_UID, Source, best_source
from appliance.index.view import View

TRANSACTION_S_MAX: Final = 1.0
CHUNK_ANSWERS: Final = 128

Position = tuple[int, bytes | None, bytes, bytes]
"""Where to go on: range of the source, key in it, series key, instance key to go on behind."""

Read = Callable[[], Any]


class Query:
    """One search. Owned by the thread that iterates over it."""

    def __init__(
        self,
        read: Read,
        level: Level,
        matchers: Mapping[int, Matcher],
        limit: int | None,
        wanted: Iterable[int] | None,
    ) -> None:
        self._read = read
        self._level = level
        self._limit = limit
        of_level: dict[Level, dict[int, Matcher]] = {each: {} for each in Level}
        for tag, matcher in matchers.items():
            attribute = BY_TAG.get(tag)
            if attribute is not None and not matcher.universal:
                of_level[attribute.level][tag] = matcher
        self._of_study = of_level[Level.PATIENT]
        if level is not Level.PATIENT:
            self._of_study = self._of_study | of_level[Level.STUDY]
        self._of_series = of_level[Level.SERIES]
        self._of_instance = of_level[Level.INSTANCE]
        self._matchers = dict(self._of_study)
        if level in (Level.SERIES, Level.INSTANCE):
            self._matchers |= self._of_series
        if level is Level.INSTANCE:
            self._matchers |= self._of_instance
        self._answering = Answering(None if wanted is None else frozenset(wanted))
        self._source: Source | None = None

    def answers(self) -> Iterator[dict[int, Any]]:
        """Yield the answers, in chunks each read at one moment."""
        position: Position | None = (0, None, b"", b"")
        left = self._limit
        while position is not None and (left is None or left > 0):
            chunk, position = self._chunk(position, left)
            if left is not None:
                left -= len(chunk)
            yield from chunk

    def _chunk(
        self, position: Position, left: int | None
    ) -> tuple[list[dict[int, Any]], Position | None]:
        found: list[dict[int, Any]] = []
        most = CHUNK_ANSWERS if left is None else min(left, CHUNK_ANSWERS)
        until = time.monotonic() + TRANSACTION_S_MAX
        with self._read() as view:
            if self._source is None:
                self._source = best_source(view.reader, self._matchers)
            for resume, answer in self._walk(view, self._source, position):
                if answer is not None:
                    found.append(answer)
                if len(found) >= most or time.monotonic() > until:
                    return found, resume
        return found, None

    # candidates

    def _walk(
        self, view: View, source: Source, position: Position
    ) -> Iterator[tuple[Position, dict[int, Any] | None]]:
        """Yield where to go on after each record looked at, with its answer if it matched."""
        reader = view.reader
        first, start, series, instance = position
        for part, key, study in _entries(reader, source, first, start):
            found = self._matching_study(reader, source, (part, key), study)
            behind: Position = (part, key + b"\x00", b"", b"")
            if found is None:
                yield behind, None
            elif self._level is Level.PATIENT:
                newest = self._answering.is_newest_of_patient(reader, study, found.row)
                yield behind, self._answering.patient(reader, study, found.row) if newest else None
            elif self._level is Level.STUDY:
                yield behind, found.answer()
            else:
                for (at_series, at_instance), answer in self._below(found, series, instance):
                    yield (part, key, at_series, at_instance), answer
                yield behind, None
            series = instance = b""

    def _matching_study(
        self, reader: Reader, source: Source, at: tuple[int, bytes], study: bytes
    ) -> "_Found | None":
        row = reader.study(study)
        if row is None or row.newest is None:
            return None
        value = self._answering.study_value
        for tag, matcher in self._of_study.items():
            if not matcher.matches(value(reader, study, row, tag)):
                return None
        if source.repeats and not source.is_first(*at, study, row.attributes):
            return None
        return _Found(reader, self._answering, study, row)

    # series and instances of a study that matched

    def _below(
        self, found: "_Found", series: bytes, instance: bytes
    ) -> Iterator[tuple[tuple[bytes, bytes], dict[int, Any] | None]]:
        wanted = self._of_instance.get(SOP_UID)
        if self._level is Level.SERIES:
            yield from self._series(found, series)
        elif wanted is not None and wanted.uids is not None:
            yield from self._named_instances(found, wanted.uids, instance)
        else:
            yield from self._instances(found, series, instance)

    def _series(
        self, found: "_Found", after: bytes
    ) -> Iterator[tuple[tuple[bytes, bytes], dict[int, Any] | None]]:
        start = after + b"\x00" if after else None
        for key, body in found.reader.scan(Table.SERIES, found.study, start):
            yield (key, b""), self._upper(found, key, decode_series(body))

    def _upper(self, found: "_Found", key: bytes, row: SeriesRow) -> dict[int, Any] | None:
        """Return the attributes of a series that matches, and of what is above it."""
        at = len(found.study)
        value = self._answering.series_value
        for tag, matcher in self._of_series.items():
            if not matcher.matches(value(found.reader, key, at, row, tag)):
                return None
        return found.answer() | self._answering.series(found.reader, key, at, row)

    def _instances(
        self, found: "_Found", series: bytes, instance: bytes
    ) -> Iterator[tuple[tuple[bytes, bytes], dict[int, Any] | None]]:
        hidden = found.reader.hidden_in(found.study)
        for key, body in found.reader.scan(Table.SERIES, found.study, series or None):
            upper = self._upper(found, key, decode_series(body))
            if upper is None:
                yield (key + b"\x00", b""), None
                continue
            start = instance + b"\x00" if instance.startswith(key) else None
            for at, instance_body in found.reader.scan(Table.INSTANCE, key, start):
                answer = None
                if at[len(key) :] not in hidden:
                    answer = self._instance(found.reader, at, len(key), instance_body, upper)
                yield (key, at), answer

    def _named_instances(
        self, found: "_Found", uids: tuple[str, ...], after: bytes
    ) -> Iterator[tuple[tuple[bytes, bytes], dict[int, Any] | None]]:
        reader = found.reader
        hidden = reader.hidden_in(found.study)
        uppers: dict[bytes, dict[int, Any] | None] = {}
        for sop in sorted({pack_uid(uid) for uid in uids}):
            if sop <= after or sop in hidden:
                continue
            series = reader.get(Table.SOP, sop + found.study)
            if series is None:
                continue
            key = found.study + series
            if key not in uppers:
                row = reader.series(key)
                uppers[key] = None if row is None else self._upper(found, key, row)
            upper = uppers[key]
            body = reader.get(Table.INSTANCE, key + sop)
            if upper is not None and body is not None:
                yield (b"", sop), self._instance(reader, key + sop, len(key), body, upper)

    def _instance(
        self, reader: Reader, key: bytes, at: int, body: bytes, upper: dict[int, Any]
    ) -> dict[int, Any] | None:
        own = self._answering.instance(reader, key, at, decode_copies(body))
        for tag, matcher in self._of_instance.items():
            if not matcher.matches(own.get(tag)):
                return None
        return upper | own


class _Found:
    """A study that matched, inside one transaction."""

    __slots__ = ("_answer", "_answering", "reader", "row", "study")

    def __init__(self, reader: Reader, answering: Answering, study: bytes, row: StudyRow) -> None:
        self.reader = reader
        self.study = study
        self.row = row
        self._answering = answering
        self._answer: dict[int, Any] | None = None

    def answer(self) -> dict[int, Any]:
        """Return the attributes of levels PATIENT and STUDY, built once."""
        if self._answer is None:
            self._answer = self._answering.study(self.reader, self.study, self.row)
        return self._answer


def _entries(
    reader: Reader, source: Source, first: int, start: bytes | None
) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield range number, key and study of a source from a position on."""
    if source.studies is not None:
        for study in source.studies:
            if start is None or study >= start:
                yield 0, study, study
        return
    for part in range(first, len(source.ranges)):
        span = source.ranges[part]
        for key in span.keys(reader, start if part == first else None):
            # The record of a patient stands before the entries of the patient's studies.
            if study := span.study_of(key):
                yield part, key, study
