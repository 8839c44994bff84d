"""One pack on its way: sealed on disk → encrypted in the spool → in the bucket → read back.

Owns `spool/`. Ends with the `pack` record that the ledger needs; writing the ledger is not done
here.

Invariants:
- The spool file and its note are durable before the first PUT and stay until the pack is verified:
  encrypting again would give other bytes, and the bucket's copy could not be told from a
  stranger's.
- A key that is taken is settled by its oldest version: our bytes → done; other bytes that decrypt
  to our pack → adopted; anything else → an alarm, and nothing is overwritten.
- A spool file that is no longer what its note says is given up, and made anew.
- Every member's sha256 is checked before the pack is encrypted: the bucket never gets a damaged
  pack.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterable, Sequence

import msgspec

from appliance.archive.facts import instance_facts, list_instances
from appliance.archive.layout import Layout, pack_key
from appliance.archive.records import PackRecord
from appliance.archive.retention import Retention
from appliance.archive.spooled import Spooled, checksums, fetch_version, read_back_problem
from appliance.foundation import log
from appliance.foundation.clock import Clock, to_microseconds
from appliance.foundation.errors import (
    ChecksumRejected,
    CloudMisconfigured,
    Damaged,
    DecryptionFailed,
    ObjectExists,
    OutOfSpace,
)
from appliance.foundation.files import FileSystem
from appliance.index.facts import InstanceFacts
from appliance.packs.reader import PackReader
from appliance.packs.sealing import SealedInfo
from appliance.remote.orphans import abort_orphans
from appliance.remote.store import (
    FileBody,
    Lane,
    Lock,
    ObjectInfo,
    ObjectStore,
    UploadProgress,
)
from appliance.seal.age import (
    HEAD_READ_BYTES,
    decrypt_file,
    encrypt_file,
    head_length,
    unwrap_file_key,
)
from appliance.seal.age_header import NONCE_BYTES
from appliance.seal.identity import Identity

_log = log.get("upload")


class SpoolNote(Spooled, kw_only=True):
    """What lies beside a pack's spool file."""

    plain_size_bytes: int
    age_header: bytes
    file_key: bytes


