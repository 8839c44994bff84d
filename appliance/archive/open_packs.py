"""The packs that one writer is appending to: one or more a study, closed when due.

Invariants:
- A pack takes members of one study; it is closed at the target size, at 4,096 instances, when its
  study has been quiet or when it is old, and never reopened.
- A pack that is being closed takes no further member.
- A pack that could not be closed for want of space is tried again; none is forgotten.
"""

import os
import threading
from typing import NamedTuple

from appliance.archive.layout import Layout, PackIds
from appliance.config.model import Packs
from appliance.foundation import log
from appliance.foundation.clock import Clock
from appliance.foundation.errors import AzekuraError, Busy
from appliance.foundation.files import FileSystem
from appliance.packs.durable import durable_path
from appliance.packs.member import PACK_MEMBERS_MAX, Provenance
from appliance.packs.writer import PackWriter

OPEN_PACKS_MAX = 400

_log = log.get("ingest")


class Version(NamedTuple):
    """What tells one version of an instance from another."""

    sha256: bytes
    transfer_syntax_uid: str


class _OpenPack:
    """A writer and how many threads are inside it. Guarded by the lock of OpenPacks."""

    def __init__(self, pack_id: str, writer: PackWriter, now_s: float) -> None:
        self.pack_id = pack_id
        self.writer = writer
        self.opened_s = now_s
        self.touched_s = now_s
        self.bytes_claimed = 0
        self.count = 0
        self.users = 0


class OpenPacks:
    """Chooses the pack of an instance and closes packs that are due. Thread-safe."""

    def __init__(
        self, files: FileSystem, clock: Clock, layout: Layout, directory: str, limits: Packs
    ) -> None:
        self._files = files
        self._clock = clock
        self._layout = layout
        self._directory = directory
        self._limits = limits
        self._lock = threading.Lock()
        self._ids = PackIds(clock)
        self._by_study: dict[str, _OpenPack] = {}
        self._closing: list[_OpenPack] = []
        self._closed = False

    def new_id(self) -> str:
        """Return the id of a pack that begins now, outside of the open ones."""
        with self._lock:
            return self._ids.next()

    def append(
        self,
        study_instance_uid: str,
        name: str,
        provenance: Provenance,
        transfer_syntax_uid: str,
        file_meta: bytes,
        dataset: memoryview,
        sha256: bytes,
    ) -> None:
        """Append a member and return when it is durable.

        Raises OutOfSpace, StorageFailed, and Busy once `close_all` was called.
        """
        pack = self._enter(study_instance_uid, len(dataset))
        try:
            pack.writer.append(name, provenance, transfer_syntax_uid, file_meta, dataset, sha256)
            pack.writer.sync()
        finally:
            with self._lock:
                pack.users -= 1

    def _enter(self, study_instance_uid: str, length: int) -> _OpenPack:
        with self._lock:
            if self._closed:
                raise Busy("store", cause="the node stops")
            now_s = self._clock.monotonic_s()
            pack = self._by_study.get(study_instance_uid)
            if pack is not None and (
                pack.bytes_claimed + length > self._limits.target_size_bytes
                or pack.count >= PACK_MEMBERS_MAX
            ):
                self._closing.append(self._by_study.pop(study_instance_uid))
                pack = None
            if pack is None:
                pack = self._open(study_instance_uid, now_s)
            pack.bytes_claimed += length
            pack.count += 1
            pack.users += 1
            pack.touched_s = now_s
            return pack

    def _open(self, study_instance_uid: str, now_s: float) -> _OpenPack:
        if len(self._by_study) >= OPEN_PACKS_MAX:
            idlest = min(self._by_study, key=lambda uid: self._by_study[uid].touched_s)
            self._closing.append(self._by_study.pop(idlest))
        pack_id = self._ids.next()
        path = os.path.join(self._directory, f"{pack_id}.tar")
        pack = _OpenPack(pack_id, PackWriter(self._files, path, study_instance_uid), now_s)
        self._by_study[study_instance_uid] = pack
        return pack

    def close_due(self) -> int:
        """Close what is full, quiet or old; return how many packs were closed.

        OutOfSpace when one could not be closed, which is tried again at the next call.
        """
        with self._lock:
            now_s = self._clock.monotonic_s()
            for uid, pack in list(self._by_study.items()):
                quiet = pack.users == 0 and now_s - pack.touched_s >= self._limits.quiet_s
                if quiet or now_s - pack.opened_s >= self._limits.max_age_s:
                    self._closing.append(self._by_study.pop(uid))
            ready = [pack for pack in self._closing if pack.users == 0]
            self._closing = [pack for pack in self._closing if pack.users != 0]
        return self._close_each(ready)

    def close_all(self) -> None:
        """Close every pack; whoever appends from now on gets Busy."""
        with self._lock:
            self._closed = True
            ready = [*self._closing, *self._by_study.values()]
            self._closing, self._by_study = [], {}
        self._close_each(ready)

    def _close_each(self, ready: list[_OpenPack]) -> int:
        failed: AzekuraError | None = None
        for pack in ready:
            try:
                self._close(pack)
            except AzekuraError as error:
                failed = error
                with self._lock:
                    self._closing.append(pack)
        if failed is not None:
            raise failed
        return len(ready)

    def _close(self, pack: _OpenPack) -> None:
        path = os.path.join(self._directory, f"{pack.pack_id}.tar")
        pack.writer.close()
        try:
            if pack.writer.count == 0:
                self._files.unlink(path)
            else:
                self._files.rename(path, self._layout.closed_path(pack.pack_id))
        except FileNotFoundError:
            # Somebody removed it behind our back, or the rename was done before its flush failed.
            if not os.path.exists(self._layout.closed_path(pack.pack_id)):
                _log.critical("open_pack_gone", pack=pack.pack_id)
        self._files.unlink(durable_path(path))
