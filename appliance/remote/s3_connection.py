"""Sockets to the bucket: throttled, kept alive, with timeouts that follow from the rate.

Owns: what botocore's connections do differently here. Must not: know requests or errors of S3.

Invariants:
- Every byte that leaves a socket was granted by the throttle first, headers and resent bodies
  included; TLS framing (0.2 %) is not counted.
- No socket operation waits without a limit, and a peer that stopped acknowledging is given up
  after `DEAD_PEER_S`.
"""

import contextlib
import contextvars
import socket
from collections.abc import Iterator
from typing import Any

from botocore.awsrequest import (
    AWSHTTPConnection,
    AWSHTTPConnectionPool,
    AWSHTTPSConnection,
    AWSHTTPSConnectionPool,
)

from appliance.remote.store import Lane
from appliance.remote.throttle import Throttle

DEAD_PEER_S = 60.0
SEND_TIMEOUT_S = 60.0
READ_TIMEOUT_LEAST_S = 30.0
READ_TIMEOUT_MOST_S = 180.0
# What the kernel may hold unsent: little, so that the lanes and the send timeout see the line.
UNSENT_BYTES_MAX = 128 * 1024
IN_FLIGHT_BYTES = 1024 * 1024
# Without a limit: as much as the slowest line sends within the timeout, 35 kbit/s.
FREE_RUN_BYTES = 256 * 1024

_lane: contextvars.ContextVar[Lane] = contextvars.ContextVar("lane", default=Lane.URGENT)


@contextlib.contextmanager
def sending_in(lane: Lane) -> Iterator[None]:
    """Let what this thread sends inside the block go in `lane`."""
    token = _lane.set(lane)
    try:
        yield
    finally:
        _lane.reset(token)


class LineTimeouts:
    """How long to wait for an answer: what may still be on the way has to drain first."""

    def __init__(self, throttle: Throttle) -> None:
        self._throttle = throttle

    def read_timeout_s(self) -> float:
        """Return seconds without any byte after which a request is given up."""
        rate = self._throttle.rate_now_bytes_per_s()
        if rate is None:
            return READ_TIMEOUT_LEAST_S
        return min(READ_TIMEOUT_MOST_S, READ_TIMEOUT_LEAST_S + IN_FLIGHT_BYTES / rate)


def tune(sock: socket.socket) -> None:
    """Set the options that find a dead peer and keep the kernel's unsent queue short."""
    for option, value in (
        (socket.TCP_NODELAY, 1),
        (socket.TCP_KEEPIDLE, 20),
        (socket.TCP_KEEPINTVL, 10),
        (socket.TCP_KEEPCNT, 4),
        (socket.TCP_USER_TIMEOUT, int(DEAD_PEER_S * 1000)),
        (socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES_MAX),
    ):
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


class _Throttled:
    """Mixed into botocore's connections: pieces of the throttle's size, each granted first."""

    throttle: Throttle
    sock: Any

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]
        # TLS sockets pass setsockopt on to the TCP socket below.
        tune(self.sock)

    def send(self, str: Any) -> None:  # noqa: A002  the name is http.client's
        if self._response_received:  # type: ignore[attr-defined]
            return  # an answer came early; botocore's rule is to send no more
        if self.sock is None:
            self.connect()
        self.sock.settimeout(SEND_TIMEOUT_S)
        if hasattr(str, "read"):
            while piece := str.read(FREE_RUN_BYTES):
                self._send_pieces(piece)
        else:
            self._send_pieces(str)

    def _send_pieces(self, data: Any) -> None:
        lane = _lane.get()
        with memoryview(data) as view:
            start = 0
            while start < len(view):
                piece_bytes = self.throttle.piece_bytes() or FREE_RUN_BYTES
                piece = view[start : start + piece_bytes]
                self.throttle.take(len(piece), lane)
                self.sock.sendall(piece)
                start += len(piece)


def install(client: Any, throttle: Throttle, timeouts: LineTimeouts) -> None:
    """Make a botocore client open throttled connections, and keep its requests where they go."""

    class Connection(_Throttled, AWSHTTPConnection):  # type: ignore[misc]
        pass

    class SecureConnection(_Throttled, AWSHTTPSConnection):  # type: ignore[misc]
        pass

    class Pool(AWSHTTPConnectionPool):  # type: ignore[misc]
        ConnectionCls = Connection

    class SecurePool(AWSHTTPSConnectionPool):  # type: ignore[misc]
        ConnectionCls = SecureConnection

    Connection.throttle = throttle
    SecureConnection.throttle = throttle
    # botocore offers no parameter for this. The dictionary is the one its pool managers read,
    # with the proxies, the CA bundle and the client certificate that it resolved.
    pools = client._endpoint.http_session._pool_classes_by_scheme  # noqa: SLF001
    pools.update(http=Pool, https=SecurePool)

    def before_call(params: dict[str, Any], **_: Any) -> None:
        context = params["context"]
        context["read_timeout"] = timeouts.read_timeout_s()
        # Marks the request as redirected already, so that the region redirector leaves it alone.
        context.setdefault("s3_redirect", {})["redirected"] = True

    client.meta.events.register("before-call.s3", before_call)
