"""`azekura uplink`: seal, encrypt, upload, verify, ledger, follow, evict, and requests of others.

Holds `state/uplink.lock`: one uplink at a time writes to the bucket. Reads the configuration file
again when it changes, and takes the throttle from it. A standby that takes no stores has no ledger
and uploads nothing: what is left of the uplink follows, evicts and recalls.
"""

import gc
import os
import threading
from collections.abc import Callable
from functools import partial

from appliance import __version__
from appliance.archive.abandoned import recover_abandoned
from appliance.archive.accepting import Accepting
from appliance.archive.adopted import AdoptedBook
from appliance.archive.backlog import BacklogWatch
from appliance.archive.bucket_watch import BucketWatch
from appliance.archive.checkpoint_read import CheckpointSource
from appliance.archive.control import Control
from appliance.archive.evict import Evictor
from appliance.archive.follow import Follower
from appliance.archive.indexer import mark_found
from appliance.archive.ledger import Ledger
from appliance.archive.pins import Pins
from appliance.archive.problem import Problem
from appliance.archive.recall import Recaller, clear_abandoned
from appliance.archive.replica_watch import ReplicaWatch
from appliance.archive.requests import RequestBox
from appliance.archive.retention import Retention
from appliance.archive.status import UplinkStatus, bucket_trusted, write_uplink_status
from appliance.archive.uplink import Uplink, as_failure
from appliance.archive.upload import PackUpload
from appliance.config.load import load
from appliance.config.model import Config
from appliance.daemons.checkpointing import TURN_S as CHECKPOINT_S
from appliance.daemons.checkpointing import Checkpointing
from appliance.daemons.clock import ClockWatch
from appliance.daemons.drilling import Drilling
from appliance.daemons.keeping import KEEPING_S, Keeping
from appliance.daemons.liveness import TURN_SILENT_MAX_S
from appliance.daemons.mending import Mending
from appliance.daemons.neighbours import TURN_S, Neighbours
from appliance.daemons.parts import Parts
from appliance.daemons.running import Running, notify
from appliance.foundation import log
from appliance.foundation.errors import (
    AzekuraError,
    ConfigurationError,
    KeyUnavailable,
    StorageFailed,
)
from appliance.foundation.files import FileLock
from appliance.remote.link import Link
from appliance.remote.observed import ObservedStore
from appliance.seal.signing import SigningKey

NICE = 5  # receiving goes first when the processor is short
CONTROL_S = 0.2
STATUS_S = 1.0
BUCKET_S = 1.0
INDEX_WAIT_S = 2.0
EVICT_S = 5.0
BACKLOG_S = 30.0
DRILL_S = 60.0
RECOVER_S = 10.0
FOLLOW_S = 2.0
ORPHAN_S = 3600.0
CLOCK_S = 10.0
YOUNG_OBJECTS = 50_000

_log = log.get("uplink")


def run(config: Config, config_path: str) -> int:
    """Run until stopped; return the exit code."""
    running = Running()
    running.install()
    os.nice(NICE)
    parts = Parts(config, open_index=False)
    flock = FileLock(os.path.join(parts.layout.state, "uplink.lock"))
    flock.acquire()
    try:
        while not parts.try_index():
            _log.error("index_unusable")
            if parts.clock.wait(running.stop, INDEX_WAIT_S):
                return running.exit_code
        daemon = _Uplink(parts, config_path, running)
        # What is here now stays: the collector need not walk over it, and it takes a quarter of the
        # time in which a ledger is taken in if it looks at every burst of small objects.
        gc.freeze()
        gc.set_threshold(YOUNG_OBJECTS, 20, 100)
        daemon.start()
        notify("READY=1")
        try:
            return running.wait()
        finally:
            daemon.stop()
    finally:
        parts.close()
        flock.release()


