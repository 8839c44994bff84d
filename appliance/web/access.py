"""Who calls, and what it may do: a bearer token, or a client certificate that names a peer.

Owns the counts of failures. Decides nothing about tokens: the archive does. Invariants: failures
make their address wait, a right token never does; no token is ever logged.
"""

import asyncio
import ssl
from collections import OrderedDict
from collections.abc import Mapping

import msgspec
from aiohttp import web

from appliance.archive.sender import Sender
from appliance.archive.tokens import TokenBook
from appliance.config.model import Config, Dicom, Peer
from appliance.config.values import Permission
from appliance.foundation.clock import Clock
from appliance.web.limits import (
    ADDRESSES_KEPT_MAX,
    DELAYED_MAX,
    FAILURE_DELAY_MAX_S,
    FAILURE_DELAY_S,
    FAILURES_FORGOTTEN_S,
    FAILURES_FREE_COUNT,
)
from appliance.web.problem import Forbidden, TooMany, Unauthorized
from appliance.web.tls import common_name

SEARCH = "find"
RETRIEVE = "get"
STORE = "store"
WATCH = "watch"
_TOKEN_MAY: Mapping[str, frozenset[str]] = {
    "read": frozenset({SEARCH, RETRIEVE, WATCH}),
    "store": frozenset({STORE}),
}
_PEER_MAY: tuple[Permission, ...] = ("find", "get", "store")
_BEARER = "Bearer "


class Caller(msgspec.Struct, frozen=True):
    """Who calls. `may` has words of this module; `ae_title` stands for a calling AE title."""

    name: str
    ae_title: str
    address: str
    may: frozenset[str]
    tls_subject: str = ""
    issuer: str = ""
    character_set: str = ""

    def sender(self, called_ae: str) -> Sender:
        """Return the caller as the archive knows who stores."""
        return Sender(
            calling_ae=self.ae_title,
            called_ae=called_ae,
            peer_address=self.address,
            tls_subject=self.tls_subject,
            issuer=self.issuer,
            character_set=self.character_set,
        )


CALLER: web.RequestKey[Caller] = web.RequestKey("caller", Caller)
"""Where a request keeps who calls, once it was admitted."""


class Access:
    """Knows callers by what they show; used by the loop only."""

    def __init__(self, config: Config, tokens: TokenBook, clock: Clock) -> None:
        self._tokens = tokens
        self._clock = clock
        self.take(config.dicom)
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._delayed_count = 0
        self.failures_count = 0

    def take(self, dicom: Dicom) -> None:
        """Know these peers from now on; any thread may say so."""
        self._issuer = dicom.issuer
        self._by_title = {peer.ae_title: peer for peer in reversed(dicom.peers)}
        self._by_certificate: dict[str, Peer] = {
            name: peer for peer in dicom.peers for name in peer.web_certificates
        }

    async def admit(self, request: web.Request, permission: str) -> Caller:
        """Return the caller; Unauthorized, Forbidden, TooMany."""
        caller = self._caller(request)
        if caller is None:
            await self._slow_down(address_of(request))
            raise Unauthorized(
                "authorize", cause="a bearer token or a client certificate of a peer is needed",
                hint="azekura token new NAME makes one",
            )  # fmt: skip
        if permission not in caller.may:
            raise Forbidden("authorize", cause=f"{caller.name} is not allowed to do that")
        return caller

    def _caller(self, request: web.Request) -> Caller | None:
        address = address_of(request)
        header = request.headers.get("Authorization", "")
        if header.startswith(_BEARER):
            token = self._tokens.find(header.removeprefix(_BEARER).strip())
            if token is None:
                return None
            may = frozenset().union(*(_TOKEN_MAY.get(word, frozenset()) for word in token.allow))
            return self._known(token.name, self._by_title.get(token.name), address, may, "")
        subject = _certificate_name(request)
        peer = self._by_certificate.get(subject) if subject else None
        if peer is None:
            return None
        permissions: set[str] = {word for word in _PEER_MAY if peer.may(word)}
        if permissions & {SEARCH, RETRIEVE}:
            permissions.add(WATCH)
        title = subject[:16] if peer.ae_title == "*" else peer.ae_title
        return self._known(title, peer, address, frozenset(permissions), subject)

    def _known(
        self, title: str, peer: Peer | None, address: str, may: frozenset[str], subject: str
    ) -> Caller:
        issuer = (peer.issuer if peer is not None else "") or self._issuer
        character_set = peer.character_set if peer is not None else ""
        return Caller(title, title, address, may, subject, issuer, character_set)

    async def _slow_down(self, address: str) -> None:
        """Count a failure and wait the longer the more there were from this address."""
        self.failures_count += 1
        now_s = self._clock.monotonic_s()
        count, last_s = self._failures.pop(address, (0, now_s))
        count = 1 if now_s - last_s > FAILURES_FORGOTTEN_S else count + 1
        self._failures[address] = (count, now_s)
        if len(self._failures) > ADDRESSES_KEPT_MAX:
            self._failures.popitem(last=False)
        over = count - FAILURES_FREE_COUNT
        if over <= 0:
            return
        if self._delayed_count >= DELAYED_MAX:
            raise TooMany("authorize", cause="too many wrong tokens")
        self._delayed_count += 1
        try:
            await asyncio.sleep(min(FAILURE_DELAY_S * 2 ** min(over - 1, 8), FAILURE_DELAY_MAX_S))
        finally:
            self._delayed_count -= 1


def address_of(request: web.Request) -> str:
    """Return the address of the other end, an IPv4 one in its own form."""
    found = request.remote or ""
    return found.removeprefix("::ffff:")


def _certificate_name(request: web.Request) -> str:
    transport = request.transport
    tls = transport.get_extra_info("ssl_object") if transport is not None else None
    if not isinstance(tls, ssl.SSLObject):
        return ""
    certificate = tls.getpeercert(binary_form=True)
    return common_name(certificate) if certificate else ""
