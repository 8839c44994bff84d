"""Holding a restore drill: by hand, and by the uplink when one is due.

Owns when a drill is held, its scratch folder, and the way of its result into the ledger. A node
holds one at a time.

Invariants:
- The result reaches the ledger by a durable request to the uplink, whoever held the drill.
- A drill that the uplink holds reads no more a day than its budget, and is given up when the node
  stops: it is then due still.
- Nothing is held while the index is not whole, the bucket unfit or the line down.
"""

import os
import random
import threading
from collections.abc import Callable, Sequence

import msgspec

from appliance.archive.bucket_watch import BucketWatch
from appliance.archive.comparing import Comparison
from appliance.archive.drill import Drill, DrillResult, Spend
from appliance.archive.drill_book import DrillBook
from appliance.archive.freshness import Freshness
from appliance.archive.index_condition import IndexCondition
from appliance.archive.layout import Layout
from appliance.archive.records import Drilled
from appliance.archive.requests import Request, RequestBox
from appliance.config.model import Config
from appliance.foundation import log
from appliance.foundation.clock import Clock
from appliance.foundation.errors import AzekuraError, Busy, NotFound, StorageFailed
from appliance.foundation.files import FileLock, FileSystem
from appliance.index.index import Index
from appliance.remote.link import Link
from appliance.remote.store import ObjectStore
from appliance.seal.identity import Identity

PAUSE_S = 60.0
RETRY_S = 3600.0
KIND = "drill"

_log = log.get("drill")


class DrillHall:
    """Where drills are held: the parts of one node that a drill needs."""

    def __init__(
        self,
        files: FileSystem,
        clock: Clock,
        config: Config,
        layout: Layout,
        index: Index,
        store: ObjectStore,
        condition: IndexCondition | None = None,
    ) -> None:
        """`condition`: what is known of the index; without one it is whole."""
        self._files = files
        self._clock = clock
        self._config = config
        self._layout = layout
        self._index = index
        self._store = store
        self._condition = condition

    def hold(
        self,
        identities: Sequence[Identity],
        label: str,
        count: int,
        spend: Spend = lambda _bytes: 0.0,
        advance: Callable[[float], None] = lambda _amount: None,
        source: random.Random | None = None,
    ) -> DrillResult:
        """Hold a drill now; `label` says whose identities they are.

        Raises Busy while another is held or the index is not whole, CloudError, NotFound.
        """
        if self._condition is not None and self._condition.incomplete() is not None:
            raise Busy("drill", "the index", "it is being made anew", "Try again when it is whole")
        folder = os.path.join(self._layout.state, "drill")
        self._files.make_directory(folder)
        alone = FileLock(os.path.join(folder, "lock"))
        alone.acquire()
        scratch_folder = os.path.join(folder, "scratch")
        try:
            self._files.remove_tree(scratch_folder)  # one that a crash left
            still = Layout(scratch_folder)
            still.create(self._files)
            scratch = Index(self._files, still.index).open()
            try:
                comparison = Comparison(
                    self._config, self._index, Freshness(self._layout), scratch, Freshness(still)
                )
                drill = Drill(
                    self._clock, self._store, identities, label, scratch, comparison, spend, source
                )
                return drill.run(count, advance)
            finally:
                scratch.close()
        finally:
            self._files.remove_tree(scratch_folder)
            alone.release()


class DrillKeeper:
    """Holds a drill when one is due. `look` is called by one thread of the uplink."""

    def __init__(
        self,
        clock: Clock,
        config: Config,
        hall: DrillHall,
        book: DrillBook,
        requests: RequestBox,
        identities: Sequence[Identity],
        link: Link,
        bucket: BucketWatch,
        stop: threading.Event,
    ) -> None:
        self._clock = clock
        self._drill = config.drill
        self._hall = hall
        self._book = book
        self._requests = requests
        self._identities = identities
        self._link = link
        self._bucket = bucket
        self._stop = stop
        self._not_before_s = 0.0

    def look(self) -> None:
        """Hold a drill if one is due and can be held."""
        self._book.begin()
        waiting = self._clock.monotonic_s() < self._not_before_s
        if waiting or not self._book.due or not self._bucket.may_send:
            return
        if self._link.state == "down":
            return
        try:
            result = self._hall.hold(
                self._identities, node_label(self._identities), self._drill.studies, self._spend
            )
        except StorageFailed:
            raise
        except AzekuraError as error:
            # Nothing to restore yet, a line that broke, a node that stops: due still.
            self._not_before_s = self._clock.monotonic_s() + RETRY_S
            if not isinstance(error, NotFound | Busy):
                _log.warning("drill_not_held", error=type(error).__name__)
            return
        self._not_before_s = self._clock.monotonic_s() + RETRY_S  # until it is in the book
        leave(self._requests, result)
        _log.info(
            "drill_held", studies=len(result.studies), instances=result.instances,
            matched=result.matched, findings=len(result.all_findings), took_s=result.took_s,
        )  # fmt: skip

    def _spend(self, size_bytes: int) -> float:
        """Wait until the day's budget has so many bytes; Busy when the node stops before."""
        began_s = self._clock.monotonic_s()
        while not self._book.spend(size_bytes, self._drill.daily_bytes):
            if self._clock.wait(self._stop, PAUSE_S):
                break
        if self._stop.is_set():
            raise Busy("drill", "", "the node stops", "It is held after the next start")
        return self._clock.monotonic_s() - began_s


def node_label(identities: Sequence[Identity]) -> str:
    """Return what a drill with the node's own identities is called."""
    return f"node {identities[0].recipient}"


def drilled(result: DrillResult) -> Drilled:
    """Return the ledger's record of a drill."""
    return Drilled(
        at=result.at,
        identity=result.identity,
        studies=len(result.studies),
        instances=result.instances,
        matched=result.matched,
        findings=result.all_findings,
        first_instance_s=result.first_instance_s,
        took_s=result.took_s,
    )


def leave(requests: RequestBox, result: DrillResult) -> str:
    """Ask the uplink, durably, to write a drill into the ledger; return the request's id."""
    return requests.put(Request(kind=KIND, details=msgspec.to_builtins(drilled(result))))
