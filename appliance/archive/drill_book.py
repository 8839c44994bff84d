"""What this node knows of its restore drills: the last one, and what the running one has spent.

Owns `state/drill.json`, written by the uplink's process alone; others read it. The ledger has every
drill; this is what status shows and what says when the next is due.
"""

import os
import threading
from datetime import datetime

import msgspec

from appliance.archive.layout import Layout
from appliance.archive.problem import Problem
from appliance.archive.records import Drilled
from appliance.foundation.clock import Clock, isoformat
from appliance.foundation.files import FileSystem
from appliance.foundation.units import format_duration

LATE_PART = 0.1
FINDINGS_SHOWN_MAX = 3
CONDITION = "drill"
_HINT = "Hold one: azekura drill, and with the recovery identity azekura drill --identity FILE"


class DrillNotes(msgspec.Struct):
    """The file: since when this node could have held a drill, the last one, and today's reading."""

    since_at: str = ""
    last: Drilled | None = None
    day: str = ""
    read_bytes: int = 0


class DrillBook:
    """The notes on drills. Thread-safe; one object in the process that writes."""

    def __init__(self, files: FileSystem, clock: Clock, layout: Layout, every_s: float) -> None:
        self._files = files
        self._clock = clock
        self._layout = layout
        self._every_s = every_s
        self._lock = threading.Lock()
        self._notes = read_notes(layout)

    def begin(self) -> None:
        """Count from now on, if nothing was counted before."""
        with self._lock:
            if not self._notes.since_at:
                self._notes.since_at = isoformat(self._clock.now())
                self._save()

    def note(self, held: Drilled) -> None:
        """Remember a drill; durable on return."""
        with self._lock:
            if self._notes.last is None or held.at >= self._notes.last.at:
                self._notes.last = held
                self._save()

    @property
    def due(self) -> bool:
        """Whether the next drill should be held now."""
        waited_s = self._waited_s()
        return waited_s is not None and waited_s >= self._every_s

    def spend(self, size_bytes: int, daily_bytes: int) -> bool:
        """Count bytes read today, if the day's budget has them; one read at least is always had."""
        today = self._clock.now().date().isoformat()
        with self._lock:
            notes = self._notes
            spent = notes.read_bytes if notes.day == today else 0
            if spent and spent + size_bytes > daily_bytes:
                return False
            notes.day, notes.read_bytes = today, spent + size_bytes
            self._save()
        return True

    def problems(self) -> list[Problem]:
        """Return what is wrong with the last drill, or with its lack."""
        last = self._notes.last
        found = []
        if last is not None and last.findings:
            shown = "; ".join(last.findings[:FINDINGS_SHOWN_MAX])
            sentence = f"the restore drill of {last.at[:10]} found {len(last.findings)}: {shown}"
            found.append(Problem(CONDITION, sentence, _HINT))
        waited_s = self._waited_s()
        if waited_s is not None and waited_s > self._every_s * (1 + LATE_PART):
            since = "was held" if last is not None else "was ever held, and the node has run"
            sentence = f"no restore drill {since} for {format_duration(waited_s)}"
            found.append(Problem(f"{CONDITION}_overdue", sentence, _HINT))
        return found

    def _waited_s(self) -> float | None:
        notes = self._notes
        began = notes.last.at if notes.last is not None else notes.since_at
        if not began:
            return None
        return (self._clock.now() - datetime.fromisoformat(began)).total_seconds()

    def _save(self) -> None:
        self._files.write_atomic(_path(self._layout), msgspec.json.encode(self._notes))


def _path(layout: Layout) -> str:
    return os.path.join(layout.state, "drill.json")


def read_notes(layout: Layout) -> DrillNotes:
    """Return what is known of drills; empty notes where there are none that can be read."""
    try:
        with open(_path(layout), "rb") as file:
            return msgspec.json.decode(file.read(), type=DrillNotes)
    except (FileNotFoundError, msgspec.DecodeError):
        return DrillNotes()


def last_drill(layout: Layout) -> dict[str, object] | None:
    """Return the last drill as status shows it, None when none is known."""
    last = read_notes(layout).last
    if last is None:
        return None
    return {
        "at": last.at,
        "identity": last.identity,
        "studies": last.studies,
        "instances": last.instances,
        "matched": last.matched,
        "findings": len(last.findings),
        "first_instance_s": last.first_instance_s,
        "took_s": last.took_s,
    }
