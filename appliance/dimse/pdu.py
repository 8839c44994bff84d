"""Protocol data units of PS3.8 section 9.3: headers, the short ones, and the length cap.

Owns the byte layouts that the loop reads and writes by hand. A-ASSOCIATE-RQ and -AC are decoded
and encoded by pynetdicom (see `negotiation`). Invariant: a length is judged before a byte of the
PDU's body is read.
"""

import struct

from appliance.dimse.limits import Limits
from appliance.foundation.errors import AssociationLost

A_ASSOCIATE_RQ = 1
A_ASSOCIATE_AC = 2
A_ASSOCIATE_RJ = 3
P_DATA_TF = 4
A_RELEASE_RQ = 5
A_RELEASE_RP = 6
A_ABORT = 7

PDU_HEADER = struct.Struct(">BxI")
PDU_HEADER_BYTES = PDU_HEADER.size
PDV_HEADER = struct.Struct(">IBB")
PDV_HEADER_BYTES = PDV_HEADER.size
DATA_HEADER = struct.Struct(">BxIIBB")
"""A P-DATA-TF PDU's header and its first PDV's."""
DATA_HEADER_BYTES = DATA_HEADER.size

COMMAND = 1
LAST = 2

ABORT_BY_USER = 0
ABORT_BY_PROVIDER = 2
NOT_SPECIFIED = 0
UNRECOGNIZED_PDU = 1
UNEXPECTED_PDU = 2
UNEXPECTED_PARAMETER = 5
INVALID_PARAMETER = 6

REJECTED_PERMANENT = 1
REJECTED_TRANSIENT = 2
REJECTED_BY_USER = 1
REJECTED_BY_ACSE = 2
REJECTED_BY_PRESENTATION = 3

RELEASE_RQ = struct.pack(">BxI4x", A_RELEASE_RQ, 4)
RELEASE_RP = struct.pack(">BxI4x", A_RELEASE_RP, 4)

# PS3.8 table 9-21
_REASONS = {
    (1, 1): "no reason given",
    (1, 2): "application context name not supported",
    (1, 3): "calling AE title not recognized",
    (1, 7): "called AE title not recognized",
    (2, 1): "no reason given",
    (2, 2): "protocol version not supported",
    (3, 1): "temporary congestion",
    (3, 2): "local limit exceeded",
}


class ProtocolError(AssociationLost):
    """The peer broke the protocol; `reason` goes into the A-ABORT (PS3.8 table 9-26)."""

    def __init__(self, reason: int, cause: str) -> None:
        super().__init__("read from the peer", "", cause)
        self.reason = reason


class Rejected(AssociationLost):
    """An A-ASSOCIATE-RQ that is answered with A-ASSOCIATE-RJ; result, source and reason for it."""

    def __init__(self, result: int, source: int, reason: int) -> None:
        super().__init__("associate", "", describe_reject(source, reason))
        self.result = result
        self.source = source
        self.reason = reason

    def encode(self) -> bytes:
        """Return the A-ASSOCIATE-RJ PDU."""
        return encode_reject(self.result, self.source, self.reason)


def encode_abort(source: int = ABORT_BY_USER, reason: int = NOT_SPECIFIED) -> bytes:
    """Return an A-ABORT PDU."""
    return struct.pack(">BxI2xBB", A_ABORT, 4, source, reason)


def encode_reject(result: int, source: int, reason: int) -> bytes:
    """Return an A-ASSOCIATE-RJ PDU."""
    return struct.pack(">BxIxBBB", A_ASSOCIATE_RJ, 4, result, source, reason)


def describe_reject(source: int, reason: int) -> str:
    """Return the words for the source and reason of a rejection."""
    return _REASONS.get((source, reason), f"source {source}, reason {reason}")


def check_header(kind: int, length_bytes: int, limits: Limits) -> None:
    """Raise ProtocolError when a PDU of that type may not be of that length, or is unknown."""
    if kind == P_DATA_TF:
        if length_bytes > limits.pdu_receive_bytes_max + limits.pdu_slack_bytes:
            raise ProtocolError(INVALID_PARAMETER, "a P-DATA-TF longer than negotiated")
        if length_bytes < PDV_HEADER_BYTES:
            raise ProtocolError(INVALID_PARAMETER, "a P-DATA-TF without a PDV")
    elif kind in (A_ASSOCIATE_RQ, A_ASSOCIATE_AC):
        if length_bytes > limits.associate_pdu_bytes_max:
            raise ProtocolError(INVALID_PARAMETER, "an A-ASSOCIATE longer than allowed")
    elif kind in (A_ASSOCIATE_RJ, A_RELEASE_RQ, A_RELEASE_RP, A_ABORT):
        if length_bytes != 4:
            raise ProtocolError(INVALID_PARAMETER, "a fixed PDU of another length than 4")
    else:
        raise ProtocolError(UNRECOGNIZED_PDU, "an unknown PDU type")
