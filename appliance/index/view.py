"""The read side as the rest of the house sees it: UIDs in, records out, one short transaction.

Invariant: nothing it returns refers to the transaction; an iterator must be used up inside it.
"""

from collections.abc import Iterator

import msgspec

from appliance.index.keys import pack_id_of, pack_reference, pack_uid, unpack_uid, unpack_uids
from appliance.index.pack_state import is_erased, reference_of, stamped
from appliance.index.reading import Reader
from appliance.index.records import (
    Conflict,
    ConflictKind,
    FoundInstance,
    FoundVersion,
    PackRow,
    PatientHistory,
    SeriesRecord,
    ServedInstance,
    StoredCopy,
    StoredInstance,
    StudyRecord,
    Totals,
    Version,
    VisibilityRecord,
)
from appliance.index.schema import (
    COUNTERS_KEY,
    PROGRESS_PREFIX,
    STUDY_CONFLICT,
    Copy,
    Counters,
    SeriesRow,
    StoredPack,
    StudyRow,
    Table,
    decode_copies,
    decode_counters,
    decode_number,
    decode_pack,
    decode_series,
    decode_visibility,
)


class View:
    """What the index holds at one moment. Owned by the thread that opened it."""

    __slots__ = ("reader",)

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    # studies, series, instances

    def study(self, study_instance_uid: str) -> StudyRecord | None:
        """Return a study, None when nothing of it was ever received."""
        row = self.reader.study(pack_uid(study_instance_uid))
        return None if row is None else self._study_record(study_instance_uid, row)

    def series(self, study_instance_uid: str, series_instance_uid: str) -> SeriesRecord | None:
        """Return a series, None when nothing of it is served."""
        key = pack_uid(study_instance_uid) + pack_uid(series_instance_uid)
        row = self.reader.series(key)
        if row is None:
            return None
        return self._series_record(study_instance_uid, series_instance_uid, row)

    def series_of(self, study_instance_uid: str) -> Iterator[SeriesRecord]:
        """Yield the series of a study of which something is served, by UID."""
        study = pack_uid(study_instance_uid)
        for key, body in self.reader.scan(Table.SERIES, study):
            series_uid, _ = unpack_uid(key, len(study))
            yield self._series_record(study_instance_uid, series_uid, decode_series(body))

    def instances(
        self, study_instance_uid: str, series_instance_uid: str | None = None
    ) -> Iterator[StoredInstance]:
        """Yield the instances of a study or series, hidden ones too, by series and UID."""
        study = pack_uid(study_instance_uid)
        prefix = study
        if series_instance_uid is not None:
            prefix += pack_uid(series_instance_uid)
        hidden = self.reader.hidden_in(study)
        for key, body in self.reader.scan(Table.INSTANCE, prefix):
            yield self._stored_instance(key, decode_copies(body), hidden)

    def served(self, study_instance_uid: str) -> Iterator[ServedInstance]:
        """Yield the served instances of a study by series and UID, without their attributes.

        A fifth of what `instances` costs: a retrieve of a large CT begins with it.
        """
        study = pack_uid(study_instance_uid)
        hidden = self.reader.hidden_in(study)
        series_key, series_uid = b"", ""
        for key, body in self.reader.scan(Table.INSTANCE, study):
            if not (series_key and key.startswith(series_key)):
                series_uid, end = unpack_uid(key, len(study))
                series_key = key[:end]
            if hidden and key[len(series_key) :] in hidden:
                continue
            copies = decode_copies(body)
            if len(copies) > 1:
                copies = self.reader.versions(study, copies)[-1]
            newest = copies[-1]
            context = self.reader.shared(study, newest.context).context
            yield ServedInstance(
                study_instance_uid,
                series_uid,
                unpack_uid(key, len(series_key))[0],
                context.sop_class_uid,
                context.transfer_syntax_uid,
                context.character_set,
                newest.length,
                newest.sha256,
                tuple((pack_id_of(copy.pack), copy.offset) for copy in copies),
            )

    def instance(self, study_instance_uid: str, sop_instance_uid: str) -> StoredInstance | None:
        """Return an instance of a study, hidden or not."""
        study, sop = pack_uid(study_instance_uid), pack_uid(sop_instance_uid)
        series = self.reader.get(Table.SOP, sop + study)
        if series is None:
            return None
        key = study + series + sop
        return self._stored_instance(key, self.reader.copies(key), self.reader.hidden_in(study))

    def find_sop(self, sop_instance_uid: str) -> list[FoundInstance]:
        """Return the instances with this UID, one for each study that has it, hidden ones too."""
        reader = self.reader
        sop = pack_uid(sop_instance_uid)
        found = []
        for key, series in reader.scan(Table.SOP, sop):
            study = key[len(sop) :]
            copies = reader.copies(study + series + sop)
            found.append(
                FoundInstance(
                    unpack_uid(study)[0],
                    unpack_uid(series)[0],
                    sop_instance_uid,
                    self._found_versions(study, copies),
                )
            )
        return found

    def visibility(self, study_instance_uid: str, sop_instance_uid: str) -> list[VisibilityRecord]:
        """Return what ledger records said about showing an instance; the last one counts."""
        key = pack_uid(study_instance_uid) + pack_uid(sop_instance_uid)
        body = self.reader.get(Table.VISIBILITY, key)
        parts = [] if body is None else decode_visibility(body)
        return [
            VisibilityRecord(p.at_us, p.node, p.sequence, p.position, p.hidden, p.by) for p in parts
        ]

    # packs

    def pack(self, pack_id: str) -> PackRow | None:
        """Return a pack."""
        stored = self.reader.pack(pack_reference(pack_id))
        return None if stored is None else pack_row(pack_id, stored)

    def packs(self) -> Iterator[PackRow]:
        """Yield every pack that is not erased, by id."""
        for key, body in self.reader.scan(Table.PACK, b""):
            row = pack_row(pack_id_of(key), decode_pack(body))
            if not row.erased_at_us:
                yield row

    def verified_from(self, part: float, count: int) -> list[str]:
        """Return verified packs, at most `count`, from `part` (0 to 1) of all time on, and round.

        For drawing a sample without reading all: packs are found by the time in their ids.
        """
        edges = [self.reader.edge(Table.PACK, first=first) for first in (True, False)]
        if edges[0] is None or edges[1] is None:
            return []
        low, high = (int.from_bytes(key, "big") for key in edges if key is not None)
        start = (low + int((high - low) * part)).to_bytes(len(edges[0]), "big")
        found: dict[str, None] = {}
        for begin in (start, b""):
            for key, body in self.reader.scan(Table.PACK, b"", begin):
                if len(found) >= count:
                    return list(found)
                row = pack_row(pack_id_of(key), decode_pack(body))
                if row.cloud is not None and not row.erased_at_us:
                    found[row.pack_id] = None
        return list(found)

    def pack_instances(self, pack_id: str) -> Iterator[tuple[StoredInstance, Version, StoredCopy]]:
        """Yield what lies in a pack: instance, version and copy. It reads the whole study."""
        row = self.pack(pack_id)
        for study_uid in row.study_instance_uids if row else ():
            for instance in self.instances(study_uid):
                for version in instance.versions:
                    for copy in version.copies:
                        if copy.pack_id == pack_id:
                            yield instance, version, copy

    def pending(self, limit: int) -> list[PackRow]:
        """Return packs that no ledger names, the oldest first."""
        return self._listed(Table.PENDING, limit)

    def evictable(self, limit: int) -> list[PackRow]:
        """Return cached packs, the least recently used first."""
        return self._listed(Table.CACHED, limit)

    def _listed(self, table: Table, limit: int) -> list[PackRow]:
        rows: list[PackRow] = []
        for key, _ in self.reader.scan(table, b""):
            if len(rows) >= limit:
                break
            reference = reference_of(key)
            stored = self.reader.pack(reference)
            if stored is not None:
                rows.append(pack_row(pack_id_of(reference), stored))
        return rows

    # totals and findings

    def counts(self) -> Totals:
        """Return the totals for status."""
        body = self.reader.get(Table.META, COUNTERS_KEY)
        counters = Counters() if body is None else decode_counters(body)
        oldest = 0
        for key, _ in self.reader.scan(Table.PENDING, b"", stamped(1, b"")):
            oldest = int.from_bytes(key[:8], "big")
            break
        return Totals(
            counters.studies,
            counters.series,
            counters.instances,
            counters.packs,
            counters.pending_packs,
            counters.pending_instances,
            counters.pending_bytes,
            counters.cached_packs,
            counters.cached_bytes,
            oldest,
        )

    def progress(self, node: str) -> int:
        """Return the last applied entry of a node's ledger, -1 for none."""
        body = self.reader.get(Table.META, PROGRESS_PREFIX + node.encode())
        return -1 if body is None else decode_number(body)

    def nodes(self) -> dict[str, int]:
        """Return node → last applied entry, of every node whose ledger was applied."""
        return {
            key[len(PROGRESS_PREFIX) :].decode(): decode_number(body)
            for key, body in self.reader.scan(Table.META, PROGRESS_PREFIX)
        }

    def conflicts(self, study_instance_uid: str | None = None) -> Iterator[Conflict]:
        """Yield the findings, those of studies first; of one study if its UID is given."""
        only = None if study_instance_uid is None else pack_uid(study_instance_uid)
        for kind in (STUDY_CONFLICT, b"V"):
            prefix = kind + (only or b"")
            for key, _ in self.reader.scan(Table.CONFLICT, prefix):
                uids = unpack_uids(key[1:])
                yield self._conflict(kind, uids)

    def _conflict(self, kind: bytes, uids: list[str]) -> Conflict:
        study = pack_uid(uids[0])
        if kind == STUDY_CONFLICT:
            row = self.reader.study(study)
            patients = _history(row) if row is not None else ()
            corrected = sum(1 for patient in patients if patient.served_count) <= 1
            return Conflict(
                ConflictKind.STUDY_UNDER_SEVERAL_PATIENTS, uids[0], "", corrected, patients
            )
        sop = pack_uid(uids[1])
        series = self.reader.get(Table.SOP, sop + study) or b""
        versions = self._found_versions(study, self.reader.copies(study + series + sop))
        return Conflict(
            ConflictKind.DIFFERENT_CONTENT, uids[0], uids[1], corrected=False, versions=versions
        )

    # records from rows

    def _study_record(self, study_uid: str, row: StudyRow) -> StudyRecord:
        received = row.newest.order.received_at_us if row.newest is not None else 0
        return StudyRecord(
            study_uid,
            row.series_count,
            row.instance_count,
            tuple(modality for modality in row.modalities if modality),
            tuple(row.sop_classes),
            row.character_set,
            row.attributes,
            tuple(pack_id_of(pack) for pack in row.packs),
            received,
            _history(row),
        )

    def _series_record(self, study_uid: str, series_uid: str, row: SeriesRow) -> SeriesRecord:
        context = self.reader.shared(pack_uid(study_uid), row.newest.context).context
        return SeriesRecord(
            study_uid,
            series_uid,
            row.instance_count,
            row.modality,
            context.character_set,
            context.study_attributes | context.series_attributes,
            tuple(pack_id_of(pack) for pack in row.packs),
        )

    def _stored_instance(
        self, key: bytes, copies: list[Copy], hidden: set[bytes]
    ) -> StoredInstance:
        study_uid, series_at = unpack_uid(key)
        series_uid, sop_at = unpack_uid(key, series_at)
        study = key[:series_at]
        return StoredInstance(
            study_uid,
            series_uid,
            unpack_uid(key, sop_at)[0],
            key[sop_at:] in hidden,
            tuple(self._version(study, group) for group in self.reader.versions(study, copies)),
        )

    def _version(self, study: bytes, copies: list[Copy]) -> Version:
        newest = copies[-1]
        context = self.reader.shared(study, newest.context).context
        attributes = context.study_attributes | context.series_attributes
        attributes.update(zip(context.tags, newest.values, strict=True))
        return Version(
            newest.sha256,
            context.sop_class_uid,
            context.transfer_syntax_uid,
            newest.length,
            context.character_set,
            attributes,
            tuple(self._stored_copy(study, copy) for copy in copies),
        )

    def _stored_copy(self, study: bytes, copy: Copy) -> StoredCopy:
        context = self.reader.shared(study, copy.context).context
        return StoredCopy(
            pack_id_of(copy.pack),
            copy.offset,
            copy.received_at_us,
            context.node,
            context.calling_ae,
            context.called_ae,
            context.peer_address,
            context.tls_subject,
        )

    def _found_versions(self, study: bytes, copies: list[Copy]) -> tuple[FoundVersion, ...]:
        return tuple(
            FoundVersion(
                group[-1].sha256,
                self.reader.shared(study, group[-1].context).context.transfer_syntax_uid,
                group[-1].length,
                tuple(pack_id_of(copy.pack) for copy in group),
            )
            for group in self.reader.versions(study, copies)
        )


