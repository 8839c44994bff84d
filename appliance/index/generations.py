"""Generations of the index on disk, and which one is current.

    index/current                   the name of the current generation
    index/switch.lock               shared by writers, exclusive for a switch
    index/<generation>/data.mdb     LMDB
    index/<generation>/users.lock   shared by every process that has it open
    index/damaged-<generation>/     the last one that was set aside, for whoever wants to look

Invariants:
- `current` names a generation that was complete when it was named.
- Nobody writes to a generation after the switch away from it: a writer holds `switch.lock` from
  before it looks at `current` until it has committed.
- A generation is removed only under its `users.lock`, exclusive, and never the current one.
"""

import contextlib
import os
import re
from typing import Final

from appliance.foundation.errors import Busy
from appliance.foundation.files import FileLock, FileSystem
from appliance.index.environment import ENVIRONMENTS, MAP_SIZE, Environment
from appliance.index.schema import damaged

_CURRENT = "current"
_SWITCH_LOCK = "switch.lock"
_USERS_LOCK = "users.lock"
_DAMAGED: Final = "damaged-"
_FILES: Final = ("data.mdb", "lock.mdb")
_NAME = re.compile(r"[0-9]{12}")

Mark = tuple[int, int]


class OpenGeneration:
    """A generation that this object keeps open.

    blocks: open transactions that use it, guarded by whoever owns this object.
    """

    def __init__(self, directory: str, name: str, map_size: int) -> None:
        self.name = name
        self.blocks = 0
        self._users = FileLock(os.path.join(directory, name, _USERS_LOCK))
        try:
            self._users.acquire(shared=True, wait=True)
        except OSError as cause:
            raise damaged(name, f"the generation can't be opened: {cause.strerror}") from cause
        try:
            self.environment: Environment = ENVIRONMENTS.acquire(
                os.path.join(directory, name), map_size
            )
        except BaseException:
            self._users.release()
            raise

    def close(self) -> None:
        """Let the generation go."""
        ENVIRONMENTS.release(self.environment)
        self._users.release()


class Generations:
    """The folder of generations. Methods may be called from any thread and process."""

    def __init__(self, files: FileSystem, directory: str, map_size: int = MAP_SIZE) -> None:
        self.directory = directory
        self._files = files
        self._map_size = map_size
        self._pointer = os.path.join(directory, _CURRENT)

    def prepare(self) -> None:
        """Make the folder and a first generation, if there is none."""
        self._files.make_directory(self.directory)
        if self.mark() is None:
            with self.gate().holding():
                if self.mark() is None:
                    self.point_to(self.create())

    def gate(self) -> FileLock:
        """Return the lock that writers share and a switch holds alone."""
        return FileLock(os.path.join(self.directory, _SWITCH_LOCK))

    def mark(self) -> Mark | None:
        """Return what changes whenever `current` is written, None when there is none."""
        try:
            found = os.stat(self._pointer)
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns

    def current(self) -> str:
        """Return the name of the current generation, "" when none is named."""
        try:
            with open(self._pointer, encoding="ascii") as file:
                return file.read().strip()
        except (OSError, UnicodeDecodeError):
            return ""

    def names(self) -> list[str]:
        """Return the names of all generations, oldest first."""
        return sorted(name for name in os.listdir(self.directory) if _NAME.fullmatch(name))

    def create(self) -> str:
        """Make an empty generation and return its name."""
        # The current one counts even where its folder is lost: its name is not given twice.
        taken = [name for name in (*self.names(), self.current()) if _NAME.fullmatch(name)]
        number = max(map(int, taken), default=0) + 1
        name = f"{number:012d}"
        self._files.make_directory(os.path.join(self.directory, name))
        return name

    def open(self, name: str) -> OpenGeneration:
        """Open a generation by name."""
        return OpenGeneration(self.directory, name, self._map_size)

    def point_to(self, name: str) -> None:
        """Make a generation the current one, durable. The caller holds the gate."""
        self._files.fsync_directory(os.path.join(self.directory, name))
        self._files.write_atomic(self._pointer, name.encode())

    def set_aside(self, name: str) -> None:
        """Put a generation that is no longer current out of the way; an earlier such one goes."""
        for old in os.listdir(self.directory):
            if old.startswith(_DAMAGED):
                with contextlib.suppress(OSError):
                    self._remove_files(os.path.join(self.directory, old))
        path = os.path.join(self.directory, name)
        if _NAME.fullmatch(name) and os.path.isdir(path):
            self._files.rename(path, os.path.join(self.directory, _DAMAGED + name))

    def _remove_files(self, path: str) -> None:
        for file in (*_FILES, _USERS_LOCK):
            self._files.unlink(os.path.join(path, file))
        os.rmdir(path)

    def remove_unused(self) -> list[str]:
        """Remove the generations before the current one that nobody has open; return them."""
        removed = []
        current = self.current()
        for name in self.names():
            if name >= current:
                break
            path = os.path.join(self.directory, name)
            lock = FileLock(os.path.join(path, _USERS_LOCK))
            try:
                lock.acquire()
            except (Busy, FileNotFoundError):
                continue
            try:
                self._remove_files(path)
                removed.append(name)
            finally:
                lock.release()
        return removed
