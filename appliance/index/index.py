"""The index: one current generation, read and written in transactions, replaced by a rebuild.

Nothing lives only here: the index is made again from ledgers and packs. It decides nothing and
opens no pack; whoever meets damage in it is told by an error, and `on_damage` besides. Invariants:
- A transaction sees one generation; the next one sees whichever is current then.
- A read transaction lasts as long as one call or one short block; searches cut theirs.
"""

import contextlib
import errno
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from appliance.dicom.attributes import Level
from appliance.dicom.matching import Matcher
from appliance.foundation import log
from appliance.foundation.errors import (
    AzekuraError,
    IndexDamaged,
    OutOfSpace,
    StorageFailed,
    UnsupportedFormat,
)
from appliance.foundation.files import FileSystem
from appliance.index.contexts import ContextCache
from appliance.index.environment import MAP_SIZE, MapFull, Transaction, raise_if_lmdb
from appliance.index.format import stamp_or_check
from appliance.index.generations import Generations, Mark, OpenGeneration
from appliance.index.query import Query
from appliance.index.reading import Reader
from appliance.index.records import FoundInstance
from appliance.index.schema import damaged
from appliance.index.view import View
from appliance.index.writing import WriteTransaction

READER_CHECK_INTERVAL_S: Final = 60.0
FREE_BYTES_MIN: Final = 8 * 1024 * 1024
"""Below this the index is not written: a short write would look like a broken disk."""
SHORT_WRITE_FREE_BYTES: Final = 64 * 1024 * 1024
"""LMDB reports a short write as EIO. With less free than this it is taken for a full disk."""
Result = TypeVar("Result")


class ReadBlock:
    """A read transaction over a block: `with index.read() as view`."""

    __slots__ = ("_generation", "_index", "_transaction")

    def __init__(self, index: "Index") -> None:
        self._index = index

    def __enter__(self) -> View:
        index = self._index
        self._generation = index.enter()
        try:
            environment = self._generation.environment
            self._transaction = environment.begin(write=False)
            return View(Reader(environment, self._transaction, index.cache))
        except BaseException:
            index.leave(self._generation)
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        cause: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        environment = self._generation.environment
        try:
            environment.end(self._transaction)
        finally:
            self._index.leave(self._generation)
        if isinstance(cause, IndexDamaged):
            self._index.tell_damage(self._generation.name, cause)
        with self._index.watching(self._generation.name):
            raise_if_lmdb(cause, environment.directory)


class Filling:
    """A generation that a rebuild fills before it becomes current. Owned by one thread."""

    def __init__(self, files: FileSystem, opened: OpenGeneration, cache: ContextCache) -> None:
        self._files = files
        self.opened = opened
        self.name = opened.name
        self._cache = cache

    @contextlib.contextmanager
    def write(self) -> Iterator[WriteTransaction]:
        """Apply facts over a block, committed at its end; OutOfSpace when map or disk is full."""
        with _writing(self._files, self.opened, self._cache) as transaction:
            yield transaction

    def transact(self, work: Callable[[WriteTransaction], Result]) -> Result:
        """Run `work` in a write transaction; once more if the map was full and could grow."""
        return _twice(self.write, work)

    def discard(self) -> None:
        """Let the generation go without using it; its files go at the next switch."""
        self.opened.close()


