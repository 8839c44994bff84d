"""One pack coming back from the bucket: wanted ranges first, the rest behind them.

Owns the file that it fills. Must not decide what becomes of it; `on_end` is told.

Invariants:
- A byte leaves here only after its age chunk was authenticated; whoever serves an instance checks
  its sha256 on top.
- A failed request frees its chunks and is made again a little later. When for GIVE_UP_S none
  succeeds, the fetch ends for all that wait. One that ended is of no further use; what was read
  from it stays valid.
- No request is for more than FETCH_CHUNKS_MAX chunks: memory does not grow with the instance.
"""

import copy
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence

from appliance.archive.damage_report import CLOUD, Report
from appliance.archive.extent import Extent
from appliance.foundation import log
from appliance.foundation.clock import Clock
from appliance.foundation.errors import (
    AzekuraError,
    Busy,
    CloudError,
    Damaged,
    DecryptionFailed,
    ObjectArchived,
    ObjectMissing,
)
from appliance.foundation.files import FileSystem
from appliance.index.facts import CloudFacts
from appliance.remote.replicas import copies_of
from appliance.remote.store import Lane, ObjectStore
from appliance.seal.age import CHUNK_BYTES, SEALED_CHUNK_BYTES, AgeRange

FETCH_CHUNKS_MAX = 32
FETCH_THREADS = 4
BUFFERS_KEPT_MAX = 2 * FETCH_THREADS
RETRY_S = 0.5
GIVE_UP_S = 4.0
READ_TIMEOUT_S = 60.0

_NONE, _FETCHING, _DONE = 0, 1, 2

_log = log.get("recall")


