"""A ledger as the bucket lists it, and its entries, some fetched ahead. Reads only.

Invariants:
- Of a key the oldest version is the entry; it is read by its version id.
- Work ahead is bounded: at most AHEAD_MAX entries of AHEAD_BYTES_MAX in all, or else one, are
  fetched and not yet used.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, wait
from typing import NamedTuple, TypeVar

from appliance.archive.ledger_entry import entry_key
from appliance.remote.store import ObjectStore, VersionInfo

FETCHES_MAX = 8
AHEAD_MAX = 32
AHEAD_BYTES_MAX = 4 * 2**20
"""Of objects as they lie in the bucket; opened they take some twenty-five times as much."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class Listed(NamedTuple):
    """What lies at one sequence: its oldest version, and how many versions and delete markers.

    `version_id` is "" where only delete markers are left.
    """

    sequence: int
    version_id: str
    size_bytes: int
    version_count: int
    marker_count: int


def listed(store: ObjectStore, node: str, after: int = 0) -> Iterator[Listed]:
    """Yield what the bucket has of a node's ledger behind a sequence, in order; CloudError.

    A page is asked for when it is needed: one request for whoever takes less than a page. Keys that
    are no entry's are passed over.
    """
    after_key = entry_key(node, after) if after > 0 else ""
    prefix = f"ledger/{node}/"
    found: Listed | None = None
    for version in store.versions(prefix, after_key):  # of a key the newest first
        sequence = _sequence(version.key.removeprefix(prefix))
        if sequence is None or sequence <= after or version.key != entry_key(node, sequence):
            continue
        if found is not None and found.sequence != sequence:
            yield found
            found = None
        found = _with(found or Listed(sequence, "", 0, 0, 0), version)
    if found is not None:
        yield found


def _sequence(name: str) -> int | None:
    with contextlib.suppress(ValueError):
        return int(name.removesuffix(".json.gz.age"))
    return None


def _with(found: Listed, version: VersionInfo) -> Listed:
    if version.is_delete_marker:
        return found._replace(marker_count=found.marker_count + 1)
    return found._replace(
        version_id=version.version_id,
        size_bytes=version.size_bytes,
        version_count=found.version_count + 1,
    )


def last_listed(store: ObjectStore, node: str, known: int) -> int:
    """Return the last sequence in the bucket, at least `known`, in a few requests; CloudError."""

    def is_behind(sequence: int) -> bool:
        return next(listed(store, node, sequence), None) is not None

    step = 1000
    low = known
    while is_behind(low + step):
        low += step
        step *= 4
    high = low + step
    while high - low > 1:  # the last one is in (low, high], if any is
        middle = (low + high) // 2
        if is_behind(middle):
            low = middle
        else:
            high = middle
    return high if is_behind(low) else low


def ahead(
    pool: Executor,
    work: Callable[[Item], Result],
    items: Iterable[Item],
    size_bytes: Callable[[Item], int] = lambda _item: 0,
) -> Generator[Result, None, None]:
    """Yield the result of `work` for each item, in order, some worked on ahead in the pool.

    What `work` raises comes out in its place. Closing the iterator drops what is not begun and
    waits for the rest: when it returns, nobody works on an item any more.
    """
    waiting: deque[tuple[Future[Result], int]] = deque()
    bytes_ahead = 0
    try:
        for item in items:
            size = size_bytes(item)
            while waiting and (len(waiting) >= AHEAD_MAX or bytes_ahead + size > AHEAD_BYTES_MAX):
                future, done = waiting.popleft()
                bytes_ahead -= done
                yield future.result()
            waiting.append((pool.submit(work, item), size))
            bytes_ahead += size
        while waiting:
            yield waiting.popleft()[0].result()
    finally:
        wait([future for future, _ in waiting if not future.cancel()])
