"""The book of storage commitment transactions: which were asked for, decided and reported.

Owns `state/commitment/`: one JSON file a transaction, written before the request is answered and
at each change of state. Must not know about associations; whoever sends reports asks `due` and
says what became of them.

State of a transaction: waiting → due → reported, or due → given_up. Invariants:
- A transaction is decided once every instance is settled (its rung reached, or failed for good),
  or at its deadline; a decision is written before it is sent and never changes (PS3.4 J.3.3).
- A report is repeated until the peer has confirmed it, or for REPORT_MAX_S; then it stays in the
  book as given up, and can be asked for again under the same transaction UID.
- A request with the same caller, transaction UID and content is the same transaction.
"""

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence

import msgspec

from appliance.foundation import log
from appliance.foundation.clock import Clock, to_microseconds
from appliance.foundation.errors import LimitExceeded, NotFound, Refused
from appliance.foundation.files import FileSystem

FORMAT = 1
INSTANCES_MAX = 100_000
OPEN_TRANSACTIONS_MAX = 10_000
UNKNOWN_INSTANCE_GRACE_S = 60.0
CHECK_INTERVAL_MIN_S = 0.25
CHECK_INTERVAL_MAX_S = 5.0
LOOKUP_BATCH_COUNT = 256
RETRY_MIN_S = 15.0
RETRY_MAX_S = 3600.0
REPORT_MAX_S = 7 * 86400.0
FINISHED_KEPT_S = 30 * 86400.0
CLOCK_STEP_MAX_S = 86400.0

# PS3.3 C.14.1.1
PROCESSING_FAILURE = 0x0110
NO_SUCH_OBJECT_INSTANCE = 0x0112
CLASS_INSTANCE_CONFLICT = 0x0119
RESOURCE_LIMITATION = 0x0213

WAITING = "waiting"
DUE = "due"
REPORTED = "reported"
GIVEN_UP = "given_up"

_RUNGS = ("local", "cloud", "locked")
_log = log.get("commitment")


class Reached(msgspec.Struct, frozen=True):
    """What the archive knows of an instance; a rung that is reached stays reached."""

    sop_class_uid: str
    local: bool
    cloud: bool
    locked: bool
    hidden: bool = False
    damaged: bool = False
    unknown_yet: bool = False


NOT_KNOWN_YET = Reached("", local=False, cloud=False, locked=False, unknown_yet=True)
"""For an instance of which an archive that is still reading cannot say whether it is there."""


class Reference(msgspec.Struct, frozen=True):
    """An instance whose commitment is asked for."""

    sop_class_uid: str
    sop_instance_uid: str


class Failure(msgspec.Struct, frozen=True):
    """An instance that is not committed, and the Failure Reason (0008,1197)."""

    sop_class_uid: str
    sop_instance_uid: str
    reason: int


class CommitmentRequest(msgspec.Struct, frozen=True):
    """What a peer asked for, and what its configuration promises it."""

    transaction_uid: str
    calling_ae: str
    called_ae: str
    peer_address: str
    rung: str
    deadline_s: float
    instances: tuple[Reference, ...]


class Transaction(msgspec.Struct, frozen=True):
    """One transaction as it lies on the disk. Times are microseconds since 1970 UTC."""

    format: int
    transaction_uid: str
    calling_ae: str
    called_ae: str
    peer_address: str
    rung: str
    instances: tuple[Reference, ...]
    requested_at_us: int
    deadline_at_us: int
    state: str = WAITING
    failures: tuple[Failure, ...] = ()
    decided_at_us: int = 0
    attempts_count: int = 0
    next_attempt_at_us: int = 0
    finished_at_us: int = 0

    @property
    def key(self) -> str:
        """The name of the transaction in the book."""
        return transaction_key(self.calling_ae, self.transaction_uid)

    @property
    def succeeded(self) -> tuple[Reference, ...]:
        """The instances that are committed, once decided."""
        failed = {failure.sop_instance_uid for failure in self.failures}
        return tuple(item for item in self.instances if item.sop_instance_uid not in failed)


class _Check:
    """What is known of a waiting transaction. Owned by the thread that calls `settle`."""

    def __init__(self, transaction: Transaction) -> None:
        self.unsettled = list(transaction.instances)
        self.failures: list[Failure] = []
        self.on_its_way: set[str] = set()  # what `on_waiting` was told of
        self.next_at_us = 0
        self.interval_s = CHECK_INTERVAL_MIN_S


