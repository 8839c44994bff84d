"""An association's rules: cancel, requests of ours, tasks of other threads, sending, ending."""

import socket
import threading

import pytest

from appliance.dimse import commands, pdu
from appliance.dimse.limits import Limits
from appliance.dimse.pdu import ProtocolError
from appliance.dimse.transport import Interrupted
from appliance.foundation.errors import AssociationLost
from tests.support.dimse import (
    CT,
    VERIFICATION,
    context,
    linked,
    pdv,
    peer,
    read_message,
    read_pdu,
)

FIND = "1.2.840.10008.5.1.4.1.2.2.1"


def find_request(message_id: int) -> bytes:
    return commands.encode_command({
        commands.AFFECTED_SOP_CLASS_UID: FIND,
        commands.COMMAND_FIELD: commands.C_FIND_RQ,
        commands.MESSAGE_ID: message_id,
        commands.PRIORITY: 0,
        commands.COMMAND_DATA_SET_TYPE: commands.WITH_DATASET,
    })  # fmt: skip


def cancel_request(message_id: int) -> bytes:
    return commands.encode_command({
        commands.COMMAND_FIELD: commands.C_CANCEL_RQ,
        commands.MESSAGE_ID_RESPONDED: message_id,
        commands.COMMAND_DATA_SET_TYPE: commands.NO_DATASET,
    })  # fmt: skip


def start_find(association, sock, message_id=7):
    sock.sendall(pdv(1, 3, find_request(message_id)) + pdv(1, 2, b"keys"))
    command = association.read_command(10)
    assert association.read_dataset() == b"keys"
    return command


def test_cancel_is_seen_between_answers_and_only_for_its_message():
    with linked(context(abstract_syntax=FIND)) as (association, sock):
        start_find(association, sock)
        assert not association.cancelled(7)
        sock.sendall(pdv(1, 3, cancel_request(6)) + pdv(1, 3, cancel_request(7)))
        assert association.cancelled(7)
        association.forget_cancel(7)
        assert not association.cancelled(7)


def test_cancel_never_waits_and_never_reaches_a_service():
    with linked(context(abstract_syntax=FIND)) as (association, sock):
        start_find(association, sock)
        assert not association.cancelled(7)
        sock.sendall(pdv(1, 3, cancel_request(7)) + pdv(1, 3, find_request(8)) + pdv(1, 2, b"2"))
        assert association.read_command(10).message_id == 8
        assert association.read_dataset() == b"2"
        assert association.cancelled(7)


def test_a_request_that_arrives_early_is_kept_with_its_dataset():
    with linked(context(abstract_syntax=FIND)) as (association, sock):
        start_find(association, sock)
        sock.sendall(pdv(1, 3, find_request(8)) + pdv(1, 2, b"second"))
        assert not association.cancelled(7)
        assert not association.cancelled(7)
        association.skip_dataset()  # what a failing service does; it has no dataset left
        assert association.read_command(10).message_id == 8
        assert association.read_dataset() == b"second"


def test_an_abort_during_an_operation_is_noticed_by_cancelled():
    with linked(context(abstract_syntax=FIND)) as (association, sock):
        start_find(association, sock)
        sock.sendall(pdu.encode_abort())
        with pytest.raises(AssociationLost):
            association.cancelled(7)


def test_a_release_during_an_operation_breaks_the_protocol():
    with linked(context(abstract_syntax=FIND)) as (association, sock):
        start_find(association, sock)
        sock.sendall(pdu.RELEASE_RQ)
        with pytest.raises(ProtocolError):
            association.cancelled(7)


def answer(sock: socket.socket, status: int = 0) -> threading.Thread:
    def run() -> None:
        context_id, command, _ = read_message(sock)
        sock.sendall(pdv(context_id, 3, commands.encode_response(command, status)))

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_exchange_returns_the_response_to_its_request():
    with linked(context(as_scu=True)) as (association, sock):
        thread = answer(sock, 0xA700)
        request = commands.encode_store_request(3, CT, "1.2")
        assert association.exchange(1, request, 3, b"data", 10).status == 0xA700
        thread.join()


def test_exchange_serves_requests_that_cross_it():
    served = []
    with linked(context(as_scu=True)) as (association, sock):
        association.on_request = lambda _, command: served.append(command.message_id)
        sock.sendall(pdv(1, 3, commands.encode_store_request(50, CT, "1.2")) + pdv(1, 2, b"unread"))
        thread = answer(sock)
        request = commands.encode_store_request(3, CT, "1.2")
        assert association.exchange(1, request, 3, b"data", 10).message_id == 3
        assert served == [50]
        thread.join()


@pytest.mark.parametrize("end", [pdu.RELEASE_RQ, pdu.encode_abort(), b""])
def test_exchange_with_a_peer_that_leaves_is_lost(end):
    with linked(context(as_scu=True)) as (association, sock):
        sock.sendall(end)
        sock.shutdown(socket.SHUT_WR)
        with pytest.raises(AssociationLost):
            association.exchange(1, commands.encode_store_request(3, CT, "1.2"), 3, b"d", 10)


