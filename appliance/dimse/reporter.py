"""Sending storage commitment reports: when they are due, wherever their peer can be reached.

Owns the thread that settles the archive's book and the ways to the peers. Decides nothing about an
instance. Invariants:
- A report is sent under the title that was called, and marked reported only when the peer has
  answered it with Success.
- At most one batch of reports is on its way on an association, and one batch to an address.
- A peer that can't be reached delays nobody but itself.
"""

import contextlib
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

from appliance.archive.commitment import (
    CommitmentBook,
    CommitmentRequest,
    Transaction,
    transaction_key,
)
from appliance.config.model import Dicom, Peer
from appliance.dicom import status, uid
from appliance.dimse.association import Association
from appliance.dimse.commitment_messages import send_report
from appliance.dimse.contexts import Proposal
from appliance.dimse.limits import Limits
from appliance.dimse.requestor import request_association
from appliance.foundation import log
from appliance.foundation.clock import Clock
from appliance.foundation.errors import (
    AzekuraError,
    DatasetMismatch,
    PeerRefused,
    StorageFailed,
)

REPORT_RESPONSE_MAX_S = 60.0
SAME_ASSOCIATION_MAX_S = 30.0
ROUTES_BUSY_MAX = 8
BATCH_COUNT = 50
WATCH_INTERVAL_S = 0.25
PRUNE_INTERVAL_S = 86400.0
STOP_MAX_S = 5.0

_TRANSFER_SYNTAXES = (uid.EXPLICIT_VR_LITTLE_ENDIAN, uid.IMPLICIT_VR_LITTLE_ENDIAN)
_log = log.get("commitment")


class Route(NamedTuple):
    """Where reports are sent by an association of our own, and under which titles."""

    host: str
    port: int
    called_ae: str
    calling_ae: str
    tls: bool


class _Posted:
    """Reports handed to the thread of a peer's association. Guarded by the reporter's lock."""

    def __init__(
        self, items: list[Transaction], association: Association, deadline_monotonic_s: float
    ) -> None:
        self.items = items
        self.association = association
        self.deadline_monotonic_s = deadline_monotonic_s
        self.started = False
        self.withdrawn = False


