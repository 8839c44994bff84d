"""The end of a write transaction: series, studies, patients, packs and totals become records.

It goes upwards, so that what is looked up again has already been written. Invariants:
- A study stands in the secondary tables exactly while something of it is served.
- A patient's counts are the sums over the studies that stand behind its key.
"""

from appliance.index.contexts import ContextCache, Shared, patient_key
from appliance.index.overlay import Overlay
from appliance.index.pack_state import (
    PackState,
    counted,
    is_erased,
    listed_under,
    what_stays,
)
from appliance.index.schema import (
    COUNTERS_KEY,
    STUDY_CONFLICT,
    Counters,
    Newest,
    Order,
    PatientRow,
    StudyRow,
    Table,
    decode_copies,
    decode_counters,
    decode_patient,
    decode_series,
    decode_study,
    decode_visibility,
    encode,
)
from appliance.index.secondary import secondary_keys
from appliance.index.served import order_of
from appliance.index.study_state import Contribution, SeriesState, StudyState


class PatientState:
    """A patient under change; stale: the newest study must be looked up again."""

    __slots__ = ("instance_count", "newest", "newest_study", "series_count", "stale", "study_count")

    def __init__(self, row: PatientRow | None) -> None:
        self.study_count = row.study_count if row else 0
        self.series_count = row.series_count if row else 0
        self.instance_count = row.instance_count if row else 0
        self.newest: Order | None = row.newest if row else None
        self.newest_study = row.newest_study if row else b""
        self.stale = False

    def take(self, row: StudyRow, sign: int) -> None:
        """Count a study, or count it no more."""
        self.study_count += sign
        self.series_count += sign * row.series_count
        self.instance_count += sign * row.instance_count


