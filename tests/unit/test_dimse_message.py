"""Messages from PDUs, however they are cut; and what is no message ends the association."""

import socket
import struct
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.dimse import commands, pdu
from appliance.dimse.limits import Limits
from appliance.dimse.message import AbortedByPeer
from appliance.dimse.pdu import ProtocolError
from appliance.foundation.errors import AssociationLost, LimitExceeded
from tests.support.dimse import CT, context, linked, pdv, read_message, read_pdu

STORE = commands.encode_store_request(1, CT, "1.2.3")


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces, at = [], 0
    for size in sizes:
        pieces.append(data[at : at + size])
        at += size
    return [*pieces, data[at:]]


def data_pdu(*items: tuple[int, int, bytes]) -> bytes:
    """Return one P-DATA-TF with several PDVs."""
    body = b"".join(
        struct.pack(">IBB", len(data) + 2, context_id, control) + data
        for context_id, control, data in items
    )
    return struct.pack(">BxI", 4, len(body)) + body


def send_in_background(sock: socket.socket, data: bytes) -> threading.Thread:
    thread = threading.Thread(target=sock.sendall, args=(data,))
    thread.start()
    return thread


@given(st.data())
def test_a_message_is_the_same_however_its_pdvs_are_cut(data):
    dataset = bytes(range(256)) * data.draw(st.integers(0, 40))
    raw = b""
    for kind, content in ((1, STORE), (0, dataset)):
        sizes = data.draw(st.lists(st.integers(0, max(1, len(content))), max_size=6))
        pieces = cut(content, sizes)
        items = [
            (1, kind | (2 if number == len(pieces) - 1 else 0), piece)
            for number, piece in enumerate(pieces)
        ]
        while items:
            count = data.draw(st.integers(1, len(items)))
            raw += data_pdu(*items[:count])
            items = items[count:]
    raw += pdv(1, 3, STORE) + pdv(1, 2, b"next")  # the message after it is not disturbed
    with linked() as (association, sock):
        sender = send_in_background(sock, raw)
        command = association.read_command(10)
        assert command.sop_instance_uid == "1.2.3"
        part = data.draw(st.integers(1, 20000))
        assert b"".join(bytes(p) for p in association.read_dataset_parts(part)) == dataset
        assert association.read_command(10).field == commands.C_STORE_RQ
        assert association.read_dataset() == b"next"
        sender.join()


