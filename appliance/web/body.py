"""The body of a request, for a thread that reads it: bounded, and never waited for without end.

Invariants: at most BODY_PIECES_MAX pieces lie between the client and the thread; a body that stops
coming, comes too slowly or is too long fails for the thread, which then leaves nothing behind.
"""

import asyncio
import queue

from aiohttp import web

from appliance.web.limits import (
    BODY_BYTES_PER_S_MIN,
    BODY_GRACE_S,
    BODY_PIECES_MAX,
    BODY_SILENCE_MAX_S,
    STORE_MAX_BYTES,
)
from appliance.web.problem import BadRequest, TooLarge

_READ_MAX_S = 2 * BODY_SILENCE_MAX_S


class BodyBroken(BadRequest):
    """The client went away, or sends too slowly."""


class Body:
    """One body. `feed` runs on the loop, `read` in one thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._room = asyncio.Semaphore(BODY_PIECES_MAX)
        self._pieces: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()

    async def feed(self, request: web.Request) -> None:
        """Hand over all that comes; what goes wrong is the thread's."""
        began_s = self._loop.time()
        total = 0
        try:
            while True:
                await self._room.acquire()
                async with asyncio.timeout(BODY_SILENCE_MAX_S):
                    piece = await request.content.readany()
                if not piece:
                    self._pieces.put(b"")
                    return
                total += len(piece)
                _check(total, self._loop.time() - began_s)
                self._pieces.put(piece)
        except (TooLarge, BodyBroken) as error:
            self._pieces.put(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the body is not whole
            self._pieces.put(
                BodyBroken("store", cause=f"the body broke off: {type(error).__name__}")
            )
        except asyncio.CancelledError:
            self._pieces.put(BodyBroken("store", cause="the client is gone"))
            raise

    def read(self) -> bytes:
        """Return the next piece, b"" at the end; BodyBroken, TooLarge."""
        try:
            piece = self._pieces.get(timeout=_READ_MAX_S)
        except queue.Empty:
            raise BodyBroken("store", cause="the body stopped coming") from None
        if isinstance(piece, Exception):
            raise piece
        self._loop.call_soon_threadsafe(self._room.release)
        return piece


def _check(total_bytes: int, spent_s: float) -> None:
    """Raise TooLarge, or BodyBroken for a client that only keeps its place."""
    if total_bytes > STORE_MAX_BYTES:
        raise TooLarge("store", cause=f"a request has {STORE_MAX_BYTES} bytes at most")
    if spent_s > BODY_GRACE_S and total_bytes < spent_s * BODY_BYTES_PER_S_MIN:
        raise BodyBroken("store", cause="the body comes too slowly")