Lookup = Callable[[Sequence[str]], dict[str, Reached]]
OnWaiting = Callable[[Sequence[str]], None]

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Transaction).decode


def transaction_key(calling_ae: str, transaction_uid: str) -> str:
    """Return the transaction's name in the book: no UID of a peer becomes a path."""
    return hashlib.sha256(f"{calling_ae}\0{transaction_uid}".encode()).hexdigest()


class CommitmentBook:
    """The transactions of this node, durable. Thread-safe.

    `_lock` guards `_open` (transactions that are waiting or due) and the files. `settle` is called
    by one thread, the reporter's, which alone owns `_checks`. `on_waiting` is called on it, once
    for each instance of a transaction that is here but not yet at the rung that was asked for.
    """

    def __init__(
        self,
        files: FileSystem,
        directory: str,
        clock: Clock,
        lookup: Lookup,
        on_waiting: OnWaiting | None = None,
    ) -> None:
        self._files = files
        self._directory = directory
        self._clock = clock
        self._lookup = lookup
        self._on_waiting = on_waiting
        self._lock = threading.RLock()
        self._open: dict[str, Transaction] = {}
        self._checks: dict[str, _Check] = {}
        self.changed = threading.Event()
        files.make_directory(directory)
        self._load()

    # --- asking

    def request(self, request: CommitmentRequest) -> Transaction:
        """Write a transaction down; it is durable when this returns.

        The same request again is the same transaction; if it was finished, its report is due once
        more. Raises Refused for a transaction UID in use with another content or a request without
        instances, LimitExceeded past the limits, OutOfSpace and StorageFailed from the disk.
        """
        if not request.instances:
            raise Refused("take a commitment request", "", "it names no instance")
        if len(request.instances) > INSTANCES_MAX:
            raise LimitExceeded("take a commitment request", "", f"over {INSTANCES_MAX} instances")
        now_us = self._now_us()
        asked = Transaction(
            format=FORMAT,
            transaction_uid=request.transaction_uid,
            calling_ae=request.calling_ae,
            called_ae=request.called_ae,
            peer_address=request.peer_address,
            rung=request.rung,
            instances=_distinct(request.instances),
            requested_at_us=now_us,
            deadline_at_us=now_us + int(request.deadline_s * 1_000_000),
        )
        with self._lock:
            known = self._read(asked.key)
            if known is not None:
                return self._ask_again(known, asked)
            if len(self._open) >= OPEN_TRANSACTIONS_MAX:
                raise LimitExceeded("take a commitment request", "", "too many are open")
            self._write(asked)
        self.changed.set()
        _log.info("commitment_requested", instances_count=len(asked.instances), rung=asked.rung)
        return asked

    def _ask_again(self, known: Transaction, asked: Transaction) -> Transaction:
        if known.instances != asked.instances:
            raise Refused(
                "take a commitment request", "", "the transaction UID is in use for other instances"
            )
        if known.state not in (REPORTED, GIVEN_UP):
            return known
        if known.failures:
            # The peer may have sent again what failed, so the question is open again.
            known = asked
        else:
            known = msgspec.structs.replace(
                known,
                state=DUE,
                called_ae=asked.called_ae,
                peer_address=asked.peer_address,
                decided_at_us=self._now_us(),
                attempts_count=0,
                next_attempt_at_us=0,
                finished_at_us=0,
            )
        self._write(known)
        self.changed.set()
        return known

    # --- deciding

    def settle(self) -> None:
        """Decide every waiting transaction that can be decided now. One thread calls this."""
        now_us = self._now_us()
        with self._lock:
            waiting = [item for item in self._open.values() if item.state == WAITING]
        self._checks = {item.key: self._checks.get(item.key) or _Check(item) for item in waiting}
        for item in waiting:
            check = self._checks[item.key]
            overdue = now_us >= item.deadline_at_us or _is_of_another_clock(item, now_us)
            if _is_ahead(check.next_at_us, now_us, CHECK_INTERVAL_MAX_S) and not overdue:
                continue
            if self._settle_some(item, check, now_us, overdue):
                check.interval_s = CHECK_INTERVAL_MIN_S
            else:
                check.interval_s = min(check.interval_s * 2, CHECK_INTERVAL_MAX_S)
            check.next_at_us = now_us + int(check.interval_s * 1_000_000)
            if not check.unsettled:
                self._decide(item, check.failures)

    def _settle_some(self, item: Transaction, check: _Check, now_us: int, overdue: bool) -> bool:
        """Settle batch by batch until a batch brings nothing; all of them at the deadline."""
        unsettled, position = check.unsettled, 0
        kept: list[Reference] = []
        any_settled = False
        while position < len(unsettled):
            batch = unsettled[position : position + LOOKUP_BATCH_COUNT]
            position += LOOKUP_BATCH_COUNT
            still = self._settle_batch(item, check, batch, now_us, overdue)
            kept += still
            if len(still) == len(batch):
                break
            any_settled = True
        # What does not move goes to the end, so that every batch gets its turn.
        check.unsettled = unsettled[position:] + kept
        return any_settled

    def _settle_batch(
        self,
        item: Transaction,
        check: _Check,
        batch: Sequence[Reference],
        now_us: int,
        overdue: bool,
    ) -> list[Reference]:
        graced_us = item.requested_at_us + int(UNKNOWN_INSTANCE_GRACE_S * 1_000_000)
        found = self._lookup([reference.sop_instance_uid for reference in batch])
        still: list[Reference] = []
        waiting: list[str] = []
        for reference in batch:
            reached = found.get(reference.sop_instance_uid)
            reason = _judge(reference, reached, item.rung)
            if reached is None and now_us < graced_us and not overdue:
                reason = None  # the index may be behind, or the instance on its way
            if reason is None and overdue:
                reason = RESOURCE_LIMITATION
            if reason is None:
                still.append(reference)
                if reached is not None and reference.sop_instance_uid not in check.on_its_way:
                    waiting.append(reference.sop_instance_uid)
            elif reason:
                check.failures.append(
                    Failure(reference.sop_class_uid, reference.sop_instance_uid, reason)
                )
        if waiting and self._on_waiting is not None:
            check.on_its_way.update(waiting)
            self._on_waiting(waiting)
        return still

    def _decide(self, item: Transaction, failures: Sequence[Failure]) -> None:
        with self._lock:
            self._write(
                msgspec.structs.replace(
                    item, state=DUE, failures=tuple(failures), decided_at_us=self._now_us()
                )
            )
        self._checks.pop(item.key, None)
        _log.info(
            "commitment_decided",
            instances_count=len(item.instances),
            failures_count=len(failures),
        )

    # --- reporting

    def due(self) -> list[Transaction]:
        """Return the transactions whose report should be tried now, oldest decision first."""
        now_us = self._now_us()
        with self._lock:
            found = [
                item
                for item in self._open.values()
                if item.state == DUE and not _is_ahead(item.next_attempt_at_us, now_us, RETRY_MAX_S)
            ]
        return sorted(found, key=lambda item: item.decided_at_us)

    def mark_reported(self, key: str) -> None:
        """Say that the peer has confirmed the report."""
        with self._lock:
            item = self._open.get(key)
            if item is not None and item.state == DUE:
                self._write(
                    msgspec.structs.replace(item, state=REPORTED, finished_at_us=self._now_us())
                )

    def mark_failed(self, key: str) -> None:
        """Say that an attempt to report did not work; the next one waits longer."""
        with self._lock:
            item = self._open.get(key)
            if item is None or item.state != DUE:
                return
            now_us = self._now_us()
            attempts_count = item.attempts_count + 1
            wait_s = min(RETRY_MIN_S * 2 ** min(attempts_count - 1, 20), RETRY_MAX_S)
            changed = msgspec.structs.replace(
                item,
                attempts_count=attempts_count,
                next_attempt_at_us=now_us + int(wait_s * 1_000_000),
            )
            if now_us - item.decided_at_us > REPORT_MAX_S * 1_000_000:
                changed = msgspec.structs.replace(changed, state=GIVEN_UP, finished_at_us=now_us)
                _log.error("commitment_report_given_up", attempts_count=attempts_count)
            self._write(changed)

    def hurry(self, calling_ae: str) -> None:
        """Try that peer's reports at once: it has just shown that it lives."""
        with self._lock:
            for key, item in self._open.items():
                if item.calling_ae == calling_ae and item.state == DUE and item.next_attempt_at_us:
                    self._open[key] = msgspec.structs.replace(item, next_attempt_at_us=0)

    # --- looking

    def next_wake_s(self) -> float:
        """Return after how many seconds `settle` or `due` may have something new."""
        now_us = self._now_us()
        wait_us = int(CHECK_INTERVAL_MAX_S * 1_000_000)
        with self._lock:
            for item in self._open.values():
                if item.state == DUE:
                    wait_us = min(wait_us, item.next_attempt_at_us - now_us)
                else:
                    check = self._checks.get(item.key)
                    wait_us = min(wait_us, (check.next_at_us if check else 0) - now_us)
        return max(CHECK_INTERVAL_MIN_S, wait_us / 1_000_000)

    def find(self, calling_ae: str, transaction_uid: str) -> Transaction:
        """Return a transaction in any state; NotFound when the book does not have it."""
        with self._lock:
            found = self._read(transaction_key(calling_ae, transaction_uid))
        if found is None:
            raise NotFound("look up a commitment transaction")
        return found

    def open_transactions(self) -> list[Transaction]:
        """Return the transactions that are waiting or due, oldest first."""
        with self._lock:
            return sorted(self._open.values(), key=lambda item: item.requested_at_us)

    def transactions(self) -> Iterator[Transaction]:
        """Yield every transaction of the book, finished ones too, in no order."""
        for name in os.listdir(self._directory):
            if name.endswith(".json"):
                with self._lock:
                    found = self._read(name.removesuffix(".json"))
                if found is not None:
                    yield found

    def prune(self) -> int:
        """Remove what was finished FINISHED_KEPT_S ago; return how many."""
        horizon_us = self._now_us() - int(FINISHED_KEPT_S * 1_000_000)
        removed = 0
        for item in list(self.transactions()):
            if item.state in (REPORTED, GIVEN_UP) and item.finished_at_us < horizon_us:
                with self._lock:
                    if item.key not in self._open:
                        self._files.unlink(self._path(item.key))
                        removed += 1
        return removed

    # --- files

    def _now_us(self) -> int:
        return to_microseconds(self._clock.now())

    def _path(self, key: str) -> str:
        return os.path.join(self._directory, f"{key}.json")

    def _load(self) -> None:
        for name in sorted(os.listdir(self._directory)):
            if name.endswith(".tmp"):
                self._files.unlink(os.path.join(self._directory, name))
            elif name.endswith(".json"):
                item = self._read(name.removesuffix(".json"))
                if item is not None and item.state in (WAITING, DUE):
                    self._open[item.key] = item

    def _read(self, key: str) -> Transaction | None:
        if key in self._open:
            return self._open[key]
        path = self._path(key)
        try:
            with open(path, "rb") as stream:
                item = _decode(stream.read())
        except FileNotFoundError:
            return None
        except (msgspec.DecodeError, msgspec.ValidationError):
            item = None
        if item is None or item.format != FORMAT:
            _log.error("commitment_transaction_unreadable", file=os.path.basename(path))
            with contextlib.suppress(FileNotFoundError):
                self._files.rename(path, f"{path}.unreadable")
            return None
        return item

    def _write(self, item: Transaction) -> None:
        self._files.write_atomic(self._path(item.key), _encode(item))
        if item.state in (WAITING, DUE):
            self._open[item.key] = item
        else:
            self._open.pop(item.key, None)