class PackUpload:
    """Takes packs to the bucket. Thread-safe for different packs."""

    def __init__(
        self,
        files: FileSystem,
        clock: Clock,
        store: ObjectStore,
        layout: Layout,
        recipients: Sequence[str],
        identities: Sequence[Identity],
        retention: Retention,
    ) -> None:
        self._files = files
        self._clock = clock
        self._store = store
        self._layout = layout
        self._recipients = recipients
        self._identities = identities
        self._retention = retention

    def upload(self, pack_id: str, sealed: SealedInfo, lane: Lane) -> PackRecord:
        """Return the record of a pack that the bucket has and that was read back.

        Raises CloudError (try again later), Damaged (a member is not what was received),
        OutOfSpace (no room in the spool), StorageFailed.
        """
        facts = self._check_members(pack_id)
        retention_s = self._retention.seconds_for(facts)
        note = self._spool(pack_id, retention_s)
        version_id, note = self._put(pack_id, note, retention_s, lane)
        return self._read_back(pack_id, note, version_id, sealed, facts)

    def abort_orphans(self, others: Iterable[str] = ()) -> int:
        """Abort old uploads in parts that no spool note remembers; return how many.

        One that a note remembers is under way still, however slow the line is; so are `others`.
        """
        return abort_orphans(self._store, self._remembered_upload_ids().union(others))

    def _remembered_upload_ids(self) -> set[str]:
        found = set()
        for name in os.listdir(self._layout.spool):
            if name.endswith(".json"):
                with contextlib.suppress(FileNotFoundError, msgspec.DecodeError):
                    progress = self._read_note(name.removesuffix(".json")).progress
                    if progress is not None:
                        found.add(progress.upload_id)
        return found

    def forget(self, pack_id: str) -> None:
        """Remove the spool copy of a verified pack."""
        self._files.unlink(self._layout.spool_path(pack_id))
        self._files.unlink(self._note_path(pack_id))

    def _note_path(self, pack_id: str) -> str:
        return os.path.join(self._layout.spool, f"{pack_id}.json")

    def _read_note(self, pack_id: str) -> SpoolNote:
        with open(self._note_path(pack_id), "rb") as file:
            return msgspec.json.decode(file.read(), type=SpoolNote)

    def _check_members(self, pack_id: str) -> list[InstanceFacts]:
        facts = []
        with PackReader(self._layout.sealed_path(pack_id)) as reader:
            for member in reader.members():
                if not reader.verify(member):
                    raise Damaged(
                        "upload",
                        f"pack {pack_id}",
                        f"the member at {member.header_offset} is not what was received",
                        "The only copy is damaged: ask the sender for it again",
                    )
                with reader.dataset(member) as dataset:
                    facts.append(instance_facts(member, dataset))
        return facts

    def _spool(self, pack_id: str, retention_s: float) -> SpoolNote:
        """Return the note of a durable spool file, made now or found."""
        path = self._layout.spool_path(pack_id)
        try:
            note = self._read_note(pack_id)
            if os.path.getsize(path) == note.size_bytes:
                return self._with_fresh_lock(pack_id, note, retention_s)
        except (FileNotFoundError, msgspec.DecodeError):
            pass
        lock = self._retention.lock(retention_s)
        source = self._layout.sealed_path(pack_id)
        temporary = f"{path}.tmp"
        try:
            sealed = encrypt_file(source, temporary, self._recipients, self._files)
        except OutOfSpace:
            self._files.unlink(temporary)
            raise
        self._files.rename(temporary, path)
        note = self._describe(pack_id, sealed.head, lock)
        if note.sha256 != sealed.sha256:
            raise Damaged("encrypt", f"pack {pack_id}", "the spool does not hold what was written")
        self._save(pack_id, note)
        return note

    def _with_fresh_lock(self, pack_id: str, note: SpoolNote, retention_s: float) -> SpoolNote:
        """Return the note with a lock that begins now, if it waited long and no part was sent."""
        if note.lock is None or note.progress is not None:
            return note
        fresh = self._retention.lock(retention_s)
        if not note.may_take(fresh):
            return note
        note.set_lock(fresh)
        self._save(pack_id, note)
        return note

    def _describe(self, pack_id: str, head: bytes, lock: Lock | None) -> SpoolNote:
        path = self._layout.spool_path(pack_id)
        sha256, crc32, size_bytes = checksums(path)
        return SpoolNote(
            sha256=sha256,
            crc32=crc32,
            size_bytes=size_bytes,
            plain_size_bytes=os.path.getsize(self._layout.sealed_path(pack_id)),
            age_header=head,
            file_key=unwrap_file_key(head[:-NONCE_BYTES], self._identities),
            lock_mode=lock.mode if lock else None,
            locked_until=lock.until if lock else None,
        )

    def _save(self, pack_id: str, note: SpoolNote) -> None:
        self._files.write_atomic(self._note_path(pack_id), msgspec.json.encode(note), 0o600)

    def _put(
        self, pack_id: str, note: SpoolNote, retention_s: float, lane: Lane
    ) -> tuple[str, SpoolNote]:
        """Return the version id of our bytes in the bucket, and the note that describes them."""
        try:
            return self._put_spool(pack_id, note, lane), note
        except ObjectExists:
            return self._settle(pack_id, note)
        except (ChecksumRejected, Damaged):
            if file_sha256(self._layout.spool_path(pack_id)) == note.sha256.hex():
                raise
        _log.error("spool_damaged", pack=pack_id)
        self.forget(pack_id)
        note = self._spool(pack_id, retention_s)
        try:
            return self._put_spool(pack_id, note, lane), note
        except ObjectExists:
            return self._settle(pack_id, note)

    def _put_spool(self, pack_id: str, note: SpoolNote, lane: Lane) -> str:
        def remember(progress: UploadProgress | None) -> None:
            note.progress = progress
            self._save(pack_id, note)

        result = self._store.put(
            pack_key(pack_id),
            FileBody.whole(self._layout.spool_path(pack_id)),
            sha256=note.sha256,
            create_only=True,
            lock=note.lock,
            lane=lane,
            resume=note.progress,
            checkpoint=remember,
        )
        return result.version_id

    def _settle(self, pack_id: str, note: SpoolNote) -> tuple[str, SpoolNote]:
        """Return version id and note when the key holds our pack already; ObjectExists else."""
        key = pack_key(pack_id)
        oldest = self._store.oldest_version(key)
        if oldest is None:
            raise Damaged("settle an upload", key, "the key is taken but shows no version")
        info = self._store.head(key, oldest.version_id)
        if note.matches(info):
            # One without a lock was put while the bucket did not lock: it can be made good.
            if note.lock and (info.lock is None or info.lock.until < note.lock.until):
                self._store.extend_lock(key, oldest.version_id, note.lock)
            return oldest.version_id, note
        adopted = self._adopt(pack_id, info)
        if adopted is None:
            raise ObjectExists(
                "upload", key, "the key holds another object than this pack",
                "Nothing was overwritten; the pack stays pending. Look at who writes to the bucket",
            )  # fmt: skip
        return oldest.version_id, adopted

    def _adopt(self, pack_id: str, info: ObjectInfo) -> SpoolNote | None:
        """Take the bucket's object for our spool if it decrypts to our pack; return its note."""
        path = self._layout.spool_path(pack_id)
        fetched = f"{path}.fetched"
        try:
            fetch_version(self._files, self._store, info, fetched)
            digest = hashlib.sha256()
            try:
                with open(fetched, "rb") as file:
                    for piece in decrypt_file(file, self._identities):
                        digest.update(piece)
            except DecryptionFailed:
                return None
            if digest.hexdigest() != file_sha256(self._layout.sealed_path(pack_id)):
                return None
            self._files.rename(fetched, path)
        finally:
            self._files.unlink(fetched)
        with open(path, "rb") as file:
            prefix = file.read(HEAD_READ_BYTES)
        note = self._describe(pack_id, prefix[: head_length(prefix)], info.lock)
        self._save(pack_id, note)
        _log.warning("upload_adopted", pack=pack_id)
        return note

    def _read_back(
        self,
        pack_id: str,
        note: SpoolNote,
        version_id: str,
        sealed: SealedInfo,
        facts: list[InstanceFacts],
    ) -> PackRecord:
        key = pack_key(pack_id)
        info = self._store.head(key, version_id)
        problem = read_back_problem(info, note)
        if problem:
            raise CloudMisconfigured(
                "read back", key, problem,
                "Look at the bucket's Object Lock and at what stands between; "
                "the pack stays pending",
            )  # fmt: skip
        origins, contexts, listed = list_instances(facts)
        return PackRecord(
            pack_id=pack_id,
            key=key,
            version_id=version_id,
            size_bytes=note.size_bytes,
            plain_size_bytes=note.plain_size_bytes,
            checksum=str(info.checksum),
            lock_mode=info.lock.mode if info.lock else "",
            locked_until_us=to_microseconds(info.lock.until) if info.lock else 0,
            age_header=note.age_header,
            file_key=note.file_key,
            headers_offset=sealed.headers_offset,
            headers_length=sealed.headers_length,
            verified_at_us=to_microseconds(self._clock.now()),
            origins=origins,
            contexts=contexts,
            instances=listed,
        )


def file_sha256(path: str) -> str:
    """Return a file's sha256 in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
