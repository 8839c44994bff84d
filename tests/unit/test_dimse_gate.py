"""A node that takes no studies for a while, and one whose peers change while it runs."""

import hashlib
import threading

import pytest

from appliance.dicom import status
from appliance.dimse.association import Association
from appliance.dimse.commands import ERROR_COMMENT, encode_store_request
from appliance.dimse.contexts import Proposal
from appliance.dimse.requestor import request_association
from appliance.dimse.storage import storage_service
from appliance.dimse.verification import verification_service
from appliance.foundation.errors import NotAccepting, PeerRefused
from tests.support.dimse import (
    AE_TITLE,
    CT,
    EXPLICIT,
    RecordingArchive,
    make_config,
    peer,
    running,
    small_ct,
)

CLOSED = "no site is silent: this standby takes none"


class Gate:
    """Open until a test closes it."""

    def __init__(self, *, is_open: bool) -> None:
        self.is_open = is_open

    def require(self) -> None:
        if not self.is_open:
            raise NotAccepting("store", "", CLOSED)


def associate(port: int, *, scp: bool = False, calling: str = "CT1") -> Association:
    return request_association(
        "127.0.0.1", port, calling_ae=calling, called_ae=AE_TITLE,
        proposals=[
            Proposal(CT, (EXPLICIT,), scu=True, scp=scp),
            Proposal("1.2.840.10008.1.1", (EXPLICIT,)),
        ],
    )  # fmt: skip


def store(association: Association, dataset: bytes, uid: str) -> tuple[int, str]:
    """Send an instance; return status and error comment."""
    context = association.find_context(CT)
    assert context is not None
    number = association.next_message_id()
    answer = association.exchange(
        context.context_id, encode_store_request(number, CT, uid), number, dataset, timeout_s=60
    )
    return answer.status, bytes(answer.raw.get(ERROR_COMMENT, b"")).decode().strip()


def test_while_the_gate_is_closed_no_storage_context_is_accepted() -> None:
    """Other services are negotiated as ever, and so is the role that C-GET needs."""
    gate = Gate(is_open=False)
    with running(gate=gate) as node:
        closed = associate(node.port)
        assert closed.find_context(CT) is None
        assert closed.find_context("1.2.840.10008.1.1") is not None
        closed.release()
        getting = associate(node.port, scp=True)
        assert getting.find_context(CT) is None  # none in which the peer may store
        (context,) = [each for each in getting.contexts.values() if each.abstract_syntax == CT]
        assert (context.as_scu, context.as_scp) == (False, True)
        getting.release()
        gate.is_open = True
        opened = associate(node.port)
        assert opened.find_context(CT) is not None
        opened.release()


def test_a_gate_that_closes_refuses_on_open_associations_and_says_why() -> None:
    """What was being sent is finished; the next one gets 0xA700, until it opens again."""
    gate = Gate(is_open=True)
    archive = RecordingArchive(gate=threading.Event())
    dataset, content = small_ct()
    uid = str(dataset.SOPInstanceUID)
    answers = []
    with running(gate=gate, archive=archive) as node:
        association = associate(node.port)
        sending = threading.Thread(
            target=lambda: answers.append(store(association, content, uid)), name="sending"
        )
        sending.start()
        assert archive.arrived.wait(60)
        gate.is_open = False
        assert archive.gate is not None
        archive.gate.set()
        sending.join(60)
        assert answers == [(status.SUCCESS, "")]
        assert store(association, content, uid) == (status.OUT_OF_RESOURCES, CLOSED)
        gate.is_open = True
        assert store(association, content, uid)[0] == status.SUCCESS
        association.release()
    assert [each.sha256 for each in archive.stored] == [hashlib.sha256(content).hexdigest()] * 2


def test_other_peers_hold_for_new_associations_only() -> None:
    """An association that is open keeps what it was accepted by; nobody restarts anything."""
    config = make_config(peer("CT1"))
    with running(config) as node:
        before = associate(node.port)
        with pytest.raises(PeerRefused):
            associate(node.port, calling="MR1")
        other = make_config(peer("MR1")).dicom
        node.acceptor.take(other, [verification_service(), storage_service(node.archive)])
        associate(node.port, calling="MR1").release()
        with pytest.raises(PeerRefused):
            associate(node.port)
        dataset, content = small_ct()
        assert store(before, content, str(dataset.SOPInstanceUID))[0] == status.SUCCESS
        before.release()


def test_a_peers_limit_of_associations_outlasts_a_change() -> None:
    """What is open under the configuration before counts on."""
    config = make_config(peer("CT1", max_associations=1))
    with running(config) as node:
        before = associate(node.port)
        again = make_config(peer("CT1", max_associations=1), peer("MR1")).dicom
        node.acceptor.take(again, [verification_service(), storage_service(node.archive)])
        with pytest.raises(Exception, match=r"limit|rejected"):
            associate(node.port)
        before.release()
