"""One TCP or TLS connection: a receive buffer, deadlines, and scatter-gather sending.

Must know nothing of PDUs. Used by one thread at a time, but for `shut_down`.

Invariants:
- `buffer[start:end]` is what was received and not yet consumed; a view of it is valid until the
  next call that receives.
- No call blocks past its deadline by more than one tick, however slowly the peer drips or reads.
- TCP_QUICKACK is armed again after each read: the kernel forgets it, and a sender with Nagle on
  would wait 40 ms for our delayed ACK at every message.
"""

import contextlib
import socket
import ssl
import struct
import time
from collections.abc import Callable, Sequence

from appliance.dimse.limits import Limits
from appliance.foundation.errors import AssociationLost

RECEIVE_BUFFER_BYTES = 64 * 1024
IOVECS_MAX = 512
_TLS_RECORD_BYTES = 16 * 1024
_NOT_NOW = (BlockingIOError, TimeoutError, ssl.SSLWantReadError, ssl.SSLWantWriteError)

Buffer = bytes | bytearray | memoryview


class Interrupted(AssociationLost):
    """The daemon stops, and the association with it."""


def lost(operation: str, cause: object) -> AssociationLost:
    """Return the error for a connection that is of no more use."""
    return AssociationLost(operation, "", str(cause))


