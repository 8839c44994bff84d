"""The acceptor under attack: nothing keeps a modality out, nothing takes memory, nothing dies."""

import contextlib
import random
import resource
import socket
import ssl
import struct
import threading
import time

import pytest

from appliance.dimse import commands, pdu
from appliance.dimse.contexts import Proposal
from appliance.dimse.limits import Limits
from appliance.dimse.negotiation import build_request
from appliance.dimse.requestor import request_association
from tests.support.dimse import (
    AE_TITLE,
    CT,
    EXPLICIT,
    IMPLICIT,
    SHORT,
    VERIFICATION,
    RecordingArchive,
    echoscu,
    is_closed,
    make_config,
    pdv,
    peer,
    read_pdu,
    running,
)

REQUEST = build_request(
    "ATTACKER",
    AE_TITLE,
    [Proposal(VERIFICATION, (IMPLICIT,)), Proposal(CT, (EXPLICIT,))],
    Limits(),
).pdu_bytes
SEED = 20260405


def assert_alive(node) -> None:
    done = echoscu(node.port, "-to", "10", "-ta", "10", "-td", "10")
    assert done.returncode == 0, done.stdout + done.stderr


def wait_until(condition, timeout_s=10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextlib.contextmanager
def many_file_descriptors(count):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        pytest.skip(f"only {hard} file descriptors are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_1000_idle_and_100_dripping_connections_keep_nobody_out():
    stop = threading.Event()
    with many_file_descriptors(4096), running() as node, contextlib.ExitStack() as opened:
        idle = [opened.enter_context(node.connect()) for _ in range(1000)]
        dripping = [opened.enter_context(node.connect()) for _ in range(100)]

        def drip() -> None:
            for octet in REQUEST:
                for sock in dripping:
                    with contextlib.suppress(OSError):
                        sock.send(bytes([octet]))
                if stop.wait(0.05):
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        began = time.monotonic()
        for _ in range(3):
            assert_alive(node)
        took = time.monotonic() - began
        counts = node.acceptor.counts()
        stop.set()
        thread.join()
        assert counts["connecting"] <= Limits().connecting_max
        assert counts["evicted"] >= 1100 - Limits().connecting_max
        assert threading.active_count() < 20
        assert took < 5
        assert is_closed(idle[0])


def test_the_busiest_address_makes_room_for_others():
    limits = Limits(connecting_max=8)
    with (
        running(make_config(host="127.0.0.1"), limits=limits) as node,
        contextlib.ExitStack() as opened,
    ):
        quiet = [opened.enter_context(connect_from("127.0.0.2", node.port)) for _ in range(2)]
        for _ in range(40):
            opened.enter_context(connect_from("127.0.0.3", node.port))
        wait_until(lambda: node.acceptor.counts()["evicted"] >= 34)
        for sock in quiet:
            sock.sendall(REQUEST)
            assert read_pdu(sock)[0] == pdu.A_ASSOCIATE_AC


def connect_from(address, port) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), 5, source_address=(address, 0))
    sock.settimeout(10)
    return sock


def test_idle_connections_end_at_their_deadline():
    with running(limits=SHORT) as node, node.connect() as sock:
        assert is_closed(sock)
        wait_until(lambda: node.acceptor.counts()["connecting"] == 0)
        assert_alive(node)


def test_idle_associations_end_at_their_deadline():
    with running(limits=SHORT) as node, node.connect() as sock:
        sock.sendall(REQUEST)
        assert read_pdu(sock)[0] == pdu.A_ASSOCIATE_AC
        assert read_pdu(sock)[0] == pdu.A_ABORT
        assert is_closed(sock)
        wait_until(lambda: not node.acceptor.status())


NOT_DICOM = {
    "HTTP": b"GET / HTTP/1.1\r\nHost: pacs\r\n\r\n",
    "TLS": bytes.fromhex("16030100c8010000c40303") + bytes(200),
    "one byte": b"\xff",
    "a P-DATA first": pdv(1, 3, commands.encode_echo_request(1)),
    "a release first": pdu.RELEASE_RQ,
    "an A-ASSOCIATE-RQ of 4 GB": b"\1\0\xff\xff\xff\xff" + bytes(70),
    "an A-ASSOCIATE-RQ of 10 bytes": b"\1\0\0\0\0\x0a" + bytes(10),
    "titles of no kind": REQUEST[:10] + b"\xff" * 32 + REQUEST[42:],
}


