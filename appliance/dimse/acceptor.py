"""The acceptor: listeners, connections on their way, and a thread for each association.

Owns the listening sockets and who may associate. Must not know any service.

Invariants:
- No thread exists for a connection before its A-ASSOCIATE-RQ is whole and its caller is known.
- `_active` and `_failed` are guarded by `_changed`; the rest belongs to the acceptor's thread.
- After StorageFailed nothing is accepted any more, and `on_fatal` is called, once.
"""

import contextlib
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping

from appliance.config.model import Config, Dicom, Peer
from appliance.dimse import pdu
from appliance.dimse.admitted import Admitted, AssociationStatus
from appliance.dimse.connecting import Connecting, ConnectingTable
from appliance.dimse.limits import Limits
from appliance.dimse.negotiation import Offer, read_titles
from appliance.dimse.service import Dispatcher, Service, offers_for, where
from appliance.dimse.tls import peer_subject, server_context
from appliance.foundation import log
from appliance.foundation.errors import AssociationLost, ConfigurationError, StorageFailed

BACKLOG = 512
ACCEPTS_PER_TURN_MAX = 64
GRACE_S = 5.0
"""How long an aborted association's thread may take to end before `stop` leaves it behind."""

_CALLING_UNKNOWN = (pdu.REJECTED_PERMANENT, pdu.REJECTED_BY_USER, 3)
_CALLED_UNKNOWN = (pdu.REJECTED_PERMANENT, pdu.REJECTED_BY_USER, 7)
_NOT_OVER_TLS = (pdu.REJECTED_PERMANENT, pdu.REJECTED_BY_USER, 1)
_LIMIT_EXCEEDED = (pdu.REJECTED_TRANSIENT, pdu.REJECTED_BY_PRESENTATION, 2)

_log = log.get("dimse")


class _Terms:
    """Who may associate, and for what: replaced as a whole, so that no association gets a mixture.

    `_offers` belongs to the acceptor's thread.
    """

    def __init__(self, dicom: Dicom, services: Iterable[Service]) -> None:
        self.dicom = dicom
        self.services = tuple(services)
        self.dispatcher = Dispatcher(self.services)
        # by id of the peer, which `dicom` keeps, and by what is open
        self._offers: dict[tuple[int, tuple[bool, ...]], Mapping[str, Offer]] = {}

    def offers(self, peer: Peer) -> Mapping[str, Offer]:
        """Return what the peer may negotiate now."""
        is_open = tuple(each.is_open is None or each.is_open() for each in self.services)
        key = (id(peer), is_open)
        if key not in self._offers:
            self._offers[key] = offers_for(peer, self.services)
        return self._offers[key]


