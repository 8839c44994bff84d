"""How far a pack that is being written is on the medium, told to other processes.

Owns the `.durable` file beside an open pack: eight bytes, little endian, mapped by both sides.

Invariants:
- The number never exceeds what an fdatasync has covered, and only grows.
- After a crash it is a hint, not the truth: recovery reads the pack itself.
"""

import mmap
import os
import struct

from appliance.foundation.files import FileSystem

DURABLE_BYTES = 8


def durable_path(pack_path: str) -> str:
    """Return the path of the durable length that belongs to an open pack `<pack id>.tar`."""
    return pack_path.removesuffix(".tar") + ".durable"


class DurableLength:
    """The writer's side: owned by the process that owns the pack."""

    def __init__(self, files: FileSystem, path: str) -> None:
        fd = files.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o660)
        try:
            # Written, not just sized: a store to a hole of a full disk would be a SIGBUS.
            files.pwritev(fd, [bytes(DURABLE_BYTES)], 0)
            self._map = mmap.mmap(fd, DURABLE_BYTES)
        finally:
            files.close(fd)
        self._cell = memoryview(self._map).cast("Q")

    def publish(self, length: int) -> None:
        """Tell every reader that the pack is durable up to `length` bytes."""
        self._cell[0] = length

    def close(self) -> None:
        """Unmap; the number stays readable for as long as the file is there."""
        self._cell.release()
        self._map.close()


def read_durable_length(path: str) -> int:
    """Return the durable length in bytes; FileNotFoundError when the pack is no longer open."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        raw = os.pread(fd, DURABLE_BYTES, 0)
    finally:
        os.close(fd)
    # Between creation and the first write the file is empty: nothing is durable yet.
    return int(struct.unpack("<Q", raw)[0]) if len(raw) == DURABLE_BYTES else 0
