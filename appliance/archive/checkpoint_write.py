"""This node's checkpoints on their way: entries → spool → bucket → read back.

Owns `state/checkpoints.json`; one at a time is on its way, in the outbox.

Invariants:
- The spool and its note are durable before the first PUT and stay until the object was read back.
- A key is created only. One that is taken is settled by its oldest version: our bytes, or the same
  entries under this node's signature → done; anything else → an alarm, and nothing is overwritten.
- What is not due costs no request; a state that was lost costs one look at each key.
Used by one thread of the uplink, while the ledger goes on growing.
"""

import io
import os
from collections.abc import Sequence

import msgspec

from appliance.archive.checkpoint import CheckpointReader, checkpoint_pieces
from appliance.archive.checkpoint_name import CheckpointName, Range, keys_digest
from appliance.archive.checkpoint_outbox import Note, Outbox
from appliance.archive.checkpoint_plan import Plan
from appliance.archive.layout import Layout
from appliance.archive.own_entries import OwnEntries
from appliance.archive.problem import Problem
from appliance.archive.retention import Retention
from appliance.archive.spooled import checksums, fetch_version, read_back_problem
from appliance.foundation import log
from appliance.foundation.clock import Clock, isoformat
from appliance.foundation.errors import (
    AzekuraError,
    ChecksumRejected,
    CloudMisconfigured,
    CloudUnavailable,
    Damaged,
    DecryptionFailed,
    LimitExceeded,
    ObjectExists,
    OutOfSpace,
    StorageFailed,
    UnsupportedFormat,
)
from appliance.foundation.files import FileSystem
from appliance.remote.store import FileBody, Lane, ObjectStore, UploadProgress, VersionInfo
from appliance.seal.age import encrypt_stream
from appliance.seal.identity import Identity
from appliance.seal.signing import SigningKey
from appliance.seal.stream import PieceStream

RETRY_S = 300.0

_log = log.get("checkpoint")


class _State(msgspec.Struct):
    """What was written for the keys of `keys`, and the bytes of whatever was made for any."""

    keys: str = ""
    written: list[Range] = []
    sizes: list[tuple[Range, int]] = []


