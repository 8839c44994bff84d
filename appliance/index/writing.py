"""The write side: facts in, records out, one LMDB transaction long.

Invariant: after `flush` every record is what the set of all facts so far makes it, whatever their
order, pieces or repetitions. Copies and visibility records are sets; everything else is counted
from them by difference, and looked up again where a difference is not enough.
"""

from bisect import insort
from collections.abc import Iterable
from typing import Any, Final

from appliance.index.contexts import ContextCache, ContextWriter, Shared
from appliance.index.environment import Environment
from appliance.index.erasing import forget_copies
from appliance.index.facts import CloudFacts, InstanceFacts, PackFacts, RecordId
from appliance.index.keys import pack_reference, pack_uid
from appliance.index.overlay import Overlay
from appliance.index.pack_state import PackState, is_erased, merged_cloud
from appliance.index.schema import (
    PROGRESS_PREFIX,
    VERSION_CONFLICT,
    Context,
    Copy,
    HoldPart,
    Order,
    Table,
    VisibilityPart,
    damaged,
    decode_copies,
    decode_hold,
    decode_number,
    decode_pack,
    decode_study,
    decode_visibility,
    encode,
)
from appliance.index.served import by_version, order_of
from appliance.index.settling import Settlement
from appliance.index.study_state import Contribution, SeriesState, StudyState

GATHERED_MAX: Final = 16_000
"""Records gathered before they are handed to LMDB within a transaction. With many more, Python's
garbage collector walks over them again and again."""