def _distinct(instances: Sequence[Reference]) -> tuple[Reference, ...]:
    return tuple({item.sop_instance_uid: item for item in instances}.values())


def _is_ahead(at_us: int, now_us: int, ahead_max_s: float) -> bool:
    """Tell whether a time is still to come; one too far ahead was set before the clock went back.

    Wall time is what outlives a restart, and what an administrator or NTP sets right at any moment.
    """
    return 0 < at_us - now_us <= ahead_max_s * 1_000_000


def _is_of_another_clock(item: Transaction, now_us: int) -> bool:
    """Tell whether it was asked for at a time that has not come yet: its deadline says nothing."""
    return item.requested_at_us - now_us > CLOCK_STEP_MAX_S * 1_000_000


def _judge(reference: Reference, reached: Reached | None, rung: str) -> int | None:
    """Return 0 for reached, a Failure Reason for failed for good, None for not yet."""
    if reached is None or reached.hidden:
        return NO_SUCH_OBJECT_INSTANCE
    if reached.unknown_yet:
        return None
    if reached.sop_class_uid != reference.sop_class_uid:
        return CLASS_INSTANCE_CONFLICT
    if reached.damaged:
        return PROCESSING_FAILURE
    position = _RUNGS.index(rung)
    reaches = (reached.local or reached.cloud or reached.locked, reached.cloud or reached.locked)
    done = (*reaches, reached.locked)[position]
    return 0 if done else None
