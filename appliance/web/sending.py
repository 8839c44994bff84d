"""What every answer carries, and answers that stream: pieces at the client's pace.

Invariant: a client that does not take a piece within PIECE_MAX_S is cut off, and the thread ends.
"""

import asyncio
from collections.abc import AsyncIterator

from aiohttp import web

from appliance.web.limits import PIECE_MAX_S

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Strict-Transport-Security": "max-age=31536000",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def secure(response: web.StreamResponse) -> None:
    """Put the security headers on an answer, where it has none of its own."""
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers["Server"] = "Azekura"


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
