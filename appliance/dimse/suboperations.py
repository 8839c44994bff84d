"""The sub-operations of C-MOVE and C-GET: counts, Pending responses, and the C-STORE requests.

Owns what both services share. Invariants:
- Every selected instance is counted once: remaining + completed + failed + warning = total.
- While an operation runs, its requestor hears Pending at least every PENDING_INTERVAL_MAX_S,
  whatever is being waited for.
- Two threads never use the requestor's association at a time: `Progress.using` is held for it
  (before Python 3.13 a TLS connection breaks when one thread reads while another writes).
"""

import contextlib
import queue
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

from appliance.archive.extent import Dataset
from appliance.dicom import status
from appliance.dicom.uid import is_big_endian, is_implicit
from appliance.dimse.association import Association
from appliance.dimse.commands import (
    COMPLETED_SUBOPERATIONS,
    ERROR_COMMENT,
    FAILED_SUBOPERATIONS,
    REMAINING_SUBOPERATIONS,
    WARNING_SUBOPERATIONS,
    Command,
    encode_response,
    encode_store_request,
)
from appliance.dimse.contexts import Context
from appliance.dimse.query import Instance, Opened, Retriever
from appliance.dimse.service import error_comment
from appliance.foundation import log
from appliance.foundation.errors import AssociationLost, AzekuraError, StorageFailed
from appliance.pixels.transcode import TARGETS, Transcoder

PENDING_INTERVAL_MIN_S = 0.05
PENDING_INTERVAL_MAX_S = 5.0
STORE_RESPONSE_MAX_S = 60.0
CANCEL_CHECK_S = 0.5
COUNT_MAX = 0xFFFF
FAILED_UIDS_BYTES_MAX = 0xFFFE

_FAILED_SOP_INSTANCE_UID_LIST = 0x00080058
_log = log.get("dimse")
_WARNINGS = frozenset({0x0001, 0x0107, 0x0116})

COMPLETED = "completed"
WARNED = "warned"
FAILED = "failed"


def outcome_of(store_status: int) -> str:
    """Return what a C-STORE status counts as (PS3.4 B.2.3, PS3.7 annex C)."""
    if store_status == status.SUCCESS:
        return COMPLETED
    if store_status & 0xF000 == 0xB000 or store_status in _WARNINGS:
        return WARNED
    return FAILED


