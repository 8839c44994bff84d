"""Bringing a pack back from the bucket: wanted instances first, the rest behind them.

Owns `packs/recalled/`. A recalled pack becomes a sealed pack again only when every member's sha256
was checked.

Invariants:
- A byte leaves here only after its age chunk was authenticated; whoever serves an instance checks
  its sha256 on top.
- At most one process hydrates a pack, under the flock of its part file; others read past it.
- A failed request frees its chunks: a later reader tries again.
"""

import contextlib
import mmap
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence

from appliance.archive.layout import Layout
from appliance.archive.space import Space
from appliance.foundation import log
from appliance.foundation.errors import AzekuraError, Busy, Damaged, OutOfSpace
from appliance.foundation.files import FileLock, FileSystem
from appliance.index.facts import CloudFacts
from appliance.index.index import Index
from appliance.packs.reader import PackReader
from appliance.remote.store import Lane, ObjectStore
from appliance.seal.age import CHUNK_BYTES, AgeRange

FETCH_CHUNKS_MAX = 64
FETCH_THREADS = 6
FETCH_ATTEMPTS_MAX = 3
READ_TIMEOUT_S = 60.0

_NONE, _FETCHING, _DONE = 0, 1, 2

_log = log.get("recall")


class PackFetch:
    """One pack being recalled, shared by all that read it in this process.

    `_condition` guards everything. `_chunks` has one state for each 64 KiB chunk of the plain tar;
    `_wanted` holds half-open chunk ranges, in the order in which readers need them.
    """

    def __init__(
        self,
        store: ObjectStore,
        files: FileSystem,
        pack_id: str,
        cloud: CloudFacts,
        directory: str,
        part_path: str | None,
        on_complete: Callable[["PackFetch"], None],
    ) -> None:
        self.pack_id = pack_id
        self.part_path = part_path
        self._directory = directory
        self._store = store
        self._cloud = cloud
        self._age = AgeRange(cloud.file_key, cloud.age_header, cloud.size)
        self.size = self._age.plaintext_length
        self._files = files
        self._on_complete = on_complete
        self._condition = threading.Condition()
        count = -(-self.size // CHUNK_BYTES)
        self._chunks = bytearray(count)
        self._left = count
        self._wanted: deque[tuple[int, int]] = deque()
        self._first = True
        self._hydrating = False
        self._failures = 0
        self._error: AzekuraError | None = None
        self._threads = 0
        self._open_target()

    def _open_target(self) -> None:
        """Make the part file; one without a name when nothing is to be kept.

        It is written by pwrite, so that what is recalled counts as cache, not as our memory.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC
        if self.part_path is None:
            flags = os.O_RDWR | os.O_TMPFILE
        self._fd = self._files.open(self.part_path or self._directory, flags)
        self._files.truncate(self._fd, self.size)
        self._map = mmap.mmap(self._fd, self.size, prot=mmap.PROT_READ)

    def want(self, ranges: Sequence[tuple[int, int]], *, hydrate: bool) -> None:
        """Ask for plain byte ranges (offset, length) in this order, and for all with `hydrate`."""
        with self._condition:
            for offset, length in ranges:
                first = offset // CHUNK_BYTES
                self._wanted.append((first, -(-(offset + length) // CHUNK_BYTES)))
            self._hydrating = self._hydrating or (hydrate and self.part_path is not None)
            self._error = None
            self._failures = 0
            self._start_threads()

    def read(self, offset: int, length: int) -> memoryview:
        """Return a plain byte range when it is there; CloudError when it can't be had.

        The view stays valid after the pack is complete.
        """
        first, last = offset // CHUNK_BYTES, -(-(offset + length) // CHUNK_BYTES)
        with self._condition:
            while any(state != _DONE for state in self._chunks[first:last]):
                if self._error is not None:
                    raise self._error
                if not self._condition.wait(READ_TIMEOUT_S) and self._error is None:
                    raise Busy("recall", self.pack_id, "the cloud answers too slowly")
        return memoryview(self._map)[offset : offset + length]

    def hydrated(self) -> bool:
        """Tell whether every chunk is here."""
        return self._left == 0

    # --- inside

    def _start_threads(self) -> None:
        while self._threads < min(FETCH_THREADS, max(1, len(self._chunks))):
            self._threads += 1
            threading.Thread(target=self._run, name="recall", daemon=True).start()

    def _next(self) -> tuple[int, int] | None:
        """Return the next chunks to fetch and mark them; None when there is nothing to do.

        The very first request is for one instance alone, so that it comes at once.
        """
        limit = FETCH_CHUNKS_MAX
        while self._wanted:
            first, last = self._wanted[0]
            start = next((n for n in range(first, last) if self._chunks[n] == _NONE), None)
            if start is None:
                self._wanted.popleft()
                continue
            if self._first:
                self._first = False
                limit = last - start
            else:
                while len(self._wanted) > 1 and self._wanted[1][0] <= last:
                    last = max(last, self._wanted[1][1])
                    del self._wanted[1]
                self._wanted[0] = (first, last)
            return self._mark(start, min(last, start + limit))
        if not self._hydrating:
            return None
        start = self._chunks.find(_NONE)
        if start < 0:
            return None
        return self._mark(start, min(len(self._chunks), start + limit))

    def _mark(self, start: int, end: int) -> tuple[int, int]:
        stop = start
        while stop < end and self._chunks[stop] == _NONE:
            self._chunks[stop] = _FETCHING
            stop += 1
        return start, stop

    def _run(self) -> None:
        while True:
            with self._condition:
                found = None if self._error else self._next()
                if found is None:
                    self._threads -= 1
                    complete = self._left == 0 and self._threads == 0 and self._hydrating
                    break
            self._fetch(*found)
        if complete:
            self._on_complete(self)

    def _fetch(self, first: int, last: int) -> None:
        start, end = first * CHUNK_BYTES, min(last * CHUNK_BYTES, self.size)
        try:
            low, high = self._age.ciphertext_range(start, end)
            sealed = self._store.get(
                self._cloud.key, self._cloud.version_id, low, high, Lane.URGENT
            )
            plain = self._age.decrypt_range(sealed, first)
            self._files.pwritev(self._fd, [plain], start)
        except AzekuraError as error:
            with self._condition:
                self._chunks[first:last] = bytes(last - first)
                self._failures += 1
                if not error.retry or self._failures >= FETCH_ATTEMPTS_MAX:
                    self._error = error
                else:
                    self._wanted.appendleft((first, last))
                self._condition.notify_all()
            return
        with self._condition:
            self._chunks[first:last] = bytes([_DONE]) * (last - first)
            self._left -= last - first
            self._condition.notify_all()

    def persist(self) -> None:
        """Flush the part file."""
        if self._fd >= 0:
            self._files.fdatasync(self._fd)

    def close(self) -> None:
        """Let the descriptor go; the map lives as long as a view of it does."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        with contextlib.suppress(BufferError):
            self._map.close()


class Recaller:
    """The recalls of one process. `_lock` guards `_fetches`, one for each pack in work."""

    def __init__(
        self, files: FileSystem, layout: Layout, store: ObjectStore, index: Index, space: Space
    ) -> None:
        self._files = files
        self._layout = layout
        self._store = store
        self._index = index
        self._space = space
        self._lock = threading.Lock()
        self._fetches: dict[str, tuple[PackFetch, FileLock | None]] = {}

    def begin(
        self, pack_id: str, cloud: CloudFacts, ranges: Sequence[tuple[int, int]], *, hydrate: bool
    ) -> PackFetch:
        """Return the fetch of a pack, begun now or joined; the ranges are on their way."""
        with self._lock:
            known = self._fetches.get(pack_id)
            if known is None:
                part, flock = self._claim_part(pack_id, cloud.size) if hydrate else (None, None)
                fetch = PackFetch(
                    self._store,
                    self._files,
                    pack_id,
                    cloud,
                    self._layout.recalled,
                    part,
                    self._complete,
                )
                if part is not None:
                    self._fetches[pack_id] = (fetch, flock)
            else:
                fetch = known[0]
        fetch.want(ranges, hydrate=hydrate)
        return fetch

    def _claim_part(self, pack_id: str, size: int) -> tuple[str | None, FileLock | None]:
        """Return the part file to fill and its lock; nothing when it can't be kept."""
        path = os.path.join(self._layout.recalled, f"{pack_id}.part")
        flock = FileLock(f"{path}.lock")
        try:
            flock.acquire()
            self._space.claim(size)
        except (Busy, OutOfSpace):
            flock.release()
            return None, None
        return path, flock

    def _complete(self, fetch: PackFetch) -> None:
        """Check the whole pack and make it a sealed pack again."""
        path = fetch.part_path
        assert path is not None
        try:
            fetch.persist()
            check_pack(path)
            self._files.rename(path, self._layout.sealed_path(fetch.pack_id))
            with self._index.write() as txn:
                txn.set_local(fetch.pack_id, True)
            _log.info("pack_recalled", pack=fetch.pack_id, size_bytes=fetch.size)
        except (AzekuraError, OSError) as error:
            _log.error("recall_failed", pack=fetch.pack_id, error=type(error).__name__)
            with contextlib.suppress(AzekuraError):
                self._files.unlink(path)
        finally:
            with self._lock:
                _, flock = self._fetches.pop(fetch.pack_id)
            fetch.close()
            if flock is not None:
                with contextlib.suppress(FileNotFoundError):
                    self._files.unlink(flock.path)
                flock.release()

    def recall(self, pack_id: str, cloud: CloudFacts) -> None:
        """Bring a whole pack back and return when it is here; CloudError, Damaged, OutOfSpace."""
        fetch = self.begin(pack_id, cloud, [], hydrate=True)
        if fetch.part_path is None:
            raise OutOfSpace("recall", pack_id, "no room for it in the cache")
        for start in range(0, fetch.size, CHUNK_BYTES * FETCH_CHUNKS_MAX):
            fetch.read(start, min(CHUNK_BYTES * FETCH_CHUNKS_MAX, fetch.size - start)).release()
        while pack_id in self._fetches:
            threading.Event().wait(0.01)


def check_pack(path: str) -> None:
    """Raise Damaged unless every member of the pack is what was received."""
    with PackReader(path) as reader:
        for member in reader.members():
            if not reader.verify(member):
                raise Damaged("check", path, f"the member at {member.header_offset} is damaged")


def clear_abandoned(files: FileSystem, layout: Layout) -> None:
    """Remove the part files that no living process fills."""
    for name in os.listdir(layout.recalled):
        if not name.endswith(".part"):
            continue
        path = os.path.join(layout.recalled, name)
        flock = FileLock(f"{path}.lock")
        try:
            flock.acquire()
        except Busy:
            continue
        files.unlink(path)
        files.unlink(f"{path}.lock")
        flock.release()
