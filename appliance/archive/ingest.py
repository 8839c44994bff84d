"""Receiving: from a dataset on the wire to Success.

Owns `packs/open/<writer>/` under its flock. Must not touch the index but to ask it for duplicates.

Invariants:
- `store` returns only after the member is fdatasynced and its directory entry is too (D4).
- The dataset's bytes are written as they came; only the file meta group is ours.
- An instance is stored again only when no good copy with the same bytes and transfer syntax is
  durable here or verified in the cloud.
"""

import os
import threading
from collections import deque
from collections.abc import Callable

from appliance.archive.layout import Layout, new_pack_id, packs_in
from appliance.archive.open_packs import OpenPacks, Version
from appliance.archive.progress import Progress, progress_path
from appliance.archive.sender import Sender
from appliance.archive.space import Space
from appliance.config.model import Packs
from appliance.dicom.file_meta import build_file_meta
from appliance.dicom.scan import Identity, scan_identity
from appliance.foundation import log
from appliance.foundation.clock import Clock, to_microseconds
from appliance.foundation.errors import Busy, DatasetMismatch, StorageFailed
from appliance.foundation.files import FileLock, FileSystem
from appliance.index.index import Index
from appliance.packs.member import Provenance, member_name
from appliance.packs.recovery import recover
from appliance.packs.writer import StreamedMember

LARGE_INSTANCE_BYTES = 8 * 2**20
HOUSEKEEPING_S = 0.5

_log = log.get("ingest")