class CheckpointWriter:
    """Writes what is due, one checkpoint a call."""

    def __init__(
        self,
        files: FileSystem,
        clock: Clock,
        store: ObjectStore,
        layout: Layout,
        node: str,
        signing_key: SigningKey,
        recipients: Sequence[str],
        identities: Sequence[Identity],
        retention: Retention,
        plan: Plan | None = None,
        reserve_bytes: int = 0,
    ) -> None:
        """`reserve_bytes`: what must stay free on the disk."""
        self._files = files
        self._clock = clock
        self._store = store
        self._entries = OwnEntries(store, layout, node, signing_key.public_text, identities)
        self._node = node
        self._signing_key = signing_key
        self._recipients = recipients
        self._identities = identities
        self._retention = retention
        self._plan = plan or Plan()
        self._reserve_bytes = reserve_bytes
        self._outbox = Outbox(files, layout.checkpoints)
        self._state_path = os.path.join(layout.state, "checkpoints.json")
        self._keys = keys_digest(recipients, signing_key.public_text)
        self._written: set[Range] = set()
        self._sizes: dict[Range, int] = {}
        self._taken: set[Range] = set()
        self._problem: Problem | None = None
        self._not_before_s = 0.0
        self._load()
        self._outbox.sweep(self._is_wanted)

    def problems(self) -> list[Problem]:
        """Return what keeps checkpoints from being written."""
        problem = self._problem
        return [] if problem is None else [problem]

    def due(self, sequence: int, since: int) -> list[Range]:
        """Return what is to be written, in order. See Plan.wanted."""
        wanted = self._plan.wanted(sequence, since, self._sizes)
        done = self._written | self._taken
        return [each for each in wanted if each not in done]

    def write_due(self, sequence: int, since: int) -> bool:
        """Write the first that is due; tell whether there may be more to do at once.

        `sequence`: the last entry that the bucket has. What stands in the way becomes a problem
        and is tried again later; StorageFailed is raised.
        """
        if self._clock.monotonic_s() < self._not_before_s:
            return False
        due = self.due(sequence, since)
        if not due:
            self._problem = None if not self._taken else self._problem
            return False
        name = CheckpointName(self._node, due[0], self._keys)
        try:
            self._write(name)
        except StorageFailed:
            raise
        except ObjectExists as error:
            self._taken.add(name.range)
            self._report(error)
        except CloudUnavailable:
            self._wait()
            return False
        except AzekuraError as error:
            self._report(error)
            self._wait()
            return False
        else:
            self._problem = None if not self._taken else self._problem
        return True

    def upload_ids(self) -> set[str]:
        """Return the uploads in parts that are under way."""
        note = self._outbox.note()
        return {note.progress.upload_id} if note is not None and note.progress else set()

    # --- one checkpoint

    def _write(self, name: CheckpointName) -> None:
        note = self._outbox.note()
        if note is not None and (note.key != name.key or not self._outbox.holds(note)):
            self._outbox.forget()
            note = None
        if note is None:
            there = self._store.oldest_version(name.key)
            if there is not None:
                self._settle(name, there)
                return
            note = self._make(name)
            if note is None:
                return
        self._put(name, note)

    def _make(self, name: CheckpointName) -> Note | None:
        """Return the note of a durable spool; None when its object would be too large."""
        room = self._files.free_bytes(self._outbox.directory) - self._reserve_bytes
        if room < self._plan.bytes_max:
            raise OutOfSpace(
                "write a checkpoint", name.range.text, "the disk is too full",
                "It is written when there is room",
            )  # fmt: skip
        lock = self._retention.lock()
        temporary = f"{self._outbox.spool}.tmp"
        pieces = checkpoint_pieces(
            self._node, name.range, self._entries.previous(name.range.first),
            isoformat(self._clock.now()), self._entries.of(name.range), self._signing_key,
        )  # fmt: skip
        limit = self._plan.bytes_max if name.range.level > 1 else None
        try:
            sealed = encrypt_stream(
                _Limited(PieceStream(pieces), limit), temporary, self._recipients, self._files
            )
        except LimitExceeded:
            self._files.unlink(temporary)
            self._remember(name.range, self._plan.bytes_max + 1, written=False)
            return None
        except StorageFailed:
            raise
        except AzekuraError:
            self._files.unlink(temporary)
            raise
        self._files.rename(temporary, self._outbox.spool)
        sha256, crc32, size_bytes = checksums(self._outbox.spool)
        if sha256 != sealed.sha256:
            raise Damaged("write a checkpoint", name.key, "the spool is not what was written")
        note = Note(
            sha256=sha256, crc32=crc32, size_bytes=size_bytes, key=name.key
        )  # fmt: skip
        note.set_lock(lock)
        self._outbox.save(note)
        return note

    def _put(self, name: CheckpointName, note: Note) -> None:
        if note.may_take(fresh := self._retention.lock()):
            note.set_lock(fresh)
            self._outbox.save(note)

        def remember(progress: UploadProgress | None) -> None:
            note.progress = progress
            self._outbox.save(note)

        try:
            version_id = self._store.put(
                name.key, FileBody.whole(self._outbox.spool), sha256=note.sha256, create_only=True,
                lock=note.lock, lane=Lane.BACKFILL, resume=note.progress, checkpoint=remember,
            ).version_id  # fmt: skip
        except ObjectExists:
            there = self._store.oldest_version(name.key)
            if there is None:
                raise
            self._settle(name, there, note)
            return
        except (ChecksumRejected, Damaged):
            if not self._outbox.holds(note, whole=True):
                _log.error("checkpoint_spool_damaged", range=name.range.text)
                self._outbox.forget()
            raise
        problem = read_back_problem(self._store.head(name.key, version_id), note)
        if problem:
            raise CloudMisconfigured(
                "read back", name.key, problem, "Look at the bucket's Object Lock"
            )
        self._done(name, note.size_bytes)

    def _settle(self, name: CheckpointName, there: VersionInfo, note: Note | None = None) -> None:
        """Take what lies at the key for ours if it is; ObjectExists else."""
        info = self._store.head(name.key, there.version_id)
        if note is None or not note.matches(info):
            self._check_same(name, there)
        lock = self._retention.lock() if note is None else note.lock
        if lock is not None and (info.lock is None or info.lock.until < lock.until):
            self._store.extend_lock(name.key, there.version_id, lock)
        self._done(name, info.size_bytes)

    def _check_same(self, name: CheckpointName, there: VersionInfo) -> None:
        """Raise ObjectExists unless the version holds the entries of our ledger, signed by us."""
        fetched = os.path.join(self._outbox.directory, "fetched.json.gz.age")
        fetch_version(self._files, self._store, there, fetched, Lane.BACKFILL)
        try:
            with open(fetched, "rb") as file:
                proof = CheckpointReader(
                    file, self._identities, name, {self._signing_key.public_text}
                ).prove()
            first, behind = name.range.first, name.range.last + 1
            ours = self._entries.previous(first), self._entries.previous(behind)
        except (Damaged, DecryptionFailed, UnsupportedFormat) as cause:
            raise self._foreign(name) from cause
        finally:
            self._files.unlink(fetched)
        if (proof.previous, proof.head) != ours:
            raise self._foreign(name)

    def _foreign(self, name: CheckpointName) -> ObjectExists:
        return ObjectExists(
            "write a checkpoint", name.key, "the key holds what this node did not write",
            "Nothing was overwritten. Look at who writes to the bucket; a standby that was added "
            "later may not read packs of these entries",
        )  # fmt: skip

    def _done(self, name: CheckpointName, size_bytes: int) -> None:
        self._remember(name.range, size_bytes, written=True)
        self._outbox.forget()
        _log.info(
            "checkpoint_written", level=name.range.level, first=name.range.first,
            last=name.range.last, size_bytes=size_bytes,
        )  # fmt: skip

    # --- what is remembered

    def _is_wanted(self, key: str) -> bool:
        name = CheckpointName.parse(key)
        return name is not None and name.keys == self._keys and name.range not in self._written

    def _load(self) -> None:
        try:
            with open(self._state_path, "rb") as file:
                state = msgspec.json.decode(file.read(), type=_State)
        except (FileNotFoundError, msgspec.DecodeError):
            return
        self._sizes = dict(state.sizes)
        if state.keys == self._keys:
            self._written = set(state.written)

    def _remember(self, span: Range, size_bytes: int, *, written: bool) -> None:
        """Make durable what is known of a range, then count on it."""
        sizes = self._sizes | {span: size_bytes}
        done = self._written | {span} if written else self._written
        state = _State(self._keys, sorted(done), sorted(sizes.items()))
        self._files.write_atomic(self._state_path, msgspec.json.encode(state))
        self._sizes, self._written = sizes, done

    def _wait(self) -> None:
        self._not_before_s = self._clock.monotonic_s() + RETRY_S

    def _report(self, error: AzekuraError) -> None:
        self._problem = Problem("checkpoint", str(error), error.hint)
        _log.warning("checkpoint_not_written", error=type(error).__name__)


class _Limited(io.RawIOBase):
    """A stream that must not give more bytes than the limit: LimitExceeded."""

    def __init__(self, stream: io.RawIOBase, bytes_max: int | None) -> None:
        super().__init__()
        self._stream = stream
        self._left = bytes_max

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = self._stream.readinto(buffer) or 0
        if self._left is not None:
            self._left -= count
            if self._left < 0:
                raise LimitExceeded("write a checkpoint", "", "it would be too large")
        return count