class Acceptor:
    """Accepts associations until it is stopped."""

    def __init__(
        self,
        config: Config,
        services: Iterable[Service],
        on_fatal: Callable[[StorageFailed], None],
        *,
        limits: Limits | None = None,
        listener: socket.socket | None = None,
        tls_listener: socket.socket | None = None,
        on_turn: Callable[[], None] = lambda: None,
    ) -> None:
        """Take the terms; `listener`, `tls_listener`: sockets that somebody else keeps open.

        `on_turn` is called at least once a second while connections are accepted.
        """
        self._config = config.dicom
        self._terms = _Terms(config.dicom, services)
        self._on_fatal = on_fatal
        self._limits = limits or Limits()
        self._tls = server_context(config.dicom.tls) if config.dicom.tls else None
        self._inherited = (listener, tls_listener)
        self._on_turn = on_turn
        self._selector = selectors.DefaultSelector()
        self._listeners: dict[socket.socket, bool] = {}  # → whether it speaks TLS
        self._connecting = ConnectingTable(self._limits)
        self._active: dict[int, Admitted] = {}
        self._changed = threading.Condition()
        self._accepted_count = 0
        self._rejected_count = 0
        self._failed = False
        self._number = 0
        self._stopping = threading.Event()
        self._waker, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="dimse-acceptor", daemon=True)
        self.port = 0
        self.tls_port = 0

    # --- for the daemon

    @property
    def thread(self) -> threading.Thread:
        """The thread that accepts; it lives from `start` to `stop`."""
        return self._thread

    def start(self) -> None:
        """Listen and accept; ConfigurationError when an address can't be bound."""
        plain, over_tls = self._inherited
        plain = plain or _listen(self._config.host, self._config.port, "dicom.port")
        self._add_listener(plain, is_tls=False)
        self.port = plain.getsockname()[1]
        if self._config.tls is not None:
            over_tls = over_tls or _listen(
                self._config.host, self._config.tls.port, "dicom.tls.port"
            )
            self._add_listener(over_tls, is_tls=True)
            self.tls_port = over_tls.getsockname()[1]
        self._woken.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread.start()
        _log.info("listening", port=self.port, tls_port=self.tls_port)

    def stop(self, drain_timeout_s: float) -> None:
        """Accept nothing new, let associations end for that long, then abort them."""
        self._stopping.set()
        self._wake()
        if self._thread.ident is not None:
            self._thread.join()
        with self._changed:
            self._changed.wait_for(lambda: not self._active, drain_timeout_s)
            left = list(self._active.values())
            for admitted in left:
                admitted.interrupt()
            self._changed.wait_for(lambda: not self._active, 2 * self._limits.tick_s)
            for admitted in self._active.values():
                admitted.shut_down()
            self._changed.wait_for(lambda: not self._active, GRACE_S)
        _log.info("stopped_listening", aborted=len(left))
        self._waker.close()
        self._woken.close()

    def take(self, dicom: Dicom, services: Iterable[Service]) -> None:
        """From now on admit by these peers and titles; ports and open associations stay."""
        self._terms = _Terms(dicom, services)

    def status(self) -> list[AssociationStatus]:
        """Return one entry for each association that is open now."""
        with self._changed:
            return [admitted.status() for admitted in self._active.values()]

    def counts(self) -> dict[str, int]:
        """Return how many connections were accepted, rejected, evicted, and are on their way."""
        return {
            "accepted": self._accepted_count,
            "rejected": self._rejected_count,
            "evicted": self._connecting.evicted_count,
            "connecting": len(self._connecting),
        }

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            self._waker.send(b"\0")

    # --- the acceptor's thread

    def _add_listener(self, sock: socket.socket, *, is_tls: bool) -> None:
        sock.setblocking(False)
        self._listeners[sock] = is_tls
        self._selector.register(sock, selectors.EVENT_READ)

    def _run(self) -> None:
        limits = self._limits
        turn_s = max(0.01, min(1.0, limits.artim_s / 4, limits.closing_s / 4))
        sweep_at_s = 0.0
        while not self._stopping.is_set():
            self._on_turn()
            for key, _ in self._selector.select(turn_s):
                # connections that were let go in this turn are no longer registered
                if isinstance(key.data, Connecting):
                    if key.data.sock.fileno() >= 0:
                        self._advance(key.data)
                elif key.fileobj is not self._woken:
                    self._accept(key.fileobj)  # type: ignore[arg-type]
            now_s = time.monotonic()
            if now_s >= sweep_at_s:
                sweep_at_s = now_s + turn_s
                for connecting in self._connecting.overdue(now_s):
                    self._let_go(connecting)
        for sock in self._listeners:
            self._selector.unregister(sock)
            sock.close()
        for connecting in self._connecting:
            self._let_go(connecting)
        self._selector.close()

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTS_PER_TURN_MAX):
            try:
                sock, (address, *_) = listener.accept()
            except BlockingIOError:
                return
            except OSError as cause:
                self._cannot_accept(cause)
                return
            sock.setblocking(False)
            if self._listeners[listener]:
                assert self._tls is not None
                try:
                    sock = self._tls.wrap_socket(
                        sock, server_side=True, do_handshake_on_connect=False
                    )
                except (OSError, ValueError):  # it is gone already
                    sock.close()
                    continue
            if (surplus := self._connecting.surplus()) is not None:
                self._connecting.evicted_count += 1
                self._let_go(surplus)
            self._number += 1
            deadline_s = time.monotonic() + self._limits.artim_s
            connecting = Connecting(sock, _plain_address(address), self._number, deadline_s)
            self._connecting.add(connecting)
            self._selector.register(sock, selectors.EVENT_READ, connecting)

    def _cannot_accept(self, cause: OSError) -> None:
        """Out of file descriptors, most likely: take one from whoever needs it least."""
        _log.warning("accept_failed", error=type(cause).__name__, errno=cause.errno)
        victim = self._connecting.least_wanted()
        if victim is not None:
            self._connecting.evicted_count += 1
            self._let_go(victim)
        else:
            self._stopping.wait(0.05)

    def _let_go(self, connecting: Connecting) -> None:
        self._connecting.remove(connecting)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(connecting.sock)
        connecting.sock.close()

    def _advance(self, connecting: Connecting) -> None:
        address = connecting.address
        try:
            self._go_on(connecting)
        except pdu.ProtocolError as error:
            self._dismiss(connecting, pdu.encode_abort(pdu.ABORT_BY_PROVIDER, error.reason))
            _log.warning("connection_aborted", peer_address=address, cause=error.cause)
        except pdu.Rejected as rejection:
            self._reject(connecting, rejection, "", "")
        except AssociationLost as error:
            self._let_go(connecting)
            if connecting.handshaking:
                _log.warning("tls_handshake_failed", peer_address=address, cause=error.cause)
        except Exception as error:  # noqa: BLE001 - one connection must not end them all
            self._let_go(connecting)
            _log.error("connection_failed", peer_address=address, error=where(error))

    def _go_on(self, connecting: Connecting) -> None:
        if connecting.closing:
            if connecting.is_gone():
                self._let_go(connecting)
            return
        if connecting.handshaking:
            event = connecting.shake_hands()
            self._selector.modify(connecting.sock, event or selectors.EVENT_READ, connecting)
            if event:
                return
        if connecting.read(self._limits):
            self._decide(connecting)
        elif (hoarder := self._connecting.hoarder()) is not None:
            self._connecting.evicted_count += 1
            self._let_go(hoarder)

    def _dismiss(self, connecting: Connecting, message: bytes) -> None:
        connecting.dismiss(message, time.monotonic() + self._limits.closing_s)

    # --- who may associate

    def _decide(self, connecting: Connecting) -> None:
        called_ae, calling_ae = read_titles(connecting.received)
        terms = self._terms
        peer = terms.dicom.peer_calling(calling_ae, connecting.address)
        rejection = self._rejection(connecting, called_ae, peer, terms.dicom)
        if rejection is not None:
            self._reject(connecting, rejection, calling_ae, called_ae)
            return
        assert peer is not None
        self._admit(connecting, called_ae, calling_ae, peer, terms)

    def _reject(
        self, connecting: Connecting, rejection: pdu.Rejected, calling_ae: str, called_ae: str
    ) -> None:
        self._rejected_count += 1
        self._dismiss(connecting, rejection.encode())
        _log.warning(
            "association_rejected",
            calling_ae=calling_ae,
            called_ae=called_ae,
            peer_address=connecting.address,
            cause=rejection.cause,
        )

    def _rejection(
        self, connecting: Connecting, called_ae: str, peer: Peer | None, dicom: Dicom
    ) -> pdu.Rejected | None:
        if peer is None:
            return pdu.Rejected(*_CALLING_UNKNOWN)
        if peer.tls and not connecting.is_tls:
            return pdu.Rejected(*_NOT_OVER_TLS)
        if dicom.reject_unknown_called and called_ae not in dicom.ae_titles:
            return pdu.Rejected(*_CALLED_UNKNOWN)
        limits = self._limits
        with self._changed:
            active = list(self._active.values())
        of_peer = sum(admitted.peer == peer for admitted in active)
        of_address = sum(admitted.address == connecting.address for admitted in active)
        if (
            len(active) >= limits.associations_max
            or of_address >= limits.associations_per_address_max
            or of_peer >= peer.max_associations
        ):
            return pdu.Rejected(*_LIMIT_EXCEEDED)
        return None

    def _admit(
        self, connecting: Connecting, called_ae: str, calling_ae: str, peer: Peer, terms: _Terms
    ) -> None:
        self._connecting.remove(connecting)
        self._selector.unregister(connecting.sock)
        offers = terms.offers(peer)
        sock = connecting.sock
        admitted = Admitted(
            sock=sock,
            number=connecting.number,
            calling_ae=calling_ae,
            called_ae=called_ae,
            address=connecting.address,
            tls_subject=peer_subject(sock) if isinstance(sock, ssl.SSLSocket) else "",
            peer=peer,
            limits=self._limits,
        )
        with self._changed:
            self._active[admitted.number] = admitted
        self._accepted_count += 1
        thread = threading.Thread(
            target=self._serve,
            args=(admitted, bytes(connecting.received), offers, terms.dispatcher),
            name=f"association-{admitted.number}",
            daemon=True,
        )
        try:
            thread.start()
        except RuntimeError:  # the system has no thread left
            admitted.shut_down()
            self._forget(admitted)
            raise

    # --- an association's thread

    def _serve(
        self,
        admitted: Admitted,
        request: bytes,
        offers: Mapping[str, Offer],
        dispatcher: Dispatcher,
    ) -> None:
        failure: StorageFailed | None = None
        try:
            failure = admitted.serve(request, offers, dispatcher)
        finally:
            self._forget(admitted)
        if failure is not None:
            with self._changed:
                first = not self._failed
                self._failed = True
            self._stopping.set()
            self._wake()
            if first:
                self._on_fatal(failure)

    def _forget(self, admitted: Admitted) -> None:
        with self._changed:
            self._active.pop(admitted.number, None)
            self._changed.notify_all()


def _listen(host: str, port: int, key: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server(
            (host, port), family=family, backlog=BACKLOG, dualstack_ipv6=host == "::"
        )
    except OSError as cause:
        raise ConfigurationError(
            "the DICOM listener",
            (f"{key}: {host} port {port} can't be bound: {cause.strerror or cause}",),
        ) from cause


def _plain_address(address: str) -> str:
    return address.removeprefix("::ffff:")
