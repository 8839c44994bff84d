"""Disk space: what packs use, and the reserve that receiving never touches.

Invariant: while `room_for` says yes, the reserve for spool, sealing, ledger and index is free, so
that a full cache can always drain.
"""

import contextlib
import os
import threading

from appliance.archive.layout import Layout
from appliance.foundation.clock import Clock, SystemClock
from appliance.foundation.errors import OutOfSpace
from appliance.foundation.files import FileSystem
from appliance.foundation.units import format_size

RESERVE_FRACTION = 0.05
RESERVE_MIN_BYTES = 64 * 2**20
RESERVE_MAX_BYTES = 16 * 2**30
REMEASURE_AFTER_BYTES = 64 * 2**20
PAUSE_MAX_S = 10.0
PAUSE_STEP_S = 0.25
HOPELESS_S = 60.0


def directory_bytes(path: str) -> int:
    """Return the bytes that the files directly in a directory hold."""
    total = 0
    with contextlib.suppress(FileNotFoundError), os.scandir(path) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                if entry.is_file():
                    total += entry.stat().st_size
    return total


class Space:
    """Usage of one data directory, measured now and then and counted in between.

    Thread-safe; every process that writes packs has its own. `_lock` guards the counts.
    """

    def __init__(
        self, files: FileSystem, layout: Layout, capacity_bytes: int, clock: Clock | None = None
    ) -> None:
        self.capacity_bytes = capacity_bytes
        self.reserve_bytes = int(
            min(max(capacity_bytes * RESERVE_FRACTION, RESERVE_MIN_BYTES), RESERVE_MAX_BYTES)
        )
        self._files = files
        self._layout = layout
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._used_bytes = 0
        self._free_bytes = 0
        self._since_bytes = 0
        self._hopeless_until_s = 0.0
        self._measured_s = 0.0
        self._never = threading.Event()
        self.measure()

    def measure(self) -> int:
        """Look at the disk; return the bytes that packs use."""
        used = sum(
            directory_bytes(path)
            for path in (self._layout.closed, self._layout.sealed, self._layout.recalled)
        )
        for writer in self._layout.writers():
            used += directory_bytes(self._layout.writer_directory(writer))
        with self._lock:
            self._used_bytes = used
            self._free_bytes = self._files.free_bytes(self._layout.data_dir)
            self._since_bytes = 0
            self._measured_s = self._clock.monotonic_s()
        return used

    @property
    def used_bytes(self) -> int:
        """Bytes in packs at the last measurement, and what came since."""
        return self._used_bytes + self._since_bytes

    @property
    def usable_bytes(self) -> int:
        """What packs may use in all: the capacity, or less where the disk holds less."""
        with self._lock:
            on_disk = self._used_bytes + self._free_bytes - self.reserve_bytes
        return min(self.capacity_bytes, max(0, on_disk))

    def claim(self, incoming_bytes: int) -> None:
        """Count an instance in, pausing the sender while there may soon be room.

        OutOfSpace when it would touch the reserve.
        """
        if not self.try_claim(incoming_bytes) and not self._wait_for_room(incoming_bytes):
            raise OutOfSpace(
                "store",
                "the cache",
                f"{format_size(self.used_bytes)} of {format_size(self.capacity_bytes)} used, "
                f"{format_size(self._free_bytes)} free",
                "Pending instances must reach the cloud before there is room; see azekura status",
            )

    def try_claim(self, incoming_bytes: int) -> bool:
        """Count bytes in if there is room for them; never wait."""
        with self._lock:
            since = self._since_bytes + incoming_bytes
            fits = self._fits(since)
            if fits:
                self._since_bytes = since
        if fits and since >= REMEASURE_AFTER_BYTES:
            self.measure()
        return fits

    def _wait_for_room(self, incoming_bytes: int) -> bool:
        """Pause the sender while eviction may make room; at once say no where it did not lately."""
        end_s = self._clock.monotonic_s() + PAUSE_MAX_S
        while True:
            # Many senders wait at once: one look at the disk serves all.
            if self._clock.monotonic_s() - self._measured_s >= PAUSE_STEP_S:
                self.measure()
            if self.try_claim(incoming_bytes):
                self._hopeless_until_s = 0.0
                return True
            now_s = self._clock.monotonic_s()
            if now_s < self._hopeless_until_s:
                return False
            if now_s >= end_s:
                self._hopeless_until_s = now_s + HOPELESS_S
                return False
            self._clock.wait(self._never, PAUSE_STEP_S)

    def _fits(self, since_bytes: int) -> bool:
        return (
            self._used_bytes + since_bytes <= self.capacity_bytes
            and self._free_bytes - since_bytes >= self.reserve_bytes
        )
