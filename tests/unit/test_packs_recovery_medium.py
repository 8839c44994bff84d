"""Recovery believes the medium, not the page cache, after a flush that failed."""

import ctypes
import mmap
import os
import subprocess
from pathlib import Path

import pytest

from appliance.foundation.errors import StorageFailed
from appliance.foundation.files import FileSystem
from appliance.packs.recovery import recover
from appliance.packs.writer import PackWriter
from tests.support import pack_samples as samples


class LosingDisk(FileSystem):
    """A disk under a page cache: once `broken`, a flush fails and its pages are called clean.

    The file is what the cache shows; `drop_cached` brings to light what the medium has.
    """

    def __init__(self) -> None:
        self.broken = False
        self._medium: dict[str, bytes] = {}
        self._lost: set[str] = set()

    def fdatasync(self, fd: int) -> None:
        path = os.readlink(f"/proc/self/fd/{fd}")
        if self.broken:
            self.broken = False  # as the kernel does: the next flush has nothing to write
            self._lost.add(path)
            raise StorageFailed("flush", path, "Input/output error")
        super().fdatasync(fd)
        if path not in self._lost:
            self._medium[path] = Path(path).read_bytes()

    def drop_cached(self, fd: int) -> None:
        path = os.readlink(f"/proc/self/fd/{fd}")
        Path(path).write_bytes(self._medium[path])
        self._lost.discard(path)


def test_recovery_does_not_believe_pages_that_never_reached_the_medium(tmp_path: Path) -> None:
    """The daemon ended at a failed flush and was started again: what was lost is not accepted."""
    disk = LosingDisk()
    writer = PackWriter(disk, samples.pack_path(tmp_path), samples.STUDY)
    promised = [samples.append(writer, number) for number in range(2)]
    writer.sync()
    samples.append(writer, 2)
    disk.broken = True
    with pytest.raises(StorageFailed):
        writer.sync()
    recovered = recover(disk, writer.path, str(tmp_path / "aside"))
    assert recovered.members == promised


def test_recovery_ends_at_a_flush_that_fails_before_anything_is_judged(tmp_path: Path) -> None:
    """The kernel tells each opener of a failure that nobody was told of yet: that is the end."""
    path = samples.closed_pack(tmp_path, 2)
    before = Path(path).read_bytes()
    disk = LosingDisk()
    disk.broken = True
    with pytest.raises(StorageFailed):
        recover(disk, path, str(tmp_path / "aside"))
    assert Path(path).read_bytes() == before


def test_what_is_dropped_is_read_from_the_medium(tmp_path: Path) -> None:
    """The kernel really forgets: no page of the file is in memory afterwards."""
    kind = subprocess.run(
        ["stat", "-f", "-c", "%T", str(tmp_path)], capture_output=True, text=True, check=True
    ).stdout.strip()
    if kind in {"tmpfs", "ramfs"}:
        pytest.skip("the file system is memory itself")
    path = tmp_path / "file"
    path.write_bytes(os.urandom(3 * 2**20 + 77))
    files = FileSystem()
    fd = files.open(str(path), os.O_RDWR)
    try:
        assert _resident_pages(fd) > 0
        files.fdatasync(fd)
        files.drop_cached(fd)
        assert _resident_pages(fd) == 0
    finally:
        files.close(fd)


def _resident_pages(fd: int) -> int:
    size = os.fstat(fd).st_size
    pages = -(-size // mmap.PAGESIZE)
    libc = ctypes.CDLL(None, use_errno=True)
    with mmap.mmap(fd, size) as mapped:
        anchor = ctypes.c_char.from_buffer(mapped)
        found = (ctypes.c_ubyte * pages)()
        done = libc.mincore(ctypes.c_void_p(ctypes.addressof(anchor)), ctypes.c_size_t(size), found)
        del anchor
    assert done == 0
    return sum(each & 1 for each in found)