class Ingest:
    """The one writer of a process.

    `_recent` maps an SOP Instance UID to versions that are durable but perhaps not yet indexed;
    it is guarded by `_lock`, and so is `_answered`. Any thread may call `store`.
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
    ) -> None:
        self._files = files
        self._clock = clock
        self._layout = layout
        self._directory = layout.writer_directory(writer)
        self._index = index
        self._space = space
        self._on_fatal = on_fatal
        self._lock = threading.Lock()
        self._recent: dict[str, list[Version]] = {}
        self._unindexed: deque[tuple[int, str, Version]] = deque()
        self._answered = 0
        self._failure: StorageFailed | None = None
        files.make_directory(self._directory)
        self._flock = FileLock(os.path.join(self._directory, "lock"))
        self._flock.acquire()
        self._progress = Progress(progress_path(self._directory))
        self._packs = OpenPacks(files, clock, layout, self._directory, packs)
        self._stop = threading.Event()
        self._housekeeper = threading.Thread(target=self._keep_house, name="pack-closer")

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
        """Close every pack and let the directory go."""
        self._stop.set()
        if self._housekeeper.ident is not None:
            self._housekeeper.join()
        if self._failure is None:
            self._packs.close_all()
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
        versions, good = self._known_versions(sop_instance_uid)
        if version in good:
            return
        self._space.claim(len(dataset))
        name = member_name(
            identity.series_instance_uid,
            sop_instance_uid,
            sha256.hex()[:8] if versions else None,
        )
        try:
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
        except StorageFailed as failure:
            self._fail(failure)
            raise
        self._publish(sop_instance_uid, version)

    def open_stream(
        self, sender: Sender, sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str
    ) -> "InstanceStream":
        """Begin an instance that is too large to hold; OutOfSpace at once or while it grows."""
        if self._failure is not None:
            raise self._failure
        self._space.claim(LARGE_INSTANCE_BYTES)
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

    def _known_versions(self, sop_instance_uid: str) -> tuple[list[Version], list[Version]]:
        """Return the versions ever received, and those of which a good copy is here or verified."""
        good = list(self._recent.get(sop_instance_uid, ()))
        known = list(good)
        with self._index.read() as view:
            for place in view.find_sop(sop_instance_uid):
                for found in place.versions:
                    version = Version(found.sha256, found.transfer_syntax_uid)
                    known.append(version)
                    packs = map(view.pack, found.pack_ids)
                    if any(pack is not None and (pack.local or pack.cloud) for pack in packs):
                        good.append(version)
        return known, good

    def _publish(self, sop_instance_uid: str, version: Version) -> None:
        with self._lock:
            self._answered += 1
            self._recent.setdefault(sop_instance_uid, []).append(version)
            self._unindexed.append((self._answered, sop_instance_uid, version))
            self._progress.answered = self._answered
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
            try:
                self._packs.close_due()
            except StorageFailed as failure:
                self._fail(failure)
                return

    # --- streams, for InstanceStream only

    def begin_streamed(self, meta: bytes) -> StreamedMember:
        """Return a member that will be alone in its pack."""
        path = os.path.join(self._directory, f"{new_pack_id()}.tar")
        member = StreamedMember(self._files, path)
        member.begin(meta)
        return member

    def claim(self, incoming_bytes: int) -> None:
        """Count the bytes of a growing stream in."""
        self._space.claim(incoming_bytes)

    def finish_streamed(self, stream: "InstanceStream", member: StreamedMember) -> None:
        """Close the streamed pack; on return the instance is durable."""
        with member.dataset() as dataset:
            identity = scan_identity(dataset, stream.transfer_syntax_uid)
        check_identity(identity, stream.sop_class_uid, stream.sop_instance_uid)
        version = Version(member.sha256(), stream.transfer_syntax_uid)
        versions, good = self._known_versions(stream.sop_instance_uid)
        if version in good:
            member.abort()
            return
        suffix = version.sha256.hex()[:8] if versions else None
        name = member_name(identity.series_instance_uid, stream.sop_instance_uid, suffix)
        try:
            member.finish(
                name,
                self._provenance(stream.sender),
                stream.transfer_syntax_uid,
                stream.sop_class_uid,
            )
            self._files.rename(member.path, self._layout.closed_path(member.pack_id))
        except StorageFailed as failure:
            self._fail(failure)
            raise
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
        if self._member.length + len(chunk) > self._claimed_bytes:
            self._ingest.claim(LARGE_INSTANCE_BYTES)
            self._claimed_bytes += LARGE_INSTANCE_BYTES
        self._member.write(chunk)

    def finish(self) -> None:
        """Check the identity and make the instance durable, or raise and leave nothing."""
        try:
            self._ingest.finish_streamed(self, self._member)
        except BaseException:
            self._member.abort()
            raise

    def abort(self) -> None:
        """Forget the instance: the association ended or failed."""
        self._member.abort()


def check_identity(identity: Identity, sop_class_uid: str, sop_instance_uid: str) -> None:
    """Raise DatasetMismatch when command and dataset disagree or a UID is missing."""
    if not identity.study_instance_uid or not identity.series_instance_uid:
        raise DatasetMismatch("store", "", "no Study or Series Instance UID in the dataset")
    if identity.sop_instance_uid != sop_instance_uid:
        raise DatasetMismatch("store", "", "SOP Instance UID differs from the command's")
    if identity.sop_class_uid != sop_class_uid:
        raise DatasetMismatch("store", "", "SOP Class UID differs from the command's")


def recover_directory(files: FileSystem, layout: Layout, directory: str) -> int:
    """Recover and close the packs in a directory whose flock is held; return how many."""
    count = 0
    for pack_id in packs_in(directory):
        path = os.path.join(directory, f"{pack_id}.tar")
        recovered = recover(files, path, layout.set_aside)
        if recovered.members:
            files.rename(path, layout.closed_path(pack_id))
            count += 1
        else:
            files.unlink(path)
        _log.info(
            "pack_recovered",
            pack=pack_id,
            members=len(recovered.members),
            set_aside=len(recovered.set_aside),
        )
    for name in os.listdir(directory):
        if name.endswith(".durable"):
            files.unlink(os.path.join(directory, name))
    return count


def recover_abandoned(files: FileSystem, layout: Layout) -> int:
    """Recover the packs of every writer that lives no more; return how many were closed."""
    count = 0
    for writer in layout.writers():
        directory = layout.writer_directory(writer)
        if not packs_in(directory):
            continue
        flock = FileLock(os.path.join(directory, "lock"))
        try:
            flock.acquire()
        except Busy:
            continue
        try:
            count += recover_directory(files, layout, directory)
        finally:
            flock.release()
    return count
