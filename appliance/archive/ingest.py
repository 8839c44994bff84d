"""Receiving: from a dataset on the wire to Success.

Owns `packs/open/<writer>/` under its flock. Must not touch the index but to ask it for duplicates.

Invariants:
- `store` returns only after the member is fdatasynced and its directory entry is too (D4).
- The dataset's bytes are written as they came; only the file meta group is ours.
- An instance is stored again only when no good copy with the same bytes and transfer syntax is
  durable here or verified in the cloud. A copy that is only here is read again before it counts.
- One SOP Instance UID is stored by one thread at a time: of two versions that come at once, the
  second gets another member name.
"""

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from appliance.archive.abandoned import recover_abandoned, recover_directory
from appliance.archive.extent import Extent
from appliance.archive.layout import Layout
from appliance.archive.open_packs import OpenPacks, Version
from appliance.archive.progress import Progress, progress_path
from appliance.archive.sender import Sender
from appliance.archive.space import Space
from appliance.config.model import Packs
from appliance.dicom.file_meta import build_file_meta
from appliance.dicom.scan import Identity, scan_identity
from appliance.foundation import log
from appliance.foundation.clock import Clock, to_microseconds
from appliance.foundation.errors import (
    AzekuraError,
    Busy,
    DatasetMismatch,
    StorageFailed,
)
from appliance.foundation.files import FileLock, FileSystem
from appliance.index.index import Index
from appliance.index.records import FoundInstance
from appliance.index.view import View
from appliance.packs.member import Provenance, member_name
from appliance.packs.reader import PackReader
from appliance.packs.writer import StreamedMember

LARGE_INSTANCE_BYTES = 8 * 2**20
HOUSEKEEPING_S = 0.5
OWNER_WAIT_S = 60.0
OWNER_POLL_S = 0.1

_log = log.get("ingest")


class Copy(NamedTuple):
    """Where a dataset lies in a pack."""

    pack_id: str
    offset: int
    length: int


