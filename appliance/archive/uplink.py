"""The way to the cloud: seal, upload, ledger, verified. What runs in `azekura uplink`.

Owns `packs/closed` → `packs/sealed`, the spool, and this node's ledger. One process at a time,
under `state/uplink.lock`.

Invariants:
- A pack becomes verified in the index only after the ledger entry that names it is in the bucket.
- A pack whose record is queued stays pending until then; a crash in between finds the bucket's copy
  by its spool note and goes on from there.
- A pack is looked up in the index after it was taken: one that was verified meanwhile is not
  uploaded, and so not named, a second time.
- A record that is written or not is never guessed at: the ledger knows whether its last entry is
  still to be put.
- While ForeignWriter or an unfit bucket stands, no upload starts and no entry is written; receiving
  goes on.
- Which pack goes next is the rule of `turns`.
Threads: `upload_workers` take packs to the bucket, one thread writes the ledger; `_lock` guards the
two queues and the set of packs in work.
"""

import os
import threading
from collections.abc import Callable
from typing import NamedTuple

from appliance.archive.applying import apply_record
from appliance.archive.bucket_watch import BucketWatch
from appliance.archive.index_condition import IndexCondition
from appliance.archive.key_change import KeyChange
from appliance.archive.layout import Layout, packs_in
from appliance.archive.ledger import Ledger
from appliance.archive.problem import Problem
from appliance.archive.records import Opened, PackRecord, Record, record_bytes
from appliance.archive.senders import pack_sender
from appliance.archive.turns import Turns
from appliance.archive.upload import PackUpload
from appliance.foundation import log
from appliance.foundation.clock import Clock, isoformat
from appliance.foundation.errors import (
    AzekuraError,
    CloudError,
    CloudMisconfigured,
    Damaged,
    ForeignWriter,
    IndexDamaged,
    ObjectExists,
    StorageFailed,
)
from appliance.foundation.files import FileSystem
from appliance.index.index import Index
from appliance.index.writing import WriteTransaction
from appliance.packs.sealing import seal
from appliance.remote.link import Backoff
from appliance.remote.store import Lane

UPLOAD_WORKERS = 3
SCAN_S = 0.5
LEDGER_BATCH_S = 2.0
LEDGER_BATCH_BYTES = 4 * 2**20
MISCONFIGURED_RETRY_S = 60.0

_log = log.get("uplink")


class Queued(NamedTuple):
    """A record on its way into the ledger, and whom to tell when it is there."""

    record: Record
    on_written: Callable[[], None] | None


