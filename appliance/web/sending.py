"""Answers that stream: pieces from the archive's thread to the client, at the client's pace.

Invariant: a client that does not take a piece within PIECE_MAX_S is cut off, and the thread ends.
"""

import asyncio
from collections.abc import AsyncIterator

from aiohttp import web

from appliance.web.limits import PIECE_MAX_S


async def send_stream(
    request: web.Request, response: web.StreamResponse, first: bytes, stream: AsyncIterator[bytes]
) -> web.StreamResponse:
    """Send the first piece, which is at hand, and all others; TimeoutError for a slow client."""
    await response.prepare(request)
    async with asyncio.timeout(PIECE_MAX_S):
        await response.write(first)
    async for piece in stream:
        if piece:
            async with asyncio.timeout(PIECE_MAX_S):
                await response.write(piece)
    async with asyncio.timeout(PIECE_MAX_S):
        await response.write_eof()
    return response
