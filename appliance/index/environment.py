"""The LMDB environment of one generation: the only file that imports lmdb.

It knows tables by number and bytes by name, no records. Invariants:
- A process opens an environment once (LMDB allows no more); further opens of the same directory
  share it.
- Every lmdb error leaves as one of ours: a full map or disk is OutOfSpace, a failed flush
  StorageFailed, unreadable pages IndexDamaged.
- A data file that has lost most of its length is refused: touching a page behind its end kills the
  process. (Pages that were freed in the transaction that made them are never written, so that the
  exact length is not known.)
- The map grows only while no transaction of this process is open.
"""

import errno
import os
import threading
from types import TracebackType
from typing import Any, Final, NoReturn

import lmdb

from appliance.foundation import log
from appliance.foundation.errors import AzekuraError, IndexDamaged, OutOfSpace, StorageFailed
from appliance.index.schema import REBUILD_HINT, Table, damaged

MAP_SIZE: Final = 1 << 40
"""Bytes of address space asked for; halved until the kernel grants it."""
MAP_SIZE_MIN: Final = 1 << 20
READERS_MAX: Final = 512
SPARE_TRANSACTIONS: Final = 16
GROWTH_WAIT_S: Final = 10.0
_DATA_FILE = "data.mdb"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_BROKEN = (
    lmdb.CorruptedError,
    lmdb.InvalidError,
    lmdb.PageNotFoundError,
    lmdb.VersionMismatchError,
    lmdb.PageFullError,
    lmdb.CursorFullError,
)

LmdbError = lmdb.Error
MapFull = lmdb.MapFullError


def translated(cause: lmdb.Error, path: str) -> AzekuraError:
    """Return our error for one of lmdb's."""
    if isinstance(cause, lmdb.MapFullError):
        return OutOfSpace("write the index", path, "its map is full", "The index grows; try again")
    if isinstance(cause, lmdb.ReadersFullError):
        return OutOfSpace("read the index", path, f"all {READERS_MAX} reader slots are taken")
    if isinstance(cause, _BROKEN):
        return IndexDamaged("open a page of the index", path, str(cause), REBUILD_HINT)
    if cause.code in _FULL or isinstance(cause, lmdb.DiskError):
        return OutOfSpace("write the index", path, str(cause), "Free space on the index disk")
    return StorageFailed("use the index", path, str(cause), "Check the disk")


def raise_translated(cause: lmdb.Error, path: str) -> NoReturn:
    """Raise our error for one of lmdb's."""
    raise translated(cause, path) from cause


def raise_if_lmdb(cause: BaseException | None, path: str) -> None:
    """Raise our error if the cause is one of lmdb's."""
    if isinstance(cause, lmdb.Error):
        raise_translated(cause, path)