class Settlement:
    """Writes the states of one transaction. Owned by that transaction."""

    def __init__(self, overlay: Overlay, cache: ContextCache) -> None:
        self._overlay = overlay
        self._cache = cache
        self._patients: dict[bytes, PatientState] = {}

    def load_series(self, study: StudyState, series: bytes) -> SeriesState:
        """Return the state of a series, put into the study's."""
        body = None
        if not study.is_new:
            body = self._overlay.get(Table.SERIES, study.study + series)
        state = SeriesState(None if body is None else decode_series(body))
        study.series[series] = state
        return state

    def settle(self, studies: dict[bytes, StudyState], packs: dict[bytes, PackState]) -> None:
        """Write all states and empty the overlay."""
        counters = self._counters()
        for study in studies.values():
            self._settle_study(study, counters)
        for key in sorted(self._patients):
            self._settle_patient(key, self._patients[key])
        self._patients = {}
        for pack in packs.values():
            self._settle_pack(pack, counters)
        self._overlay.put(Table.META, COUNTERS_KEY, encode(counters))
        self._overlay.flush(*Table)

    def _counters(self) -> Counters:
        body = self._overlay.get(Table.META, COUNTERS_KEY)
        return Counters() if body is None else decode_counters(body)

    def _shared(self, study: bytes, key: bytes) -> Shared:
        return self._cache.shared(study, key, self._overlay.get)

    # studies

    def _settle_study(self, study: StudyState, counters: Counters) -> None:
        overlay = self._overlay
        for series, state in study.series.items():
            if state.stale:
                self._look_up_newest(study, series, state)
            was_there = state.was_modality is not None
            study.settle_series(state)
            row = state.row()
            if row is not None:
                overlay.put(Table.SERIES, study.study + series, encode(row))
                if not was_there:
                    overlay.put(Table.SERIES_STUDY, series + study.study, b"")
            elif was_there:
                overlay.delete(Table.SERIES, study.study + series)
                overlay.delete(Table.SERIES_STUDY, series + study.study)
        if study.stale:
            study.newest = self._newest_series(study.study)
        newest = study.newest
        context = None if newest is None else self._shared(study.study, newest.context).context
        row_now, before = study.row(context), study.before
        if row_now.patients:
            overlay.put(Table.STUDY, study.study, encode(row_now))
        else:  # every copy of it was erased
            overlay.delete(Table.STUDY, study.study)
        if len(row_now.patients) > 1:
            overlay.put(Table.CONFLICT, STUDY_CONFLICT + study.study, b"")
        self._settle_secondary(study.study, before, row_now)
        counters.studies += (row_now.newest is not None) - bool(before and before.newest)
        counters.series += row_now.series_count - (before.series_count if before else 0)
        counters.instances += row_now.instance_count - (before.instance_count if before else 0)

    def _look_up_newest(self, study: StudyState, series: bytes, state: SeriesState) -> None:
        prefix = study.study + series
        newest: Contribution | None = None
        for key, body in self._overlay.scan(Table.INSTANCE, prefix):
            if study.has_visibility and self._hidden(study.study + key[len(prefix) :]):
                continue
            copy = decode_copies(body)[-1]
            shared = self._shared(study.study, copy.context)
            order = order_of(copy, shared.context)
            if newest is None or order > newest.order:
                newest = Contribution(series, order, shared)
        state.newest = newest.newest() if newest else None
        state.modality = newest.shared.modality if newest else ""

    def _hidden(self, key: bytes) -> bool:
        body = self._overlay.get(Table.VISIBILITY, key)
        return body is not None and decode_visibility(body)[-1].hidden

    def _newest_series(self, study: bytes) -> Newest | None:
        rows = [decode_series(body).newest for _, body in self._overlay.scan(Table.SERIES, study)]
        return max(rows, key=lambda newest: newest.order, default=None)

    # what finds a study

    def _settle_secondary(self, study: bytes, before: StudyRow | None, now: StudyRow) -> None:
        old_patient = _patient_of(study, before)
        new_patient = _patient_of(study, now)
        if not _found_alike(before, now):
            old = _secondary_of(study, before)
            new = _secondary_of(study, now)
            for table, key in old - new:
                self._overlay.delete(table, key)
            for table, key in new - old:
                self._overlay.put(table, key, b"")
        if before is not None and old_patient is not None:
            state = self._patient(old_patient)
            state.take(before, -1)
            if state.newest_study == study:
                state.stale = True
        if new_patient is not None and now.newest is not None:
            state = self._patient(new_patient)
            state.take(now, 1)
            order = now.newest.order
            if state.newest is None or order >= state.newest:
                # Nothing else was above the old newest, so this one needs no search.
                state.stale = False
                state.newest, state.newest_study = order, study

    # patients

    def _patient(self, key: bytes) -> PatientState:
        state = self._patients.get(key)
        if state is None:
            body = self._overlay.get(Table.PATIENT, key)
            state = PatientState(None if body is None else decode_patient(body))
            self._patients[key] = state
        return state

    def _settle_patient(self, key: bytes, state: PatientState) -> None:
        if state.study_count == 0:
            self._overlay.delete(Table.PATIENT, key)
            return
        if state.stale:
            self._look_up_newest_study(key, state)
        assert state.newest is not None
        row = PatientRow(
            state.study_count,
            state.series_count,
            state.instance_count,
            state.newest,
            state.newest_study,
        )
        self._overlay.put(Table.PATIENT, key, encode(row))

    def _look_up_newest_study(self, patient: bytes, state: PatientState) -> None:
        state.newest = None
        for key, _ in self._overlay.scan(Table.PATIENT, patient):
            study = key[len(patient) :]
            if not study:
                continue
            body = self._overlay.get(Table.STUDY, study)
            newest = decode_study(body).newest if body is not None else None
            if newest is not None and (state.newest is None or newest.order > state.newest):
                state.newest, state.newest_study = newest.order, study

    # packs

    def _settle_pack(self, state: PackState, counters: Counters) -> None:
        pack, reference = state.pack, state.reference
        if is_erased(pack):
            pack = what_stays(pack)
        listed = listed_under(reference, pack)
        if listed != state.listed_before:
            if state.listed_before is not None:
                self._overlay.delete(*state.listed_before)
            if listed is not None:
                self._overlay.put(*listed, b"")
        self._overlay.put(Table.PACK, reference, encode(pack))
        counted(counters, pack, 1)
        if state.was_known:
            counted(counters, state.before, -1)


def _patient_of(study: bytes, row: StudyRow | None) -> bytes | None:
    if row is None or row.newest is None:
        return None
    return patient_key(study, row.attributes)


def _found_alike(one: StudyRow | None, other: StudyRow) -> bool:
    """Return whether two rows of a study stand under the same secondary keys."""
    if one is None or one.newest is None or other.newest is None:
        return (one is None or one.newest is None) and other.newest is None
    return one.attributes == other.attributes


def _secondary_of(study: bytes, row: StudyRow | None) -> set[tuple[Table, bytes]]:
    if row is None or row.newest is None:
        return set()
    return secondary_keys(study, row.attributes)
