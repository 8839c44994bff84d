"""The headers of instances, without their bulk: for whoever wants metadata and no pixels.

Owns the choice of where they come from: `headers.gz` of a pack on this disk or, by one ranged GET,
of one in the bucket; else the dataset itself. Must not decode an element.

Invariants:
- What is given out was checked: age authenticates what comes from the bucket, gzip's checksum holds
  for the whole of `headers.gz`, and a dataset is opened as Retrieval does.
- At most PACKS_AHEAD packs' headers are held at a time, and PACKS_AT_ONCE in the process.
"""

import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from appliance.archive.extent import Dataset, Extent
from appliance.archive.layout import Layout
from appliance.archive.retrieval import Opened, Retrievable, Retrieval
from appliance.dicom.scan import BulkRange, bulk_begun, bulk_ranges
from appliance.foundation import log
from appliance.foundation.errors import AzekuraError, CloudUnavailable, Damaged
from appliance.index.facts import CloudFacts
from appliance.index.index import Index
from appliance.packs.frames import BulkElement, InstanceHeader, iter_headers
from appliance.packs.member import member_name
from appliance.packs.reader import PackReader
from appliance.remote.store import Lane, ObjectStore
from appliance.seal.age import AgeRange

PACKS_AHEAD = 2
PACKS_AT_ONCE = 6
HEADERS_MAX_BYTES = 64 * 2**20
WINDOW_BYTES = 1024 * 1024
WINDOW_MAX_BYTES = 64 * 2**20

_log = log.get("headers")

_Found = dict[str, InstanceHeader]


class Headers:
    """Reads headers; shared by all that ask in a process."""

    def __init__(
        self, layout: Layout, index: Index, retrieval: Retrieval, store: ObjectStore | None
    ) -> None:
        """`store`: None where no bucket can be reached at all."""
        self._layout = layout
        self._index = index
        self._retrieval = retrieval
        self._store = store
        self._pool = ThreadPoolExecutor(PACKS_AT_ONCE, thread_name_prefix="headers")
        self._held = threading.BoundedSemaphore(PACKS_AT_ONCE)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def of(
        self, wanted: Sequence[Retrievable]
    ) -> Generator[tuple[Retrievable, InstanceHeader | AzekuraError], None, None]:
        """Yield each instance's header, or why it can't be had, pack by pack."""
        packs: dict[str, list[Retrievable]] = {}
        for instance in wanted:
            packs.setdefault(instance.pack_id, []).append(instance)
        waiting = deque(packs.items())
        ahead: deque[tuple[list[Retrievable], Future[_Found | AzekuraError]]] = deque()
        try:
            while waiting or ahead:
                while waiting and len(ahead) < PACKS_AHEAD:
                    pack_id, instances = waiting.popleft()
                    ahead.append((instances, self._pool.submit(self._of_pack, pack_id, instances)))
                instances, future = ahead.popleft()
                yield from self._answers(instances, future.result())
        finally:
            for _, future in ahead:
                future.cancel()

    def _answers(
        self, instances: list[Retrievable], found: _Found | AzekuraError
    ) -> Iterator[tuple[Retrievable, InstanceHeader | AzekuraError]]:
        if isinstance(found, CloudUnavailable):
            # Every dataset would wait for the line again, and in vain.
            yield from ((instance, found) for instance in instances)
            return
        left = []
        for instance in instances:
            header = None if isinstance(found, AzekuraError) else _header_of(found, instance)
            if header is None or header.note:
                left.append(instance)
            else:
                yield instance, header
        if left:
            yield from self._from_datasets(left)

    def _of_pack(self, pack_id: str, instances: list[Retrievable]) -> _Found | AzekuraError:
        """Return the wanted headers of a pack by member name; {} when datasets must be read."""
        with self._index.read() as view:
            row = view.pack(pack_id)
        cloud = row.cloud if row is not None else None
        if cloud is None or not 0 < cloud.headers_length <= HEADERS_MAX_BYTES:
            return {}
        names = {name for instance in instances for name in _names(instance)}
        try:
            packed = self._from_disk(pack_id, cloud) or self._from_bucket(cloud)
            with self._held:
                return {
                    header.name: header for header in iter_headers([packed]) if header.name in names
                }
        except AzekuraError as error:
            _log.warning("headers_not_read", pack=pack_id, error=type(error).__name__)
            return error

    def _from_disk(self, pack_id: str, cloud: CloudFacts) -> bytes:
        try:
            with PackReader(self._layout.sealed_path(pack_id)) as reader:
                found = reader.read_range(cloud.headers_offset, cloud.headers_length)
        except OSError:
            return b""
        return found if len(found) == cloud.headers_length else b""

    def _from_bucket(self, cloud: CloudFacts) -> bytes:
        if self._store is None:
            raise CloudUnavailable("read headers", cloud.key, "no bucket is configured")
        opened = AgeRange(cloud.file_key, cloud.age_header, cloud.size)
        start, end = cloud.headers_offset, cloud.headers_offset + cloud.headers_length
        low, high = opened.ciphertext_range(start, end)
        sealed = self._store.get(cloud.key, cloud.version_id, low, high, Lane.URGENT)
        return bytes(opened.decrypt_slice(sealed, start, end))

    def _from_datasets(
        self, instances: Sequence[Retrievable]
    ) -> Iterator[tuple[Retrievable, InstanceHeader | AzekuraError]]:
        for instance, opened in self._retrieval.open_all(instances):
            if isinstance(opened, AzekuraError):
                yield instance, opened
            else:
                yield instance, header_of(instance, opened)