@pytest.mark.parametrize("length", [0, 1, 9_000, 63_000, 65_536, 525_000, 3_000_000])
@pytest.mark.parametrize("pdu_bytes", [4096, 131072])
def test_datasets_of_every_size_arrive_whole(length, pdu_bytes):
    dataset = (b"0123456789abcdef" * (length // 16 + 1))[:length]
    with (
        linked(max_pdu_send_bytes=pdu_bytes) as (association, sock),
        linked(max_pdu_send_bytes=pdu_bytes) as (other, other_sock),
    ):
        # what our own sender cuts, a plain reader and our own reader put together
        reader: list = []
        thread = threading.Thread(target=lambda: reader.append(read_message(other_sock)))
        thread.start()
        other.send_message(1, STORE, dataset)
        thread.join()
        assert reader[0][2] == dataset
        pieces = [dataset[n : n + 4000] for n in range(0, length, 4000)] or [b""]
        raw = pdv(1, 3, STORE) + b"".join(
            pdv(1, 2 if n == len(pieces) - 1 else 0, piece) for n, piece in enumerate(pieces)
        )
        sender = send_in_background(sock, raw)
        association.read_command(10)
        assert association.read_dataset() == dataset
        sender.join()


def test_an_unread_dataset_is_skipped_by_the_next_read():
    with linked() as (association, sock):
        sender = send_in_background(sock, (pdv(1, 3, STORE) + pdv(1, 2, b"x" * 70000)) * 3)
        for _ in range(3):
            assert association.read_command(10).message_id == 1
        sender.join()


def test_a_dataset_past_its_limit_is_read_to_its_end_and_refused():
    with linked() as (association, sock):
        sender = send_in_background(
            sock, pdv(1, 3, STORE) + pdv(1, 0, b"x" * 70000) + pdv(1, 2, b"y") + pdv(1, 3, STORE)
        )
        association.read_command(10)
        with pytest.raises(LimitExceeded):
            association.read_dataset(1000)
        assert association.read_command(10) is not None
        sender.join()


def test_large_dataset_memory_is_given_back_when_idle():
    limits = Limits(idle_s=0.4)
    with linked(limits=limits) as (association, sock):
        sender = send_in_background(sock, pdv(1, 3, STORE) + pdv(1, 2, b"x" * 300_000) * 1)
        association.read_command(10)
        view = association.read_dataset()
        assert len(view) == 300_000
        sender.join()
        large = pdv(1, 3, STORE) + pdv(1, 0, b"x" * 300_000) * 10 + pdv(1, 2, b"")
        sender = send_in_background(sock, large)
        association.read_command(10)
        assert len(association.read_dataset()) == 3_000_000
        sender.join()
        assert len(association._reader._dataset) >= 3_000_000
        with pytest.raises(AssociationLost):
            association.read_command(0.3)
        assert len(association._reader._dataset) == 0


def test_release_between_messages_is_answered():
    with linked() as (association, sock):
        sock.sendall(pdu.RELEASE_RQ)
        assert association.read_command(10) is None
        assert read_pdu(sock) == (pdu.A_RELEASE_RP, b"\0\0\0\0")
        assert not association.is_open


def test_abort_of_the_peer_is_told_apart():
    with linked() as (association, sock):
        sock.sendall(pdu.encode_abort(2, 6))
        with pytest.raises(AbortedByPeer, match="reason 6"):
            association.read_command(10)


BROKEN = {
    "unknown PDU type": b"\x0b\0\0\0\0\4\0\0\0\0",
    "a second A-ASSOCIATE-RQ": struct.pack(">BxI", 1, 100) + bytes(100),
    "a P-DATA of 4 GB": b"\4\0\xff\xff\xff\xff",
    "a P-DATA without PDV": b"\4\0\0\0\0\0",
    "a PDV longer than its PDU": struct.pack(">BxIIBB", 4, 10, 100, 1, 3) + bytes(4),
    "a PDV of length 1": struct.pack(">BxIIBB", 4, 10, 1, 1, 3) + bytes(4),
    "PDVs that leave 3 bytes": struct.pack(">BxIIBB", 4, 9, 2, 1, 1) + bytes(3),
    "a dataset first": pdv(1, 2, b"data"),
    "a command inside a dataset": pdv(1, 3, STORE) + pdv(1, 0, b"x" * 9) + pdv(1, 3, STORE),
    "two contexts in one message": pdv(1, 3, STORE) + pdv(3, 2, b"data"),
    "a context that was not accepted": pdv(5, 3, STORE) + pdv(5, 2, b"data"),
    "context 0": pdv(0, 3, STORE) + pdv(0, 2, b"data"),
    "a release inside a message": pdv(1, 3, STORE) + pdu.RELEASE_RQ,
    "a command set that never ends": pdv(1, 1, bytes(60_000)) * 2,
    "an abort of another length": b"\7\0\0\0\1\0" + bytes(256),
}


def read_two_messages(association):
    association.read_command(10)
    association.read_dataset()
    association.read_command(10)


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_message_is_a_protocol_error(name):
    with linked(context(1), context(3)) as (association, sock):
        sender = send_in_background(sock, BROKEN[name])
        with pytest.raises(ProtocolError):
            read_two_messages(association)
        sock.close()
        sender.join()


SHORT = Limits(pdu_s=0.3, idle_s=0.4, message_s=0.5, message_rate_bytes_per_s=10**9)


def drip(sock: socket.socket, data: bytes, stop: threading.Event) -> threading.Thread:
    def run() -> None:
        try:
            for number in range(len(data)):
                sock.sendall(data[number : number + 1])
                if stop.wait(0.02):
                    return
        except OSError:
            return

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.mark.parametrize(
    "data",
    [
        pdv(1, 3, STORE),  # the header drips
        pdv(1, 3, STORE) + pdv(1, 2, bytes(9000)),
    ],
)
def test_a_dripping_sender_is_cut_by_the_deadline_of_the_whole_pdu(data):
    stop = threading.Event()
    with linked(limits=SHORT) as (association, sock):
        dripping = drip(sock, data, stop)
        with pytest.raises(AssociationLost, match="too long"):
            association.read_command(10)
        stop.set()
        dripping.join()


def test_whole_but_tiny_pdus_do_not_stretch_a_message_for_ever():
    stop = threading.Event()
    with linked(limits=SHORT) as (association, sock):
        sock.sendall(pdv(1, 3, STORE))
        association.read_command(10)

        def run() -> None:
            try:
                while not stop.wait(0.02):
                    sock.sendall(pdv(1, 0, b"x"))
            except OSError:
                return

        thread = threading.Thread(target=run)
        thread.start()
        with pytest.raises(AssociationLost, match="too long"):
            association.read_dataset()
        stop.set()
        thread.join()


def test_silence_between_messages_ends_at_the_idle_deadline():
    with linked(limits=SHORT) as (association, _), pytest.raises(AssociationLost, match="too long"):
        association.read_command()