class WriteTransaction:
    """Applies facts. Owned by the thread that opened it; lost as a whole when it fails."""

    def __init__(self, environment: Environment, transaction: Any, cache: ContextCache) -> None:
        self.overlay = Overlay(environment, transaction)
        self._cache = cache
        self._contexts = ContextWriter(self.overlay, cache)
        self._studies: dict[bytes, StudyState] = {}
        self._packs: dict[bytes, PackState] = {}
        self._settlement = Settlement(self.overlay, cache)
        self._gathered = 0
        self._anything_hidden = self.overlay.entries(Table.VISIBILITY) > 0

    def apply_pack(self, facts: PackFacts, indexed_length: int = 0) -> int:
        """Take a pack's members in; return how many of them were new.

        Members that are known already change nothing, nor do those of an erased pack.
        indexed_length: up to which byte of the tar the caller has now given members; the greatest
        one said is kept.
        """
        state = self._pack(facts.pack_id)
        pack = state.pack
        if facts.cloud is not None:
            self._take_cloud(state, facts.cloud)
        if is_erased(pack):
            return 0
        pack.node = max(pack.node, facts.node)
        pack.size = max(pack.size, facts.size)
        pack.indexed_length = max(pack.indexed_length, indexed_length)
        pack.local = pack.local or facts.local
        added = 0
        study_uid = None
        study: StudyState | None = None
        for instance in facts.instances:
            if study is None or instance.study_instance_uid != study_uid:
                study_uid = instance.study_instance_uid
                study = self._study(pack_uid(study_uid))
                if study.study not in pack.studies:
                    insort(pack.studies, study.study)
                    self.overlay.put(Table.STUDY_PACK, study.study + state.reference, b"")
            if self._add_member(study, state, facts.node, instance):
                added += 1
        self._gathered += 2 * added + 16
        if self._gathered >= GATHERED_MAX:
            self.flush()
        return added

    def apply_cloud(self, pack_id: str, cloud: CloudFacts) -> None:
        """Note that the bucket holds a verified copy of the pack and the ledger names it."""
        self._take_cloud(self._pack(pack_id), cloud)

    def node_of(self, pack_id: str) -> str:
        """Return the node whose ledger names the pack, as far as is known; "" for a new pack."""
        return self._pack(pack_id).pack.node

    def set_local(self, pack_id: str, local: bool) -> None:
        """Note whether the pack is on this disk. The last word counts."""
        self._pack(pack_id).pack.local = local

    def set_verified_at(self, pack_id: str, at_us: int) -> None:
        """Note when the bytes of the pack's copy were last proved."""
        pack = self._pack(pack_id).pack
        pack.last_verified_us = max(pack.last_verified_us, at_us)

    def touch(self, pack_ids: Iterable[str], at_us: int) -> None:
        """Note that packs were read; the latest time counts."""
        for pack_id in pack_ids:
            pack = self._pack(pack_id).pack
            pack.last_used_us = max(pack.last_used_us, at_us)

    def hide(
        self, record: RecordId, study_instance_uid: str, sop_instance_uid: str, by: str
    ) -> None:
        """Take a `rejected` record in: the instance is not served, unless restored later."""
        self._set_visibility(record, study_instance_uid, sop_instance_uid, by, hidden=True)

    def restore(
        self, record: RecordId, study_instance_uid: str, sop_instance_uid: str, by: str
    ) -> None:
        """Take a `restored` record in: the instance is served, unless rejected later."""
        self._set_visibility(record, study_instance_uid, sop_instance_uid, by, hidden=False)

    def retain(self, pack_id: str, until_us: int) -> None:
        """Take a `retention` record in: the pack's lock ends then, or later if that was said."""
        pack = self._pack(pack_id).pack
        pack.retained_until_us = max(pack.retained_until_us, until_us)

    def hold(
        self, study_instance_uid: str, at_us: int, record_id: str, *, on: bool, by: str, reason: str
    ) -> None:
        """Take a `hold` record in: of a study the latest counts, whether it is known or not."""
        key = pack_uid(study_instance_uid)
        body = self.overlay.get(Table.HOLD, key)
        parts = [] if body is None else decode_hold(body)
        part = HoldPart(at_us, record_id, on, by, reason)
        if part not in parts:
            insort(parts, part)
            self.overlay.put(Table.HOLD, key, encode(parts))

    def erase(self, pack_id: str, at_us: int) -> None:
        """Take an `erased` record in: once a ledger names the pack, its instances are no more."""
        state = self._pack(pack_id)
        was_erased = is_erased(state.pack)
        at_us = max(at_us, 1)
        state.pack.erased_us = min(state.pack.erased_us or at_us, at_us)
        if not was_erased:
            self._forget_if_erased(state)

    def forget_doubled(self, pack_id: str) -> int:
        """Forget what another pack has too of one that is neither here nor in a ledger.

        Returns how many copies. What a lost pack alone had stays known.
        """
        state = self._pack(pack_id)
        pack = state.pack
        if pack.local or pack.cloud is not None:
            return 0
        count = 0
        for key in list(pack.studies):
            study = self._study(key)
            forgotten = forget_copies(
                self.overlay, self._settlement, self._cache, study, state.reference,
                doubled_only=True,
            )  # fmt: skip
            count += len(forgotten)
            pack.member_count -= len(forgotten)
            pack.member_bytes -= sum(copy.length for copy in forgotten)
            self._gathered += study.instance_count
        if not pack.member_count:
            pack.studies = []
        self._contexts.forget_quick()
        return count

    def remember(self, node: str, sequence: int) -> None:
        """Note that a node's ledger is applied up to this entry; the highest one said is kept."""
        if sequence > self.progress(node):
            self.overlay.put(Table.META, PROGRESS_PREFIX + node.encode(), encode(sequence))

    def progress(self, node: str) -> int:
        """Return the last applied entry of a node's ledger, -1 for none."""
        body = self.overlay.get(Table.META, PROGRESS_PREFIX + node.encode())
        return -1 if body is None else decode_number(body)

    def flush(self) -> None:
        """Settle everything gathered and hand it to LMDB; the transaction stays open."""
        self._settlement.settle(self._studies, self._packs)
        self._studies = {}
        self._packs = {}
        self._contexts.forget_quick()
        self._gathered = 0

    # packs and studies under change

    def _pack(self, pack_id: str) -> PackState:
        reference = pack_reference(pack_id)
        state = self._packs.get(reference)
        if state is None:
            body = self.overlay.get(Table.PACK, reference)
            state = PackState(reference, None if body is None else decode_pack(body))
            self._packs[reference] = state
        return state

    def _take_cloud(self, state: PackState, cloud: CloudFacts) -> None:
        was_erased = is_erased(state.pack)
        state.pack.cloud = merged_cloud(state.pack.cloud, cloud)
        if not was_erased:
            self._forget_if_erased(state)

    def _forget_if_erased(self, state: PackState) -> None:
        if not is_erased(state.pack):
            return
        for key in state.pack.studies:
            study = self._study(key)
            forget_copies(self.overlay, self._settlement, self._cache, study, state.reference)
            self._gathered += study.instance_count
        state.pack.studies = []
        # What it remembers as stored may just have been forgotten.
        self._contexts.forget_quick()

    def _study(self, study: bytes) -> StudyState:
        state = self._studies.get(study)
        if state is None:
            body = self.overlay.get(Table.STUDY, study)
            row = None if body is None else decode_study(body)
            state = StudyState(study, row, has_visibility=self._any_visibility(study))
            self._studies[study] = state
        return state

    def _any_visibility(self, study: bytes) -> bool:
        if (
            not self.overlay.entries(Table.VISIBILITY)
            and not self.overlay.pending[Table.VISIBILITY]
        ):
            return False
        return next(self.overlay.scan(Table.VISIBILITY, study), None) is not None

    def _series(self, study: StudyState, series: bytes) -> SeriesState:
        state = study.series.get(series)
        if state is None:
            state = self._settlement.load_series(study, series)
        return state

    # members

    def _add_member(
        self, study: StudyState, pack: PackState, node: str, facts: InstanceFacts
    ) -> bool:
        overlay = self.overlay
        sop = pack_uid(facts.sop_instance_uid)
        series = pack_uid(facts.series_instance_uid)
        shared, values = self._contexts.split(study.study, series, node, facts)
        copy = Copy(
            facts.received_at_us,
            pack.reference,
            facts.offset,
            facts.length,
            facts.sha256,
            shared.key,
            values,
        )
        sop_key = sop + study.study
        if study.is_new:
            located = overlay.pending[Table.SOP].get(sop_key)
        else:
            located = overlay.get(Table.SOP, sop_key)
        if located is not None:
            if not self._add_copy(study, sop, (located, series), copy):
                return False
        else:
            overlay.put(Table.INSTANCE, study.study + series + sop, encode([copy]))
            overlay.put(Table.SOP, sop_key, series)
            study.saw(shared.patient_of(study.study), facts.received_at_us)
            if not (study.has_visibility and self._hidden(study.study + sop)):
                order = Order(facts.received_at_us, node, pack.reference, facts.offset)
                study.add(Contribution(series, order, shared), self._series(study, series))
        pack.received(facts.received_at_us, facts.length)
        return True

    def _add_copy(
        self,
        study: StudyState,
        sop: bytes,
        where: tuple[bytes, bytes],
        copy: Copy,
    ) -> bool:
        """Add a copy to an instance that is known; False when the copy is known too.

        where: the series under which the record lies, and the copy's own.
        """
        overlay = self.overlay
        located, series = where
        shared = self._shared(study.study, copy.context)
        key = study.study + located + sop
        body = overlay.get(Table.INSTANCE, key)
        if body is None:
            raise damaged("instance", "a record that is named elsewhere is missing")
        copies = decode_copies(body)
        if any(known.offset == copy.offset and known.pack == copy.pack for known in copies):
            return False
        before = copies[-1]
        copies.append(copy)

        def context_of(name: bytes) -> Context:
            return self._shared(study.study, name).context

        copies.sort(key=lambda each: order_of(each, context_of(each.context)))
        study.saw(shared.patient_of(study.study), copy.received_at_us)
        if len(by_version(copies, context_of)) > 1:
            overlay.put(Table.CONFLICT, VERSION_CONFLICT + study.study + sop, b"")
        home = located
        if copies[-1] is copy:
            home = series
            if not (study.has_visibility and self._hidden(study.study + sop)):
                study.remove(
                    self._contribution(study.study, located, before),
                    self._series(study, located),
                )
                study.add(self._contribution(study.study, home, copy), self._series(study, home))
            if home != located:
                overlay.delete(Table.INSTANCE, key)
                overlay.put(Table.SOP, sop + study.study, home)
        overlay.put(Table.INSTANCE, study.study + home + sop, encode(copies))
        return True

    def _shared(self, study: bytes, key: bytes) -> Shared:
        return self._cache.shared(study, key, self.overlay.get)

    def _contribution(self, study: bytes, series: bytes, copy: Copy) -> Contribution:
        shared = self._shared(study, copy.context)
        return Contribution(series, order_of(copy, shared.context), shared)

    # visibility

    def _hidden(self, key: bytes) -> bool:
        body = self.overlay.get(Table.VISIBILITY, key)
        return body is not None and decode_visibility(body)[-1].hidden

    def _set_visibility(
        self, record: RecordId, study_uid: str, sop_uid: str, by: str, *, hidden: bool
    ) -> None:
        study_key, sop = pack_uid(study_uid), pack_uid(sop_uid)
        key = study_key + sop
        body = self.overlay.get(Table.VISIBILITY, key)
        parts = [] if body is None else decode_visibility(body)
        part = VisibilityPart(
            record.at_us, record.node, record.sequence, record.position, hidden, by
        )
        if part in parts:
            return
        was_hidden = bool(parts) and parts[-1].hidden
        self._anything_hidden = True
        parts.append(part)
        parts.sort()
        self.overlay.put(Table.VISIBILITY, key, encode(parts))
        study = self._study(study_key) if self._study_known(study_key) else None
        if study is None:
            return
        study.has_visibility = True
        if parts[-1].hidden != was_hidden:
            self._switch_instance(study, sop, visible=was_hidden)

    def _study_known(self, study: bytes) -> bool:
        return study in self._studies or self.overlay.get(Table.STUDY, study) is not None

    def _switch_instance(self, study: StudyState, sop: bytes, *, visible: bool) -> None:
        located = self.overlay.get(Table.SOP, sop + study.study)
        if located is None:
            return
        body = self.overlay.get(Table.INSTANCE, study.study + located + sop)
        if body is None:
            raise damaged("instance", "a record that is named elsewhere is missing")
        copy = decode_copies(body)[-1]
        what = self._contribution(study.study, located, copy)
        if visible:
            study.add(what, self._series(study, located))
        else:
            study.remove(what, self._series(study, located))
