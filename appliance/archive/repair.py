"""Repairing packs on this disk: verified ones from the bucket, pending ones by salvage.

Part of the uplink. Owns `state/repair.json`. Must not decide that a pack is damaged on somebody's
word: it reads the pack again from the medium.

Invariants:
- Whatever was asked is durable before `ask` returns, and done again after a crash, which changes
  nothing that was already done.
- A verified pack that is damaged is set aside before another takes its place; while it is away the
  index says so, and readers are served from the bucket.
- A pending pack is taken only when no thread of the uplink is at work on it.
"""

import os
import threading
from collections.abc import Callable
from functools import partial
from typing import Protocol

import msgspec

from appliance.archive.damage_report import DAMAGED, GONE, UNREADABLE
from appliance.archive.damaged import DamagedBook
from appliance.archive.disk_trouble import DiskTrouble
from appliance.archive.layout import Layout, salvaged_pack_id
from appliance.archive.problem import Problem
from appliance.archive.quarantine import is_replaced, mark_replaced, remove_old, set_pack_aside
from appliance.archive.recall import Recaller
from appliance.archive.salvage import Salvaged, Salvager
from appliance.foundation import log
from appliance.foundation.clock import Clock, to_microseconds
from appliance.foundation.errors import (
    AzekuraError,
    CloudError,
    DecryptionFailed,
    IndexDamaged,
    ObjectArchived,
    ObjectMissing,
    OutOfSpace,
    StorageFailed,
)
from appliance.foundation.files import FileSystem
from appliance.index.index import Index
from appliance.index.records import PackRow
from appliance.index.writing import WriteTransaction
from appliance.packs.recovery import examine

FORMAT = 1
RETRY_S = 60.0
HOUSEKEEPING_S = 3600.0
REVIEW_S = 5.0
SETTLED_S = 600.0

_log = log.get("repair")


class _Case(msgspec.Struct):
    """A pack somebody found damaged. `by`: who: read, scrub, verify."""

    why: str
    by: str
    at_us: int


class _State(msgspec.Struct):
    """`asked`: to be looked at; `refilling`: away from this disk until the bucket gives it.

    `lost`: pending packs that were salvaged, of which the index may list what others have; each
    with how many of its members went into a new pack.
    """

    asked: dict[str, _Case] = {}
    refilling: dict[str, _Case] = {}
    lost: dict[str, int] = {}
    found: int = 0
    refilled: int = 0
    salvaged: int = 0
    format: int = FORMAT


class PendingPacks(Protocol):
    """Who else may be at work on a pending pack."""

    def borrow(self, pack_id: str) -> bool:
        """Keep the pack from being uploaded; False when it is being so, or waits to be sealed."""

    def give_back(self, pack_id: str) -> None:
        """Let it be uploaded again."""


