"""From the event loop to the archive and back: bounded threads, bounded queues.

The archive is synchronous; nothing of it may run on the loop. Invariants:
- At most CALLS_MAX short calls and STREAMS_MAX streams run; more is Busy, never a longer queue
  without end.
- Between a stream's thread and its client lie at most STREAM_PIECES_MAX pieces.
- A stream that is closed ends its iterator, in its own thread, at the next piece.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from appliance.foundation.errors import Busy
from appliance.web.limits import CALLS_MAX, CALLS_WAITING_MAX, STREAM_PIECES_MAX, STREAMS_MAX

P = ParamSpec("P")
T = TypeVar("T")


class Stream:
    """What an iterator makes in a thread, for one coroutine. Made by Workers."""

    def __init__(self, make: Callable[[], Iterator[Any]], on_end: Callable[[], None]) -> None:
        self._make = make
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[tuple[Any, BaseException | None, bool]] = asyncio.Queue()
        self._room = threading.Semaphore(STREAM_PIECES_MAX)
        self._closed = threading.Event()

    def run(self) -> None:
        """Iterate, in a thread of the pool."""
        try:
            if self._closed.is_set():
                return
            pieces = self._make()
            try:
                for piece in pieces:
                    self._room.acquire()
                    if self._closed.is_set():
                        return
                    self._put((piece, None, False))
            finally:
                close = getattr(pieces, "close", None)
                if close is not None:
                    close()
        except BaseException as error:  # noqa: BLE001 - it is the coroutine's
            self._put((None, error, True))
        else:
            self._put((None, None, True))
        finally:
            self._on_end()

    def _put(self, item: tuple[Any, BaseException | None, bool]) -> None:
        if not self._closed.is_set():
            with contextlib.suppress(RuntimeError):  # the loop has ended, and the client with it
                self._loop.call_soon_threadsafe(self._queue.put_nowait, item)

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> Any:
        piece, error, ended = await self._queue.get()
        if error is not None:
            raise error
        if ended:
            raise StopAsyncIteration
        self._room.release()
        return piece

    def close(self) -> None:
        """End the thread's work; what it has made is dropped."""
        self._closed.set()
        self._room.release()


class Workers:
    """The threads of the daemon; used by its loop only."""

    def __init__(self) -> None:
        self._calls = ThreadPoolExecutor(CALLS_MAX, thread_name_prefix="web-call")
        self._streams = ThreadPoolExecutor(STREAMS_MAX, thread_name_prefix="web-stream")
        self._waiting_count = 0
        self._free_streams = threading.BoundedSemaphore(STREAMS_MAX)

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function in a thread; Busy when too many wait already."""
        if self._waiting_count >= CALLS_WAITING_MAX:
            raise Busy("answer", cause="too many requests are waiting")
        self._waiting_count += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._calls, lambda: function(*args, **kwargs))
        finally:
            self._waiting_count -= 1

    def stream(self, make: Callable[[], Iterator[Any]]) -> Stream:
        """Begin to iterate over what `make` returns; Busy when too many streams run.

        Whoever gets the stream must close it.
        """
        if not self._free_streams.acquire(blocking=False):
            raise Busy("answer", cause=f"{STREAMS_MAX} transfers run already")
        stream = Stream(make, self._free_streams.release)
        self._streams.submit(stream.run)
        return stream

    async def transfer(self, work: Callable[[], T], feed: Coroutine[Any, Any, None]) -> T:
        """Run work that reads what `feed` brings; both end together. Busy, and what work raises."""
        if not self._free_streams.acquire(blocking=False):
            feed.close()
            raise Busy("answer", cause=f"{STREAMS_MAX} transfers run already")
        loop = asyncio.get_running_loop()
        working = loop.run_in_executor(self._streams, work)
        working.add_done_callback(lambda _done: self._free_streams.release())
        feeding = loop.create_task(feed)
        try:
            await asyncio.wait((working, feeding), return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                await asyncio.wait((working,))
            return working.result()
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)

    def close(self) -> None:
        """End the threads when they have nothing more to do."""
        self._calls.shutdown(wait=False, cancel_futures=True)
        self._streams.shutdown(wait=False)
