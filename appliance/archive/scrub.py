"""Rereading every pack on this disk within a period, before anybody needs it.

Owns `state/scrub.json`. Must not repair: what it finds is told to whoever does.

Invariants:
- A cycle goes once through the sealed packs by id, spread over most of the period; each pack is
  reread from the medium about a period after it was last. What comes behind the cursor was checked
  as it came: when it was received and uploaded, or recalled.
- Progress is durable, to SAVE_S: a restart goes on about where it was.
- It reads at most READ_BYTES_PER_S, and not at all while the node is busy, unless it has fallen
  behind so far that the period could not be kept.
"""

import bisect
import os
import threading

import msgspec

from appliance.archive.damage_report import DAMAGED, UNREADABLE, Report
from appliance.archive.indexer import mark_gone
from appliance.archive.layout import Layout, pack_created_at, packs_in
from appliance.archive.progress import Progress, progress_path
from appliance.foundation import log
from appliance.foundation.clock import Clock, from_microseconds, isoformat, to_microseconds
from appliance.foundation.errors import Busy
from appliance.foundation.files import FileSystem
from appliance.index.index import Index
from appliance.packs.recovery import examine

FORMAT = 1
READ_BYTES_PER_S = 16 * 2**20
SPREAD_OVER = 0.8
HURRY_BEHIND = 0.1
QUIET_S = 10.0
LOST_LOOK_S = 6 * 3600.0
LIST_S = 600.0
SAVE_S = 30.0
PACKS_A_TURN_MAX = 1000
MARKS_MAX = 200
LAST = "~"  # behind every pack id

_log = log.get("scrub")


class _State(msgspec.Struct):
    """Where a cycle stands. Times in microseconds since 1970 UTC, 0 for never.

    `cursor`: the last pack looked at. `marks`, `previous_marks`: (time, cursor) now and then, of
    this cycle and of the one before: when packs were last checked.
    """

    began_at_us: int = 0
    cursor: str = ""
    ended_at_us: int = 0
    checked: int = 0
    findings: int = 0
    findings_in_all: int = 0
    marks: list[tuple[int, str]] = []
    previous_marks: list[tuple[int, str]] = []
    format: int = FORMAT