@pytest.mark.parametrize("name", NOT_DICOM)
def test_what_is_no_association_is_aborted_at_once(name):
    with running() as node, node.connect() as sock:
        began = time.monotonic()
        sock.sendall(NOT_DICOM[name])
        kind, body = read_pdu(sock)
        assert (kind, body[2]) == (pdu.A_ABORT, pdu.ABORT_BY_PROVIDER)
        assert is_closed(sock)
        assert time.monotonic() - began < 2
        assert node.acceptor.status() == []
        assert_alive(node)


def test_a_tls_client_on_the_plain_port_is_told_quickly():
    context = ssl.create_default_context()
    with running() as node, node.connect() as sock:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            context.wrap_socket(sock, server_hostname="pacs")
        assert_alive(node)


def memory_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


def test_claims_of_4_gb_take_no_memory():
    with running() as node, contextlib.ExitStack() as opened:
        assert_alive(node)
        before = memory_bytes()
        for _ in range(20):
            early = opened.enter_context(node.connect())
            early.sendall(b"\1\0\xff\xff\xff\xff" + bytes(1000))
            sock = opened.enter_context(node.connect())
            sock.sendall(REQUEST)
            assert read_pdu(sock)[0] == pdu.A_ASSOCIATE_AC
            sock.sendall(struct.pack(">BxIIBB", 4, 0xFFFFFFFF, 0xFFFFFFFD, 1, 3) + bytes(1000))
            assert read_pdu(sock)[0] == pdu.A_ABORT
        assert memory_bytes() - before < 8 * 2**20
        assert_alive(node)


def test_requests_in_flight_share_a_bounded_memory():
    limits = Limits(connecting_bytes_max=2**20, associate_pdu_bytes_max=2**20)
    header = struct.pack(">BxI", 1, 2**20)
    with running(limits=limits) as node, contextlib.ExitStack() as opened:
        for _ in range(12):
            sock = opened.enter_context(node.connect())
            with contextlib.suppress(OSError):
                sock.sendall(header + bytes(300_000))
        wait_until(lambda: node.acceptor.counts()["evicted"] >= 8)
        assert_alive(node)


def test_a_storm_of_aborts_leaves_nothing_behind():
    with running() as node:
        threads = threading.active_count()

        def storm() -> None:
            for number in range(60):
                with node.connect() as sock:
                    if number % 4 == 0:
                        sock.setsockopt(
                            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                        )
                    sock.sendall(REQUEST)
                    if number % 3 == 0:
                        continue
                    with contextlib.suppress(OSError, EOFError):
                        read_pdu(sock)
                        sock.sendall(pdu.encode_abort())

        storms = [threading.Thread(target=storm) for _ in range(4)]
        for one in storms:
            one.start()
        for one in storms:
            one.join()
        assert_alive(node)
        wait_until(lambda: not node.acceptor.status())
        wait_until(lambda: threading.active_count() <= threads)


def test_one_address_cannot_take_every_association():
    limits = Limits(associations_max=6, associations_per_address_max=4)
    with running(limits=limits) as node, contextlib.ExitStack() as opened:
        kinds = []
        for _ in range(8):
            sock = opened.enter_context(connect_from("127.0.0.9", node.port))
            sock.sendall(REQUEST)
            kinds.append(read_pdu(sock))
        accepted = [kind for kind, _ in kinds if kind == pdu.A_ASSOCIATE_AC]
        rejected = [body for kind, body in kinds if kind == pdu.A_ASSOCIATE_RJ]
        assert len(accepted) == 4
        assert rejected == [b"\0\2\3\2"] * 4
        assert_alive(node)


def test_fuzzed_requests_never_stop_the_acceptor():
    dice = random.Random(SEED)
    with running(limits=SHORT) as node:
        for _ in range(150):
            raw = bytearray(REQUEST)
            for _ in range(dice.randint(1, 12)):
                raw[dice.randrange(len(raw))] = dice.randrange(256)
            send_and_drain(node, bytes(raw[: dice.randint(1, len(raw))]))
        assert_alive(node)


