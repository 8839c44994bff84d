"""Opening instances for whoever asked: from the disk, or from the bucket as they arrive.

Must not decide what is served; the index did. Holds open packs for reading, never writes one.

Invariants:
- No byte of an instance is given out before its sha256 was checked.
- A pack that turns out damaged or gone on disk is read from the bucket if the bucket has it.
"""

import contextlib
import hashlib
import threading
from collections import OrderedDict, deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import msgspec

from appliance.archive.layout import Layout
from appliance.archive.recall import PackFetch, Recaller
from appliance.archive.studies import study_packs
from appliance.foundation import log
from appliance.foundation.clock import Clock, to_microseconds
from appliance.foundation.errors import AzekuraError, CloudUnavailable, Damaged
from appliance.index.facts import CloudFacts
from appliance.index.index import Index
from appliance.packs.reader import PackReader

READERS_KEPT_MAX = 64
CHECK_AHEAD = 4
CHECK_INLINE_BYTES = 64 * 1024
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

    def __init__(self, dataset: memoryview) -> None:
        self.dataset = dataset


class PackReaders:
    """Open packs by id, the least recently used closed first. Thread-safe."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._lock = threading.Lock()
        self._readers: OrderedDict[str, PackReader] = OrderedDict()

    def get(self, pack_id: str) -> PackReader | None:
        """Return a reader of the pack; None when it is not on disk."""
        with self._lock:
            reader = self._readers.get(pack_id)
            if reader is not None:
                self._readers.move_to_end(pack_id)
                return reader
            for path in self._layout.candidates(pack_id):
                try:
                    reader = PackReader(path)
                except FileNotFoundError:
                    continue
                self._readers[pack_id] = reader
                if len(self._readers) > READERS_KEPT_MAX:
                    self._readers.popitem(last=False)
                return reader
        return None

    def sweep(self) -> None:
        """Let go of packs that were evicted: their space comes back when nobody has them open."""
        with self._lock:
            for pack_id in [each for each, it in self._readers.items() if it.is_unlinked]:
                del self._readers[pack_id]

    def forget(self, pack_id: str) -> None:
        """Close the reader of a pack that is evicted or damaged."""
        with self._lock:
            self._readers.pop(pack_id, None)


class Retrieval:
    """Opens instances; shared by every association of a process."""

    def __init__(
        self, clock: Clock, layout: Layout, index: Index, recaller: Recaller | None
    ) -> None:
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
        here = [each for each in wanted if each.online]
        away = [each for each in wanted if not each.online]
        fetches = self._begin(away)
        for instance, dataset in self._from_disk(here):
            if isinstance(dataset, memoryview):
                yield instance, Opened(dataset)
            else:
                _log.warning("pack_unreadable", pack=instance.pack_id, error=type(dataset).__name__)
                fetches.update(self._begin([instance]))
                away.append(instance)
        try:
            for instance in away:
                yield instance, self._from_cloud(instance, fetches[instance.pack_id])
        finally:
            self._hydrate_rest({each.study_instance_uid for each in away})
            self._touch(wanted)

    def _hydrate_rest(self, studies: set[str]) -> None:
        """Bring the other packs of studies that somebody looks at, behind what was wanted."""
        if self._recaller is None:
            return
        for study in studies:
            with self._index.read() as view:
                rows = study_packs(view, study)
            for row in rows:
                if row.cloud is not None and not row.local:
                    with contextlib.suppress(AzekuraError, OSError):
                        self._recaller.begin(row.pack_id, row.cloud, [], hydrate=True)

    def _touch(self, wanted: Sequence[Retrievable]) -> None:
        """Remember that packs were used; written at most every TOUCH_S, for eviction's order."""
        now_s = self._clock.monotonic_s()
        with self._touch_lock:
            self._used |= {each.pack_id for each in wanted}
            if now_s - self._touched_s < TOUCH_S:
                return
            used, self._used, self._touched_s = self._used, set(), now_s
        with self._index.write() as txn:
            txn.touch(used, to_microseconds(self._clock.now()))

    # --- disk

    def _from_disk(
        self, here: Sequence[Retrievable]
    ) -> Iterator[tuple[Retrievable, memoryview | AzekuraError]]:
        ahead: deque[tuple[Retrievable, memoryview | Future[memoryview] | AzekuraError]] = deque()
        for instance in here:
            ahead.append((instance, self._open_local(instance)))
            if len(ahead) > CHECK_AHEAD:
                yield self._resolve(*ahead.popleft())
        while ahead:
            yield self._resolve(*ahead.popleft())

    def _open_local(self, instance: Retrievable) -> memoryview | Future[memoryview] | AzekuraError:
        try:
            reader = self._readers.get(instance.pack_id)
            if reader is None:
                return Damaged("open", f"pack {instance.pack_id}", "it is not on the disk")
            dataset = reader.view(instance.offset, instance.length)
            if instance.length <= CHECK_INLINE_BYTES:
                return checked(dataset, instance)
            return self._checker.submit(checked, dataset, instance)
        except AzekuraError as error:
            return error

    def _resolve(
        self,
        instance: Retrievable,
        found: memoryview | Future[memoryview] | AzekuraError,
    ) -> tuple[Retrievable, memoryview | AzekuraError]:
        if isinstance(found, Future):
            try:
                found = found.result()
            except AzekuraError as error:
                found = error
        if isinstance(found, AzekuraError):
            self._readers.forget(instance.pack_id)
        return instance, found

    # --- cloud

    def _begin(self, away: Sequence[Retrievable]) -> dict[str, PackFetch | AzekuraError]:
        ranges: dict[str, list[tuple[int, int]]] = {}
        for instance in away:
            ranges.setdefault(instance.pack_id, []).append((instance.offset, instance.length))
        return {pack_id: self._fetch(pack_id, wanted) for pack_id, wanted in ranges.items()}

    def _fetch(self, pack_id: str, wanted: list[tuple[int, int]]) -> PackFetch | AzekuraError:
        if self._recaller is None:
            return CloudUnavailable("recall", pack_id, "no bucket is configured")
        cloud = self._cloud_facts(pack_id)
        if cloud is None:
            return Damaged(
                "recall", f"pack {pack_id}", "it is neither on the disk nor in the bucket"
            )
        try:
            return self._recaller.begin(pack_id, cloud, wanted, hydrate=True)
        except (AzekuraError, OSError) as error:
            return (
                error if isinstance(error, AzekuraError) else Damaged("recall", pack_id, str(error))
            )

    def _cloud_facts(self, pack_id: str) -> CloudFacts | None:
        with self._index.read() as view:
            row = view.pack(pack_id)
        return row.cloud if row is not None else None

    def _from_cloud(
        self, instance: Retrievable, fetch: PackFetch | AzekuraError
    ) -> Opened | AzekuraError:
        if isinstance(fetch, AzekuraError):
            return fetch
        try:
            return Opened(checked(fetch.read(instance.offset, instance.length), instance))
        except AzekuraError as error:
            return error


def checked(dataset: memoryview, instance: Retrievable) -> memoryview:
    """Return the dataset if it is what was received; Damaged else."""
    if hashlib.sha256(dataset).digest() != instance.sha256:
        raise Damaged(
            "open", f"pack {instance.pack_id}", f"the dataset at {instance.offset} is damaged"
        )
    return dataset
