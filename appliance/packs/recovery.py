"""Bringing a pack whose writer died to a state that can be trusted, without losing a member.

Owns the repair of packs. The caller holds the lock of the pack's dead owner, and closes the pack
afterwards; a recovered pack is never appended to.

Invariants:
- What is judged is what the medium has, not what the page cache says: after a failed flush the
  kernel calls pages clean that never reached it (D10).
- A member is kept exactly when its check and its dataset's sha256 hold and it names this pack.
- Bytes that are no member are never destroyed: a tail is cut only after its copy in the set-aside
  folder is durable; a bad stretch between members stays where it is.
- Afterwards the pack is a tar again, from end to end: a bad stretch begins with a header that
  makes it a plain file, so that `tar x` and every reader step over it without searching.
- A second run changes nothing, and a run that a crash cut short is finished by the next.
"""

import hashlib
import os
from collections.abc import Callable, Iterator

import msgspec

from appliance.foundation.errors import Damaged, OutOfSpace, UnsupportedFormat
from appliance.foundation.files import FileSystem
from appliance.packs.header import PAX_NAME, damaged_block, decode_head, pack_id_of
from appliance.packs.member import BLOCK_BYTES, HEADERS_NAME, DamagedExtent, Member, round_up

WINDOW_BYTES = 1 << 20
PAGE_BYTES = 4096
EXTENT_MAX_BYTES = 4 << 30


class Recovered(msgspec.Struct, frozen=True):
    """What recovery found: the members that are whole, in their order, and what is not.

    `lost` are members whose headers are whole and whose dataset is not: they may never have been
    answered, or may be damaged since. `set_aside` are the paths of copies of bad bytes. Without a
    member the pack is worth nothing: its caller unlinks it, if it is still there.
    """

    members: list[Member]
    lost: list[Member]
    set_aside: list[str]
    size: int


def recover(files: FileSystem, path: str, set_aside_dir: str) -> Recovered:
    """Check every member of a pack, cut what is behind the last one, flush, and tell what is left.

    The first step flushes and empties the cache, so that all of it is read from the medium.

    Raises UnsupportedFormat, with nothing changed, for a pack of another format version;
    OutOfSpace, StorageFailed.
    """
    fd = files.open(path, os.O_RDWR)
    try:
        files.fdatasync(fd)
        files.drop_cached(fd)
        found = _Scan(fd, path).run()
        return _Repair(files, fd, path, set_aside_dir, found).run()
    finally:
        files.close(fd)


class Examined(msgspec.Struct, frozen=True):
    """What the medium gives of a closed or sealed pack now.

    `members` are whole, `headers.gz` left out; of `lost` the headers are whole and the dataset is
    not. `gaps` are stretches [start, end) that are no whole member, those left out that recovery
    has marked as damaged before; `marked` tells whether there are such. `unreadable`: the disk did
    not give all of it.
    """

    members: list[Member]
    lost: list[Member]
    gaps: list[tuple[int, int]]
    marked: bool
    unreadable: bool

    @property
    def is_whole(self) -> bool:
        """Whether the pack is what was written."""
        return not (self.gaps or self.unreadable)


