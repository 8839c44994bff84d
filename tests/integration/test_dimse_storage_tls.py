"""DICOM over mutual TLS, DCMTK and our own requestor on the other end."""

import contextlib
import os
import socket
import ssl
import time

import pytest

from appliance.dimse import commands, pdu
from appliance.dimse.contexts import Proposal
from appliance.dimse.limits import Limits
from appliance.dimse.negotiation import build_request
from appliance.dimse.requestor import request_association
from appliance.dimse.tls import client_context
from appliance.foundation.errors import ConfigurationError, KeyUnavailable, PeerRefused
from tests.support.certificates import Authority, tls_arguments
from tests.support.dimse import (
    AE_TITLE,
    CT,
    EXPLICIT,
    IMPLICIT,
    VERIFICATION,
    dcmtk,
    echoscu,
    is_closed,
    make_config,
    peer,
    read_pdu,
    running,
    small_ct,
    write_ct_series,
)


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path, "authority")


def associate(port, files, **more):
    return request_association(
        "127.0.0.1", port, calling_ae="US", called_ae=AE_TITLE,
        proposals=[Proposal(CT, (EXPLICIT,))], tls=client_context(files), **more,
    )  # fmt: skip


def test_dcmtk_stores_over_tls_while_plain_goes_on(authority, tmp_path):
    series = tmp_path / "series"
    series.mkdir()
    uids = write_ct_series(str(series), 5, side=256)
    files = authority.issue("ct1")
    with running(make_config(tls=authority.issue("node"))) as node:
        done = dcmtk(
            "storescu", *tls_arguments(files), "-aec", AE_TITLE,
            "127.0.0.1", str(node.acceptor.tls_port), "--scan-directories", str(series),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert echoscu(node.port).returncode == 0
    assert {stored.sop_instance_uid for stored in node.archive.stored} == set(uids)
    assert node.archive.stored[0].sender.tls_subject == "O=Hospital\\, A,CN=ct1"


def test_requestor_stores_large_and_small_over_tls(authority):
    _, encoded = small_ct()
    large = os.urandom(9 * 2**20)
    with running(make_config(tls=authority.issue("node"))) as node:
        association = associate(node.acceptor.tls_port, authority.issue("us"))
        for number, dataset in enumerate((encoded, large, encoded), 1):
            command = commands.encode_store_request(number, CT, f"1.2.{number}")
            assert association.exchange(1, command, number, dataset).status == 0
        association.release()
    assert [stored.length for stored in node.archive.stored] == [
        len(encoded), len(large), len(encoded),
    ]  # fmt: skip
    assert node.archive.stored[0].dataset == encoded


def test_a_stranger_to_the_authority_is_refused(authority, tmp_path):
    other = Authority(tmp_path, "other")
    with running(make_config(tls=authority.issue("node"))) as node:
        stranger = other.issue("stranger", ca=authority.ca)
        with pytest.raises(Exception, match=r"(?i)associate|connect|read"):
            associate(node.acceptor.tls_port, stranger)
        done = dcmtk("echoscu", "+tla", "-ic", "127.0.0.1", str(node.acceptor.tls_port))
        assert done.returncode != 0  # no certificate at all
        assert node.acceptor.status() == []
        with pytest.raises(PeerRefused):  # and we do not take a node of another authority
            associate(node.acceptor.tls_port, authority.issue("us", ca=other.ca))
        associate(node.acceptor.tls_port, authority.issue("us")).release()


def test_a_peer_of_tls_is_rejected_on_the_plain_port(authority):
    config = make_config(peer("ECHOSCU", tls=True), tls=authority.issue("node"))
    with running(config) as node:
        assert echoscu(node.port).returncode != 0
        done = echoscu(node.acceptor.tls_port, *tls_arguments(authority.issue("ct1")))
        assert done.returncode == 0, done.stderr


def test_old_tls_is_not_spoken(authority):
    files = authority.issue("us")
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname = False
    old.load_verify_locations(files.ca)
    old.load_cert_chain(files.certificate, files.key)
    old.set_ciphers("AES256-SHA256:AES128-SHA@SECLEVEL=0")
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        running(make_config(tls=authority.issue("node"))) as node,
        socket.create_connection(("127.0.0.1", node.acceptor.tls_port), 5) as sock,
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        old.wrap_socket(sock)


def test_handshakes_that_never_end_keep_nobody_out(authority):
    limits = Limits(artim_s=0.5, connecting_max=16)
    config = make_config(tls=authority.issue("node"))
    files = authority.issue("us")
    with running(config, limits=limits) as node, contextlib.ExitStack() as opened:
        address = ("127.0.0.1", node.acceptor.tls_port)
        silent = []
        for number in range(40):
            sock = opened.enter_context(socket.create_connection(address, 5))
            sock.settimeout(10)
            sock.sendall(b"\x16\x03\x01\x02\x00"[: number % 6])
            silent.append(sock)
        associate(node.acceptor.tls_port, files).release()
        for sock in silent:
            assert is_closed(sock)


def test_a_request_over_tls_may_drip(authority):
    files = authority.issue("us")
    request = build_request(
        "US", AE_TITLE, [Proposal(VERIFICATION, (IMPLICIT,))], Limits()
    ).pdu_bytes
    with (
        running(make_config(tls=authority.issue("node"))) as node,
        socket.create_connection(("127.0.0.1", node.acceptor.tls_port), 5) as raw,
        client_context(files).wrap_socket(raw) as sock,
    ):
        for number in range(0, len(request), 7):
            sock.sendall(request[number : number + 7])
        assert read_pdu(sock)[0] == pdu.A_ASSOCIATE_AC
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert read_pdu(sock)[0] == pdu.A_ABORT


def test_a_poll_for_cancel_over_tls_does_not_wait(authority):
    with running(make_config(tls=authority.issue("node"))) as node:
        association = associate(node.acceptor.tls_port, authority.issue("us"))
        began = time.monotonic()
        assert not association.cancelled(1)
        assert time.monotonic() - began < 0.5
        association.release()


@pytest.mark.parametrize("broken", ["certificate", "key", "ca"])
def test_files_that_do_not_hold_what_they_should_are_named(authority, tmp_path, broken):
    junk = authority.write("junk", b"no PEM")
    files = authority.issue("node").model_copy(update={broken: junk})
    with pytest.raises((KeyUnavailable, ConfigurationError), match="junk"):
        client_context(files)
    missing = files.model_copy(update={broken: str(tmp_path / "absent")})
    with pytest.raises((KeyUnavailable, ConfigurationError), match="absent"):
        client_context(missing)
