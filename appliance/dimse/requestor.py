"""Associations that we request: C-MOVE destinations, commitment reports, tests of a peer.

Owns nothing between calls. Must not decide what is sent. An association it returns is closed by
the caller, by `release` or `abort`.
"""

import socket
import ssl
from collections.abc import Mapping, Sequence

from appliance.dimse import pdu
from appliance.dimse.association import Association, Terms
from appliance.dimse.contexts import Proposal
from appliance.dimse.limits import Limits
from appliance.dimse.negotiation import Request, build_request, read_answer
from appliance.dimse.transport import Connection
from appliance.foundation.errors import AssociationLost, PeerRefused, PeerUnavailable

_HINT = "Check host, port and AE titles of the peer, and the network between"


def request_association(
    host: str,
    port: int,
    *,
    calling_ae: str,
    called_ae: str,
    proposals: Sequence[Proposal],
    tls: ssl.SSLContext | None = None,
    limits: Limits | None = None,
    extended: Mapping[str, bytes] | None = None,
) -> Association:
    """Connect, associate, and return the association with at least one accepted context.

    Raises PeerUnavailable (no connection, no answer in time, a transient rejection) or
    PeerRefused (a permanent rejection, or no context accepted).
    """
    limits = limits or Limits()
    request = build_request(calling_ae, called_ae, proposals, limits, extended)
    sock = _connect(host, port, tls, limits)
    connection = Connection(sock, limits)
    try:
        terms = _negotiate(connection, request, calling_ae, called_ae, limits)
    except pdu.ProtocolError as cause:
        connection.send_last(pdu.encode_abort(pdu.ABORT_BY_PROVIDER, cause.reason))
        connection.close()
        raise PeerUnavailable("associate", called_ae, cause.cause, _HINT) from cause
    except AssociationLost as cause:
        connection.close()
        raise PeerUnavailable("associate", called_ae, cause.cause, _HINT) from cause
    except PeerRefused:
        connection.send_last(pdu.encode_abort())
        connection.close()
        raise
    except BaseException:
        connection.close()
        raise
    return Association(connection, terms, limits, peer_address=host, is_requestor=True)


def _connect(host: str, port: int, tls: ssl.SSLContext | None, limits: Limits) -> socket.socket:
    try:
        sock = socket.create_connection((host, port), limits.connect_s)
    except OSError as cause:
        raise PeerUnavailable("connect", f"{host}:{port}", str(cause), _HINT) from cause
    if tls is None:
        return sock
    try:
        return tls.wrap_socket(sock, server_hostname=host)
    except ssl.SSLCertVerificationError as cause:
        sock.close()
        raise PeerRefused(
            "connect over TLS",
            f"{host}:{port}",
            cause.verify_message,
            "The peer's certificate must come from an authority in dicom.tls.ca",
        ) from cause
    except OSError as cause:
        sock.close()
        raise PeerUnavailable("connect over TLS", f"{host}:{port}", str(cause), _HINT) from cause


def _negotiate(
    connection: Connection, request: Request, calling_ae: str, called_ae: str, limits: Limits
) -> Terms:
    connection.send((request.pdu_bytes,))
    deadline_s = connection.monotonic_s() + limits.response_s
    connection.need(pdu.PDU_HEADER_BYTES, deadline_s)
    kind, length = pdu.PDU_HEADER.unpack_from(connection.buffer, connection.start)
    pdu.check_header(kind, length, limits)
    answer = bytearray(pdu.PDU_HEADER_BYTES + length)
    connection.read_into(memoryview(answer), deadline_s)
    if kind == pdu.A_ASSOCIATE_RJ:
        _, result, source, reason = answer[pdu.PDU_HEADER_BYTES :]
        words = pdu.describe_reject(source, reason)
        refusal = PeerUnavailable if result == pdu.REJECTED_TRANSIENT else PeerRefused
        raise refusal("associate", called_ae, f"rejected: {words}", _HINT)
    if kind == pdu.A_ABORT:
        raise PeerUnavailable("associate", called_ae, "the peer aborted", _HINT)
    if kind != pdu.A_ASSOCIATE_AC:
        raise pdu.ProtocolError(pdu.UNEXPECTED_PDU, f"a PDU of type {kind} as the answer")
    contexts, max_send_bytes, extended, implementation = read_answer(request, bytes(answer), limits)
    return Terms(
        calling_ae,
        called_ae,
        contexts,
        max_send_bytes,
        extended,
        peer_implementation=implementation,
    )