def _history(row: StudyRow) -> tuple[PatientHistory, ...]:
    parts = sorted(row.patients, key=lambda part: (part.first_received_us, part.patient))
    found = []
    for part in parts:
        patient_id, issuer_at = _text_at(part.patient, 0)
        issuer, _ = _text_at(part.patient, issuer_at)
        found.append(
            PatientHistory(
                patient_id,
                issuer,
                part.served_count,
                part.first_received_us,
                part.last_received_us,
            )
        )
    return tuple(found)


def _text_at(key: bytes, start: int) -> tuple[str, int]:
    return unpack_uid(b"\xff" + key[start : key.index(0, start) + 1])[0], key.index(0, start) + 1


def pack_row(pack_id: str, stored: StoredPack) -> PackRow:
    """Return a pack as the rest of the house sees it."""
    cloud = stored.cloud
    if cloud is not None and cloud.locked_until_us < stored.retained_until_us:
        cloud = msgspec.structs.replace(cloud, locked_until_us=stored.retained_until_us)
    return PackRow(
        pack_id,
        stored.node,
        tuple(unpack_uid(study)[0] for study in stored.studies),
        stored.member_count,
        stored.member_bytes,
        stored.size,
        stored.indexed_length,
        stored.first_received_us,
        stored.last_received_us,
        stored.last_used_us,
        stored.last_verified_us,
        stored.local,
        cloud,
        stored.erased_us if is_erased(stored) else 0,
    )