class Reporter:
    """The reporter of one process.

    Its thread calls `settle` and `due` and starts the others. `_lock` guards `_origins`,
    `_callers`, `_posted`, `_busy`, `_held` and `_routes`, which association threads touch too.
    """

    def __init__(
        self,
        book: CommitmentBook,
        dicom: Dicom,
        clock: Clock,
        on_fatal: Callable[[StorageFailed], None],
        *,
        tls: ssl.SSLContext | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._book = book
        self._dicom = dicom
        self._clock = clock
        self._on_fatal = on_fatal
        self._tls = tls
        self._limits = limits or Limits()
        self._lock = threading.Lock()
        self._origins: dict[str, Association] = {}  # by transaction: where it was asked
        self._callers: dict[str, Association] = {}  # by calling AE title: the latest that asked
        self._posted: list[_Posted] = []
        self._busy: set[str] = set()  # transactions whose report is on its way
        self._held: set[str] = set()  # transactions whose request is not answered yet
        self._routes: set[Route] = set()  # with a thread that is sending
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="commitment-reporter", daemon=True)

    def start(self) -> None:
        """Begin to settle and report."""
        self._thread.start()

    def take(self, dicom: Dicom) -> None:
        """Report to the peers of another configuration from now on."""
        self._dicom = dicom

    def stop(self) -> None:
        """End; a report that is on its way is sent again after the next start."""
        self._stopping.set()
        self._book.changed.set()
        if self._thread.ident is not None:
            self._thread.join(STOP_MAX_S)

    @contextlib.contextmanager
    def asked(self, request: CommitmentRequest, association: Association) -> Iterator[None]:
        """Remember where a transaction is asked for; from any thread.

        No report of it is sent before the block ends: the answer to the request comes first.
        """
        key = transaction_key(request.calling_ae, request.transaction_uid)
        with self._lock:
            self._origins[key] = association
            self._callers[request.calling_ae] = association
            self._held.add(key)
        try:
            yield
        finally:
            with self._lock:
                self._held.discard(key)
            self._book.hurry(request.calling_ae)
            self._book.changed.set()

    @property
    def thread(self) -> threading.Thread:
        """The thread that settles; it lives from `start` to `stop`."""
        return self._thread

    # --- the reporter's thread

    def _run(self) -> None:
        prune_at_s = self._clock.monotonic_s()
        while not self._stopping.is_set():
            self._book.changed.clear()
            try:
                if self._clock.monotonic_s() >= prune_at_s:
                    self._book.prune()
                    prune_at_s += PRUNE_INTERVAL_S
                self.turn()
            except StorageFailed as error:
                self._on_fatal(error)
                return
            except AzekuraError as error:
                _log.warning("commitment_turn_failed", error=type(error).__name__)
            wait_s = self._book.next_wake_s()
            with self._lock:
                if self._posted:
                    wait_s = min(wait_s, WATCH_INTERVAL_S)
            self._clock.wait(self._book.changed, wait_s)

    def turn(self) -> None:
        """Settle what can be settled and start every report that is due and not on its way."""
        self._book.settle()
        self._watch()
        batches: dict[Route, list[Transaction]] = {}
        posts: dict[Association, list[Transaction]] = {}
        for item in self._book.due():
            with self._lock:
                if item.key in self._busy or item.key in self._held:
                    continue
            peer = self._dicom.peer_calling(item.calling_ae, item.peer_address)
            association = self._association_for(item, peer)
            route = self._route(item, peer)
            if association is not None:
                posts.setdefault(association, []).append(item)
            elif route is not None:
                batches.setdefault(route, []).append(item)
            else:
                self._book.mark_failed(item.key)
        for association, items in posts.items():
            self._post(items[:BATCH_COUNT], association)
        for route, items in batches.items():
            self._begin(route, items[:BATCH_COUNT])

    def _association_for(self, item: Transaction, peer: Peer | None) -> Association | None:
        """Return the peer's own association if the report may go there."""
        if peer is None:
            return None
        with self._lock:
            origin = self._origins.get(item.key)
            if peer.commit_report == "same" and origin is not None and origin.is_open:
                return origin
            caller = self._callers.get(item.calling_ae)
            if caller is not None and not caller.is_open:
                del self._callers[item.calling_ae]
                caller = None
            return caller if peer.report_address() is None else None

    def _route(self, item: Transaction, peer: Peer | None) -> Route | None:
        address = peer.report_address() if peer is not None else None
        if peer is None or address is None or (peer.tls and self._tls is None):
            return None
        return Route(*address, peer.commit_ae or item.calling_ae, item.called_ae, peer.tls)

    # --- on the peer's association

    def _post(self, items: list[Transaction], association: Association) -> None:
        posted = _Posted(items, association, self._clock.monotonic_s() + SAME_ASSOCIATION_MAX_S)
        with self._lock:
            if any(other.association is association for other in self._posted):
                return  # its turn comes
            self._posted.append(posted)
            for item in items:
                # an origin serves one attempt: whoever did not take its report is called
                self._origins.pop(item.key, None)
                self._busy.add(item.key)
        if not association.post(lambda own: self._send_on(own, posted)):
            self._end_posted(posted)

    def _send_on(self, association: Association, posted: _Posted) -> None:
        with self._lock:
            if posted.withdrawn:
                return
            posted.started = True
        try:
            for item in posted.items:
                code = send_report(association, item, REPORT_RESPONSE_MAX_S)
                self._finish(item, code, "same association")
        except DatasetMismatch:  # no context for reports on it
            for item in posted.items:
                self._book.mark_failed(item.key)
        finally:
            self._end_posted(posted)
            self._book.changed.set()

    def _finish(self, item: Transaction, code: int, where: str) -> None:
        if code == status.SUCCESS:
            self._book.mark_reported(item.key)
            _log.info("commitment_reported", on=where)
        else:
            self._book.mark_failed(item.key)
            _log.warning("commitment_report_refused", status=code)

    def _watch(self) -> None:
        """Take back what the peer's association did not get to send."""
        now_s = self._clock.monotonic_s()
        with self._lock:
            stale = [
                posted
                for posted in self._posted
                if not posted.started
                and (not posted.association.is_open or now_s >= posted.deadline_monotonic_s)
            ]
            for posted in stale:
                posted.withdrawn = True
            closed = [key for key, origin in self._origins.items() if not origin.is_open]
            for key in closed:
                del self._origins[key]
        for posted in stale:
            self._end_posted(posted)

    def _end_posted(self, posted: _Posted) -> None:
        with self._lock:
            if posted in self._posted:
                self._posted.remove(posted)
                self._busy.difference_update(item.key for item in posted.items)

    # --- on an association of our own

    def _begin(self, route: Route, items: list[Transaction]) -> None:
        with self._lock:
            if route in self._routes or len(self._routes) >= ROUTES_BUSY_MAX:
                return
            self._routes.add(route)
            self._busy.update(item.key for item in items)
        threading.Thread(
            target=self._send_batch, args=(route, items), name="commitment-report", daemon=True
        ).start()

    def _send_batch(self, route: Route, items: list[Transaction]) -> None:
        waiting = {item.key for item in items}
        try:
            association = self._call(route)
            try:
                for item in items:
                    code = send_report(association, item, REPORT_RESPONSE_MAX_S)
                    waiting.discard(item.key)
                    self._finish(item, code, "new association")
            finally:
                association.release()
        except StorageFailed as error:
            self._on_fatal(error)
        except AzekuraError as error:
            _log.warning(
                "commitment_report_failed", called_ae=route.called_ae, error=type(error).__name__
            )
            self._fail(waiting)
        finally:
            with self._lock:
                self._routes.discard(route)
                self._busy.difference_update(item.key for item in items)
            self._book.changed.set()

    def _fail(self, keys: set[str]) -> None:
        try:
            for key in keys:
                self._book.mark_failed(key)
        except StorageFailed as error:
            self._on_fatal(error)

    def _call(self, route: Route) -> Association:
        """Associate, proposing to be the SCP; without role selection where that is refused."""
        try:
            return self._request(route, Proposal(
                uid.STORAGE_COMMITMENT_PUSH, _TRANSFER_SYNTAXES, scu=False, scp=True
            ))  # fmt: skip
        except PeerRefused:
            return self._request(route, Proposal(uid.STORAGE_COMMITMENT_PUSH, _TRANSFER_SYNTAXES))

    def _request(self, route: Route, proposal: Proposal) -> Association:
        return request_association(
            route.host,
            route.port,
            calling_ae=route.calling_ae,
            called_ae=route.called_ae,
            proposals=[proposal],
            tls=self._tls if route.tls else None,
            limits=self._limits,
        )
