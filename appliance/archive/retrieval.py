"""Opening instances for whoever asked: from the disk, or from the bucket as they arrive.

Must not decide what is served; the index did. Holds open packs for reading, never writes one.

Invariants:
- No byte of an instance is given out before its sha256 was checked; of an instance longer than
  LARGE_BYTES a check is believed for as long as whoever made the Retrieval says.
- A copy that turns out damaged or gone is replaced by another: of another pack on this disk, or
  from the bucket.
- An instance longer than LARGE_BYTES is never held as a whole: it is given out as an extent, and
  checked by reading it.
- Nothing is mapped: a sector that the disk does not give is an error, never a SIGBUS.
- A pack that turns out damaged, unreadable or gone is told to whoever repairs it.
"""

import contextlib
import hashlib
import threading
from collections import OrderedDict, deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import msgspec

from appliance.archive.checked_lately import CheckedLately
from appliance.archive.damage_report import GONE, Report, why_of
from appliance.archive.extent import Dataset, Extent
from appliance.archive.fetch import PackFetch
from appliance.archive.layout import Layout
from appliance.archive.recall import Recaller
from appliance.archive.studies import study_packs
from appliance.foundation import log
from appliance.foundation.clock import Clock, to_microseconds
from appliance.foundation.errors import AzekuraError, CloudUnavailable, Damaged, Unreadable
from appliance.index.index import Index
from appliance.packs.reader import PackReader

READERS_KEPT_MAX = 64
CHECK_AHEAD = 4
CHECK_INLINE_BYTES = 64 * 1024
LARGE_BYTES = 8 * 2**20
TOUCH_S = 10.0

_log = log.get("retrieval")


class Retrievable(msgspec.Struct, frozen=True):
    """One served instance and where its dataset lies; `offset` and `length` in the plain tar."""

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    length: int
    pack_id: str
    offset: int
    sha256: bytes
    online: bool
    character_set: str = ""


class Opened:
    """An instance at hand; `dataset` is valid until the next one is asked for."""

    __slots__ = ("dataset",)

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset


class SharedReader(PackReader):
    """A reader that closes its file when nobody uses it any more."""

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # the file could not be opened
            self.close()