def test_fuzzed_messages_never_stop_the_acceptor():
    dice = random.Random(SEED)
    archive = RecordingArchive(keep=False)
    message = pdv(3, 3, commands.encode_store_request(1, CT, "1.2.3")) + pdv(3, 2, bytes(500))
    with running(limits=SHORT, archive=archive) as node:
        for _ in range(150):
            raw = bytearray(message * 2)
            for _ in range(dice.randint(1, 10)):
                raw[dice.randrange(len(raw))] = dice.randrange(256)
            send_and_drain(node, bytes(raw), associate_first=True)
        assert_alive(node)
        wait_until(lambda: not node.acceptor.status())


def send_and_drain(node, raw, *, associate_first=False) -> None:
    with node.connect() as sock:
        with contextlib.suppress(OSError, EOFError):
            if associate_first:
                sock.sendall(REQUEST)
                assert read_pdu(sock)[0] == pdu.A_ASSOCIATE_AC
            sock.sendall(raw)
            sock.shutdown(socket.SHUT_WR)
        assert is_closed(sock)


def send_for_ever(sock, data):
    while True:
        sock.sendall(data)


def test_a_peer_that_never_reads_its_responses_is_cut():
    limits = Limits(send_s=0.3, idle_s=30)
    echo = pdv(1, 3, commands.encode_echo_request(1))
    listener = socket.create_server(("127.0.0.1", 0))
    # A connection takes this from its listener: else megabytes of responses must pile up first.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with running(limits=limits, listener=listener) as node, node.connect() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        sock.sendall(REQUEST)
        assert read_pdu(sock)[0] == pdu.A_ASSOCIATE_AC
        with pytest.raises(OSError):
            send_for_ever(sock, echo * 500)
        wait_until(lambda: not node.acceptor.status())
        assert_alive(node)


@pytest.mark.parametrize(
    ("raw", "answer"),
    [
        (REQUEST[:6] + b"\0\2" + REQUEST[8:], b"\0\1\2\2"),
        (REQUEST.replace(b"10008.3.1.1.1", b"10008.3.1.1.2"), b"\0\1\1\2"),
    ],
)
def test_another_protocol_is_rejected_with_its_reason(raw, answer):
    with running() as node, node.connect() as sock:
        sock.sendall(raw)
        assert read_pdu(sock) == (pdu.A_ASSOCIATE_RJ, answer)
        assert is_closed(sock)


def test_a_rejected_peer_that_does_not_close_is_closed():
    config = make_config(peer("SOMEBODY"))
    with running(config, limits=SHORT) as node, node.connect() as sock:
        sock.sendall(REQUEST)
        assert read_pdu(sock) == (pdu.A_ASSOCIATE_RJ, b"\0\1\1\3")
        wait_until(lambda: node.acceptor.counts()["connecting"] == 0)


def test_a_request_that_arrives_byte_by_byte_is_still_welcome():
    with running() as node, node.connect() as sock:
        for number in range(len(REQUEST)):
            sock.sendall(REQUEST[number : number + 1])
        assert read_pdu(sock)[0] == pdu.A_ASSOCIATE_AC


def test_what_follows_the_request_at_once_belongs_to_the_association():
    echo = pdv(1, 3, commands.encode_echo_request(5))
    with running() as node, node.connect() as sock:
        sock.sendall(REQUEST + echo + pdu.RELEASE_RQ)
        assert [read_pdu(sock)[0] for _ in range(3)] == [
            pdu.A_ASSOCIATE_AC, pdu.P_DATA_TF, pdu.A_RELEASE_RP,
        ]  # fmt: skip


def test_no_patient_data_gets_into_a_log(capfd):
    name = "ZZPLANTEDNAME"
    archive = RecordingArchive(failures=[ValueError(name), ValueError(name)])
    with running(archive=archive) as node:
        association = request_association(
            "127.0.0.1", node.port, calling_ae="US", called_ae=AE_TITLE,
            proposals=[Proposal(CT, (EXPLICIT,))],
        )  # fmt: skip
        for number in (1, 2):
            command = commands.encode_store_request(number, CT, f"1.2.{name}")
            assert association.exchange(1, command, number, name.encode() * 3).status == 0x0110
        association.abort()
        with node.connect() as sock:
            sock.sendall(REQUEST)
            read_pdu(sock)
            sock.sendall(pdv(3, 3, name.encode()))
            read_pdu(sock)
    output = capfd.readouterr()
    assert "association_ended" in output.out + output.err
    assert name not in output.out + output.err