class PackFetch:
    """One pack being recalled, shared by all that read it in this process.

    `_condition` guards everything. `_chunks` has one state for each 64 KiB chunk of the plain tar;
    `_wanted` holds half-open chunk ranges, in the order in which readers need them. `on_end` is
    called once: with None when every chunk of a pack that is kept is here, with the error else.
    `checked` has the offsets of the datasets whose sha256 was found right, by whoever did it.
    """

    def __init__(
        self,
        store: ObjectStore,
        files: FileSystem,
        clock: Clock,
        pack_id: str,
        cloud: CloudFacts,
        directory: str,
        part_path: str | None,
        on_end: Callable[["PackFetch", AzekuraError | None], None],
        report: Report | None = None,
    ) -> None:
        """Begin nothing yet; see `want`.

        `part_path`: where the pack is kept; None when it is only read past. `report` is told of a
        copy in the bucket that can't be used.
        """
        self._report = report
        self.pack_id = pack_id
        self.part_path = part_path
        self._sources = copies_of(store)
        self._cloud = cloud
        self._age = AgeRange(cloud.file_key, cloud.age_header, cloud.size)
        self.size = self._age.plaintext_length
        self._files = files
        self._clock = clock
        self._on_end = on_end
        self.checked: set[int] = set()
        self._condition = threading.Condition()
        count = -(-self.size // CHUNK_BYTES)
        self._chunks = bytearray(count)
        self._left = count
        self._wanted: deque[tuple[int, int]] = deque()
        self._first = True
        self._waiting = 0
        self._good_s = clock.monotonic_s()
        self._failing_since_s: float | None = None
        self._never = threading.Event()
        self._error: AzekuraError | None = None
        self._ended = False
        self._threads = 0
        # Not mapped: what is recalled is cache, and would count as our memory.
        flags = os.O_RDWR | (os.O_TMPFILE if part_path is None else os.O_CREAT | os.O_TRUNC)
        self._file = _File(files, files.open(part_path or directory, flags))
        files.truncate(self._file.fd, self.size)

    def want(self, ranges: Sequence[tuple[int, int]]) -> bool:
        """Ask for plain byte ranges (offset, length) in this order; False when it has ended.

        One that has failed has ended for whoever comes now, though a request is still on its way.
        """
        with self._condition:
            if self._ended or self._error is not None:
                return False
            for offset, length in ranges:
                first = offset // CHUNK_BYTES
                self._wanted.append((first, -(-(offset + length) // CHUNK_BYTES)))
            self._start_threads(1 if self._first else FETCH_THREADS)
        return True

    def _start_threads(self, count: int) -> None:
        while self._threads < min(count, max(1, len(self._chunks))):
            self._threads += 1
            threading.Thread(target=self._run, name="recall", daemon=True).start()

    def read(self, offset: int, length: int) -> memoryview:
        """Return a plain byte range when it is there; CloudError when it can't be had."""
        return memoryview(self.extent(offset, length)[:])

    def extent(self, offset: int, length: int) -> Extent:
        """Return a plain byte range, when it is there, as an extent; errors as for `read`."""
        self.wait(offset, length)
        return Extent(self._file.read, offset, length)

    def wait(self, offset: int, length: int) -> None:
        """Return when a plain byte range is there; errors as for `read`.

        Every request that succeeds or fails is heard of, so a wait ends READ_TIMEOUT_S after the
        last one.
        """
        first, last = offset // CHUNK_BYTES, -(-(offset + length) // CHUNK_BYTES)
        with self._condition:
            self._waiting += 1
            try:
                self._wait(first, last)
            finally:
                self._waiting -= 1

    def _wait(self, first: int, last: int) -> None:
        while self._chunks.count(_DONE, first, last) < last - first:
            if self._error is not None:
                raise copy.copy(self._error)
            if not self._condition.wait(READ_TIMEOUT_S) and self._error is None:
                raise Busy("recall", self.pack_id, "the cloud answers too slowly")

    # --- inside

    def _next(self) -> tuple[int, int] | None:
        """Return the next chunks to fetch and mark them; None when there is nothing to do.

        The very first request is for one instance, and alone, so that it comes at once.
        """
        limit = FETCH_CHUNKS_MAX
        while self._wanted:
            first, last = self._wanted[0]
            start = self._chunks.find(_NONE, first, last)
            if start < 0:
                self._wanted.popleft()
                continue
            if self._first:
                self._first = False
            else:
                while len(self._wanted) > 1 and self._wanted[1][0] <= last:
                    last = max(last, self._wanted[1][1])
                    del self._wanted[1]
                self._wanted[0] = (first, last)
            return self._mark(start, min(last, start + limit))
        if self.part_path is None:
            return None
        start = self._chunks.find(_NONE)
        if start < 0:
            return None
        return self._mark(start, min(len(self._chunks), start + limit))

    def _is_wanted(self) -> bool:
        return any(self._chunks.find(_NONE, *wanted) >= 0 for wanted in self._wanted)

    def _mark(self, start: int, end: int) -> tuple[int, int]:
        stop = start
        while stop < end and self._chunks[stop] == _NONE:
            self._chunks[stop] = _FETCHING
            stop += 1
        return start, stop

    def _run(self) -> None:
        buffers: _Buffers | None = None
        while True:
            with self._condition:
                found = None if self._error else self._next()
                if found is None:
                    self._threads -= 1
                    last = self._threads == 0 and not self._ended
                    complete = self._left == 0 and self.part_path is not None
                    ends = last and (complete or self._error is not None)
                    self._ended = self._ended or ends
                    break
            buffers = buffers or _BUFFERS.take()
            if not self._fetch(*found, buffers) and self._error is None:
                self._clock.wait(self._never, RETRY_S)
        if buffers is not None:
            _BUFFERS.give_back(buffers)
        if ends:
            self._on_end(self, self._error)

    def _fetch(self, first: int, last: int, buffers: "_Buffers") -> bool:
        """Fetch chunks and return whether they are here."""
        start, end = first * CHUNK_BYTES, min(last * CHUNK_BYTES, self.size)
        began_s = self._clock.monotonic_s()
        try:
            low, high = self._age.ciphertext_range(start, end)
            sealed, plain = buffers.sealed[: high - low], buffers.plain
            size = self._fill(sealed, low, first, plain)
            self._files.pwritev(self._file.fd, [plain[:size]], start)
        except AzekuraError as error:
            self._failed(first, last, began_s, error)
        except Exception as error:  # noqa: BLE001 - the boundary of a thread
            _log.error("recall_request_failed", pack=self.pack_id, error=log.where(error))
            damage = Damaged("recall", self.pack_id, type(error).__name__)
            self._failed(first, last, began_s, damage)
        else:
            with self._condition:
                self._chunks[first:last] = bytes([_DONE]) * (last - first)
                self._left -= last - first
                self._good_s, self._failing_since_s = self._clock.monotonic_s(), None
                # A reader has the processor to itself once it has what it waits for.
                if self._waiting == 0 or self._is_wanted():
                    self._start_threads(FETCH_THREADS)
                self._condition.notify_all()
            return True
        return False

    def _fill(self, sealed: memoryview, low: int, first: int, plain: memoryview) -> int:
        """Decrypt the chunks from `first` on; return how many bytes they are.

        What is not authentic is asked of the bucket's replicas, one after the other.
        """
        damage: DecryptionFailed | None = None
        for source in self._sources:
            try:
                source.get_into(sealed, self._cloud.key, self._cloud.version_id, low, Lane.URGENT)
                return self._age.decrypt_into(sealed, first, plain)
            except DecryptionFailed as error:
                _log.error("cloud_copy_damaged", pack=self.pack_id)
                self._tell()
                damage = error
            except CloudError as error:
                if isinstance(error, ObjectMissing | ObjectArchived):
                    self._tell()
                if damage is None:
                    raise
        assert damage is not None
        raise damage

    def _tell(self) -> None:
        if self._report is not None:
            self._report(self.pack_id, CLOUD)

    def _failed(self, first: int, last: int, began_s: float, error: AzekuraError) -> None:
        with self._condition:
            self._chunks[first:last] = bytes(last - first)
            if self._failing_since_s is None:
                self._failing_since_s = max(self._good_s, began_s)
            failing_s = self._clock.monotonic_s() - self._failing_since_s
            if not error.retry or failing_s >= GIVE_UP_S:
                # Its traceback would keep this object, and its file, alive.
                self._error = self._error or error.with_traceback(None)
            else:
                self._wanted.appendleft((first, last))
            self._condition.notify_all()

    def persist(self) -> None:
        """Flush the part file."""
        self._files.fdatasync(self._file.fd)


class _Buffers:
    """Room for one request's bytes, sealed and plain."""

    def __init__(self) -> None:
        self.sealed = memoryview(bytearray(FETCH_CHUNKS_MAX * SEALED_CHUNK_BYTES))
        self.plain = memoryview(bytearray(FETCH_CHUNKS_MAX * CHUNK_BYTES))


class _BufferPool:
    """Buffers that nobody uses now: making new ones would cost more than a request's decryption."""

    def __init__(self) -> None:
        self._free: deque[_Buffers] = deque(maxlen=BUFFERS_KEPT_MAX)

    def take(self) -> _Buffers:
        try:
            return self._free.pop()
        except IndexError:
            return _Buffers()

    def give_back(self, buffers: _Buffers) -> None:
        self._free.append(buffers)


_BUFFERS = _BufferPool()


class _File:
    """A descriptor that is closed when nothing reads through it any more."""

    __slots__ = ("_files", "fd")

    def __init__(self, files: FileSystem, fd: int) -> None:
        self._files = files
        self.fd = fd

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self.fd, length, offset)

    def __del__(self) -> None:
        self._files.close(self.fd)