class Environment:
    """One open LMDB environment.

    Threads: every method may be called from any thread; `_active`, the count of open transactions
    of this process, and `_waiting`, of threads that wait for it to fall, are guarded by `_idle`.
    """

    def __init__(self, directory: str, map_size: int) -> None:
        self.directory = directory
        self.users = 0
        self._idle = threading.Condition(threading.Lock())
        self._active = 0
        self._waiting = 0
        self._env = _open(directory, map_size)
        try:
            self._check_length()
            self.tables: list[Any] = [
                self._env.open_db(table.name.lower().encode()) for table in Table
            ]
            found = os.stat(os.path.join(directory, _DATA_FILE))
            self.reader_check()
        except lmdb.Error as cause:
            self._env.close()
            raise_translated(cause, directory)
        except IndexDamaged:
            self._env.close()
            raise
        self.identity = (found.st_dev, found.st_ino)

    def _check_length(self) -> None:
        wanted = (self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"]
        if 2 * self.used_bytes() < wanted:
            raise damaged(self.directory, "its data file is cut short")

    def begin(self, *, write: bool) -> Any:
        """Return an lmdb transaction, to be given back with `end`."""
        with self._idle:
            self._active += 1
        try:
            try:
                return self._env.begin(write=write)
            except lmdb.MapResizedError:
                self._adopt_map_size()
                return self._env.begin(write=write)
            except lmdb.ReadersFullError:
                self.reader_check()
                return self._env.begin(write=write)
        except BaseException as cause:
            self._leave()
            raise_if_lmdb(cause, self.directory)
            raise

    def end(self, transaction: Any, *, commit: bool = False) -> None:
        """Commit or drop a transaction."""
        try:
            if commit:
                transaction.commit()
            else:
                transaction.abort()
        finally:
            self._leave()

    def _leave(self) -> None:
        with self._idle:
            self._active -= 1
            if self._waiting:
                self._idle.notify_all()

    @property
    def open_transactions(self) -> int:
        """How many transactions of this process are open now."""
        return self._active

    def grow(self) -> bool:
        """Double the map once no transaction of this process is open; False if it cannot be."""
        with self._idle:
            if not self._wait_until_open(0):
                return False
            size = 2 * self._env.info()["map_size"]
            try:
                self._env.set_mapsize(size)
            except lmdb.Error:
                return False
        log.get("index").warning("index_map_grown", bytes=size)
        return True

    def _adopt_map_size(self) -> None:
        """Take over the larger map that another process has made."""
        with self._idle:
            self._wait_until_open(1)
            self._env.set_mapsize(0)

    def _wait_until_open(self, most: int) -> bool:
        """Wait until no more transactions than that are open. The caller holds `_idle`."""
        self._waiting += 1
        try:
            return self._idle.wait_for(lambda: self._active <= most, GROWTH_WAIT_S)
        finally:
            self._waiting -= 1

    def reader_check(self) -> int:
        """Free the reader slots of processes that died; return how many there were."""
        cleared: int = self._env.reader_check()
        return cleared

    def entries(self, table: Table, transaction: Any) -> int:
        """Return how many records a table has."""
        count: int = transaction.stat(self.tables[table])["entries"]
        return count

    def replaced(self) -> bool:
        """Return whether the data file is another one than was opened, or is gone."""
        try:
            found = os.stat(os.path.join(self.directory, _DATA_FILE))
        except FileNotFoundError:
            return True
        return (found.st_dev, found.st_ino) != self.identity

    def used_bytes(self) -> int:
        """Return the size of the data file in bytes."""
        return os.stat(os.path.join(self.directory, _DATA_FILE)).st_size

    def close(self) -> None:
        """Close the environment."""
        self._env.close()


def _open(directory: str, map_size: int) -> Any:
    while True:
        try:
            return lmdb.open(
                directory,
                map_size=map_size,
                create=False,
                mode=0o660,
                sync=True,
                metasync=True,
                writemap=False,
                readahead=False,
                max_readers=READERS_MAX,
                max_dbs=len(Table),
                max_spare_txns=SPARE_TRANSACTIONS,
                lib_version=0,
            )
        except (lmdb.MemoryError, MemoryError):
            map_size //= 2
            if map_size < MAP_SIZE_MIN:
                raise
        except lmdb.Error as cause:
            if cause.code == errno.ENOMEM and map_size > MAP_SIZE_MIN:
                map_size //= 2
                continue
            raise_translated(cause, directory)


class Environments:
    """The environments that this process has open, by directory, with how many use each."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[str, Environment] = {}

    def acquire(self, directory: str, map_size: int = MAP_SIZE) -> Environment:
        """Return the environment of a directory, opening it if nobody has."""
        directory = os.path.realpath(directory)
        with self._lock:
            environment = self._open.get(directory)
            if environment is None:
                environment = self._open[directory] = Environment(directory, map_size)
            environment.users += 1
            return environment

    def release(self, environment: Environment) -> None:
        """Let an environment go; the last one closes it."""
        with self._lock:
            environment.users -= 1
            if environment.users == 0:
                if self._open.get(environment.directory) is environment:
                    del self._open[environment.directory]
                environment.close()


ENVIRONMENTS: Final = Environments()
"""LMDB's rule is one environment a process, so this register is one a process too."""


class Transaction:
    """A transaction over a block: `with Transaction(environment, write=…) as lmdb_transaction`."""

    __slots__ = ("_environment", "_transaction", "_write")

    def __init__(self, environment: Environment, *, write: bool) -> None:
        self._environment = environment
        self._write = write
        self._transaction: Any = None

    def __enter__(self) -> Any:
        self._transaction = self._environment.begin(write=self._write)
        return self._transaction

    def __exit__(
        self,
        kind: type[BaseException] | None,
        cause: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._environment.end(self._transaction, commit=self._write and cause is None)
        except lmdb.Error as error:
            raise_translated(error, self._environment.directory)
        raise_if_lmdb(cause, self._environment.directory)