class _Uplink:
    """The parts of the daemon and the loops around them; made and ended by the main thread."""

    def __init__(self, parts: Parts, config_path: str, running: Running) -> None:
        config = parts.config
        self._parts = parts
        self._config_path = config_path
        self._running = running
        self._stop = threading.Event()
        self._beat = running.liveness.beat("status", TURN_SILENT_MAX_S)
        self._config_mtime_ns = _mtime_ns(config_path)
        self._link = Link(parts.clock)
        store = ObservedStore(parts.store(), self._link)
        self._store = store
        self._bucket = BucketWatch(
            parts.clock, store, needs_lock=config.cloud.object_lock != "off",
            trusted=bucket_trusted(parts.layout, parts.clock),
        )  # fmt: skip
        space = parts.space()
        pins = Pins(parts.files, parts.layout.pins)
        replicas = parts.replicas()
        recaller = Recaller(
            parts.files, parts.clock, parts.layout, parts.reading(store, replicas), parts.index,
            space,
        )  # fmt: skip
        self._mending = Mending(parts, store, recaller, self._stop)
        self._uplink = self._writing(store) if config.writes else None
        self._follower = self._following(store)
        self._evictor = Evictor(
            parts.files, parts.clock, parts.layout, parts.index, store, space, pins,
            config.cache.high_water, config.cache.low_water, self._bucket,
            self._mending.cloud.is_suspect,
        )  # fmt: skip
        self._replicas = ReplicaWatch(
            parts.clock, [each.name for each in config.cloud.replicas], replicas,
            config.node.name, self._own_sequence,
        )  # fmt: skip
        requests = RequestBox(parts.files, parts.layout.requests)
        self._drilling = Drilling(
            parts, store, requests, parts.identities(), self._link, self._bucket, self._stop
        )
        self._keeping = Keeping(parts, store, self._uplink, self._bucket)
        self._control = Control(
            parts.clock, parts.index, requests, self._uplink, self._evictor, recaller, pins,
            config.node.name, self._drilling.book, self._mending.ask,
            self._keeping.disposal,
        )  # fmt: skip
        self._neighbours = Neighbours(parts, store, self._uplink, self._signing_key())
        self._evict_problem: Problem | None = None
        self._clocks = ClockWatch(parts.clock, store)
        # Whoever finds something wrong that status should show is asked by `_tell`.
        self._problem_sources: list[Callable[[], list[Problem]]] = [
            self._mending.problems,
            self._follower.problems,
            self._replicas.problems,
            self._neighbours.problems,
            self._keeping.problems,
            lambda: [self._evict_problem] if self._evict_problem is not None else [],
            self._clocks.problems,
        ]
        self._threads = self._loops()

    def _loops(self) -> list[threading.Thread]:
        parts = self._parts
        threads = [
            self._loop("control", CONTROL_S, self._control.run_once),
            self._loop("bucket", BUCKET_S, self._bucket.look_if_due),
            self._loop("replicas", BUCKET_S, self._replicas.look_if_due),
            self._loop("status", STATUS_S, self._tell),
            self._loop("evict", EVICT_S, self._evict),
            self._loop("recover", RECOVER_S, self._recover),
            self._loop("keeping", KEEPING_S, self._keeping.turn),
            self._loop("heartbeat", TURN_S, self._neighbours.turn),
            self._loop("follow", FOLLOW_S, lambda: self._follower.run(self._stop)),
            *(self._loop(*each) for each in self._mending.loops(self._uplink)),
            self._loop("clock", CLOCK_S, self._clocks.look),
        ]
        if self._uplink is not None:
            backlog = BacklogWatch(
                parts.files, parts.clock, parts.layout, parts.index, parts.space(), self._uplink,
                parts.throttle, self._link, parts.config.alarms, parts.condition,
            )  # fmt: skip
            checkpoints = self._checkpoints
            self._problem_sources[:0] = [
                self._uplink.problems, backlog.problems, checkpoints.problems,
                self._drilling.book.problems,
            ]  # fmt: skip
            threads.append(self._loop("drill", DRILL_S, self._drilling.keeper.look))
            threads.append(self._loop("backlog", BACKLOG_S, backlog.look))
            threads.append(self._loop("orphans", ORPHAN_S, self._abort_orphans))
            turn = partial(checkpoints.turn, self._uplink, self._stop)
            threads.append(self._loop("checkpoint", CHECKPOINT_S, turn))
        return threads

    def _writing(self, store: ObservedStore) -> Uplink:
        """Return what uploads packs and writes the own ledger."""
        parts, config = self._parts, self._parts.config
        identities, recipients = parts.identities(), parts.recipients()
        retention = Retention(
            store, config.cloud.object_lock, config.cloud.retention_s, parts.clock,
            config.cloud.retention_rules,
        )  # fmt: skip
        self._upload = PackUpload(
            parts.files, parts.clock, store, parts.layout, recipients, identities, retention
        )
        signing_key = SigningKey.load(config.keys.signing)
        ledger = Ledger(
            parts.files, parts.clock, store, parts.layout, config.node.name, signing_key,
            recipients, identities, retention,
        )  # fmt: skip
        self._checkpoints = Checkpointing(parts, store, signing_key, retention)
        # A standby has a ledger from the moment on at which it takes studies.
        accepting = Accepting(parts.layout, parts.clock, config)
        opens = (lambda: accepting.is_open) if config.node.role == "standby" else None
        return Uplink(
            parts.files, parts.clock, parts.layout, parts.index, ledger, self._upload,
            f"azekura {__version__}", self._fatal, self._bucket, parts.condition,
            self._checkpoints.keys, self._mending.salvage, opens,
        )  # fmt: skip

    def _signing_key(self) -> SigningKey | None:
        """Return the key of the heartbeat; None for a standby that was given none."""
        try:
            return SigningKey.load(self._parts.config.keys.signing)
        except KeyUnavailable:
            if self._parts.config.writes:
                raise
            return None

    def _own_sequence(self) -> int:
        return self._uplink.sequence if self._uplink is not None else 0

    def _following(self, store: ObservedStore) -> Follower:
        """Return what follows the ledgers of all other nodes."""
        parts = self._parts
        return Follower(
            parts.files, parts.clock, parts.layout, parts.index, store, parts.config.node.name,
            parts.identities(), parts.config.keys.signers, parts.condition,
            own_sequence=None if self._uplink is None else self._own_sequence,
            checkpoints=CheckpointSource(parts.files, store, parts.layout, parts.identities()),
            adopted=AdoptedBook(parts.files, parts.layout),
        )  # fmt: skip

    def start(self) -> None:
        """Put right what a crash left, then start every loop."""
        clear_abandoned(self._parts.files, self._parts.layout)
        mark_found(self._parts.layout, self._parts.index)
        if self._uplink is not None:
            self._uplink.start()
        self._neighbours.publish(self._parts.config)
        for thread in self._threads:
            thread.start()
        working = self._uplink.threads if self._uplink is not None else []
        self._running.liveness.watch([*self._threads, *working])

    def stop(self) -> None:
        """End every loop."""
        self._stop.set()
        self._mending.stop()
        self._control.close()
        if self._uplink is not None:
            self._uplink.stop()
        for thread in self._threads:
            thread.join()
        self._follower.close()

    def _fatal(self, failure: StorageFailed) -> None:
        self._running.fatal(failure)

    def _loop(self, name: str, period_s: float, body: Callable[[], object]) -> threading.Thread:
        def run_loop() -> None:
            while not self._stop.is_set():
                try:
                    body()
                except StorageFailed as failure:
                    self._fatal(failure)
                    return
                except AzekuraError as error:
                    _log.warning("loop_failed", loop=name, error=type(error).__name__)
                except Exception as error:  # noqa: BLE001 - the boundary of a thread
                    _log.critical("loop_failed", loop=name, error=log.where(error))
                    self._fatal(as_failure(error))
                    return
                self._parts.clock.wait(self._stop, period_s)

        return threading.Thread(target=run_loop, name=name)

    def _evict(self) -> None:
        try:
            self._evictor.keep_watermarks()
        except StorageFailed:
            raise
        except AzekuraError as error:
            self._evict_problem = Problem("evict", str(error), error.hint)
        else:
            self._evict_problem = None

    def _recover(self) -> None:
        recover_abandoned(self._parts.files, self._parts.layout)

    def _abort_orphans(self) -> None:
        count = self._upload.abort_orphans(self._checkpoints.upload_ids())
        if count:
            _log.info("orphan_uploads_aborted", count=count)

    def _tell(self) -> None:
        """Write what only this process knows, and take a changed throttle.

        It asks every part, under the locks of each: so this loop beats for them all.
        """
        self._beat()
        self._take_changes()
        problems = [each.document() for source in self._problem_sources for each in source()]
        throttle = self._parts.throttle
        write_uplink_status(
            self._parts.files,
            self._parts.layout,
            UplinkStatus(
                at_s=self._parts.clock.now().timestamp(),
                pid=os.getpid(),
                link=self._link.state,
                ledger_sequence=self._own_sequence(),
                upload_rate_bytes_per_s=throttle.sent_bytes_per_s(),
                throttle_bytes_per_s=throttle.rate_now_bytes_per_s(),
                problems=problems,
                bucket_trusted=self._bucket.trusted,
                replicas=self._replicas.document(),
                repair=self._mending.repairer.document(),
                scrub=self._mending.scrubbed(),
                following=[each.document() for each in self._follower.places()],
            ),
        )

    def _take_changes(self) -> None:
        changed = _mtime_ns(self._config_path)
        if changed == self._config_mtime_ns and not self._running.reload.is_set():
            return
        self._running.reload.clear()
        self._config_mtime_ns = changed
        try:
            config = load(self._config_path)
        except (ConfigurationError, OSError) as error:
            _log.error("configuration_not_taken", error=type(error).__name__)
            return
        self._parts.throttle.set_timetable(config.cloud.throttle, config.node.zone)
        _log.info("throttle_taken")
        self._neighbours.publish(config)


def _mtime_ns(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except FileNotFoundError:
        return 0
