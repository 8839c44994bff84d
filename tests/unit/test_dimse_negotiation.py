"""Negotiation: what is accepted, in whose order, in which roles, and what is refused cleanly."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pynetdicom import pdu_primitives as primitives
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.presentation import build_context

from appliance.dicom import uid
from appliance.dimse import negotiation
from appliance.dimse.contexts import Proposal
from appliance.dimse.limits import Limits
from appliance.dimse.negotiation import Offer, answer_request, build_request, read_answer
from appliance.dimse.pdu import ProtocolError, Rejected
from appliance.dimse.service import offers_for
from appliance.foundation.errors import PeerRefused
from tests.support.dimse import (
    CT,
    EXPLICIT,
    IMPLICIT,
    VERIFICATION,
    RecordingArchive,
    peer,
    storage_service,
    verification_service,
)

LIMITS = Limits()
FIND = "1.2.840.10008.5.1.4.1.2.2.1"
JPEG = "1.2.840.10008.1.2.4.50"
DEFLATED = "1.2.840.10008.1.2.1.99"
PRIVATE = "1.2.826.0.1.3680043.2.1143.107.104.103.115.2.8.4"
STORAGE = storage_service(RecordingArchive(), extra_sop_classes=("1.2.3.4.5",))
SERVICES = (verification_service(), STORAGE)


def offers(allow=("echo", "store", "get")):
    return offers_for(peer(allow=allow), SERVICES)


def negotiate(*proposals, allow=("echo", "store", "get"), extended=None):
    request = build_request("PACS1", "AZEKURA", proposals, LIMITS, extended)
    answer = answer_request(request.pdu_bytes, offers(allow), LIMITS)
    return request, answer


@pytest.mark.parametrize(
    ("proposed", "chosen"),
    [
        ((IMPLICIT, EXPLICIT), IMPLICIT),
        ((EXPLICIT, IMPLICIT), EXPLICIT),
        ((JPEG, EXPLICIT), JPEG),
        ((DEFLATED, JPEG, IMPLICIT), JPEG),
        ((PRIVATE, IMPLICIT), IMPLICIT),
        (("1.2.840.113619.5.2",), "1.2.840.113619.5.2"),
    ],
)
def test_transfer_syntax_is_the_first_in_the_proposers_order(proposed, chosen):
    _, answer = negotiate(Proposal(CT, proposed))
    assert answer.contexts[1].transfer_syntax == chosen


@pytest.mark.parametrize("proposed", [(DEFLATED,), (PRIVATE,), ("1.2.840.10008.1.2.4.95",)])
def test_syntaxes_that_are_not_kept_are_refused_cleanly(proposed):
    request, answer = negotiate(Proposal(CT, proposed), Proposal(VERIFICATION, (IMPLICIT,)))
    assert list(answer.contexts) == [3]
    decoded = A_ASSOCIATE_AC()
    decoded.decode(answer.pdu_bytes)
    assert [item.result for item in decoded.presentation_context] == [4, 0]
    contexts, *_ = read_answer(request, answer.pdu_bytes, LIMITS)
    assert list(contexts) == [3]


def test_every_known_syntax_but_deflated_is_accepted():
    for syntax in uid.ACCEPTED_TRANSFER_SYNTAXES:
        _, answer = negotiate(Proposal(CT, (syntax,)))
        assert answer.contexts[1].transfer_syntax == syntax


def test_128_contexts_are_negotiated():
    classes = [*uid.STORAGE_SOP_CLASSES[:126], "1.2.3.4.5", "1.2.840.10008.999"]
    request, answer = negotiate(*(Proposal(one, (IMPLICIT, EXPLICIT)) for one in classes))
    assert len(answer.contexts) == 127
    assert answer.rejected_count == 1
    contexts, *_ = read_answer(request, answer.pdu_bytes, LIMITS)
    assert [contexts[2 * n + 1].abstract_syntax for n in range(127)] == classes[:127]


@pytest.mark.parametrize(
    ("allow", "scu", "scp", "as_scp", "as_scu"),
    [
        (("store", "get"), True, False, True, False),
        (("store", "get"), True, True, True, True),
        (("store", "get"), False, True, False, True),
        (("store",), True, True, True, False),
        (("get",), True, True, False, True),
        (("get",), False, True, False, True),
    ],
)
def test_role_selection_follows_what_the_peer_is_allowed(allow, scu, scp, as_scp, as_scu):
    request, answer = negotiate(Proposal(CT, (EXPLICIT,), scu=scu, scp=scp), allow=allow)
    ours = answer.contexts[1]
    assert (ours.as_scp, ours.as_scu) == (as_scp, as_scu)
    theirs = read_answer(request, answer.pdu_bytes, LIMITS)[0][1]
    assert (theirs.as_scu, theirs.as_scp) == (as_scp, as_scu)


@pytest.mark.parametrize(
    ("allow", "scu", "scp"), [(("get",), True, False), (("store",), False, True)]
)
def test_a_role_that_is_not_allowed_rejects_the_context(allow, scu, scp):
    _, answer = negotiate(Proposal(CT, (EXPLICIT,), scu=scu, scp=scp), allow=allow)
    assert not answer.contexts


def test_services_outside_allow_are_rejected_contexts():
    _, answer = negotiate(
        Proposal(VERIFICATION, (IMPLICIT,)), Proposal(CT, (IMPLICIT,)), allow=("echo",)
    )
    assert [one.abstract_syntax for one in answer.contexts.values()] == [VERIFICATION]


def test_storage_extended_negotiation_is_level_2_full():
    request, answer = negotiate(Proposal(CT, (EXPLICIT,)), extended={CT: b"\x03\0\0\0\0\0"})
    assert answer.extended[CT][0] == 2
    assert read_answer(request, answer.pdu_bytes, LIMITS)[2][CT] == b"\x02\0\0\0\0\0"


@pytest.mark.parametrize(
    ("asked", "answered"), [(b"\1\1\1", b"\1\0\0"), (b"\0", b"\0"), (b"\1", b"\1")]
)
def test_relational_queries_are_granted_to_who_asks_and_nothing_else(asked, answered):
    request = build_request("A", "B", [Proposal(FIND, (IMPLICIT,))], LIMITS, {FIND: asked})
    offer = Offer(frozenset({IMPLICIT}), extended_answer=b"\1", extended_is_mask=True)
    answer = answer_request(request.pdu_bytes, {FIND: offer}, LIMITS)
    assert answer.extended == {FIND: answered}
    assert read_answer(request, answer.pdu_bytes, LIMITS)[2] == {FIND: answered}


def test_an_extended_item_of_an_unknown_class_is_not_answered():
    _, answer = negotiate(Proposal(CT, (EXPLICIT,)), extended={"1.2.3": b"\1"})
    assert answer.extended == {}


def request_with(*items, maximum=16382) -> bytes:
    primitive = primitives.A_ASSOCIATE()
    primitive.application_context_name = "1.2.840.10008.3.1.1.1"
    primitive.calling_ae_title = "PACS1"
    primitive.called_ae_title = "AZEKURA"
    proposed = build_context(CT, [EXPLICIT])
    proposed.context_id = 1
    primitive.presentation_context_definition_list = [proposed]
    length = primitives.MaximumLengthNotification()
    length.maximum_length_received = maximum
    implementation = primitives.ImplementationClassUIDNotification()
    implementation.implementation_class_uid = "1.2.3"
    primitive.user_information = [length, implementation, *items]
    return A_ASSOCIATE_RQ(primitive).encode()


def decoded_answer(request: bytes) -> A_ASSOCIATE_AC:
    decoded = A_ASSOCIATE_AC()
    decoded.decode(answer_request(request, offers(), LIMITS).pdu_bytes)
    return decoded


def test_asynchronous_window_is_answered_with_one_and_one():
    window = primitives.AsynchronousOperationsWindowNegotiation()
    window.maximum_number_operations_invoked = 8
    window.maximum_number_operations_performed = 8
    item = decoded_answer(request_with(window)).user_information.async_ops_window
    assert (item.max_operations_invoked, item.max_operations_performed) == (1, 1)
    assert decoded_answer(request_with()).user_information.async_ops_window is None


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("kind", [1, 2, 3, 5])
def test_user_identity_is_accepted_and_answered_when_asked(kind, wanted):
    identity = primitives.UserIdentityNegotiation()
    identity.user_identity_type = kind
    identity.primary_field = b"somebody"
    if kind == 2:
        identity.secondary_field = b"secret"
    identity.positive_response_requested = wanted
    user = decoded_answer(request_with(identity)).user_information
    assert (user.user_identity is not None) == wanted


@pytest.mark.parametrize(
    ("maximum", "ours"), [(0, LIMITS.pdu_send_bytes_max), (16382, 16382), (4096, 4096)]
)
def test_maximum_length_is_the_peers_and_bounded_by_ours(maximum, ours):
    answer = answer_request(request_with(maximum=maximum), offers(), LIMITS)
    assert answer.max_pdu_send_bytes == ours
    user = decoded_answer(request_with(maximum=maximum)).user_information
    assert user.maximum_length == LIMITS.pdu_receive_bytes_max


def test_a_maximum_length_of_no_use_is_a_protocol_error():
    with pytest.raises(ProtocolError):
        answer_request(request_with(maximum=7), offers(), LIMITS)


def test_titles_come_back_as_they_came():
    request = bytearray(request_with())
    request[10:26] = b"Azekura\0\0\0\0\0\0\0\0\0"
    answer = answer_request(bytes(request), offers(), LIMITS)
    assert answer.pdu_bytes[10:42] == bytes(request[10:42])
    assert negotiation.read_titles(request) == ("Azekura", "PACS1")


@pytest.mark.parametrize(
    "title", [b"\xff" * 16, b"A\nB".ljust(16), b"A\\B".ljust(16), b"\x1b[31m".ljust(16)]
)
def test_titles_that_are_none_are_protocol_errors(title):
    request = bytearray(request_with())
    request[26:42] = title
    with pytest.raises(ProtocolError):
        negotiation.read_titles(request)


def test_no_context_accepted_is_refused_on_the_requestors_side():
    request, answer = negotiate(Proposal(CT, (DEFLATED,)))
    with pytest.raises(PeerRefused):
        read_answer(request, answer.pdu_bytes, LIMITS)


def test_an_answer_with_a_syntax_that_was_not_proposed_is_not_used():
    request = build_request("A", "B", [Proposal(CT, (EXPLICIT,))], LIMITS)
    other = build_request("A", "B", [Proposal(CT, (IMPLICIT,))], LIMITS)
    answer = answer_request(other.pdu_bytes, offers(), LIMITS)
    with pytest.raises(PeerRefused):
        read_answer(request, answer.pdu_bytes, LIMITS)


@given(st.data())
def test_a_damaged_request_is_answered_or_a_protocol_error(data):
    request = bytearray(request_with())
    for _ in range(data.draw(st.integers(1, 8))):
        request[data.draw(st.integers(74, len(request) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(74, len(request)))
    with contextlib.suppress(ProtocolError, Rejected):
        answer_request(bytes(request[:cut]), offers(), LIMITS)


@given(st.data())
def test_a_damaged_answer_is_understood_refused_or_a_protocol_error(data):
    request, answer = negotiate(Proposal(CT, (EXPLICIT,)))
    raw = bytearray(answer.pdu_bytes)
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(6, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ProtocolError, PeerRefused):
        read_answer(request, bytes(raw[: data.draw(st.integers(6, len(raw)))]), LIMITS)


def test_129_proposals_are_a_mistake_of_ours():
    with pytest.raises(ValueError, match="129"):
        build_request("A", "B", [Proposal(CT, (EXPLICIT,))] * 129, LIMITS)


def test_another_application_context_or_version_is_rejected():
    request = request_with()
    with pytest.raises(Rejected, match="application context"):
        answer_request(request.replace(b"10008.3.1.1.1", b"10008.3.1.1.2"), offers(), LIMITS)
    with pytest.raises(Rejected, match="protocol version"):
        negotiation.read_titles(request[:6] + b"\0\2" + request[8:])
