"""A-ASSOCIATE, both sides: what is proposed, what is accepted, in which roles.

Owns the encoding of the negotiation items. The PDUs are decoded and encoded by pynetdicom's
classes and contexts are decided by its `negotiate_as_acceptor` and `negotiate_as_requestor`. Must
not read or write a socket, nor decide who may associate.

Invariants:
- Of a context's transfer syntaxes the first in the proposer's order that we take is accepted.
- Whatever a peer sends as A-ASSOCIATE gives an answer or ProtocolError, never another error.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from pynetdicom import pdu_primitives as primitives
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.presentation import (
    PresentationContext,
    build_context,
    negotiate_as_acceptor,
    negotiate_as_requestor,
)

from appliance.dicom.uid import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from appliance.dimse import pdu
from appliance.dimse.contexts import Context, Proposal
from appliance.dimse.limits import Limits
from appliance.foundation.errors import PeerRefused

APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
ABSTRACT_SYNTAX_NOT_SUPPORTED = 0x03
PDU_SEND_BYTES_MIN = 128
"""No peer asks for less; PDVs of a few bytes would take a second for each instance."""

_FIXED_BYTES = 74
_NEUTRAL_TITLES = b"CALLED".ljust(16) + b"CALLING".ljust(16)
_TITLES = struct.Struct(">6xHxx16s16s")


@dataclass(frozen=True, slots=True)
class Offer:
    """What we take of one abstract syntax.

    `peer_may_be_scu`: the ordinary case, it invokes and we perform. `peer_may_be_scp`: accepted
    when it proposes the role, so that a C-GET can send it instances.
    """

    transfer_syntaxes: frozenset[str]
    peer_may_be_scu: bool = True
    peer_may_be_scp: bool = False
    extended_answer: bytes | None = None
    """What a SOP Class Extended Negotiation is answered with, bit by bit at most what was asked
    for when `extended_is_mask`."""
    extended_is_mask: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """Our A-ASSOCIATE-AC and what it means."""

    pdu_bytes: bytes
    contexts: dict[int, Context]
    rejected_count: int
    max_pdu_send_bytes: int
    extended: dict[str, bytes]
    peer_implementation: str


@dataclass(frozen=True, slots=True)
class Request:
    """Our A-ASSOCIATE-RQ and what is needed to read its answer."""

    pdu_bytes: bytes
    contexts: list[PresentationContext] = field(repr=False)


def read_titles(request: bytes | bytearray) -> tuple[str, str]:
    """Return called and calling AE title of an A-ASSOCIATE-RQ, stripped of padding.

    Raises ProtocolError when it is too short or a title is none, Rejected for another protocol
    version.
    """
    if len(request) < _FIXED_BYTES:
        raise pdu.ProtocolError(pdu.INVALID_PARAMETER, "an A-ASSOCIATE-RQ that is cut short")
    version, called, calling = _TITLES.unpack_from(request)
    if not version & 1:
        raise pdu.Rejected(pdu.REJECTED_PERMANENT, pdu.REJECTED_BY_ACSE, 2)
    try:
        return _title(called), _title(calling)
    except ValueError as cause:
        raise pdu.ProtocolError(pdu.INVALID_PARAMETER, "an AE title that is none") from cause


def _title(raw: bytes) -> str:
    # some toolkits pad with NUL instead of space
    text = raw.rstrip(b"\0 ").lstrip(b" ").decode("ascii")
    if not text.isprintable() or "\\" in text:
        raise ValueError(text)
    return text


def _max_send_bytes(maximum_length: int | None, limits: Limits) -> int:
    """Return how long a PDU to the peer may be, without its header (PS3.8 D.1; 0: any)."""
    if not maximum_length:
        return limits.pdu_send_bytes_max
    if maximum_length < PDU_SEND_BYTES_MIN:
        raise pdu.ProtocolError(pdu.INVALID_PARAMETER, "a maximum length of no use")
    return min(maximum_length, limits.pdu_send_bytes_max)


def answer_request(request: bytes, offers: Mapping[str, Offer], limits: Limits) -> Answer:
    """Decide on an A-ASSOCIATE-RQ PDU (whole, header included) and encode the A-ASSOCIATE-AC.

    Raises Rejected for another application context than DICOM's, ProtocolError for nonsense.
    """
    try:
        decoded = A_ASSOCIATE_RQ()
        # the titles were read by `read_titles`, which takes more kinds of padding
        decoded.decode(request[:10] + _NEUTRAL_TITLES + request[42:])
        return _answer(request, decoded, offers, limits)
    except (pdu.ProtocolError, pdu.Rejected):
        raise
    except Exception as cause:  # pynetdicom's decoders raise whatever the bytes provoke
        raise pdu.ProtocolError(pdu.INVALID_PARAMETER, "an A-ASSOCIATE-RQ of no sense") from cause


def _answer(
    request: bytes, decoded: A_ASSOCIATE_RQ, offers: Mapping[str, Offer], limits: Limits
) -> Answer:
    user = decoded.user_information
    if user is None or not decoded.presentation_context:
        raise pdu.ProtocolError(pdu.INVALID_PARAMETER, "an A-ASSOCIATE-RQ without its items")
    if decoded.application_context_name != APPLICATION_CONTEXT:
        raise pdu.Rejected(pdu.REJECTED_PERMANENT, pdu.REJECTED_BY_USER, 2)
    proposed = [item.to_primitive() for item in decoded.presentation_context]
    if len({context.context_id for context in proposed}) != len(proposed):
        raise pdu.ProtocolError(pdu.INVALID_PARAMETER, "two contexts of one id")
    roles = {
        uid: (bool(item.scu_role), bool(item.scp_role))
        for uid, item in user.role_selection.items()
        if item.scu_role or item.scp_role
    }
    results, role_answers = _decide(proposed, roles, offers)
    extended = _answer_extended(user.ext_neg, offers)
    answer = primitives.A_ASSOCIATE()
    answer.application_context_name = APPLICATION_CONTEXT
    answer.calling_ae_title = "CALLING"
    answer.called_ae_title = "CALLED"
    answer.result = 0
    answer.result_source = 1
    answer.presentation_context_definition_results_list = results
    answer.user_information = [
        *_own_items(limits),
        *_async_items(user.async_ops_window is not None),
        *role_answers,
        *_extended_items(extended),
        *_identity_items(user),
    ]
    encoded = bytearray(A_ASSOCIATE_AC(answer).encode())
    encoded[10:74] = request[10:74]  # to be sent back as they came (PS3.8 table 9-17)
    contexts = {
        context.context_id: Context(
            context.context_id,
            str(context.abstract_syntax),
            str(context.transfer_syntax[0]),
            as_scp=bool(context.as_scp),
            as_scu=bool(context.as_scu),
        )
        for context in results
        if context.result == 0
    }
    return Answer(
        bytes(encoded),
        contexts,
        len(results) - len(contexts),
        _max_send_bytes(user.maximum_length, limits),
        extended,
        str(user.implementation_version_name or user.implementation_class_uid or ""),
    )


def _decide(
    proposed: Sequence[PresentationContext],
    roles: Mapping[str, tuple[bool, bool]],
    offers: Mapping[str, Offer],
) -> tuple[list[PresentationContext], list[primitives.SCP_SCU_RoleSelectionNegotiation]]:
    results: list[PresentationContext] = []
    answers: dict[str, primitives.SCP_SCU_RoleSelectionNegotiation] = {}
    for context in proposed:
        if not context.transfer_syntax:
            raise pdu.ProtocolError(pdu.INVALID_PARAMETER, "a context without a transfer syntax")
        supported = []
        offer = offers.get(str(context.abstract_syntax))
        proposes_scp = roles.get(str(context.abstract_syntax), (False, False))[1]
        if offer and (offer.peer_may_be_scu or (offer.peer_may_be_scp and proposes_scp)):
            # one context at a time and in its own order: pynetdicom would take ours
            taken = [uid for uid in context.transfer_syntax if uid in offer.transfer_syntaxes]
            own = _own_context(str(context.abstract_syntax), tuple(taken), offer)
            supported = [own]
        decided, role_answer = negotiate_as_acceptor([context], supported, roles)
        results += decided
        for item in role_answer:
            answers[str(item.sop_class_uid)] = item
    return results, [item for item in answers.values() if item.scu_role or item.scp_role]


@lru_cache(maxsize=1024)
def _own_context(
    abstract_syntax: str, transfer_syntaxes: tuple[str, ...], offer: Offer
) -> PresentationContext:
    """Return our side of one context; `negotiate_as_acceptor` only reads it."""
    own = build_context(abstract_syntax, list(transfer_syntaxes) or sorted(offer.transfer_syntaxes))
    own.scu_role = offer.peer_may_be_scu
    own.scp_role = offer.peer_may_be_scp
    return own


def _answer_extended(requested: Sequence[object], offers: Mapping[str, Offer]) -> dict[str, bytes]:
    answers: dict[str, bytes] = {}
    for item in requested:
        uid = str(getattr(item, "uid", ""))
        offer = offers.get(uid)
        if offer is None or offer.extended_answer is None:
            continue
        asked = bytes(getattr(item, "app_info", b"") or b"")
        if offer.extended_is_mask:
            ours = offer.extended_answer.ljust(len(asked), b"\0")
            answers[uid] = bytes(a & b for a, b in zip(asked, ours, strict=False))
        else:
            answers[uid] = offer.extended_answer
    return {uid: answer for uid, answer in answers.items() if answer}


def _own_items(limits: Limits) -> list[object]:
    length = primitives.MaximumLengthNotification()
    length.maximum_length_received = limits.pdu_receive_bytes_max
    class_uid = primitives.ImplementationClassUIDNotification()
    class_uid.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    version = primitives.ImplementationVersionNameNotification()
    version.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    return [length, class_uid, version]


def _async_items(proposed: bool) -> list[object]:
    if not proposed:
        return []
    window = primitives.AsynchronousOperationsWindowNegotiation()
    window.maximum_number_operations_invoked = 1
    window.maximum_number_operations_performed = 1
    return [window]


def _extended_items(extended: Mapping[str, bytes]) -> list[object]:
    items: list[object] = []
    for uid, information in extended.items():
        item = primitives.SOPClassExtendedNegotiation()
        item.sop_class_uid = uid
        item.service_class_application_information = information
        items.append(item)
    return items


def _identity_items(user: object) -> list[object]:
    """Accept a user identity (PS3.7 D.3.3.7); who may call is decided by title and address."""
    identity = getattr(user, "user_identity", None)
    if identity is None or not identity.response_requested:
        return []
    item = primitives.UserIdentityNegotiation()
    item.server_response = b""
    return [item]


# --- as requestor


def build_request(
    calling_ae: str,
    called_ae: str,
    proposals: Sequence[Proposal],
    limits: Limits,
    extended: Mapping[str, bytes] | None = None,
) -> Request:
    """Encode an A-ASSOCIATE-RQ for 1 to 128 proposals; their ids are odd, from 1 on."""
    if not 1 <= len(proposals) <= 128:
        raise ValueError(f"{len(proposals)} presentation contexts; there may be 1 to 128")
    contexts: list[PresentationContext] = []
    role_items: dict[str, object] = {}
    for number, proposal in enumerate(proposals):
        context = build_context(proposal.abstract_syntax, list(proposal.transfer_syntaxes))
        context.context_id = 2 * number + 1
        if proposal.scp or not proposal.scu:
            context.scu_role, context.scp_role = proposal.scu, proposal.scp
            role = primitives.SCP_SCU_RoleSelectionNegotiation()
            role.sop_class_uid = proposal.abstract_syntax
            role.scu_role, role.scp_role = proposal.scu, proposal.scp
            role_items[proposal.abstract_syntax] = role
        contexts.append(context)
    request = primitives.A_ASSOCIATE()
    request.application_context_name = APPLICATION_CONTEXT
    request.calling_ae_title = calling_ae
    request.called_ae_title = called_ae
    request.presentation_context_definition_list = contexts
    request.user_information = [
        *_own_items(limits),
        *role_items.values(),
        *_extended_items(extended or {}),
    ]
    return Request(A_ASSOCIATE_RQ(request).encode(), contexts)


def read_answer(
    request: Request, answer: bytes, limits: Limits
) -> tuple[dict[int, Context], int, dict[str, bytes], str]:
    """Return contexts, maximum length to send, extended negotiation and the implementation.

    Raises PeerRefused when the peer accepted none of the contexts, ProtocolError for nonsense.
    """
    try:
        decoded = A_ASSOCIATE_AC()
        decoded.decode(answer)
        user = decoded.user_information
        roles = {
            uid: (bool(item.scu_role), bool(item.scp_role))
            for uid, item in user.role_selection.items()
        }
        accepted = [item.to_primitive() for item in decoded.presentation_context]
        results = negotiate_as_requestor(request.contexts, accepted, roles)
        extended = {str(item.uid): bytes(item.app_info or b"") for item in user.ext_neg}
        max_send_bytes = _max_send_bytes(user.maximum_length, limits)
        implementation = str(
            user.implementation_version_name or user.implementation_class_uid or ""
        )
    except pdu.ProtocolError:
        raise
    except Exception as cause:  # pynetdicom's decoders raise whatever the bytes provoke
        raise pdu.ProtocolError(pdu.INVALID_PARAMETER, "an A-ASSOCIATE-AC of no sense") from cause
    proposed = {context.context_id: context for context in request.contexts}
    contexts = {
        context.context_id: Context(
            context.context_id,
            str(context.abstract_syntax),
            str(context.transfer_syntax[0]),
            as_scp=bool(context.as_scp),
            as_scu=bool(context.as_scu),
        )
        for context in results
        if context.result == 0
        and context.transfer_syntax
        and context.transfer_syntax[0] in proposed[context.context_id].transfer_syntax
    }
    if not contexts:
        raise PeerRefused("associate", "", "the peer accepted no presentation context")
    return contexts, max_send_bytes, extended, implementation
