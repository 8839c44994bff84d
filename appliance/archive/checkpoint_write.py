"""This node's checkpoints on their way: entries → spool → bucket → read back.

Owns `checkpoints/` (one at a time is on its way) and `state/checkpoints.json`.

Invariants:
- The spool and its note are durable before the first PUT and stay until the object was read back.
- A key is created only. One that is taken is settled by its oldest version: our bytes, or the same
  entries under this node's signature → done; anything else → an alarm, and nothing is overwritten.
- What is not due costs no request; a state that was lost costs one look at each key.
Used by one thread of the uplink, while the ledger goes on growing.
"""

import io
import os
from collections.abc import Iterator, Sequence

import msgspec

from appliance.archive.checkpoint import (
    CheckpointName,
    CheckpointReader,
    Range,
    checkpoint_pieces,
    keys_digest,
)
from appliance.archive.checkpoint_plan import Plan
from appliance.archive.layout import Layout
from appliance.archive.ledger_entry import (
    FIRST_PREVIOUS,
    EntryLines,
    check_link,
    entry_key,
    entry_name,
    open_lines,
)
from appliance.archive.problem import Problem
from appliance.archive.retention import Retention
from appliance.archive.spooled import Spooled, checksums, fetch_version, read_back_problem
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


class _Note(Spooled, kw_only=True):
    """What lies beside the spool: which checkpoint it is, by its key in the bucket."""

    key: str


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
        self._ledger_directory = os.path.join(layout.ledger, node)
        self._node = node
        self._signing_key = signing_key
        self._recipients = recipients
        self._identities = identities
        self._retention = retention
        self._plan = plan or Plan()
        self._reserve_bytes = reserve_bytes
        self._directory = layout.checkpoints
        self._spool = os.path.join(layout.checkpoints, "spool.json.gz.age")
        self._note_path = os.path.join(layout.checkpoints, "note.json")
        self._state_path = os.path.join(layout.state, "checkpoints.json")
        self._keys = keys_digest(recipients, signing_key.public_text)
        self._written: set[Range] = set()
        self._sizes: dict[Range, int] = {}
        self._taken: set[Range] = set()
        self._problem: Problem | None = None
        self._not_before_s = 0.0
        self._load()
        self._sweep()

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
        note = self._read_note()
        return {note.progress.upload_id} if note is not None and note.progress else set()

    # --- one checkpoint

    def _write(self, name: CheckpointName) -> None:
        note = self._read_note()
        if note is not None and (note.key != name.key or not self._holds(note)):
            self._forget()
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

    def _make(self, name: CheckpointName) -> _Note | None:
        """Return the note of a durable spool; None when its object would be too large."""
        room = self._files.free_bytes(self._directory) - self._reserve_bytes
        if room < self._plan.bytes_max:
            raise OutOfSpace(
                "write a checkpoint", name.range.text, "the disk is too full",
                "It is written when there is room",
            )  # fmt: skip
        lock = self._retention.lock()
        temporary = f"{self._spool}.tmp"
        pieces = checkpoint_pieces(
            self._node, name.range, self._previous(name.range.first),
            isoformat(self._clock.now()), self._entries(name.range), self._signing_key,
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
        self._files.rename(temporary, self._spool)
        sha256, crc32, size_bytes = checksums(self._spool)
        if sha256 != sealed.sha256:
            raise Damaged("write a checkpoint", name.key, "the spool is not what was written")
        note = _Note(
            sha256=sha256, crc32=crc32, size_bytes=size_bytes, key=name.key
        )  # fmt: skip
        note.set_lock(lock)
        self._save_note(note)
        return note

    def _put(self, name: CheckpointName, note: _Note) -> None:
        if note.may_take(fresh := self._retention.lock()):
            note.set_lock(fresh)
            self._save_note(note)

        def remember(progress: UploadProgress | None) -> None:
            note.progress = progress
            self._save_note(note)

        try:
            version_id = self._store.put(
                name.key, FileBody.whole(self._spool), sha256=note.sha256, create_only=True,
                lock=note.lock, lane=Lane.BACKFILL, resume=note.progress, checkpoint=remember,
            ).version_id  # fmt: skip
        except ObjectExists:
            there = self._store.oldest_version(name.key)
            if there is None:
                raise
            self._settle(name, there, note)
            return
        except (ChecksumRejected, Damaged):
            if not self._holds(note, whole=True):
                _log.error("checkpoint_spool_damaged", range=name.range.text)
                self._forget()
            raise
        problem = read_back_problem(self._store.head(name.key, version_id), note)
        if problem:
            raise CloudMisconfigured(
                "read back", name.key, problem, "Look at the bucket's Object Lock"
            )
        self._done(name, note.size_bytes)

    def _settle(self, name: CheckpointName, there: VersionInfo, note: _Note | None = None) -> None:
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
        fetched = os.path.join(self._directory, "fetched.json.gz.age")
        fetch_version(self._files, self._store, there, fetched, Lane.BACKFILL)
        try:
            with open(fetched, "rb") as file:
                proof = CheckpointReader(
                    file, self._identities, name, {self._signing_key.public_text}
                ).prove()
            same = (proof.previous, proof.head) == (
                self._previous(name.range.first), self._previous(name.range.last + 1)
            )  # fmt: skip
        except (Damaged, DecryptionFailed, UnsupportedFormat) as cause:
            raise self._foreign(name) from cause
        finally:
            self._files.unlink(fetched)
        if not same:
            raise self._foreign(name)

    def _foreign(self, name: CheckpointName) -> ObjectExists:
        return ObjectExists(
            "write a checkpoint", name.key, "the key holds what this node did not write",
            "Nothing was overwritten. Look at who writes to the bucket; a standby that was added "
            "later may not read packs of these entries",
        )  # fmt: skip

    def _done(self, name: CheckpointName, size_bytes: int) -> None:
        self._remember(name.range, size_bytes, written=True)
        self._forget()
        _log.info(
            "checkpoint_written", level=name.range.level, first=name.range.first,
            last=name.range.last, size_bytes=size_bytes,
        )  # fmt: skip

    # --- the ledger's entries

    def _entries(self, span: Range) -> Iterator[EntryLines]:
        return map(self._entry, range(span.first, span.last + 1))

    def _previous(self, sequence: int) -> str:
        return FIRST_PREVIOUS if sequence == 1 else self._entry(sequence - 1).header_sha256

    def _entry(self, sequence: int) -> EntryLines:
        """Return an entry from its copy here, else from the bucket."""
        try:
            with open(os.path.join(self._ledger_directory, entry_name(sequence)), "rb") as file:
                return open_lines(file.read(), self._identities)
        except FileNotFoundError:
            pass
        except (Damaged, DecryptionFailed, OSError) as error:
            _log.error("ledger_copy_unreadable", sequence=sequence, error=type(error).__name__)
        key = entry_key(self._node, sequence)
        version = self._store.oldest_version(key)
        if version is None:
            raise Damaged("write a checkpoint", key, "the entry is missing in the bucket")
        entry = open_lines(
            self._store.get(key, version.version_id, lane=Lane.BACKFILL), self._identities
        )
        # Anybody can put an object there and seal it to us.
        check_link(
            entry, self._node, sequence, entry.header.previous, {self._signing_key.public_text}
        )  # fmt: skip
        return entry

    # --- files

    def _holds(self, note: _Note, *, whole: bool = False) -> bool:
        """Tell whether the spool is what its note says, by its size or by all of its bytes."""
        try:
            if whole:
                return checksums(self._spool)[0] == note.sha256
            return os.path.getsize(self._spool) == note.size_bytes
        except FileNotFoundError:
            return False

    def _sweep(self) -> None:
        """Remove what a crash left that nobody needs."""
        note = self._read_note()
        name = CheckpointName.parse(note.key) if note is not None else None
        if name is None or name.keys != self._keys or name.range in self._written:
            self._forget()
        for file_name in os.listdir(self._directory):
            path = os.path.join(self._directory, file_name)
            if path not in {self._spool, self._note_path}:
                self._files.unlink(path)

    def _forget(self) -> None:
        self._files.unlink(self._spool)
        self._files.unlink(self._note_path)

    def _read_note(self) -> _Note | None:
        try:
            with open(self._note_path, "rb") as file:
                return msgspec.json.decode(file.read(), type=_Note)
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def _save_note(self, note: _Note) -> None:
        self._files.write_atomic(self._note_path, msgspec.json.encode(note))

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