def test_a_response_to_another_message_breaks_the_protocol():
    with linked(context(as_scu=True)) as (association, sock):
        request = commands.encode_store_request(4, CT, "1.2")
        other = commands.decode_command(1, request)
        sock.sendall(pdv(1, 3, commands.encode_response(other, 0)))
        with pytest.raises(ProtocolError):
            association.exchange(1, commands.encode_store_request(3, CT, "1.2"), 3, b"d", 10)


def test_a_posted_task_runs_on_the_owners_thread_and_may_exchange():
    ran_on = []
    with linked(context(as_scu=True), limits=Limits(idle_s=0.4)) as (association, sock):

        def report(own) -> None:
            request = commands.encode_store_request(9, CT, "1.2")
            ran_on.append((threading.current_thread(), own.exchange(1, request, 9, b"d", 10)))
            sock.sendall(pdu.RELEASE_RQ)

        assert association.post(report)
        thread = answer(sock)
        assert association.read_command(10) is None
        assert ran_on[0][0] is threading.current_thread()
        assert ran_on[0][1].message_id == 9
        thread.join()
        assert not association.post(report)


def test_an_interrupted_owner_stops_at_its_next_tick():
    with linked(limits=Limits(idle_s=0.4)) as (association, _):
        association.interrupt()
        with pytest.raises(Interrupted):
            association.read_command(60)


def test_shut_down_ends_a_blocked_read_at_once():
    with linked() as (association, _):
        threading.Timer(0.05, association.shut_down).start()
        with pytest.raises(AssociationLost):
            association.read_command(60)


def test_a_reader_that_never_reads_costs_a_deadline_and_no_more():
    with (
        linked(limits=Limits(send_s=0.2)) as (association, _),
        pytest.raises(AssociationLost, match="does not read"),
    ):
        association.send_message(1, commands.encode_store_request(1, CT, "1.2"), bytes(10**7))


def test_a_reader_that_dribbles_is_cut_by_the_same_deadline():
    stop = threading.Event()
    with linked(limits=Limits(send_s=0.3, send_batch_bytes=2**24)) as (association, sock):

        def dribble() -> None:
            while not stop.wait(0.005):
                try:
                    sock.recv(65536)
                except OSError:
                    return

        thread = threading.Thread(target=dribble)
        thread.start()
        with pytest.raises(AssociationLost, match="does not read"):
            association.send_message(1, commands.encode_store_request(1, CT, "1.2"), bytes(10**7))
        stop.set()
        thread.join()


@pytest.mark.parametrize("maximum", [128, 1000, 16384])
def test_no_pdu_is_longer_than_the_peer_allows(maximum):
    with linked(max_pdu_send_bytes=maximum) as (association, sock):
        thread = threading.Thread(
            target=association.send_message,
            args=(1, commands.encode_store_request(1, CT, "1.2"), bytes(50_000)),
        )
        thread.start()
        total = 0
        while total < 50_000:
            kind, body = read_pdu(sock)
            assert kind == pdu.P_DATA_TF
            assert len(body) <= maximum
            if not body[5] & 1:
                total += len(body) - 6
        thread.join()


def test_release_waits_for_the_answer_and_drops_what_still_comes():
    with linked(context(as_scu=True)) as (association, sock):
        sock.sendall(pdv(1, 3, commands.encode_store_request(1, CT, "1.2")) + pdu.RELEASE_RP)
        association.release()
        assert read_pdu(sock)[0] == pdu.A_RELEASE_RQ
        assert not association.is_open


def test_release_of_both_sides_at_once_ends_well():
    with linked(context(as_scu=True)) as (association, sock):
        sock.sendall(pdu.RELEASE_RQ + pdu.RELEASE_RP)
        association.release()
        assert [read_pdu(sock)[0] for _ in range(2)] == [pdu.A_RELEASE_RQ, pdu.A_RELEASE_RP]


def test_release_from_a_peer_that_is_gone_only_closes():
    with linked(context(as_scu=True)) as (association, sock):
        sock.close()
        association.release()
        association.abort()
        assert not association.is_open


def test_abort_says_so_to_the_peer():
    with linked() as (association, sock):
        association.abort(2, 5)
        assert read_pdu(sock) == (pdu.A_ABORT, b"\0\0\2\5")


def test_message_ids_run_from_1_to_65535():
    with linked() as (association, _):
        ids = [association.next_message_id() for _ in range(65536)]
        assert (ids[0], ids[-2], ids[-1]) == (1, 65535, 1)


def test_contexts_are_found_by_role():
    with linked(context(1, CT), context(3, CT, as_scp=False, as_scu=True)) as (association, _):
        assert association.find_context(CT).context_id == 3
        assert association.find_context(CT, as_scu=False).context_id == 1
        assert association.find_context(VERIFICATION) is None


def test_sender_carries_the_defaults_of_the_peer():
    caller = peer(issuer="HOSPITAL", character_set="ISO_IR 100")
    with linked(caller=caller) as (association, _):
        sender = association.sender("NODE")
        assert (sender.issuer, sender.character_set) == ("HOSPITAL", "ISO_IR 100")
    with linked() as (association, _):
        assert association.sender("NODE").issuer == "NODE"
