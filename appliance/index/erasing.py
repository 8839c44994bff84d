"""Taking the copies of an erased pack out of a study, within one write transaction.

It reads the whole study: erasures are rare, and what a study shares (contexts, patients, conflicts)
can only be told from the copies that are left. Invariant: afterwards the study is what it would be
had the pack never been named, save for what the ledger said of its instances' visibility and holds.
"""

from appliance.index.contexts import ContextCache, Shared
from appliance.index.keys import unpack_uid
from appliance.index.overlay import Overlay
from appliance.index.schema import (
    STUDY_CONFLICT,
    VERSION_CONFLICT,
    Context,
    Copy,
    Table,
    decode_copies,
    decode_visibility,
    encode,
)
from appliance.index.served import by_version, order_of
from appliance.index.settling import Settlement
from appliance.index.study_state import Contribution, SeriesState, StudyState


def forget_copies(
    overlay: Overlay,
    settlement: Settlement,
    cache: ContextCache,
    study: StudyState,
    reference: bytes,
    *,
    doubled_only: bool = False,
) -> list[Copy]:
    """Let a study forget every copy that lies in the pack; return them.

    `doubled_only`: of these, only those of whose bytes another pack has a copy.
    """
    return _Forgetting(overlay, settlement, cache, study, reference, doubled_only).run()


class _Forgetting:
    """One pack going out of one study."""

    def __init__(
        self,
        overlay: Overlay,
        settlement: Settlement,
        cache: ContextCache,
        study: StudyState,
        reference: bytes,
        doubled_only: bool,
    ) -> None:
        self._doubled_only = doubled_only
        self._overlay = overlay
        self._settlement = settlement
        self._cache = cache
        self._study = study
        self._reference = reference

    def run(self) -> list[Copy]:
        """Change every instance that has a copy there, then what the study shares."""
        study = self._study.study
        changed: list[tuple[bytes, list[Copy], list[Copy]]] = []
        left: list[Copy] = []
        for key, body in self._overlay.scan(Table.INSTANCE, study):
            copies = decode_copies(body)
            kept = [copy for copy in copies if self._stays(copy, copies)]
            left += kept
            if len(kept) < len(copies):
                changed.append((key, copies, kept))
        for key, copies, kept in changed:
            self._change(key, copies, kept)
        self._recount_patients(left)
        used = {copy.context for copy in left}
        for key, _ in list(self._overlay.scan(Table.CONTEXT, study)):
            if key[len(study) :] not in used:
                self._overlay.delete(Table.CONTEXT, key)
        if all(copy.pack != self._reference for copy in left):
            self._overlay.delete(Table.STUDY_PACK, study + self._reference)
        return [copy for _, copies, kept in changed for copy in copies if copy not in kept]

    def _stays(self, copy: Copy, copies: list[Copy]) -> bool:
        if copy.pack != self._reference:
            return True
        return self._doubled_only and not any(
            other.sha256 == copy.sha256 for other in copies if other.pack != self._reference
        )

    def _change(self, key: bytes, copies: list[Copy], kept: list[Copy]) -> None:
        study = self._study.study
        end = unpack_uid(key, len(study))[1]
        series, sop = key[len(study) : end], key[end:]
        visible = not (self._study.has_visibility and self._hidden(study + sop))
        if visible and (not kept or kept[-1] is not copies[-1]):
            self._study.remove(self._contribution(series, copies[-1]), self._series(series))
            if kept:
                home = self._context(kept[-1].context).series
                self._study.add(self._contribution(home, kept[-1]), self._series(home))
        if len(kept) < 2 or len(by_version(kept, self._context)) < 2:
            self._overlay.delete(Table.CONFLICT, VERSION_CONFLICT + study + sop)
        self._overlay.delete(Table.INSTANCE, key)
        if kept:
            home = self._context(kept[-1].context).series
            self._overlay.put(Table.INSTANCE, study + home + sop, encode(kept))
            self._overlay.put(Table.SOP, sop + study, home)
        else:
            self._overlay.delete(Table.SOP, sop + study)

    def _recount_patients(self, left: list[Copy]) -> None:
        """Let the history tell of the copies that are left, and of no patient besides."""
        study = self._study
        times: dict[bytes, tuple[int, int]] = {}
        for copy in left:
            patient = self._shared(copy.context).patient_of(study.study)
            at_us = copy.received_at_us
            first, last = times.get(patient, (at_us, at_us))
            times[patient] = min(first, at_us), max(last, at_us)
        for patient in list(study.patients):
            if patient in times:
                part = study.patients[patient]
                part.first_received_us, part.last_received_us = times[patient]
            else:
                del study.patients[patient]
        if len(study.patients) < 2:
            self._overlay.delete(Table.CONFLICT, STUDY_CONFLICT + study.study)

    def _series(self, series: bytes) -> SeriesState:
        state = self._study.series.get(series)
        return self._settlement.load_series(self._study, series) if state is None else state

    def _shared(self, key: bytes) -> Shared:
        return self._cache.shared(self._study.study, key, self._overlay.get)

    def _context(self, key: bytes) -> Context:
        return self._shared(key).context

    def _contribution(self, series: bytes, copy: Copy) -> Contribution:
        shared = self._shared(copy.context)
        return Contribution(series, order_of(copy, shared.context), shared)

    def _hidden(self, key: bytes) -> bool:
        body = self._overlay.get(Table.VISIBILITY, key)
        return body is not None and decode_visibility(body)[-1].hidden