class PackReaders:
    """Open packs by id, the least recently used let go first. Thread-safe."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._lock = threading.Lock()
        self._readers: OrderedDict[str, SharedReader] = OrderedDict()

    def get(self, pack_id: str) -> SharedReader | None:
        """Return a reader of the pack; None when it is not on disk."""
        with self._lock:
            reader = self._readers.get(pack_id)
            if reader is not None:
                if reader.is_current:
                    self._readers.move_to_end(pack_id)
                    return reader
                del self._readers[pack_id]
            for path in self._layout.candidates(pack_id):
                try:
                    reader = SharedReader(path)
                except FileNotFoundError:
                    continue
                self._readers[pack_id] = reader
                if len(self._readers) > READERS_KEPT_MAX:
                    self._readers.popitem(last=False)
                return reader
        return None

    def sweep(self) -> None:
        """Let go of packs that went: their space comes back when nobody has them open."""
        with self._lock:
            for pack_id in [each for each, it in self._readers.items() if not it.is_current]:
                del self._readers[pack_id]

    def forget(self, pack_id: str) -> None:
        """Open the pack anew the next time: it was evicted or is damaged."""
        with self._lock:
            self._readers.pop(pack_id, None)


class Retrieval:
    """Opens instances; shared by every association of a process."""

    def __init__(
        self,
        clock: Clock,
        layout: Layout,
        index: Index,
        recaller: Recaller | None,
        report: Report | None = None,
        believed_s: float = 0.0,
    ) -> None:
        """Take over; `report` is told of packs that are not as they should be.

        `believed_s`: for how long a large instance that was found right is not read again first.
        """
        self._report = report
        self._lately = CheckedLately(clock, believed_s)
        self._clock = clock
        self._index = index
        self._touch_lock = threading.Lock()
        self._used: set[str] = set()
        self._touched_s = -TOUCH_S
        self._recaller = recaller
        self._readers = PackReaders(layout)
        self._checker = ThreadPoolExecutor(2, thread_name_prefix="sha256")

    def sweep(self) -> None:
        """Let go of evicted packs; called now and then."""
        self._readers.sweep()

    def close(self) -> None:
        """End the checking threads."""
        self._checker.shutdown(wait=False)

    def open_all(
        self, wanted: Sequence[Retrievable]
    ) -> Generator[tuple[Retrievable, Opened | AzekuraError], None, None]:
        """Yield each instance, or why it can't be had, in the order in which they are at hand.

        What is cached comes first, in the order given, while evicted packs are on their way.
        """
        first = next(iter(wanted), None)
        delivered = 0
        unreachable: AzekuraError | None = None
        if first is not None and self._is_away(first):
            # Nothing stands between the reader and the first image: no look at the others yet.
            opened = self._from_anywhere(first, None)
            unreachable = opened if isinstance(opened, CloudUnavailable) else None
            yield first, opened
            delivered = 1
        rest = wanted[delivered:]
        gone = {pack_id for pack_id in _packs_away(rest) if not self._readers.get(pack_id)}
        here = [each for each in rest if each.online or each.pack_id not in gone]
        away = [each for each in rest if not each.online and each.pack_id in gone]
        away.sort(key=lambda each: (each.pack_id, each.offset))
        coming = self._coming(away)
        if away and unreachable is None:
            next(coming)
        for instance, dataset in self._from_disk(here):
            if isinstance(dataset, AzekuraError):
                self._tell(instance.pack_id, dataset)
                yield instance, self._from_anywhere(instance, None)
            else:
                yield instance, Opened(dataset)
        try:
            fetch: PackFetch | AzekuraError | None = None
            pack_id = ""
            for instance in away:
                if unreachable is not None:
                    # One pack has waited for the line; the others do not wait again.
                    yield instance, self._from_other_pack(instance) or unreachable
                    continue
                if instance.pack_id != pack_id:
                    pack_id, fetch = instance.pack_id, next(coming)
                opened = self._from_anywhere(instance, fetch)
                if isinstance(opened, CloudUnavailable):
                    unreachable = opened
                yield instance, opened
            if unreachable is None:
                self._hydrate_rest({each.study_instance_uid for each in wanted if not each.online})
        finally:
            self._touch(wanted)

    def _is_away(self, instance: Retrievable) -> bool:
        return not instance.online and self._readers.get(instance.pack_id) is None

    def _coming(
        self, away: Sequence[Retrievable]
    ) -> Generator[PackFetch | AzekuraError | None, None, None]:
        """Yield the fetch of each pack in turn, with the next one begun already.

        Primed by one `next`, which begins the first. One ahead keeps the line full; all at once
        would have the packs that are needed last compete with the first.
        """
        ranges: dict[str, list[tuple[int, int]]] = {}
        for instance in away:
            ranges.setdefault(instance.pack_id, []).append((instance.offset, instance.length))
        begun: deque[PackFetch | AzekuraError] = deque()
        for pack_id, wanted in ranges.items():
            begun.append(self._fetch(pack_id, wanted))
            yield begun.popleft() if len(begun) > 1 else None
        yield from begun

    def _hydrate_rest(self, studies: set[str]) -> None:
        """Bring the other packs of studies that somebody looks at, behind what was wanted."""
        if self._recaller is None or not studies:
            return
        behind = {}
        with self._index.read() as view:
            for study in studies:
                for row in study_packs(view, study):
                    # The index may not know yet what has just come back.
                    gone = not row.local and self._readers.get(row.pack_id) is None
                    if row.cloud is not None and gone:
                        behind[row.pack_id] = row.cloud
        self._recaller.follow(behind)

    def _touch(self, wanted: Sequence[Retrievable]) -> None:
        """Remember that packs were used; written at most every TOUCH_S, for eviction's order."""
        now_s = self._clock.monotonic_s()
        with self._touch_lock:
            self._used |= {each.pack_id for each in wanted}
            if now_s - self._touched_s < TOUCH_S:
                return
            used, self._used, self._touched_s = self._used, set(), now_s
        try:
            at_us = to_microseconds(self._clock.now())
            self._index.transact(lambda txn: txn.touch(used, at_us))
        except AzekuraError as error:
            # An index disk that is full or broken must not keep anybody from reading.
            _log.error("use_not_noted", error=type(error).__name__)

    # --- disk

    def _tell(self, pack_id: str, error: AzekuraError) -> None:
        _log.warning("pack_unreadable", pack=pack_id, error=type(error).__name__)
        if self._report is None:
            return
        if self._readers.get(pack_id) is not None:
            self._report(pack_id, why_of(error))
            return
        with self._index.read() as view:
            row = view.pack(pack_id)
        if row is not None and row.local:  # else it was evicted since it was chosen
            self._report(pack_id, GONE)

    def _from_disk(
        self, here: Sequence[Retrievable]
    ) -> Iterator[tuple[Retrievable, Dataset | AzekuraError]]:
        ahead: deque[tuple[Retrievable, Dataset | Future[Dataset] | AzekuraError]] = deque()
        for instance in here:
            ahead.append((instance, self._open_local(instance)))
            if len(ahead) > CHECK_AHEAD:
                yield self._resolve(*ahead.popleft())
        while ahead:
            yield self._resolve(*ahead.popleft())

    def _open_local(self, instance: Retrievable) -> Dataset | Future[Dataset] | AzekuraError:
        try:
            reader = self._readers.get(instance.pack_id)
            if reader is None:
                return Damaged("open", f"pack {instance.pack_id}", "it is not on the disk")
            extent = Extent(reader.read_range, instance.offset, instance.length)
            if instance.length > LARGE_BYTES:
                return self._checker.submit(self._checked_large, extent, instance)
            if instance.length <= CHECK_INLINE_BYTES:
                return _read_checked(extent, instance)
            return self._checker.submit(_read_checked, extent, instance)
        except AzekuraError as error:
            return error
        except OSError as error:
            return Unreadable("open", f"pack {instance.pack_id}", str(error), "Check the disk")

    def _checked_large(self, extent: Extent, instance: Retrievable) -> Dataset:
        place = (instance.pack_id, instance.offset, instance.sha256)
        if not self._lately.has(place):
            checked(extent, instance)
            self._lately.note(place)
        return extent

    def _resolve(
        self, instance: Retrievable, found: Dataset | Future[Dataset] | AzekuraError
    ) -> tuple[Retrievable, Dataset | AzekuraError]:
        if isinstance(found, Future):
            try:
                found = found.result()
            except AzekuraError as error:
                found = error
        if isinstance(found, AzekuraError):
            self._readers.forget(instance.pack_id)
        return instance, found

    # --- cloud

    def _fetch(self, pack_id: str, wanted: list[tuple[int, int]]) -> PackFetch | AzekuraError:
        if self._recaller is None:
            return CloudUnavailable("recall", pack_id, "no bucket is configured")
        with self._index.read() as view:
            row = view.pack(pack_id)
        if row is None or row.cloud is None:
            return Damaged(
                "recall", f"pack {pack_id}", "it is neither on the disk nor in the bucket"
            )
        try:
            return self._recaller.begin(pack_id, row.cloud, wanted)
        except AzekuraError as error:
            return error
        except OSError as error:
            return Damaged("recall", pack_id, str(error), "Check the disk")

    def _from_anywhere(
        self, instance: Retrievable, fetch: PackFetch | AzekuraError | None
    ) -> Opened | AzekuraError:
        """Return the instance from its pack in the bucket, else from another copy of it."""
        if fetch is None:
            fetch = self._fetch(instance.pack_id, [(instance.offset, instance.length)])
        found = self._from_cloud(instance, fetch)
        if isinstance(found, Opened):
            return found
        other = self._from_other_pack(instance)
        if other is None and not isinstance(found, CloudUnavailable):
            for copy in self._other_copies(instance):
                wanted = [(copy.offset, copy.length)]
                opened = self._from_cloud(copy, self._fetch(copy.pack_id, wanted))
                if isinstance(opened, Opened):
                    return opened
        return other or found

    def _from_other_pack(self, instance: Retrievable) -> Opened | None:
        """Return the instance from another pack on this disk, if there is one."""
        for copy in self._other_copies(instance):
            if copy.online:
                _, dataset = self._resolve(copy, self._open_local(copy))
                if not isinstance(dataset, AzekuraError):
                    return Opened(dataset)
        return None

    def _other_copies(self, instance: Retrievable) -> list[Retrievable]:
        """Return the same bytes in other packs, those on this disk first."""
        with self._index.read() as view:
            stored = view.instance(instance.study_instance_uid, instance.sop_instance_uid)
            copies = [
                msgspec.structs.replace(
                    instance, pack_id=copy.pack_id, offset=copy.offset, online=row.local
                )
                for version in (stored.versions if stored is not None else ())
                if version.sha256 == instance.sha256
                and version.transfer_syntax_uid == instance.transfer_syntax_uid
                for copy in version.copies
                if copy.pack_id != instance.pack_id and (row := view.pack(copy.pack_id)) is not None
            ]
        return sorted(copies, key=lambda copy: not copy.online)

    def _from_cloud(
        self, instance: Retrievable, fetch: PackFetch | AzekuraError
    ) -> Opened | AzekuraError:
        if isinstance(fetch, AzekuraError):
            return fetch
        dataset: Dataset
        try:
            if instance.length > LARGE_BYTES:
                dataset = fetch.extent(instance.offset, instance.length)
            else:
                dataset = fetch.read(instance.offset, instance.length)
            if instance.offset not in fetch.checked:
                checked(dataset, instance)
                fetch.checked.add(instance.offset)
            return Opened(dataset)
        except AzekuraError as error:
            return error


def _packs_away(wanted: Sequence[Retrievable]) -> set[str]:
    return {each.pack_id for each in wanted if not each.online}


def _read_checked(extent: Extent, instance: Retrievable) -> Dataset:
    return checked(memoryview(extent[:]), instance)


def checked(dataset: Dataset, instance: Retrievable) -> Dataset:
    """Return the dataset if it is what was received; Damaged else."""
    match dataset:
        case Extent():
            digest = dataset.sha256()
        case _:
            digest = hashlib.sha256(dataset).digest()
    if digest != instance.sha256:
        raise Damaged(
            "open", f"pack {instance.pack_id}", f"the dataset at {instance.offset} is damaged"
        )
    return dataset