def examine(files: FileSystem, path: str, pace: Callable[[int], None] | None = None) -> Examined:
    """Read a whole pack from the medium and tell what is good; changes nothing.

    A pack of another format version is told as one gap. `pace` is told of each read's length, and
    may wait, or end it by an error. Raises FileNotFoundError, StorageFailed.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        files.drop_cached(fd)
        scan = _Scan(fd, path, pace)
        try:
            found = scan.run()
        except UnsupportedFormat:
            found = _Found([], [], [], 0)
        gaps = list(found.gaps)
        content_end = scan.disk.content_end(found.end, scan.disk.size)
        if content_end > found.end:
            gaps.append((found.end, content_end))
        bad = [gap for gap in gaps if not scan.is_marked(*gap)]
        members = [member for member in found.members if member.name != HEADERS_NAME]
        files.drop_cached(fd)  # who reads everything must not push out what readers need
        return Examined(members, found.lost, bad, len(bad) < len(gaps), scan.disk.failed)
    finally:
        os.close(fd)


class _Found(msgspec.Struct):
    """The members of a pack, the stretches [start, end) between them, and where the rest begins."""

    members: list[Member]
    lost: list[Member]
    gaps: list[tuple[int, int]]
    end: int


class _Disk:
    """Reading that a bad sector does not end: what the disk does not give reads as zeros."""

    def __init__(self, fd: int, pace: Callable[[int], None] | None = None) -> None:
        self._fd = fd
        self._pace = pace
        self.size = os.fstat(fd).st_size
        self.failed = False

    def read(self, offset: int, length: int) -> bytes:
        try:
            return os.pread(self._fd, length, offset)
        except OSError:
            self.failed = True
            return b"".join(self._pages(offset, min(offset + length, self.size)))

    def _pages(self, offset: int, end: int) -> Iterator[bytes]:
        # By the kernel's own pages: a bad one must not hide what lies beside it.
        while offset < end:
            stop = min((offset // PAGE_BYTES + 1) * PAGE_BYTES, end)
            yield self._page(offset, stop - offset)
            offset = stop

    def _page(self, offset: int, length: int) -> bytes:
        try:
            return os.pread(self._fd, length, offset)
        except OSError:
            return bytes(length)

    def windows(self, start: int, end: int) -> Iterator[tuple[int, bytes]]:
        for at in range(start, end, WINDOW_BYTES):
            if self._pace is not None:
                self._pace(min(WINDOW_BYTES, end - at))
            yield at, self.read(at, min(WINDOW_BYTES, end - at))

    def content_end(self, start: int, end: int) -> int:
        """Return where the zeros begin that reach to `end`."""
        last = start
        for at, window in self.windows(start, end):
            stripped = len(window.rstrip(b"\0"))
            if stripped:
                last = at + stripped
        return last


class _Scan:
    """Finds the whole members of a pack; reads only."""

    def __init__(self, fd: int, path: str, pace: Callable[[int], None] | None = None) -> None:
        self.disk = _Disk(fd, pace)
        self._path = path
        self._pack_id = pack_id_of(path)
        self._unsupported: UnsupportedFormat | None = None
        self._lost: dict[int, Member] = {}

    def run(self) -> _Found:
        found = _Found([], [], [], 0)
        while found.end < self.disk.size:
            member = self._member_at(found.end)
            if member is None:
                member = self._next_member(found.end + BLOCK_BYTES)
                if member is None:
                    break
                found.gaps.append((found.end, member.header_offset))
            found.members.append(member)
            found.end = member.member_end
        if not found.members and self._unsupported is not None:
            raise self._unsupported
        found.lost = list(self._lost.values())
        return found

    def is_marked(self, start: int, end: int) -> bool:
        """Tell whether a stretch is nothing but what recovery has marked as damaged."""
        while start < end:
            try:
                found = decode_head(self.disk.read, start, self._path, self._pack_id)
            except (Damaged, UnsupportedFormat):
                return False
            if not isinstance(found, DamagedExtent):
                return False
            start = found.member_end
        return True

    def _next_member(self, start: int) -> Member | None:
        for at, window in self.disk.windows(start, self.disk.size):
            index = window.find(PAX_NAME)
            while index >= 0:
                if index % BLOCK_BYTES == 0:
                    member = self._member_at(at + index)
                    if member is not None:
                        return member
                index = window.find(PAX_NAME, index + 1)
        return None

    def _member_at(self, offset: int) -> Member | None:
        try:
            member = decode_head(self.disk.read, offset, self._path, self._pack_id)
        except Damaged:
            return None
        except UnsupportedFormat as cause:
            if offset == 0:
                self._unsupported = cause
            return None
        if not isinstance(member, Member):
            return None
        if member.dataset_end > self.disk.size or not self._whole(member):
            if member.name != HEADERS_NAME:
                self._lost[offset] = member
            return None
        return member

    def _whole(self, member: Member) -> bool:
        digest = hashlib.sha256()
        for _, window in self.disk.windows(member.dataset_offset, member.dataset_end):
            digest.update(window)
        return digest.digest() == member.sha256


class _Repair:
    """Sets aside, fills and cuts, in an order that a crash may end anywhere."""

    def __init__(
        self, files: FileSystem, fd: int, path: str, set_aside_dir: str, found: _Found
    ) -> None:
        self._files = files
        self._fd = fd
        self._disk = _Disk(fd)
        self._path = path
        self._target = os.path.join(set_aside_dir, pack_id_of(path))
        self._found = found
        self._set_aside: list[str] = []

    def run(self) -> Recovered:
        size = self._found.end
        content_end = self._disk.content_end(size, self._disk.size)
        if not self._found.members and content_end > 0:
            # Nothing in it is a member: the file itself goes, which takes no space.
            aside = f"{self._target}.0.tail"
            self._files.make_directory(os.path.dirname(aside))
            self._files.truncate(self._fd, content_end)
            self._files.rename(self._path, aside)
            return Recovered([], self._found.lost, [aside], 0)
        for start, end in self._found.gaps:
            self._fill(start, end)
        if content_end > size:
            size = self._set_tail_aside(size, content_end)
        if size != self._disk.size:
            self._files.truncate(self._fd, size)
        self._files.fdatasync(self._fd)
        members = [member for member in self._found.members if member.name != HEADERS_NAME]
        return Recovered(members, self._found.lost, self._set_aside, size)

    def _fill(self, start: int, end: int) -> None:
        for at in range(start, end, EXTENT_MAX_BYTES):
            stop = min(at + EXTENT_MAX_BYTES, end)
            block = damaged_block(at, stop)
            if self._disk.read(at, BLOCK_BYTES) == block:
                continue
            if self._disk.content_end(at, at + BLOCK_BYTES) > at:
                # All but the block that the new header takes stays in the pack.
                self._copy(at, at + BLOCK_BYTES, f"{self._target}.{at}.block")
            self._files.pwritev(self._fd, [block], at)

    def _set_tail_aside(self, start: int, end: int) -> int:
        """Return where the pack ends: at `start`, or behind the tail when no copy was possible."""
        if self._copy(start, end, f"{self._target}.{start}.tail"):
            return start
        stop = round_up(end)
        self._fill(start, stop)
        return stop

    def _copy(self, start: int, end: int, target: str) -> bool:
        """Copy a range, durable; False when the disk is full, which must not stop recovery."""
        if os.path.exists(target) and os.path.getsize(target) == end - start:
            self._set_aside.append(target)
            return True
        self._files.make_directory(os.path.dirname(target))
        partial = f"{target}.part"
        fd = self._files.open(partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o660)
        try:
            for at, window in self._disk.windows(start, end):
                self._files.pwritev(fd, [window], at - start)
            self._files.fdatasync(fd)
        except OutOfSpace:
            self._files.unlink(partial)
            return False
        finally:
            self._files.close(fd)
        self._files.rename(partial, target)
        self._set_aside.append(target)
        return True