class Progress:
    """The counts of one C-MOVE or C-GET, and its responses.

    The association's thread owns it; its ticker thread only sends Pending. `using` guards the
    requestor's association and `_sent_monotonic_s`.
    """

    def __init__(self, association: Association, command: Command, total: int) -> None:
        self.using = threading.RLock()
        self.remaining = total
        self.completed = 0
        self.warned = 0
        self.failed_uids: list[str] = []
        self.reason = ""
        """Why the first instance that could not be opened could not be: an Error Comment."""
        self._association = association
        self._command = command
        self._sent_monotonic_s = -PENDING_INTERVAL_MIN_S
        self._started_monotonic_s = time.monotonic()
        self._ended = threading.Event()
        self._lost: AssociationLost | None = None

    @contextlib.contextmanager
    def ticking(self) -> Iterator[None]:
        """Send Pending in the background for as long as the block lasts."""
        self._sent_monotonic_s = time.monotonic() - PENDING_INTERVAL_MIN_S
        ticker = threading.Thread(target=self._tick, name="pending", daemon=True)
        ticker.start()
        try:
            yield
        finally:
            self._ended.set()
            ticker.join()

    def _tick(self) -> None:
        wait_s = PENDING_INTERVAL_MAX_S
        while not self._ended.wait(wait_s):
            with self.using:
                since_s = time.monotonic() - self._sent_monotonic_s
                if since_s >= PENDING_INTERVAL_MAX_S and not self._ended.is_set():
                    try:
                        self._send_pending()
                    except AssociationLost as cause:
                        self._lost = cause
                        return
                    since_s = 0.0
            wait_s = max(0.1, PENDING_INTERVAL_MAX_S - since_s)

    def count(self, outcome: str, sop_instance_uid: str) -> None:
        """Count one finished sub-operation, and tell the requestor if it has not just been told."""
        with self.using:
            self.remaining -= 1
            if outcome == COMPLETED:
                self.completed += 1
            elif outcome == WARNED:
                self.warned += 1
            else:
                self.failed_uids.append(sop_instance_uid)
            self.check()
            if time.monotonic() - self._sent_monotonic_s >= PENDING_INTERVAL_MIN_S:
                self._send_pending()

    def check(self) -> None:
        """Raise AssociationLost when the ticker found the requestor gone."""
        if self._lost is not None:
            raise self._lost

    def cancelled(self) -> bool:
        """Tell whether the requestor has cancelled; AssociationLost when it is gone."""
        self.check()
        with self.using:
            return self._association.cancelled(self._command.message_id)

    def _send_pending(self) -> None:
        self._sent_monotonic_s = time.monotonic()
        self._association.send_response(self._command.context_id, self._encode(status.PENDING))

    def finish(self, *, cancelled: bool) -> int:
        """Send the final response and return its status. Call it after `ticking` has ended."""
        association, command = self._association, self._command
        failed_count = len(self.failed_uids)
        final = status.SUCCESS
        if cancelled:
            final = status.CANCEL
        elif failed_count and not self.completed and not self.warned:
            final = status.OUT_OF_RESOURCES_SUBOPERATIONS
        elif failed_count or self.warned:
            final = status.SUBOPERATIONS_WITH_FAILURES
        association.forget_cancel(command.message_id)
        association.counters.answered += 1
        if self.failed_uids:
            context = association.contexts[command.context_id]
            dataset = encode_failed_uids(self.failed_uids, context.transfer_syntax)
            response = self._encode(final, with_dataset=True)
            association.send_message(command.context_id, response, dataset)
        else:
            association.send_response(command.context_id, self._encode(final))
        return final

    def _encode(self, code: int, *, with_dataset: bool = False) -> bytes:
        counts: dict[int, int | str] = {
            COMPLETED_SUBOPERATIONS: min(self.completed, COUNT_MAX),
            FAILED_SUBOPERATIONS: min(len(self.failed_uids), COUNT_MAX),
            WARNING_SUBOPERATIONS: min(self.warned, COUNT_MAX),
        }
        if code in (status.PENDING, status.CANCEL):
            counts[REMAINING_SUBOPERATIONS] = min(self.remaining, COUNT_MAX)
        elif self.failed_uids and self.reason:
            counts[ERROR_COMMENT] = self.reason
        return encode_response(self._command, code, with_dataset=with_dataset, extra=counts)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the operation began."""
        return time.monotonic() - self._started_monotonic_s


def encode_failed_uids(uids: Sequence[str], transfer_syntax_uid: str) -> bytes:
    """Encode a dataset of FailedSOPInstanceUIDList (PS3.4 C.4.2.1.4.2), as many as it can hold."""
    kept: list[str] = []
    length = 0
    for sop_instance_uid in uids:
        length += len(sop_instance_uid) + 1
        if length > FAILED_UIDS_BYTES_MAX:
            break
        kept.append(sop_instance_uid)
    value = "\\".join(kept).encode("ascii", "replace")
    value += b"\0" * (len(value) % 2)
    group, element = _FAILED_SOP_INSTANCE_UID_LIST >> 16, _FAILED_SOP_INSTANCE_UID_LIST & 0xFFFF
    if is_implicit(transfer_syntax_uid):
        return struct.pack("<HHI", group, element, len(value)) + value
    order = ">" if is_big_endian(transfer_syntax_uid) else "<"
    return struct.pack(f"{order}HH2sH", group, element, b"UI", len(value)) + value


class InstanceSender:
    """Sends instances on one association, each on the context that fits it best.

    Used by the association's thread. `using` is held while a message is exchanged.
    """

    def __init__(
        self,
        association: Association,
        transcoder: Transcoder,
        *,
        originator_ae: str = "",
        originator_message_id: int | None = None,
        using: contextlib.AbstractContextManager[Any] | None = None,
    ) -> None:
        self._association = association
        self._transcoder = transcoder
        self._originator_ae = originator_ae
        self._originator_message_id = originator_message_id
        self._using = using or contextlib.nullcontext()
        self._contexts: dict[tuple[str, str], Context] = {}
        for context in association.contexts.values():
            if context.as_scu:
                key = (context.abstract_syntax, context.transfer_syntax)
                self._contexts.setdefault(key, context)

    def send(self, instance: Instance, dataset: Dataset) -> str:
        """Send one instance and return its outcome. Raises AssociationLost."""
        stored = instance.transfer_syntax_uid
        context = self._contexts.get((instance.sop_class_uid, stored))
        if context is not None:
            return self._store(context, instance, dataset)
        for target in TARGETS:
            context = self._contexts.get((instance.sop_class_uid, target))
            if context is not None:
                try:
                    with self._transcoder.converted(dataset, stored, target) as converted:
                        return self._store(context, instance, converted)
                except AssociationLost:
                    raise
                except AzekuraError:
                    return FAILED
        return FAILED

    def _store(self, context: Context, instance: Instance, dataset: Dataset) -> str:
        association = self._association
        message_id = association.next_message_id()
        command = encode_store_request(
            message_id,
            instance.sop_class_uid,
            instance.sop_instance_uid,
            originator_ae=self._originator_ae,
            originator_message_id=self._originator_message_id,
        )
        with self._using:
            answer = association.exchange(
                context.context_id, command, message_id, dataset, STORE_RESPONSE_MAX_S
            )
        association.counters.sent += 1
        return outcome_of(answer.status)


def perform(
    archive: Retriever,
    wanted: Sequence[Any],
    progress: Progress,
    send: Callable[[Instance, Dataset], str],
) -> bool:
    """Have every instance opened and sent, and counted; return whether that was cancelled.

    An instance that the archive can't open is a failed sub-operation. Raises AssociationLost.
    """
    done: Counter[str] = Counter()
    try:
        for instance, opened in deliveries(archive, wanted, progress.cancelled):
            if progress.cancelled():
                return True
            if isinstance(opened, AzekuraError):
                _log.warning("suboperation_not_opened", error=type(opened).__name__)
                progress.reason = progress.reason or error_comment(opened)
                outcome = FAILED
            else:
                outcome = send(instance, opened.dataset)
            done[instance.sop_instance_uid] += 1
            progress.count(outcome, instance.sop_instance_uid)
    except (AssociationLost, StorageFailed):
        raise
    except AzekuraError as error:
        _log.warning("suboperations_cut_short", error=type(error).__name__)
    if progress.remaining and progress.cancelled():
        return True
    if progress.remaining:
        left = Counter(instance.sop_instance_uid for instance in wanted) - done
        for sop_instance_uid in left.elements():
            progress.count(FAILED, sop_instance_uid)
    return False


Delivery = tuple[Instance, Opened | AzekuraError]


def deliveries(
    archive: Retriever, wanted: Sequence[Any], cancelled: Callable[[], bool]
) -> Generator[Delivery, None, None]:
    """Yield the instances as the archive opens them; end early when cancelled in a wait.

    What is all at hand is opened on the caller's thread. What must be recalled first is opened on
    a thread of its own, so that a cancel or a lost requestor is noticed while it is on its way.
    """
    if all(instance.online for instance in wanted):
        with contextlib.closing(archive.open_all(wanted)) as opened:
            yield from opened
        return
    feeder = _Feeder(archive, wanted)
    feeder.start()
    try:
        while True:
            try:
                delivery = feeder.slot.get(timeout=CANCEL_CHECK_S)
            except queue.Empty:
                if cancelled():
                    return
                continue
            if delivery is None:
                return
            if isinstance(delivery, BaseException):
                raise delivery
            yield delivery
            feeder.consumed.release()
    finally:
        feeder.stop()


class _Feeder(threading.Thread):
    """Iterates the archive's deliveries.

    It ends with the iteration, or after the step in which `stop` was called, whose length the
    archive bounds.
    """

    def __init__(self, archive: Retriever, wanted: Sequence[Any]) -> None:
        super().__init__(name="deliveries", daemon=True)
        self.slot: queue.SimpleQueue[Delivery | BaseException | None] = queue.SimpleQueue()
        self.consumed = threading.Semaphore(0)
        self._archive = archive
        self._wanted = wanted
        self._stopped = False  # written by the consumer, read here after each step

    def run(self) -> None:
        try:
            with contextlib.closing(self._archive.open_all(self._wanted)) as opened:
                for delivery in opened:
                    self.slot.put(delivery)
                    self.consumed.acquire()
                    if self._stopped:
                        return
        except BaseException as cause:  # noqa: BLE001 - raised again on the consumer's thread
            self.slot.put(cause)
        else:
            self.slot.put(None)

    def stop(self) -> None:
        self._stopped = True
        self.consumed.release()
