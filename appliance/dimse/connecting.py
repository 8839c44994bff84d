"""Connections that have not associated yet, all of them in the acceptor's thread.

Owns each from accept until its A-ASSOCIATE-RQ is whole, or until it has been told to go. Must not
block and must not decode an A-ASSOCIATE-RQ.

Invariants:
- Nothing is read past the A-ASSOCIATE-RQ: what follows belongs to the association.
- A PDU's length is judged before its body is read, and only received bytes take memory.
- The table never holds more than `connecting_max`: the oldest connection of the address that has
  the most makes room, so that a host which opens a thousand keeps nobody else out.
"""

import contextlib
import selectors
import socket
import ssl
from collections import Counter
from collections.abc import Iterator

from appliance.dimse import pdu
from appliance.dimse.limits import Limits
from appliance.foundation.errors import AssociationLost

_NOT_NOW = (BlockingIOError, ssl.SSLWantReadError)
_DISCARD_BYTES = 4096
_READ_BYTES_MAX = 64 * 1024


class Connecting:
    """One connection on its way; see the module."""

    def __init__(self, sock: socket.socket, address: str, number: int, deadline_s: float) -> None:
        self.sock = sock
        self.address = address
        self.number = number
        self.deadline_s = deadline_s
        self.received = bytearray()
        self.wanted = pdu.PDU_HEADER_BYTES
        self.handshaking = isinstance(sock, ssl.SSLSocket)
        self.closing = False

    @property
    def is_tls(self) -> bool:
        """Whether it came in on the TLS port."""
        return isinstance(self.sock, ssl.SSLSocket)

    def shake_hands(self) -> int:
        """Go on with the TLS handshake; return the event it waits for, 0 when it is done."""
        assert isinstance(self.sock, ssl.SSLSocket)
        try:
            self.sock.do_handshake()
        except ssl.SSLWantReadError:
            return selectors.EVENT_READ
        except ssl.SSLWantWriteError:
            return selectors.EVENT_WRITE
        except (OSError, ValueError) as cause:
            reason = getattr(cause, "reason", None) or type(cause).__name__
            raise AssociationLost("shake hands over TLS", "", str(reason)) from cause
        self.handshaking = False
        return 0

    def read(self, limits: Limits) -> bool:
        """Read what is there; return whether the A-ASSOCIATE-RQ is whole.

        Raises ProtocolError for anything but an A-ASSOCIATE-RQ of allowed length,
        AssociationLost when the peer is gone.
        """
        while len(self.received) < self.wanted:
            try:
                chunk = self.sock.recv(min(self.wanted - len(self.received), _READ_BYTES_MAX))
            except _NOT_NOW:
                return False
            except (OSError, ValueError) as cause:
                raise AssociationLost("read from the peer", "", str(cause)) from cause
            if not chunk:
                raise AssociationLost("read from the peer", "", "the connection was closed")
            self.received += chunk
            if self.received[0] != pdu.A_ASSOCIATE_RQ:  # HTTP, TLS and the like
                raise pdu.ProtocolError(pdu.UNRECOGNIZED_PDU, "no A-ASSOCIATE-RQ")
            if len(self.received) == pdu.PDU_HEADER_BYTES == self.wanted:
                kind, length = pdu.PDU_HEADER.unpack(self.received)
                pdu.check_header(kind, length, limits)
                self.wanted += length
        return True

    def dismiss(self, message: bytes, deadline_s: float) -> None:
        """Send the last word, then wait for the peer to close: a reset would swallow the word."""
        self.closing = True
        self.deadline_s = deadline_s
        self.received = bytearray()
        with contextlib.suppress(OSError, ValueError):
            self.sock.send(message)
            self.sock.shutdown(socket.SHUT_WR)

    def is_gone(self) -> bool:
        """While closing: drop what still comes; return whether the peer has closed."""
        try:
            while self.sock.recv(_DISCARD_BYTES):
                pass
        except _NOT_NOW:
            return False
        except (OSError, ValueError):
            return True
        return True


class ConnectingTable:
    """All connections that have not associated yet. Used by the acceptor's thread alone."""

    def __init__(self, limits: Limits) -> None:
        self.evicted_count = 0
        self._limits = limits
        self._all: dict[int, Connecting] = {}  # by number: oldest first
        self._per_address: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Connecting]:
        return iter(list(self._all.values()))

    def add(self, connecting: Connecting) -> None:
        """Take one in."""
        self._all[connecting.number] = connecting
        self._per_address[connecting.address] += 1

    def remove(self, connecting: Connecting) -> None:
        """Let one go; it may be gone already."""
        if self._all.pop(connecting.number, None) is not None:
            self._per_address[connecting.address] -= 1
            if not self._per_address[connecting.address]:
                del self._per_address[connecting.address]

    def surplus(self) -> Connecting | None:
        """Return the connection that must make room for another, or None when there is room."""
        if len(self._all) < self._limits.connecting_max:
            return None
        return self.least_wanted()

    def least_wanted(self) -> Connecting | None:
        """Return the oldest connection of the address that has the most."""
        if not self._all:
            return None
        busiest = self._per_address.most_common(1)[0][0]
        return next(one for one in self._all.values() if one.address == busiest)

    def hoarder(self) -> Connecting | None:
        """Return the connection that holds the most bytes when all together hold too many."""
        held = sum(len(one.received) for one in self._all.values())
        if held <= self._limits.connecting_bytes_max:
            return None
        return max(self._all.values(), key=lambda one: len(one.received))

    def overdue(self, now_s: float) -> list[Connecting]:
        """Return those past their deadline."""
        return [one for one in self._all.values() if now_s >= one.deadline_s]