class Scrub:
    """One thread calls `run_once` again and again; `document` is for any."""

    def __init__(
        self,
        files: FileSystem,
        clock: Clock,
        layout: Layout,
        index: Index,
        period_s: float,
        report: Report,
        stop: threading.Event,
    ) -> None:
        """`report` is told of packs that are not as they should be; `stop` ends a long read."""
        self._files = files
        self._clock = clock
        self._layout = layout
        self._index = index
        self._period_us = int(period_s * 1e6)
        self._report = report
        self._stop = stop
        self._path = os.path.join(layout.state, "scrub.json")
        self._state = self._load()
        self._busy = Business(clock, layout)
        self._packs: list[str] = []
        self._next_list_s = clock.monotonic_s()
        self._next_save_s = clock.monotonic_s()
        self._document: dict[str, object] = {}
        self._next_lost_look_s = clock.monotonic_s()

    def _load(self) -> _State:
        try:
            with open(self._path, "rb") as file:
                return msgspec.json.decode(file.read(), type=_State)
        except FileNotFoundError:
            return _State()
        except msgspec.DecodeError:
            _log.error("scrub_state_unreadable")  # the cycle begins anew
            return _State()

    def _save(self) -> None:
        self._files.write_atomic(self._path, msgspec.json.encode(self._state))

    def run_once(self) -> int:
        """Check the packs whose turn has come; return how many were."""
        self._look_for_lost()
        self._list_anew()
        count = 0
        if self._begin_if_due(to_microseconds(self._clock.now())):
            while count < PACKS_A_TURN_MAX and not self._stop.is_set() and self._check_next():
                count += 1
        if count:
            self._save()
        self._document = self._describe()
        return count

    def _list_anew(self) -> None:
        """List the packs now and then: they may be a million."""
        now_s = self._clock.monotonic_s()
        if now_s >= self._next_list_s:
            self._next_list_s = now_s + LIST_S
            self._packs = packs_in(self._layout.sealed)

    def _check_next(self) -> bool:
        """Check the next pack; False when it is not its turn, or there is none."""
        now_us = to_microseconds(self._clock.now())
        at = bisect.bisect_right(self._packs, self._state.cursor)
        if at >= len(self._packs):
            self._end(now_us)
            return False
        behind = self._planned(now_us) - at / len(self._packs)
        if behind < 0 or (behind < HURRY_BEHIND and self._busy.is_busy()):
            return False
        return self._check(self._packs[at])

    def _begin_if_due(self, now_us: int) -> bool:
        """Tell whether a cycle is under way, after having begun one whose time has come."""
        state = self._state
        if state.cursor != LAST and state.began_at_us and now_us >= state.began_at_us:
            return True
        if state.began_at_us and 0 <= now_us - state.began_at_us < self._period_us:
            return False
        self._next_list_s = self._clock.monotonic_s()
        self._list_anew()
        self._state = _State(
            began_at_us=now_us,
            findings_in_all=state.findings_in_all,
            previous_marks=state.marks,
        )
        self._save()
        return True

    def _planned(self, now_us: int) -> float:
        """Return the part of the packs that should have been checked by now."""
        passed = (now_us - self._state.began_at_us) / (SPREAD_OVER * self._period_us)
        return min(1.0, passed)

    def _check(self, pack_id: str) -> bool:
        """Reread a pack; False when the node stops."""
        path = self._layout.sealed_path(pack_id)
        why = ""
        try:
            found = examine(self._files, path, self._pace)
        except FileNotFoundError:
            pass  # evicted since it was listed
        except Busy:
            return False  # it is looked at again
        else:
            if not found.is_whole and os.path.exists(path):
                why = UNREADABLE if found.unreadable else DAMAGED
        if why:
            _log.error("scrub_found", pack=pack_id, why=why)
            self._report(pack_id, why)
        self._advance(pack_id, bool(why))
        return True

    def _advance(self, pack_id: str, found: bool) -> None:
        state = self._state
        now_us = to_microseconds(self._clock.now())
        state.cursor = pack_id
        state.checked += 1
        state.findings += found
        state.findings_in_all += found
        if not state.marks or now_us - state.marks[-1][0] >= self._period_us / MARKS_MAX:
            state.marks.append((now_us, pack_id))
        now_s = self._clock.monotonic_s()
        if found or now_s >= self._next_save_s:
            self._next_save_s = now_s + SAVE_S
            self._save()

    def _end(self, now_us: int) -> None:
        state = self._state
        state.cursor, state.ended_at_us = LAST, now_us
        state.marks.append((now_us, LAST))
        self._save()
        _log.info("scrub_cycle_ended", packs=state.checked, findings=state.findings)

    def _pace(self, size_bytes: int) -> None:
        """Wait as long as that many bytes may take; Busy when the node stops."""
        if self._clock.wait(self._stop, size_bytes / READ_BYTES_PER_S):
            raise Busy("scrub", cause="the node stops")

    def _look_for_lost(self) -> None:
        """Look now and then whether packs were removed behind our back."""
        now_s = self._clock.monotonic_s()
        if now_s >= self._next_lost_look_s:
            self._next_lost_look_s = now_s + LOST_LOOK_S
            mark_gone(self._layout, self._index, self._report)

    def document(self) -> dict[str, object]:
        """Return the coverage as status shows it, as of the last turn."""
        return self._document

    def _describe(self) -> dict[str, object]:
        state, packs = self._state, self._packs
        at = bisect.bisect_right(packs, state.cursor)
        oldest_us = self._last_checked_us(packs[at]) if at < len(packs) else state.began_at_us
        return {
            "period_s": self._period_us / 1e6,
            "cycle_began_at": _time(state.began_at_us),
            "cycle_ended_at": _time(state.ended_at_us),
            "packs": len(packs),
            "checked_share": round(at / len(packs), 4) if packs else 1.0,
            "oldest_unchecked_at": _time(oldest_us) if packs else None,
            "findings": state.findings,
            "findings_in_all": state.findings_in_all,
        }

    def _last_checked_us(self, pack_id: str) -> int:
        """Return about when a pack that this cycle has not reached was last checked, or made."""
        passed = [at_us for at_us, cursor in self._state.previous_marks if cursor <= pack_id]
        return max([*passed, to_microseconds(pack_created_at(pack_id))])


class Business:
    """Whether the node has other things to do: instances came within the last seconds."""

    def __init__(self, clock: Clock, layout: Layout) -> None:
        self._clock = clock
        self._layout = layout
        self._counters: dict[str, Progress] = {}
        self._answered = -1
        self._since_s = clock.monotonic_s() - QUIET_S

    def is_busy(self) -> bool:
        """Tell whether something was received lately, or the processors are all taken."""
        answered = sum(each.answered for each in self._find().values())
        now_s = self._clock.monotonic_s()
        if answered != self._answered:
            if self._answered >= 0:
                self._since_s = now_s
            self._answered = answered
        return now_s - self._since_s < QUIET_S or os.getloadavg()[0] > (os.cpu_count() or 1)

    def _find(self) -> dict[str, Progress]:
        for writer in self._layout.writers():
            path = progress_path(self._layout.writer_directory(writer))
            if writer not in self._counters and os.path.exists(path):
                self._counters[writer] = Progress(path)
        return self._counters


def _time(at_us: int) -> str | None:
    return isoformat(from_microseconds(at_us)) if at_us else None