class Repairer:
    """Two threads: one calls `run_once`, one `refill_once`; any thread may ask.

    `_lock` guards `_state`, which is saved with every change.
    """

    def __init__(
        self,
        files: FileSystem,
        clock: Clock,
        layout: Layout,
        index: Index,
        recaller: Recaller,
        salvager: Salvager,
        damaged: DamagedBook,
        disk: DiskTrouble,
        suspect: Callable[[str], None] | None = None,
    ) -> None:
        """Take over; `suspect` is told of packs whose copy in the bucket can't be used either."""
        self._suspect = suspect
        self._files = files
        self._clock = clock
        self._layout = layout
        self._index = index
        self._recaller = recaller
        self._salvager = salvager
        self._damaged = damaged
        self._disk = disk
        self._lock = threading.Lock()
        self._path = os.path.join(layout.state, "repair.json")
        self._state = self._load()
        self._hindrance: dict[str, AzekuraError] = {}
        self._put_aside: dict[str, float] = {}
        self._again_s: dict[str, float] = {}
        self._next_refill_s = 0.0
        self._next_review_s = 0.0
        self._next_housekeeping_s = 0.0

    def _load(self) -> _State:
        try:
            with open(self._path, "rb") as file:
                return msgspec.json.decode(file.read(), type=_State)
        except FileNotFoundError:
            return _State()
        except msgspec.DecodeError:
            _log.error("repair_state_unreadable")  # findings come again
            return _State()

    def _save(self) -> None:
        self._files.write_atomic(self._path, msgspec.json.encode(self._state))

    def ask(self, pack_id: str, why: str, by: str) -> None:
        """Have a pack looked at, and repaired if it is damaged; durable on return."""
        with self._lock:
            if pack_id not in self._state.asked:
                at_us = to_microseconds(self._clock.now())
                self._state.asked[pack_id] = _Case(why, by, at_us)
                self._save()

    # --- looking

    def run_once(self, pending: PendingPacks) -> int:
        """Look at every pack that was asked for and is free; return how many were dealt with."""
        with self._lock:
            asked = dict(self._state.asked)
        count = 0
        for pack_id, case in asked.items():
            now_s = self._clock.monotonic_s()
            if now_s < self._again_s.get(pack_id, now_s):
                continue
            try:
                count += self._look(pack_id, case, pending)
            except (StorageFailed, IndexDamaged):
                raise
            except AzekuraError as error:
                self._hindrance[pack_id] = error
                self._again_s[pack_id] = now_s + RETRY_S
        self._review()
        return count

    def _look(self, pack_id: str, case: _Case, pending: PendingPacks) -> bool:
        with self._index.read() as view:
            row = view.pack(pack_id)
        if row is None or row.erased_at_us:
            self._done(pack_id)
        elif row.cloud is not None:
            self._look_at_verified(pack_id, row, case)
        elif self._is_open(pack_id) or not pending.borrow(pack_id):
            return False
        else:
            try:
                self.salvage(pack_id)
            finally:
                pending.give_back(pack_id)
            self._done(pack_id)
        return True

    def _is_open(self, pack_id: str) -> bool:
        """Tell whether the pack is still its writer's, or waits to be sealed."""
        return any(
            os.path.exists(path) and path != self._layout.sealed_path(pack_id)
            for path in self._layout.candidates(pack_id)
        )

    def salvage(self, pack_id: str) -> Salvaged:
        """Salvage a pending pack that the caller alone has in work; errors as for Salvager."""
        found = self._salvager.salvage(pack_id)
        if found.unreadable:
            self._disk.note(pack_id)
        if not found.sound:
            self._put_aside[pack_id] = self._clock.monotonic_s()
            with self._lock:
                self._state.salvaged += 1
                self._state.lost[pack_id] = found.kept
                self._save()
        return found

    def _look_at_verified(self, pack_id: str, row: PackRow, case: _Case) -> None:
        path = self._layout.sealed_path(pack_id)
        why = case.why
        try:
            found = examine(self._files, path)
        except FileNotFoundError:
            if not row.local and case.why != GONE and is_replaced(self._layout, pack_id):
                self._done(pack_id)  # evicted meanwhile
                return
            why = GONE
        else:
            if found.unreadable or case.why == UNREADABLE:
                self._disk.note(pack_id)
            if found.is_whole:
                self._is_whole(pack_id)
                return
            why = UNREADABLE if found.unreadable else DAMAGED
        with self._index.generations.gate().holding(shared=True):
            self._index.transact(lambda txn: txn.set_local(pack_id, False))
            if why != GONE:
                set_pack_aside(self._files, self._clock, self._layout, path, why=why, pending=False)
        with self._lock:
            self._state.asked.pop(pack_id, None)
            self._state.refilling[pack_id] = _Case(why, case.by, case.at_us)
            self._state.found += 1
            self._save()
        _log.error("pack_damaged", pack=pack_id, why=why, found_by=case.by)

    def _is_whole(self, pack_id: str) -> None:
        """Count a pack that somebody who read it has brought back already, or that was sound."""
        replaced = mark_replaced(self._files, self._clock, self._layout, pack_id)
        with self._lock:
            self._state.found += replaced
            self._state.refilled += replaced
            self._state.asked.pop(pack_id, None)
            self._save()

    def _done(self, pack_id: str) -> None:
        self._hindrance.pop(pack_id, None)
        self._again_s.pop(pack_id, None)
        with self._lock:
            self._state.asked.pop(pack_id, None)
            self._save()

    # --- refilling

    def refill_once(self) -> int:
        """Bring back what was set aside; return how many packs are here again."""
        now_s = self._clock.monotonic_s()
        with self._lock:
            refilling = list(self._state.refilling)
        if not refilling or now_s < self._next_refill_s:
            return 0
        count = 0
        for pack_id in refilling:
            try:
                self._refill(pack_id)
                count += 1
            except (StorageFailed, IndexDamaged):
                raise
            except AzekuraError as error:
                self._hindrance[pack_id] = error
                if self._suspect is not None and isinstance(error, _UNUSABLE):
                    self._suspect(pack_id)
                if error.retry and not isinstance(error, OutOfSpace):
                    break  # the line: the others would fare no better
        self._next_refill_s = self._clock.monotonic_s() + RETRY_S
        return count

    def _refill(self, pack_id: str) -> None:
        with self._index.read() as view:
            row = view.pack(pack_id)
        if row is not None and row.cloud is not None and not row.erased_at_us:
            self._recaller.recall(pack_id, row.cloud)
            mark_replaced(self._files, self._clock, self._layout, pack_id)
        self._hindrance.pop(pack_id, None)
        with self._lock:
            self._state.refilling.pop(pack_id, None)
            self._state.refilled += 1
            self._save()
        _log.info("pack_refilled", pack=pack_id)

    # --- keeping house

    def _review(self) -> None:
        now_s = self._clock.monotonic_s()
        if now_s < self._next_review_s:
            return
        self._next_review_s = now_s + REVIEW_S
        again = self._damaged.review(self._index)
        if again:
            with self._lock:
                self._state.lost |= dict.fromkeys(again, 0)
                self._save()
        self._keep_lost(now_s)
        self._forget_doubled()
        if now_s >= self._next_housekeeping_s:
            self._next_housekeeping_s = now_s + HOUSEKEEPING_S
            remove_old(self._files, self._clock, self._layout)

    def _keep_lost(self, now_s: float) -> None:
        """Tell the index again of packs that were set aside: the indexer may have been reading."""
        self._put_aside = {
            pack_id: at_s for pack_id, at_s in self._put_aside.items() if now_s - at_s < SETTLED_S
        }
        with self._index.read() as view:
            wrong = [
                pack_id
                for pack_id in self._put_aside
                if (row := view.pack(pack_id)) is not None and row.local and row.cloud is None
            ]
        for pack_id in wrong:
            if not any(os.path.exists(path) for path in self._layout.candidates(pack_id)):
                self._index.transact(partial(_lose, pack_id))

    def _forget_doubled(self) -> None:
        """Let the index forget what a lost pack has in common with others, once it knows those."""
        with self._lock:
            lost = dict(self._state.lost)
        for pack_id, kept in lost.items():
            with self._index.read() as view:
                row, new = view.pack(pack_id), view.pack(salvaged_pack_id(pack_id))
            if kept and (new is None or new.instance_count < kept):
                continue  # not indexed yet
            if row is not None and row.cloud is None:
                if row.local:
                    continue
                self._index.transact(partial(_forget_doubled, pack_id))
            with self._lock:
                self._state.lost.pop(pack_id, None)
                self._save()

    # --- telling

    def problems(self) -> list[Problem]:
        """Return what is being repaired, what has to be sent again, and a disk that fails."""
        with self._lock:
            waiting = sorted({*self._state.refilling, *self._state.asked})
        found = [*self._damaged.problems(), *self._disk.problems()]
        if waiting:
            found.append(self._repair_problem(waiting))
        return found

    def _repair_problem(self, waiting: list[str]) -> Problem:
        errors = [self._hindrance[each] for each in waiting if each in self._hindrance]
        worst = next((each for each in errors if not each.retry), None)
        sentence = f"{len(waiting)} packs on this disk were found damaged and are being repaired"
        if worst is not None:
            kind = "in the bucket too" if isinstance(worst, _CLOUD) else "and can't be repaired"
            sentence += f"; one is damaged {kind}: {worst.cause}"
        elif errors:
            sentence += f"; waiting: {errors[0].cause}"
        return Problem(
            "repair", sentence,
            "What is verified is served from the bucket meanwhile; see docs/operations/repair.md",
        )  # fmt: skip

    def document(self) -> dict[str, int]:
        """Return the counts that status shows."""
        with self._lock:
            state = self._state
            return {
                "asked": len(state.asked),
                "refilling": len(state.refilling),
                "found": state.found,
                "refilled": state.refilled,
                "salvaged": state.salvaged,
                "damaged_instances": len(self._damaged),
            }


def _forget_doubled(pack_id: str, txn: WriteTransaction) -> None:
    txn.forget_doubled(pack_id)


def _lose(pack_id: str, txn: WriteTransaction) -> None:
    txn.set_local(pack_id, False)


_CLOUD = (CloudError, DecryptionFailed)
_UNUSABLE = (DecryptionFailed, ObjectMissing, ObjectArchived)