def _names(instance: Retrievable) -> tuple[str, str]:
    """Return the member names under which the instance may lie, the likelier last."""
    series, sop = instance.series_instance_uid, instance.sop_instance_uid
    version = instance.sha256.hex()[:8]
    return member_name(series, sop, version), member_name(series, sop)


def _header_of(found: _Found, instance: Retrievable) -> InstanceHeader | None:
    for name in _names(instance):
        header = found.get(name)
        if header is not None and header.transfer_syntax_uid == instance.transfer_syntax_uid:
            return header
    return None


def header_of(instance: Retrievable, opened: Opened) -> InstanceHeader | AzekuraError:
    """Return the header of a dataset at hand; Damaged when what is large lies out of order."""
    syntax = instance.transfer_syntax_uid
    dataset = opened.dataset
    window, ranges = _scanned(dataset, syntax)
    pieces: list[bytes] = []
    at = 0
    bulk: list[BulkElement] = []
    for found in ranges:
        pieces.append(bytes(window[at : found.start]))
        bulk.append(BulkElement(found.tag, found.vr, found.value_offset, found.value_length))
        at = found.end
    pieces.append(bytes(window[at:]))
    if sum(map(len, pieces)) > WINDOW_MAX_BYTES:
        return Damaged("read headers", instance.pack_id, "the header is longer than is held")
    return InstanceHeader("", syntax, b"".join(pieces), bulk, "")


def _scanned(dataset: Dataset, syntax: str) -> tuple[memoryview, list[BulkRange]]:
    """Return the front of a dataset, as far as it must be held, and the bulk in it.

    A large dataset is looked at through a window that grows until what is cut off by its end is
    bulk itself; what comes behind that is left out.
    """
    if not isinstance(dataset, Extent):
        return dataset, bulk_ranges(dataset, syntax)
    size, length = WINDOW_BYTES, len(dataset)
    while True:
        window = memoryview(dataset[: min(size, length)])
        ranges = bulk_ranges(window, syntax)
        if ranges and ranges[-1].tag == 0 and size < length:
            start = ranges[-1].start
            begun = bulk_begun(bytes(window[start : start + 16]), start, length, syntax)
            if begun is not None:
                return window[:start], [*ranges[:-1], begun]
        if size >= min(length, WINDOW_MAX_BYTES):
            return window, ranges
        size *= 4