class Uplink:
    """Moves every closed pack to verified, and writes this node's ledger."""

    def __init__(
        self,
        files: FileSystem,
        clock: Clock,
        layout: Layout,
        index: Index,
        ledger: Ledger,
        upload: PackUpload,
        software: str,
        on_fatal: Callable[[StorageFailed], None],
        bucket: BucketWatch | None = None,
        condition: IndexCondition | None = None,
        keys: KeyChange | None = None,
        salvage: Callable[[str], bool] | None = None,
        opens: Callable[[], bool] | None = None,
    ) -> None:
        """Take over; nothing runs before `start`.

        `bucket`, `condition`: what is known of bucket and index; without one it is sound.
        `keys`: what is told of the keys when they change. `salvage`: called with a damaged pack
        that a thread here has in work; tells whether it was taken out of the way. `opens`: whether
        a node that begins its ledger only when there is something to write in it should begin now;
        None for one that begins at its start.
        """
        self._keys = keys
        self._salvage = salvage
        self._bucket = bucket
        self._condition = condition
        self._files = files
        self._clock = clock
        self._layout = layout
        self._index = index
        self._ledger = ledger
        self._upload = upload
        self._software = software
        self._on_fatal = on_fatal
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._waiting = Turns()
        self._in_work: set[str] = set()
        self._urgent: set[str] = set()
        self._settled: set[str] = set()
        self._records: list[Queued] = []
        self._records_since_s = 0.0
        self._drained_bytes = 0
        self._idle_count = 0
        self._problems: dict[str, Problem] = {}
        self._foreign = False
        self._ledger_ready = threading.Event()
        self._opens = opens
        # Set once there is a ledger, or something to write in one.
        self._needed = threading.Event()
        if opens is None or ledger.begun:
            self._needed.set()
        self._threads: list[threading.Thread] = []

    # --- life

    def start(self) -> None:
        """Start the threads; returns at once, also while the cloud is out of reach."""
        self._threads = [
            threading.Thread(target=self._guard(self._run_ledger), name="ledger"),
            threading.Thread(target=self._guard(self._run_scan), name="sealer"),
            *(
                threading.Thread(target=self._guard(self._run_worker), name=f"upload-{number}")
                for number in range(UPLOAD_WORKERS)
            ),
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop after what is in flight; what is queued is found again at the next start."""
        self._stop.set()
        with self._work:
            self._work.notify_all()
        for thread in self._threads:
            thread.join()

    @property
    def threads(self) -> list[threading.Thread]:
        """What works, from `start` to `stop`."""
        return list(self._threads)

    def problems(self) -> list[Problem]:
        """Return what stands in the way now."""
        found = self._bucket.problem if self._bucket is not None else None
        unfit = found is not None and not self._may_send
        with self._lock:
            problems = [
                each
                for each in self._problems.values()
                if not (unfit and each.condition == "cloud")  # it says the same of one request
            ]
        return problems if found is None else [found, *problems]

    @property
    def _may_send(self) -> bool:
        return self._bucket is None or self._bucket.may_send

    def _suspect_bucket(self, error: CloudError) -> None:
        if self._bucket is not None and isinstance(error, CloudMisconfigured):
            self._bucket.suspect()

    @property
    def owns_name(self) -> bool | None:
        """Whether the ledger under this node's name is this box's; None while that is not known."""
        with self._lock:
            if self._foreign:
                return False
            known = self._ledger_ready.is_set() or "ledger" in self._problems
            return True if known or not self._needed.is_set() else None

    @property
    def incarnation(self) -> str:
        """The random value of this start."""
        return self._ledger.incarnation

    @property
    def sequence(self) -> int:
        """The last ledger sequence that the bucket has."""
        return self._ledger.sequence

    @property
    def drained_bytes(self) -> int:
        """Bytes of the packs that became verified since the start."""
        return self._drained_bytes

    @property
    def backlogged(self) -> bool:
        """Whether packs wait for a worker that is free."""
        return bool(self._waiting)

    @property
    def idle_count(self) -> int:
        """How often a worker found nothing to take: while it stands, all were at work."""
        return self._idle_count

    @property
    def busy(self) -> bool:
        """Whether a pack is on its way, to the bucket or into the ledger."""
        return bool(self._in_work)

    @property
    def may_write(self) -> bool:
        """Whether the ledger is open, and neither it nor the bucket stands still."""
        with self._lock:
            hindered = not self._problems.keys().isdisjoint({"ledger", "cloud"})
        return self._ledger_ready.is_set() and self._may_send and not hindered

    def hurry(self, pack_ids: set[str]) -> None:
        """Put packs into the urgent lane: somebody waits for them to be verified."""
        with self._work:
            self._urgent |= pack_ids
            for pack_id in pack_ids:
                self._waiting.hurry(pack_id)

    def borrow(self, pack_id: str) -> bool:
        """Keep a pending pack from being uploaded until it is given back; False if it is now."""
        with self._lock:
            if pack_id in self._in_work:
                return False
            self._in_work.add(pack_id)
            return True

    def record(self, record: Record, on_written: Callable[[], None] | None = None) -> None:
        """Queue a record for the next ledger entry; `on_written` is called once it is there."""
        self._queue(Queued(record, on_written))

    def _guard(self, body: Callable[[], None]) -> Callable[[], None]:
        """Let whatever a thread does not expect end the daemon: a part of it would be worse."""

        def run() -> None:
            try:
                body()
            except Exception as error:  # noqa: BLE001 - the boundary of a thread
                _log.critical("uplink_thread_failed", error=log.where(error))
                self._stop.set()
                self._on_fatal(as_failure(error))

        return run

    # --- sealing and choosing

    def _run_scan(self) -> None:
        while not self._stop.is_set():
            self._seal_closed()
            try:
                self._look_for_need()
                if self._knows_all:
                    self._find_pending()
            except IndexDamaged as error:
                _log.error("index_damaged", cause=error.cause)
            self._clock.wait(self._stop, SCAN_S)

    @property
    def _knows_all(self) -> bool:
        """Whether the index has all that the ledger names: else it would be uploaded again."""
        return self._ledger_ready.is_set() and self._index_is_whole

    @property
    def _index_is_whole(self) -> bool:
        return self._condition is None or self._condition.incomplete() is None

    def _look_for_need(self) -> None:
        """Begin the ledger once studies are taken here, or one is here that no ledger names."""
        if self._needed.is_set() or self._opens is None:
            return
        if self._opens() or (self._index_is_whole and self._not_verified()):
            self._needed.set()

    def _seal_closed(self) -> None:
        for pack_id in packs_in(self._layout.closed):
            if self._stop.is_set():
                return
            path = self._layout.closed_path(pack_id)
            try:
                seal(self._files, path)
                self._files.rename(path, self._layout.sealed_path(pack_id))
            except StorageFailed:
                raise
            except (AzekuraError, OSError) as error:
                # What can't be salvaged stays where it is: nobody else has it.
                self._salvage_or_report(pack_id, as_error(error, f"pack {pack_id}"))
            else:
                self._clear(f"pack:{pack_id}")

    def _salvage_or_report(self, pack_id: str, error: AzekuraError) -> bool:
        """Have a damaged pack taken out of the way, and tell whether it was; else report it."""
        if isinstance(error, Damaged) and not isinstance(error, IndexDamaged) and self._salvage:
            try:
                if self._salvage(pack_id):
                    self._clear(f"pack:{pack_id}")
                    return True
            except StorageFailed:
                raise
            except AzekuraError as hindrance:
                error = hindrance
        self._report(f"pack:{pack_id}", error)
        return False

    def _not_verified(self) -> list[str]:
        """Return the sealed packs that the index does not call verified and nobody works on."""
        sealed = packs_in(self._layout.sealed)
        with self._lock:
            unknown = [
                pack_id
                for pack_id in sealed
                if not (
                    pack_id in self._settled or pack_id in self._waiting or pack_id in self._in_work
                )
            ]
        pending = []
        with self._index.read() as view:
            for pack_id in unknown:
                row = view.pack(pack_id)
                if row is not None and row.cloud is not None:
                    self._settled.add(pack_id)
                else:
                    pending.append(pack_id)
        return pending

    def _find_pending(self) -> None:
        pending = self._not_verified()
        senders = {pack_id: pack_sender(self._layout.sealed_path(pack_id)) for pack_id in pending}
        with self._work:
            for pack_id, sender in senders.items():
                if pack_id not in self._in_work:
                    self._waiting.add(pack_id, sender, urgent=pack_id in self._urgent)
            self._work.notify_all()

    # --- uploading

    def _run_worker(self) -> None:
        backoff = Backoff()
        while (taken := self._take()) is not None:
            wait_s = self._upload_one(*taken, backoff)
            if wait_s:
                self._clock.wait(self._stop, wait_s)

    def _upload_one(self, lane: int, pack_id: str, backoff: Backoff) -> float:
        """Upload a pack and queue its record; return how long to wait before the next."""
        try:
            if self._is_verified(pack_id):
                self.give_back(pack_id)
                return 0.0
            sealed = seal(self._files, self._layout.sealed_path(pack_id))
            self._check_complete(pack_id, len(sealed.members))
            record = self._upload.upload(pack_id, sealed, Lane(lane))
        except StorageFailed:
            raise
        except ObjectExists as error:
            self._report(f"pack:{pack_id}", error)  # nothing helps but a look at the bucket
            return 0.0
        except CloudError as error:
            self.give_back(pack_id)
            self._report("cloud", error)
            self._suspect_bucket(error)
            return backoff.next_delay_s() if error.retry else MISCONFIGURED_RETRY_S
        except (AzekuraError, OSError) as error:
            found = as_error(error, f"pack {pack_id}")
            salvaged = self._salvage_or_report(pack_id, found)
            if not (salvaged or found.retry or isinstance(found, IndexDamaged)):
                return 0.0  # it stays in work: tried again after a restart only
            self.give_back(pack_id)
            return 0.0 if salvaged else backoff.next_delay_s()
        backoff.reset()
        self._clear("cloud")
        self._clear(f"pack:{pack_id}")
        self._queue(Queued(record, None))
        return 0.0

    def _check_complete(self, pack_id: str, count: int) -> None:
        """Raise Damaged when the index knows of more members: recovery has found some damaged."""
        with self._index.read() as view:
            row = view.pack(pack_id)
        if row is not None and row.instance_count > count:
            raise Damaged("upload", f"pack {pack_id}", "members that were received are gone")

    def _is_verified(self, pack_id: str) -> bool:
        with self._index.read() as view:
            row = view.pack(pack_id)
        return row is not None and row.cloud is not None

    def _take(self) -> tuple[int, str] | None:
        with self._work:
            while not self._stop.is_set():
                ready = self._knows_all and "ledger" not in self._problems and self._may_send
                if self._waiting and ready:
                    lane, pack_id = self._waiting.take(self._clock.now())
                    if pack_id in self._in_work:
                        continue  # borrowed: the scan finds it again
                    self._in_work.add(pack_id)
                    return lane, pack_id
                self._idle_count += 1
                self._work.wait(1.0)
        return None

    def give_back(self, pack_id: str) -> None:
        """Let a pack be found again by the next scan, or be settled by it."""
        with self._lock:
            self._in_work.discard(pack_id)

    # --- the ledger

    def _queue(self, queued: Queued) -> None:
        with self._work:
            if not self._records:
                self._records_since_s = self._clock.monotonic_s()
            self._needed.set()
            self._records.append(queued)
            self._work.notify_all()

    def _run_ledger(self) -> None:
        while not self._needed.is_set():
            if self._clock.wait(self._stop, SCAN_S):
                return
        self._until_it_works(self._open_ledger)
        while True:
            batch = self._next_batch()
            if not batch:
                return
            if not self._write_batch(batch):
                return

    def _open_ledger(self) -> None:
        """Agree with the bucket and say that we started; called again after an error."""
        self._ledger.start()
        self._apply_missing()
        if not self._ledger.opened:
            opened = Opened(
                incarnation=self._ledger.incarnation,
                software=self._software,
                at=isoformat(self._clock.now()),
            )
            keys = self._keys.record(self._ledger.sequence) if self._keys is not None else None
            self._ledger.append([opened] if keys is None else [opened, keys])
        self._apply(self._ledger.sequence, [])
        if self._keys is not None:
            self._keys.settle()
        self._sweep_spool()
        self._clear("cloud")
        self._ledger_ready.set()

    def _sweep_spool(self) -> None:
        """Remove spool copies of packs that were verified just before the last end."""
        for name in os.listdir(self._layout.spool):
            pack_id = name.partition(".")[0]
            with self._index.read() as view:
                row = view.pack(pack_id)
            verified = row is not None and row.cloud is not None
            if verified or not name.endswith((".tar.age", ".json")):
                self._files.unlink(os.path.join(self._layout.spool, name))

    def _apply_missing(self) -> None:
        """Teach the index what the ledger says and it does not know."""
        with self._index.read() as view:
            known = view.progress(self._ledger.node)
        for entry in self._ledger.entries(max(known, 0) + 1):
            self._apply(entry.header.sequence, entry.records)

    def _next_batch(self) -> list[Queued]:
        """Return the records of the next entry; empty when it is time to stop."""
        with self._work:
            while True:
                if self._records:
                    age_s = self._clock.monotonic_s() - self._records_since_s
                    idle = not self._waiting and len(self._in_work) <= len(self._records)
                    full = (
                        sum(record_bytes(each.record) for each in self._records)
                        >= LEDGER_BATCH_BYTES
                    )
                    if age_s >= LEDGER_BATCH_S or full or idle or self._stop.is_set():
                        batch, self._records = self._records, []
                        return batch
                elif self._stop.is_set():
                    return []
                self._work.wait(0.05 if self._records else 0.5)

    def _write_batch(self, batch: list[Queued]) -> bool:
        """Bring one entry into the bucket and the index; False when stopped before."""
        records = [queued.record for queued in batch]
        before = self._ledger.sequence

        def write() -> None:
            if self._ledger.unconfirmed:
                self._ledger.resume()
            elif self._ledger.sequence == before:
                self._ledger.append(records)
            self._clear("cloud")

        if not self._until_it_works(write):
            return False
        if not self._until_it_works(
            lambda: self._apply(self._ledger.sequence, records), sends=False
        ):
            return False
        for queued in batch:
            if queued.on_written is not None:
                queued.on_written()
            if isinstance(queued.record, PackRecord):
                pack_id = queued.record.pack_id
                self._upload.forget(pack_id)
                self._drained_bytes += queued.record.plain_size_bytes
                with self._lock:
                    self._in_work.discard(pack_id)
                    self._urgent.discard(pack_id)
        return True

    def _until_it_works(self, attempt: Callable[[], None], *, sends: bool = True) -> bool:
        """Call until no error comes but a failed disk's; False when stopped before.

        `sends`: it uses the bucket, and waits while that is unfit.
        """
        backoff = Backoff()
        while not self._stop.is_set():
            if sends and not self._may_send:
                self._clock.wait(self._stop, SCAN_S)
                continue
            try:
                attempt()
            except StorageFailed:
                raise
            except ForeignWriter as error:
                self._report("ledger", error)
                self._clock.wait(self._stop, MISCONFIGURED_RETRY_S)
            except CloudError as error:
                self._report("cloud", error)
                self._suspect_bucket(error)
                self._clock.wait(self._stop, backoff.next_delay_s())
            except AzekuraError as error:
                self._report("ledger", error)
                wait_s = backoff.next_delay_s() if error.retry else MISCONFIGURED_RETRY_S
                self._clock.wait(self._stop, wait_s)
            else:
                self._clear("ledger")
                return True
        return False

    def _apply(self, sequence: int, records: list[Record]) -> None:
        def apply(txn: WriteTransaction) -> None:
            for position, record in enumerate(records):
                apply_record(txn, record, self._ledger.node, sequence, position)
            txn.remember(self._ledger.node, sequence)

        self._index.transact(apply)

    # --- problems

    def _report(self, condition: str, error: AzekuraError) -> None:
        with self._lock:
            known = condition in self._problems
            self._problems[condition] = Problem(condition, str(error), error.hint)
            self._foreign = self._foreign or isinstance(error, ForeignWriter)
        if not known:
            _log.warning("problem", condition=condition, error=type(error).__name__)

    def _clear(self, condition: str) -> None:
        with self._lock:
            if condition == "ledger":
                self._foreign = False
            if self._problems.pop(condition, None) is not None:
                _log.info("problem_over", condition=condition)


def as_error(error: Exception, subject: str) -> AzekuraError:
    """Return an error of ours for one that reading a file gave."""
    if isinstance(error, AzekuraError):
        return error
    return Damaged("read", subject, str(error), "Check the disk")


def as_failure(error: Exception) -> StorageFailed:
    """Return the failure for which the daemon stops."""
    if isinstance(error, StorageFailed):
        return error
    return StorageFailed("run the uplink", type(error).__name__, str(error), "See the log")