class Connection:
    """A connected socket, blocking, with what it received."""

    def __init__(
        self,
        sock: socket.socket,
        limits: Limits,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.buffer = bytearray(RECEIVE_BUFFER_BYTES)
        self.start = 0
        self.end = 0
        self.interrupted = False  # any thread may set it; read at each tick
        self.received_bytes = 0
        self.sent_bytes = 0
        self.monotonic_s = monotonic_s
        self._view = memoryview(self.buffer)
        self._socket = sock
        self._limits = limits
        self._tls = isinstance(sock, ssl.SSLSocket)
        self._closed = False
        self._configure()

    def _configure(self) -> None:
        tick_s = self._limits.tick_s
        with contextlib.suppress(OSError):  # a peer that is gone already is noticed at the read
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if self._tls:
            self._socket.settimeout(tick_s)
            return
        # a kernel timeout spares the poll() that Python's own timeout puts before each call
        self._socket.settimeout(None)
        interval = struct.pack("@ll", int(tick_s), int(tick_s % 1 * 1_000_000))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, interval)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, interval)

    # --- receiving

    @property
    def buffered_bytes(self) -> int:
        """How much was received and not yet consumed."""
        return self.end - self.start

    def wait_for_data(self, deadline_s: float) -> bool:
        """Return True when something is buffered, False after one tick without anything.

        AssociationLost at the end of the stream or past the deadline.
        """
        if self.start != self.end:
            return True
        self.start = self.end = 0
        count = self._receive_once(self._view, deadline_s)
        self.end = count
        return count > 0

    def need(self, count: int, deadline_s: float) -> None:
        """Return when at least `count` bytes (≤ the buffer's size) are buffered."""
        missing = count - (self.end - self.start)
        if missing <= 0:
            return
        if self.start == self.end:
            self.start = self.end = 0
        elif self.start + count > RECEIVE_BUFFER_BYTES:
            kept = self.end - self.start
            self._view[:kept] = self._view[self.start : self.end]
            self.start, self.end = 0, kept
        while missing > 0:
            got = self._receive(self._view[self.end :], deadline_s)
            self.end += got
            missing -= got

    def view(self, count: int) -> memoryview:
        """Consume `count` buffered bytes; the view is valid until the next receive."""
        taken = self._view[self.start : self.start + count]
        self.start += count
        return taken

    def read_into(self, target: memoryview, deadline_s: float) -> None:
        """Fill `target`: from the buffer first, then from the socket without a further copy."""
        filled = min(self.end - self.start, len(target))
        if filled:
            target[:filled] = self._view[self.start : self.start + filled]
            self.start += filled
        size = len(target)
        while filled < size:
            filled += self._receive(target[filled:], deadline_s)

    def _receive(self, target: memoryview, deadline_s: float) -> int:
        count = 0
        while count == 0:
            count = self._receive_once(target, deadline_s)
        return count

    def _receive_once(self, target: memoryview, deadline_s: float) -> int:
        """Return the count of bytes received, 0 when a tick passed without any."""
        try:
            count = self._socket.recv_into(target)
        except _NOT_NOW:
            count = -1
        except (OSError, ValueError) as cause:
            raise lost("read from the peer", cause) from cause
        if count == 0:
            raise lost("read from the peer", "the connection was closed")
        if self.interrupted:
            raise Interrupted("read from the peer", "", "the node stops")
        if self.monotonic_s() >= deadline_s:
            raise lost("read from the peer", "the peer took too long")
        if count < 0:
            return 0
        self._arm_quickack()
        self.received_bytes += count
        return count

    def _arm_quickack(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def poll(self) -> bool:
        """Tell, without waiting, whether something is buffered or can be received now."""
        if self.start != self.end:
            return True
        self.start = self.end = 0
        try:
            if isinstance(self._socket, ssl.SSLSocket):
                self._socket.settimeout(0.0)
                try:
                    count = self._socket.recv_into(self._view)
                finally:
                    self._socket.settimeout(self._limits.tick_s)
            else:
                count = self._socket.recv_into(self._view, 0, socket.MSG_DONTWAIT)
        except _NOT_NOW:
            return False
        except (OSError, ValueError) as cause:
            raise lost("read from the peer", cause) from cause
        if count == 0:
            raise lost("read from the peer", "the connection was closed")
        self._arm_quickack()
        self.received_bytes += count
        self.end = count
        return True

    # --- sending

    def send(self, buffers: Sequence[Buffer]) -> None:
        """Send all buffers (at most IOVECS_MAX); AssociationLost when the peer does not read."""
        deadline_s = self.monotonic_s() + self._limits.send_s
        if self._tls:
            self._send_tls(buffers, deadline_s)
            return
        total = sum(map(len, buffers))
        sent = self._send_some(buffers, deadline_s)
        self.sent_bytes += total
        if sent == total:
            return
        views = [memoryview(buffer) for buffer in buffers]
        while True:
            while views and sent >= len(views[0]):
                sent -= len(views.pop(0))
            if not views:
                return
            if sent:
                views[0] = views[0][sent:]
            self._check_sending(deadline_s)
            sent = self._send_some(views, deadline_s)

    def _send_some(self, buffers: Sequence[Buffer], deadline_s: float) -> int:
        while True:
            try:
                return self._socket.sendmsg(buffers)
            except _NOT_NOW:
                self._check_sending(deadline_s)
            except (OSError, ValueError) as cause:
                raise lost("send to the peer", cause) from cause

    def _send_tls(self, buffers: Sequence[Buffer], deadline_s: float) -> None:
        pending = bytearray()
        for buffer in buffers:
            # small pieces share a TLS record, large ones are not copied
            if len(buffer) < _TLS_RECORD_BYTES:
                pending += buffer
                if len(pending) < _TLS_RECORD_BYTES:
                    continue
                self._send_record(memoryview(bytes(pending)), deadline_s)
                pending.clear()
                continue
            if pending:
                self._send_record(memoryview(bytes(pending)), deadline_s)
                pending.clear()
            self._send_record(memoryview(buffer), deadline_s)
        if pending:
            self._send_record(memoryview(bytes(pending)), deadline_s)

    def _send_record(self, view: memoryview, deadline_s: float) -> None:
        self.sent_bytes += len(view)
        while view:
            try:
                view = view[self._socket.send(view) :]
                if view:
                    self._check_sending(deadline_s)
            except _NOT_NOW:
                self._check_sending(deadline_s)
            except (OSError, ValueError) as cause:
                raise lost("send to the peer", cause) from cause

    def _check_sending(self, deadline_s: float) -> None:
        if self.interrupted:
            raise Interrupted("send to the peer", "", "the node stops")
        if self.monotonic_s() >= deadline_s:
            raise lost("send to the peer", "the peer does not read")

    # --- ending

    def send_last(self, message: bytes) -> None:
        """Send without waiting and without telling whether it worked: an A-ABORT."""
        with contextlib.suppress(OSError, ValueError):
            if self._tls:
                self._socket.settimeout(0.0)
                self._socket.send(message)
            else:
                self._socket.send(message, socket.MSG_DONTWAIT)

    def close(self) -> None:
        """Close the socket; may be called more than once."""
        if not self._closed:
            self._closed = True
            with contextlib.suppress(OSError, ValueError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()

    def shut_down(self) -> None:
        """From any thread: make the owner's blocked call end at once."""
        self.interrupted = True
        with contextlib.suppress(OSError, ValueError):
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