class Index:
    """The index of one data directory, for one process.

    Threads: any; `_lock` guards which generation is open and how many blocks use it.
    """

    def __init__(
        self,
        files: FileSystem,
        directory: str,
        *,
        map_size: int = MAP_SIZE,
        on_damage: Callable[[str, AzekuraError], None] | None = None,
    ) -> None:
        """`on_damage` is told of the generation that can't be used, and why, before the caller."""
        self._on_damage = on_damage
        self._files = files
        self.generations = Generations(files, directory, map_size)
        self.cache = ContextCache()
        self._lock = threading.Lock()
        self._mark: Mark | None = None
        self._open: OpenGeneration | None = None
        self._checked_monotonic_s = time.monotonic()

    def open(self) -> Self:
        """Open the current generation, making a first one if there is none.

        IndexDamaged or UnsupportedFormat when it cannot be used: a rebuild makes a new one.
        """
        self.generations.prepare()
        self.leave(self.enter())
        self.generations.remove_unused()
        return self

    @contextlib.contextmanager
    def watching(self, generation: str) -> Iterator[None]:
        """Tell `on_damage` of damage that leaves the block. For the blocks above and below."""
        try:
            yield
        except (IndexDamaged, UnsupportedFormat) as error:
            self.tell_damage(generation, error)
            raise

    def tell_damage(self, generation: str, error: AzekuraError) -> None:
        """Tell whoever wants to know that a generation can't be used."""
        if self._on_damage is not None:
            self._on_damage(generation, error)

    def close(self) -> None:
        """Close the generation as soon as no block uses it."""
        with self._lock:
            old, self._open, self._mark = self._open, None, None
            if old is not None and old.blocks == 0:
                old.close()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        cause: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def generation(self) -> str:
        """The name of the open generation, "" when none is."""
        return self._open.name if self._open is not None else ""

    def enter(self) -> OpenGeneration:
        """Return the current generation, kept open until `leave`. For the blocks below."""
        mark = self.generations.mark()
        with self._lock:
            if mark != self._mark or self._open is None:
                self._follow(mark)
            assert self._open is not None
            self._open.blocks += 1
            return self._open

    def leave(self, generation: OpenGeneration) -> None:
        """Let a generation go that `enter` returned."""
        with self._lock:
            generation.blocks -= 1
            if generation.blocks == 0 and generation is not self._open:
                generation.close()

    def _follow(self, mark: Mark | None) -> None:
        name = self.generations.current()
        with self.watching(name):
            if mark is None:
                raise damaged("current", "the pointer to the generation is missing")
            fresh = self.generations.open(name)
            try:
                stamp_or_check(fresh.environment)
            except BaseException:
                fresh.close()
                raise
        old, self._open, self._mark = self._open, fresh, mark
        if old is not None:
            log.get("index").info("index_generation_followed", generation=fresh.name)
            if old.blocks == 0:
                old.close()

    # transactions

    def read(self) -> ReadBlock:
        """Return a block with a `View` of one moment. Keep it short: it holds pages."""
        return ReadBlock(self)

    @contextlib.contextmanager
    def write(self) -> Iterator[WriteTransaction]:
        """Apply facts over a block, committed at its end, durable then.

        OutOfSpace when the disk is full, or when the map was: it has grown then, try again.
        """
        with self.generations.gate().holding(shared=True):
            generation = self.enter()
            try:
                with self.watching(generation.name):
                    self._keep_house(generation)
                    with _writing(self._files, generation, self.cache) as transaction:
                        yield transaction
            finally:
                self.leave(generation)

    def transact(self, work: Callable[[WriteTransaction], Result]) -> Result:
        """Run `work` in a write transaction; once more if the map was full and could grow."""
        return _twice(self.write, work)

    def _keep_house(self, generation: OpenGeneration) -> None:
        if generation.environment.replaced():
            raise damaged(generation.name, "the data file was moved or replaced while in use")
        now = time.monotonic()
        if now - self._checked_monotonic_s > READER_CHECK_INTERVAL_S:
            self._checked_monotonic_s = now
            freed = generation.environment.reader_check()
            if freed:
                log.get("index").warning("index_readers_freed", count=freed)

    def used_bytes(self) -> int:
        """Return the size of the current generation's data file in bytes."""
        generation = self.enter()
        try:
            return generation.environment.used_bytes()
        finally:
            self.leave(generation)

    def find_sop(self, sop_instance_uid: str) -> list[FoundInstance]:
        """Return the instances with this UID, one for each study that has it, hidden ones too."""
        with ReadBlock(self) as view:
            return view.find_sop(sop_instance_uid)

    def query(
        self,
        level: Level,
        matchers: Mapping[int, Matcher],
        *,
        limit: int | None = None,
        wanted: Iterable[int] | None = None,
    ) -> Iterator[dict[int, Any]]:
        """Yield the attributes of what matches, of the level asked for and those above it.

        matchers: by tag, of that level or above; others are ignored. wanted: tags that the caller
        will look at, None for all; it saves looking up what costs. No transaction is open while
        the caller works on an answer.
        """
        return Query(self.read, level, matchers, limit, wanted).answers()

    # rebuilding

    def set_aside(self, generation: str, before: Callable[[str], None]) -> bool:
        """Make an empty generation the current one in place of that one; False if it is not.

        `before` is called with the new one's name before anybody can see it.
        """
        with self.generations.gate().holding():
            if self.generations.current() != generation:
                return False
            fresh = self.generations.create()
            before(fresh)
            self.generations.point_to(fresh)
            self.generations.set_aside(generation)
        log.get("index").error("index_set_aside", generation=generation)
        return True

    def new_generation(self) -> Filling:
        """Return an empty generation to fill with the same calls."""
        opened = self.generations.open(self.generations.create())
        try:
            stamp_or_check(opened.environment)
        except BaseException:
            opened.close()
            raise
        return Filling(self._files, opened, self.cache)

    def switch(
        self, filling: Filling, catch_up: Callable[[WriteTransaction], None] | None = None
    ) -> None:
        """Make a filled generation the current one, for all processes.

        catch_up: applies, while no writer is at work, what came while the generation was filled.
        """
        with self.generations.gate().holding():
            if catch_up is not None:
                filling.transact(catch_up)
            self.generations.point_to(filling.name)
        self.leave(self.enter())
        filling.opened.close()
        removed = self.generations.remove_unused()
        log.get("index").info("index_switched", generation=filling.name, removed=len(removed))


@contextlib.contextmanager
def _writing(
    files: FileSystem, generation: OpenGeneration, cache: ContextCache
) -> Iterator[WriteTransaction]:
    environment = generation.environment
    if files.free_bytes(environment.directory) < FREE_BYTES_MIN:
        raise _disk_full(environment.directory)
    try:
        with Transaction(environment, write=True) as transaction:
            applying = WriteTransaction(environment, transaction, cache)
            yield applying
            applying.flush()
    except OutOfSpace as cause:
        if isinstance(cause.__cause__, MapFull):
            environment.grow()
        raise
    except StorageFailed as cause:
        if (
            getattr(cause.__cause__, "code", 0) == errno.EIO
            and files.free_bytes(environment.directory) < SHORT_WRITE_FREE_BYTES
        ):
            raise _disk_full(environment.directory) from cause
        raise


def _disk_full(directory: str) -> OutOfSpace:
    return OutOfSpace("write the index", directory, "the disk is full", "Free space on its disk")


def _twice(
    write: Callable[[], contextlib.AbstractContextManager[WriteTransaction]],
    work: Callable[[WriteTransaction], Result],
) -> Result:
    for last in (False, True):
        try:
            with write() as transaction:
                return work(transaction)
        except OutOfSpace as cause:
            if last or not isinstance(cause.__cause__, MapFull):
                raise
    raise AssertionError
