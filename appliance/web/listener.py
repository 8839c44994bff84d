"""The listening socket and the connections that come through it.

Owns the counts of connections. Invariants: limits are checked at accept, before a handshake costs
anything; a connection that does not finish its handshake, or its request's headers, is cut off.
"""

import asyncio
import contextlib
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from typing import Any

from aiohttp import web

from appliance.web.limits import (
    BACKLOG_MAX,
    CONNECTIONS_MAX,
    CONNECTIONS_PER_ADDRESS_MAX,
    HANDSHAKE_MAX_S,
    HEADER_MAX_BYTES,
    HEADERS_MAX,
    LINGER_MAX_S,
    READ_MAX_BYTES,
    REQUEST_LINE_MAX_BYTES,
    REQUEST_WAIT_MAX_S,
)
from appliance.web.problem import problem_response, refused
from appliance.web.sending import secure

ACCEPT_AGAIN_S = 0.1

# aiohttp's own messages quote what clients send.
_SILENT = logging.getLogger("azekura.web.silent")
_SILENT.setLevel(logging.CRITICAL + 1)
_SILENT.propagate = False


class _Connection(web.RequestHandler):
    """aiohttp's connection, that says when it is over."""

    __slots__ = ("on_lost",)

    def __init__(self, manager: web.Server, on_lost: Callable[[], None], **options: Any) -> None:
        super().__init__(manager, **options)
        self.on_lost = on_lost

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,  # noqa: ARG002
        message: str | None = None,  # noqa: ARG002 - it quotes what was sent
    ) -> web.StreamResponse:
        """Answer what is no HTTP, or what fails outside of every handler."""
        del request
        response = problem_response(refused(status, "it is no request that is taken here"))
        secure(response)
        response.force_close()
        return response

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self.on_lost()


class Listener:
    """Accepts connections for one aiohttp server; used by its loop only."""

    def __init__(self, host: str, port: int, tls: ssl.SSLContext) -> None:
        """OSError when the port is taken."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server(
            (host, port), family=family, backlog=BACKLOG_MAX,
            dualstack_ipv6=host == "::" and socket.has_dualstack_ipv6(),
        )  # fmt: skip
        self._socket.setblocking(False)
        self.port = int(self._socket.getsockname()[1])
        self._tls = tls
        self._open: Counter[str] = Counter()
        self.open_count = 0
        self.refused_count = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def serve(self, server: web.Server) -> None:
        """Begin to accept; runs until `close`."""
        self._spawn(self._accept(server))

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, server: web.Server) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, address = await loop.sock_accept(self._socket)
            except OSError:  # out of descriptors, or the other end is gone already
                await asyncio.sleep(ACCEPT_AGAIN_S)
                continue
            host = str(address[0])
            if (
                self.open_count >= CONNECTIONS_MAX
                or self._open[host] >= CONNECTIONS_PER_ADDRESS_MAX
            ):
                self.refused_count += 1
                sock.close()
                continue
            self.open_count += 1
            self._open[host] += 1
            self._spawn(self._connect(server, sock, host))

    async def _connect(self, server: web.Server, sock: socket.socket, host: str) -> None:
        loop = asyncio.get_running_loop()
        released = False

        def release() -> None:
            nonlocal released
            if not released:
                released = True
                self.open_count -= 1
                self._open[host] -= 1
                if self._open[host] <= 0:
                    del self._open[host]

        def connection() -> _Connection:
            return _Connection(
                server, release, loop=loop,
                keepalive_timeout=REQUEST_WAIT_MAX_S, lingering_time=LINGER_MAX_S,
                max_line_size=REQUEST_LINE_MAX_BYTES, max_field_size=HEADER_MAX_BYTES,
                max_headers=HEADERS_MAX, read_bufsize=READ_MAX_BYTES, auto_decompress=False,
                access_log=None, logger=_SILENT,
            )  # fmt: skip

        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.connect_accepted_socket(
                connection, sock, ssl=self._tls, ssl_handshake_timeout=HANDSHAKE_MAX_S,
                ssl_shutdown_timeout=LINGER_MAX_S,
            )  # fmt: skip
        except (TimeoutError, OSError):  # no TLS, or not in time
            release()
            with contextlib.suppress(OSError):
                sock.close()

    async def close(self) -> None:
        """Accept nothing more."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._socket.close()
