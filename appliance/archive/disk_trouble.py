"""A disk that fails to read: how many packs it did not give lately, and which disk it is.

Owns `state/disk.json`. Invariant: a pack counts once an hour however often it is read.
"""

import os
import threading

import msgspec

from appliance.archive.layout import Layout
from appliance.archive.problem import Problem
from appliance.foundation import log
from appliance.foundation.clock import Clock
from appliance.foundation.files import FileSystem

WITHIN_S = 3600.0
PACKS_LEAST = 3
STANDS_S = 86400.0

_log = log.get("disk")


class _State(msgspec.Struct):
    """`unreadable`: pack id → when (seconds since 1970); `suspected_at_s`: 0 for never."""

    unreadable: dict[str, float] = {}
    suspected_at_s: float = 0.0
    count: int = 0


class DiskTrouble:
    """Counts packs that the disk did not give. Any thread; `_lock` guards the state."""

    def __init__(self, files: FileSystem, clock: Clock, layout: Layout) -> None:
        self._files = files
        self._clock = clock
        self._data_dir = layout.data_dir
        self._path = os.path.join(layout.state, "disk.json")
        self._lock = threading.Lock()
        try:
            with open(self._path, "rb") as file:
                self._state = msgspec.json.decode(file.read(), type=_State)
        except (FileNotFoundError, msgspec.DecodeError):
            self._state = _State()

    def note(self, pack_id: str) -> None:
        """Count a pack of which the disk did not give all."""
        now_s = self._clock.now().timestamp()
        with self._lock:
            recent = {
                each: at_s
                for each, at_s in self._state.unreadable.items()
                if 0 <= now_s - at_s < WITHIN_S
            }
            known = pack_id in recent
            recent[pack_id] = now_s
            suspected = len(recent) >= PACKS_LEAST
            self._state = _State(
                recent,
                now_s if suspected else self._state.suspected_at_s,
                self._state.count + (not known),
            )
            self._files.write_atomic(self._path, msgspec.json.encode(self._state))
        _log.error("disk_does_not_read", pack=pack_id, within_an_hour=len(recent))

    def problems(self) -> list[Problem]:
        """Return the disk as a problem for a day after it last failed so often."""
        age_s = self._clock.now().timestamp() - self._state.suspected_at_s
        if not 0 <= age_s < STANDS_S:
            return []
        return [
            Problem(
                "disk",
                f"{disk_of(self._data_dir)} failed to read {PACKS_LEAST} packs or more within "
                f"an hour ({self._state.count} in all)",
                "Look at its SMART values and its cabling, and replace it. What is verified is "
                "served from the bucket; what is pending goes there as long as it can be read",
            )
        ]


def disk_of(path: str) -> str:
    """Return the device and the mount point that a path lies on, as people know them."""
    number = os.stat(path).st_dev
    wanted = f"{os.major(number)}:{os.minor(number)}"
    try:
        with open("/proc/self/mountinfo", encoding="utf-8") as file:
            for line in file:
                fields, _, rest = line.partition(" - ")
                parts = fields.split()
                if parts[2] == wanted:
                    return f"the disk {rest.split()[1]} at {parts[4]}"
    except (OSError, IndexError):
        pass
    return f"the disk of {path}"