class Ingest:
    """The one writer of a process.

    `_recent` maps an SOP Instance UID to versions that are durable but perhaps not yet indexed;
    it is guarded by `_lock`, and so are `_answered` and `_storing`, the SOP Instance UIDs that
    threads are at work on. Any thread may call `store`.
    """

    def __init__(
        self,
        files: FileSystem,
        clock: Clock,
        layout: Layout,
        writer: str,
        packs: Packs,
        index: Index,
        space: Space,
        on_fatal: Callable[[StorageFailed], None],
        on_turn: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_turn` is called in every turn of the thread that closes packs."""
        self._files = files
        self._clock = clock
        self._layout = layout
        self._directory = layout.writer_directory(writer)
        self._index = index
        self._space = space
        self._on_fatal = on_fatal
        self._on_turn = on_turn
        self._lock = threading.Lock()
        self._stored = threading.Condition(self._lock)
        self._storing: set[str] = set()
        self._recent: dict[str, list[Version]] = {}
        self._unindexed: deque[tuple[int, str, Version]] = deque()
        self._answered = 0
        self._failure: StorageFailed | None = None
        files.make_directory(self._directory)
        self._flock = FileLock(os.path.join(self._directory, "lock"))
        self._own()
        self._progress = Progress(progress_path(self._directory))
        self._packs = OpenPacks(files, clock, layout, self._directory, packs)
        self._stop = threading.Event()
        self._housekeeper = threading.Thread(target=self._keep_house, name="pack-closer")

    def _own(self) -> None:
        """Take the directory, waiting while somebody recovers what a dead owner left in it."""
        never = threading.Event()
        end_s = self._clock.monotonic_s() + OWNER_WAIT_S
        while True:
            try:
                self._flock.acquire()
            except Busy:
                if self._clock.monotonic_s() >= end_s:
                    raise
                self._clock.wait(never, OWNER_POLL_S)
            else:
                return

    @property
    def thread(self) -> threading.Thread:
        """The thread that closes packs; it lives from `start` to `stop`."""
        return self._housekeeper

    def start(self) -> None:
        """Recover what a dead owner left, then begin to close packs that are due."""
        recover_directory(self._files, self._layout, self._directory)
        recover_abandoned(self._files, self._layout)
        with self._lock:
            self._answered = self._progress.answered + 1
            self._progress.indexed = 0
            self._progress.answered = self._answered
        self._housekeeper.start()

    def stop(self) -> None:
        """Close every pack and let the directory go; who still stores gets Busy."""
        self._stop.set()
        if self._housekeeper.ident is not None:
            self._housekeeper.join()
        try:
            if self._failure is None:
                self._packs.close_all()
        finally:
            self._flock.release()

    def store(
        self,
        sender: Sender,
        sop_class_uid: str,
        sop_instance_uid: str,
        transfer_syntax_uid: str,
        dataset: memoryview,
        sha256: bytes,
    ) -> None:
        """Keep one instance, whose dataset has that sha256; on return it is durable.

        Raises DatasetMismatch, DatasetNotUnderstood, OutOfSpace, StorageFailed.
        """
        if self._failure is not None:
            raise self._failure
        identity = scan_identity(dataset, transfer_syntax_uid)
        check_identity(identity, sop_class_uid, sop_instance_uid)
        version = Version(sha256, transfer_syntax_uid)
        with self._alone(sop_instance_uid):
            known, good = self._known_versions(sop_instance_uid, version)
            if good:
                return
            self._space.claim(len(dataset), sender.calling_ae)
            name = member_name(
                identity.series_instance_uid,
                sop_instance_uid,
                sha256.hex()[:8] if known else None,
            )
            with self._failing():
                self._packs.append(
                    identity.study_instance_uid,
                    name,
                    self._provenance(sender),
                    transfer_syntax_uid,
                    build_file_meta(
                        sop_class_uid, sop_instance_uid, transfer_syntax_uid, sender.calling_ae
                    ),
                    dataset,
                    sha256,
                )
            self._publish(sop_instance_uid, version)

    @contextlib.contextmanager
    def _alone(self, sop_instance_uid: str) -> Iterator[None]:
        """Keep other threads from storing the same instance over the block."""
        with self._stored:
            while sop_instance_uid in self._storing:
                self._stored.wait()
            self._storing.add(sop_instance_uid)
        try:
            yield
        finally:
            with self._stored:
                self._storing.remove(sop_instance_uid)
                self._stored.notify_all()

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """Let a StorageFailed out of the block only after nothing is accepted any more (D2)."""
        try:
            yield
        except StorageFailed as failure:
            self._fail(failure)
            raise

    def open_stream(
        self, sender: Sender, sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str
    ) -> "InstanceStream":
        """Begin an instance that is too large to hold; OutOfSpace at once or while it grows."""
        if self._failure is not None:
            raise self._failure
        self._space.claim(LARGE_INSTANCE_BYTES, sender.calling_ae)
        meta = build_file_meta(
            sop_class_uid, sop_instance_uid, transfer_syntax_uid, sender.calling_ae
        )
        return InstanceStream(
            self, sender, sop_class_uid, sop_instance_uid, transfer_syntax_uid, meta
        )

    def _provenance(self, sender: Sender) -> Provenance:
        return Provenance(
            received_at_us=to_microseconds(self._clock.now()),
            calling_ae=sender.calling_ae,
            called_ae=sender.called_ae,
            peer_address=sender.peer_address,
            tls_subject=sender.tls_subject,
            issuer=sender.issuer,
            character_set=sender.character_set,
        )

    def _known_versions(self, sop_instance_uid: str, version: Version) -> tuple[bool, bool]:
        """Tell whether any version is known, and whether a good copy of this one is.

        An index that can't be read keeps nothing from being stored: then it is stored again.
        """
        with self._lock:
            # What is indexed is asked of the index: there its copy is read again before it counts.
            self._forget_indexed()
            recent = list(self._recent.get(sop_instance_uid, ()))
        if version in recent:
            return True, True
        try:
            with self._index.read() as view:
                places = view.find_sop(sop_instance_uid)
                verified, copies = _copies(view, places, version)
        except AzekuraError as error:
            _log.error("duplicates_not_known", error=type(error).__name__)
            return bool(recent), False
        good = verified or any(holds(self._layout, copy, version.sha256) for copy in copies)
        return bool(recent or places), good

    def _publish(self, sop_instance_uid: str, version: Version) -> None:
        with self._lock:
            self._answered += 1
            self._recent.setdefault(sop_instance_uid, []).append(version)
            self._unindexed.append((self._answered, sop_instance_uid, version))
            self._progress.answered = self._answered
            self._forget_indexed()

    def _forget_indexed(self) -> None:
        """Forget the versions that the index knows by now; the lock is held."""
        indexed = self._progress.indexed
        while self._unindexed and self._unindexed[0][0] <= indexed:
            _, uid, known = self._unindexed.popleft()
            versions = self._recent[uid]
            versions.remove(known)
            if not versions:
                del self._recent[uid]

    def _fail(self, failure: StorageFailed) -> None:
        """Remember the first failed flush: nothing is answered Success after it (D2)."""
        if self._failure is None:
            self._failure = failure
            _log.critical("storage_failed", operation=failure.operation, cause=failure.cause)
            self._on_fatal(failure)

    def _keep_house(self) -> None:
        while not self._clock.wait(self._stop, HOUSEKEEPING_S):
            self._on_turn()
            try:
                with self._failing():
                    self._packs.close_due()
            except StorageFailed:
                return
            except AzekuraError as error:
                # A full disk: the packs stay open and are closed when there is room again.
                _log.error("pack_not_closed", error=type(error).__name__, cause=error.cause)

    # --- streams, for InstanceStream only

    def begin_streamed(self, meta: bytes) -> StreamedMember:
        """Return a member that will be alone in its pack."""
        path = os.path.join(self._directory, f"{self._packs.new_id()}.tar")
        with self._failing():
            member = StreamedMember(self._files, path)
        member.begin(meta)
        return member

    def write_streamed(
        self, member: StreamedMember, chunk: memoryview, claim_bytes: int, calling_ae: str
    ) -> None:
        """Append to a peer's growing stream, having counted `claim_bytes` more in."""
        if self._failure is not None:
            raise self._failure
        if claim_bytes:
            self._space.claim(claim_bytes, calling_ae)
        with self._failing():
            member.write(chunk)

    def abort_streamed(self, member: StreamedMember) -> None:
        """Remove what came of a stream."""
        with self._failing():
            member.abort()

    def finish_streamed(self, stream: "InstanceStream", member: StreamedMember) -> None:
        """Close the streamed pack; on return the instance is durable."""
        if self._failure is not None:
            raise self._failure
        with member.dataset() as dataset:
            identity = scan_identity(dataset, stream.transfer_syntax_uid)
        check_identity(identity, stream.sop_class_uid, stream.sop_instance_uid)
        version = Version(member.sha256(), stream.transfer_syntax_uid)
        with self._alone(stream.sop_instance_uid):
            known, good = self._known_versions(stream.sop_instance_uid, version)
            if good:
                self.abort_streamed(member)
                return
            suffix = version.sha256.hex()[:8] if known else None
            with self._failing():
                member.finish(
                    member_name(identity.series_instance_uid, stream.sop_instance_uid, suffix),
                    self._provenance(stream.sender),
                    stream.transfer_syntax_uid,
                    stream.sop_class_uid,
                )
                self._files.rename(member.path, self._layout.closed_path(member.pack_id))
            self._publish(stream.sop_instance_uid, version)


class InstanceStream:
    """One large instance on its way to disk; used by one association's thread."""

    def __init__(
        self,
        ingest: Ingest,
        sender: Sender,
        sop_class_uid: str,
        sop_instance_uid: str,
        transfer_syntax_uid: str,
        file_meta: bytes,
    ) -> None:
        self.sender = sender
        self.sop_class_uid = sop_class_uid
        self.sop_instance_uid = sop_instance_uid
        self.transfer_syntax_uid = transfer_syntax_uid
        self._ingest = ingest
        self._member = ingest.begin_streamed(file_meta)
        self._claimed_bytes = LARGE_INSTANCE_BYTES

    def write(self, chunk: memoryview) -> None:
        """Append a part of the dataset; OutOfSpace or StorageFailed end the stream."""
        claim_bytes = 0
        while self._member.length + len(chunk) > self._claimed_bytes + claim_bytes:
            claim_bytes += LARGE_INSTANCE_BYTES
        self._ingest.write_streamed(self._member, chunk, claim_bytes, self.sender.calling_ae)
        self._claimed_bytes += claim_bytes

    def finish(self) -> None:
        """Check the identity and make the instance durable, or raise and leave nothing."""
        try:
            self._ingest.finish_streamed(self, self._member)
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Forget the instance: the association ended or failed."""
        self._ingest.abort_streamed(self._member)


def check_identity(identity: Identity, sop_class_uid: str, sop_instance_uid: str) -> None:
    """Raise DatasetMismatch when command and dataset disagree or a UID is missing."""
    if not identity.study_instance_uid or not identity.series_instance_uid:
        raise DatasetMismatch("store", "", "no Study or Series Instance UID in the dataset")
    if identity.sop_instance_uid != sop_instance_uid:
        raise DatasetMismatch("store", "", "SOP Instance UID differs from the command's")
    if identity.sop_class_uid != sop_class_uid:
        raise DatasetMismatch("store", "", "SOP Class UID differs from the command's")


def _copies(view: View, places: list[FoundInstance], version: Version) -> tuple[bool, list[Copy]]:
    """Tell whether a version is verified in the cloud, and where else it lies on this disk."""
    copies = []
    for place in places:
        instance = view.instance(place.study_instance_uid, place.sop_instance_uid)
        for found in instance.versions if instance is not None else ():
            if (found.sha256, found.transfer_syntax_uid) != version:
                continue
            for copy in found.copies:
                row = view.pack(copy.pack_id)
                if row is not None and row.cloud is not None:
                    return True, []
                if row is not None and row.local:
                    copies.append(Copy(copy.pack_id, copy.offset, found.length))
    return False, copies


def holds(layout: Layout, copy: "Copy", sha256: bytes) -> bool:
    """Tell whether a pack on this disk still gives the bytes that were received."""
    for path in layout.candidates(copy.pack_id):
        with contextlib.suppress(OSError, AzekuraError), PackReader(path) as reader:
            return Extent(reader.read_range, copy.offset, copy.length).sha256() == sha256
    return False
