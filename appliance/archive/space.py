"""Disk space: what packs use, the reserve that receiving never touches, and who may have the rest.

Invariants:
- While a claim succeeds, the reserve for spool, sealing, ledger and index is free, so that a full
  cache can always drain.
- Once less than the short mark is left, each peer that may store has an equal share of it, and of
  what drains meanwhile. Who has used its share is refused, while the others still have theirs; what
  is recalled has none. With more room than that, nobody is counted.
"""

import contextlib
import os
import threading
from collections.abc import Sequence

from appliance.archive.layout import Layout
from appliance.foundation.clock import Clock, SystemClock
from appliance.foundation.errors import OutOfSpace, ShareUsed
from appliance.foundation.files import FileSystem
from appliance.foundation.units import format_size

RESERVE_FRACTION = 0.05
RESERVE_MIN_BYTES = 64 * 2**20
RESERVE_MAX_BYTES = 16 * 2**30
REMEASURE_AFTER_BYTES = 64 * 2**20
PAUSE_MAX_S = 10.0
PAUSE_STEP_S = 0.25
HOPELESS_S = 60.0
SHORT_FRACTION = 0.05
"""Of what packs may use: with less than this left, admission is by shares."""


def reserve_bytes(capacity_bytes: int) -> int:
    """Return what stays free on the disk of a cache of that capacity."""
    part = capacity_bytes * RESERVE_FRACTION
    return int(min(max(part, RESERVE_MIN_BYTES), RESERVE_MAX_BYTES))


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
        self,
        files: FileSystem,
        layout: Layout,
        capacity_bytes: int,
        clock: Clock | None = None,
        peers: Sequence[str] = (),
        short_fraction: float = SHORT_FRACTION,
    ) -> None:
        """`peers`: the AE titles that may store; all others have one share together."""
        self._peers = frozenset(peers)
        self._share_count = max(1, len(self._peers))
        self._short_fraction = short_fraction
        self._short_bytes = 0
        # What each peer claimed since room got short; empty while there is more.
        self._taken: dict[str, int] = {}
        self.capacity_bytes = capacity_bytes
        self.reserve_bytes = reserve_bytes(capacity_bytes)
        self._files = files
        self._layout = layout
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._used_bytes = 0
        self._free_bytes = 0
        self._since_bytes = 0
        # What was left at the last measurement.
        self._room_bytes = 0
        self._hopeless_until_s: dict[str, float] = {}
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
            on_disk = self._free_bytes - self.reserve_bytes
            self._room_bytes = min(self.capacity_bytes - used, on_disk)
            usable = min(self.capacity_bytes, max(0, used + on_disk))
            self._short_bytes = int(usable * self._short_fraction)
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

    def claim(self, incoming_bytes: int, peer: str = "") -> None:
        """Count an instance of a peer in, pausing it while there may soon be room.

        OutOfSpace when it would touch the reserve, ShareUsed when it would touch others' shares.
        """
        if peer not in self._peers:
            peer = ""
        if self._try(incoming_bytes, peer) or self._wait_for_room(incoming_bytes, peer):
            return
        if incoming_bytes <= self._room_bytes - self._since_bytes:
            raise ShareUsed(
                "store",
                "the cache",
                f"{format_size(self._room_bytes - self._since_bytes)} are left for all, "
                f"of which {peer or 'this peer'} has used its share",
                "Pending instances must reach the cloud before there is room; see azekura status",
            )
        raise OutOfSpace(
            "store",
            "the cache",
            f"{format_size(self.used_bytes)} of {format_size(self.capacity_bytes)} used, "
            f"{format_size(self._free_bytes)} free",
            "Pending instances must reach the cloud before there is room; see azekura status",
        )

    def try_claim(self, incoming_bytes: int) -> bool:
        """Count what is recalled in if there is ample room for it; never wait."""
        return self._try(incoming_bytes, None)

    def _try(self, incoming_bytes: int, peer: str | None) -> bool:
        with self._lock:
            since = self._since_bytes + incoming_bytes
            left = self._room_bytes - since
            if left >= self._short_bytes:
                if self._taken:
                    self._taken.clear()
                fits = True
            else:
                fits = left >= 0 and peer is not None and self._fits_share(incoming_bytes, peer)
            if fits:
                self._since_bytes = since
        if fits and since >= REMEASURE_AFTER_BYTES:
            self.measure()
        return fits

    def _fits_share(self, incoming_bytes: int, peer: str) -> bool:
        """Count a claim against the peer's share of what is left and was taken since."""
        left = self._room_bytes - self._since_bytes
        taken = self._taken.get(peer, 0) + incoming_bytes
        if taken * self._share_count > left + sum(self._taken.values()):
            return False
        self._taken[peer] = taken
        return True

    def _wait_for_room(self, incoming_bytes: int, peer: str) -> bool:
        """Pause the sender while eviction may make room; at once say no where it did not lately."""
        end_s = self._clock.monotonic_s() + PAUSE_MAX_S
        while True:
            # Many senders wait at once: one look at the disk serves all.
            if self._clock.monotonic_s() - self._measured_s >= PAUSE_STEP_S:
                self.measure()
            if self._try(incoming_bytes, peer):
                self._hopeless_until_s.pop(peer, None)
                return True
            now_s = self._clock.monotonic_s()
            if now_s < self._hopeless_until_s.get(peer, 0.0):
                return False
            if now_s >= end_s:
                self._hopeless_until_s[peer] = now_s + HOPELESS_S
                return False
            self._clock.wait(self._never, PAUSE_STEP_S)
