"""C-STORE and C-ECHO with DCMTK and pynetdicom on the other end, over TCP and TLS."""

import contextlib
import hashlib
import os
import socket
import subprocess
import threading
import time

import pydicom
import pytest
from pydicom.data import get_testdata_file
from pynetdicom import AE, build_context, evt
from pynetdicom.presentation import StoragePresentationContexts

from appliance.dimse import commands
from appliance.dimse.acceptor import Acceptor
from appliance.dimse.contexts import Proposal
from appliance.dimse.limits import Limits
from appliance.dimse.requestor import request_association
from appliance.dimse.verification import verification_service
from appliance.foundation.errors import OutOfSpace, PeerRefused, PeerUnavailable, StorageFailed
from tests.support.dimse import (
    AE_TITLE,
    CT,
    EXPLICIT,
    IMPLICIT,
    SHORT,
    VERIFICATION,
    RecordingArchive,
    dcmtk,
    echoscu,
    make_config,
    peer,
    running,
    small_ct,
    write_ct_series,
    write_part10,
)

JPEG2000 = "1.2.840.10008.1.2.4.91"


def storescu(port, directory, *more, nodelay=False):
    return dcmtk(
        "storescu", "-aec", AE_TITLE, *more, "127.0.0.1", str(port),
        "--scan-directories", str(directory), nodelay=nodelay,
    )  # fmt: skip


def test_echoscu_is_answered():
    with running() as node:
        done = echoscu(node.port)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("nodelay", [False, True])
def test_storescu_delivers_every_instance_bit_exact(tmp_path, nodelay):
    uids = write_ct_series(str(tmp_path), 30)
    with running() as node:
        done = storescu(node.port, tmp_path, nodelay=nodelay)
    assert done.returncode == 0, done.stderr
    assert {stored.sop_instance_uid for stored in node.archive.stored} == set(uids)
    for stored in node.archive.stored:
        content = (tmp_path / f"{uids.index(stored.sop_instance_uid):05d}.dcm").read_bytes()
        assert content.endswith(stored.dataset)
        assert len(stored.dataset) > 8192
        assert stored.sender.calling_ae == "STORESCU"
        assert stored.sender.called_ae == AE_TITLE
        assert stored.sender.peer_address == "127.0.0.1"


def test_a_sender_with_nagle_on_waits_for_no_delayed_ack(tmp_path):
    write_ct_series(str(tmp_path), 100)
    with running() as node:
        began = time.monotonic()
        done = storescu(node.port, tmp_path)
        took = time.monotonic() - began
    assert done.returncode == 0
    # with delayed ACKs each instance would take 40 ms or 80 ms: four seconds or more
    assert took < 3


def test_dcmsend_delivers_what_it_finds(tmp_path):
    uids = write_ct_series(str(tmp_path), 5, side=512)
    with running() as node:
        done = dcmtk(
            "dcmsend", "-aec", AE_TITLE, "127.0.0.1", str(node.port),
            "--scan-directories", str(tmp_path),
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {stored.sop_instance_uid for stored in node.archive.stored} == set(uids)


def test_a_compressed_instance_keeps_its_syntax(tmp_path):
    source = get_testdata_file("JPEG2000.dcm")
    with running() as node:
        done = dcmtk(
            "dcmsend", "-aec", AE_TITLE, "127.0.0.1", str(node.port), "--decompress-never", source
        )
    assert done.returncode == 0, done.stderr + done.stdout
    (stored,) = node.archive.stored
    assert stored.transfer_syntax_uid == JPEG2000
    frames = pydicom.dcmread(source).PixelData.rstrip(b"\0")
    assert frames[-5000:] in stored.dataset


def test_storescu_sees_a_full_disk_and_goes_on(tmp_path):
    write_ct_series(str(tmp_path), 3)
    archive = RecordingArchive(failures=[OutOfSpace("store")])
    with running(archive=archive) as node:
        done = storescu(node.port, tmp_path, "--no-halt", "-v")
    assert "Refused: OutOfResources" in done.stdout + done.stderr
    assert len(node.archive.stored) == 2


def test_several_associations_store_at_the_same_time(tmp_path):
    for number in range(4):
        (tmp_path / str(number)).mkdir()
        write_ct_series(str(tmp_path / str(number)), 20)
    results = []
    with running() as node:
        threads = [
            threading.Thread(
                target=lambda n=n: results.append(storescu(node.port, tmp_path / str(n)))
            )
            for n in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [done.returncode for done in results] == [0, 0, 0, 0]
    assert len({stored.sop_instance_uid for stored in node.archive.stored}) == 80


def test_an_instance_past_the_memory_limit_is_streamed(tmp_path):
    write_ct_series(str(tmp_path), 1, side=2500)  # 12.5 MB
    with running() as node:
        done = storescu(node.port, tmp_path)
    assert done.returncode == 0, done.stderr
    (stored,) = node.archive.stored
    content = (tmp_path / "00000.dcm").read_bytes()
    assert stored.dataset is None
    assert stored.sha256 == hashlib.sha256(content[-stored.length :]).hexdigest()
    assert node.archive.largest_part == Limits().large_instance_bytes


def test_pynetdicom_proposes_128_contexts_and_stores():
    dataset, encoded = small_ct()
    ae = AE("PYNET")
    ae.requested_contexts = [
        build_context(one.abstract_syntax, [IMPLICIT, EXPLICIT])
        for one in StoragePresentationContexts[:120]
    ] + [build_context("1.2.840.10008.5.1.4.1.1.2", EXPLICIT)]
    with running() as node:
        association = ae.associate("127.0.0.1", node.port, ae_title=AE_TITLE)
        assert association.is_established
        assert len(association.rejected_contexts) == 0
        assert association.send_c_store(dataset).Status == 0
        association.release()
    assert node.archive.stored[0].dataset == encoded


# --- who may associate


@pytest.mark.parametrize(
    ("peers", "more", "words"),
    [
        ((peer("OTHER"),), {}, "Calling AE Title Not Recognized"),
        ((peer("ECHOSCU", ("192.0.2.0/24",)),), {}, "Calling AE Title Not Recognized"),
        (
            (peer(),),
            {"reject_unknown_called": True, "ae_title": "SOMEONE"},
            "Called AE Title Not Recognized",
        ),
    ],
)
def test_strangers_and_wrong_titles_are_rejected_permanently(peers, more, words):
    with running(make_config(*peers, **more)) as node:
        done = echoscu(node.port)
    assert done.returncode != 0
    assert "Rejected Permanent" in done.stdout + done.stderr
    assert words in done.stdout + done.stderr


def test_a_wrong_called_title_is_welcome_unless_configured():
    with running(make_config(ae_title="SOMEONE")) as node:
        assert echoscu(node.port).returncode == 0


def test_of_peers_that_share_a_title_the_address_decides():
    config = make_config(
        peer("ECHOSCU", ("192.0.2.1/32",), allow=("store",)),
        peer("ECHOSCU", ("127.0.0.1/32",), allow=("echo",)),
    )
    with running(config) as node:
        assert echoscu(node.port).returncode == 0


def test_a_service_that_is_not_allowed_is_no_accepted_context(tmp_path):
    write_ct_series(str(tmp_path), 1)
    with running(make_config(peer(allow=("echo",)))) as node:
        assert storescu(node.port, tmp_path).returncode != 0
        assert echoscu(node.port).returncode == 0
    assert node.archive.stored == []


def proposals():
    return [Proposal(VERIFICATION, (IMPLICIT,)), Proposal(CT, (EXPLICIT,))]


def associate(port, **more):
    return request_association(
        "127.0.0.1", port, **{"calling_ae": "US", "called_ae": AE_TITLE,
                              "proposals": proposals(), **more}
    )  # fmt: skip


@pytest.mark.parametrize("limited_by", ["peer", "address", "total"])
def test_overload_is_rejected_transiently_and_ends_with_it(limited_by):
    limits = {
        "address": Limits(associations_per_address_max=1),
        "total": Limits(associations_max=1),
    }
    config = make_config(peer(max_associations=1 if limited_by == "peer" else 64))
    with running(config, limits=limits.get(limited_by)) as node:
        first = associate(node.port)
        with pytest.raises(PeerUnavailable, match="local limit exceeded"):
            associate(node.port)
        first.release()
        deadline = time.monotonic() + 5
        while node.acceptor.status() and time.monotonic() < deadline:
            time.sleep(0.005)
        associate(node.port).release()


# --- our own requests


def test_requestor_stores_to_dcmtk_bit_exact(tmp_path):
    _, encoded = small_ct()
    port = free_port()
    with storescp(port, tmp_path, "+B"):
        association = associate(port, called_ae="STORESCP")
        context = association.find_context(CT)
        for number in range(1, 4):
            command = commands.encode_store_request(number, CT, f"1.2.3.{number}")
            answer = association.exchange(context.context_id, command, number, encoded)
            assert answer.status == 0
        association.release()
    files = [name for name in os.listdir(tmp_path) if name.startswith("CT")]
    assert len(files) == 3
    assert (tmp_path / files[0]).read_bytes().endswith(encoded)


def test_requestor_speaks_with_pynetdicom_and_names_the_originator():
    seen = []
    ae = AE("SCP")
    ae.add_supported_context(CT, EXPLICIT)

    def on_store(event):
        seen.append((
            event.request.MoveOriginatorApplicationEntityTitle,
            event.request.MoveOriginatorMessageID,
            event.encoded_dataset(include_meta=False),
        ))  # fmt: skip
        return 0

    server = ae.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, on_store)]
    )
    try:
        association = associate(server.server_address[1])
        assert association.find_context(VERIFICATION) is None
        _, encoded = small_ct()
        command = commands.encode_store_request(
            1, CT, "1.2.3", originator_ae="PACS1", originator_message_id=33
        )
        context_id = association.find_context(CT).context_id
        assert association.exchange(context_id, command, 1, encoded).status == 0
        association.release()
    finally:
        server.shutdown()
    assert seen == [("PACS1", 33, encoded)]


def test_requestor_tells_a_refusal_from_a_peer_that_is_away():
    with (
        running(make_config(peer("OTHER"))) as node,
        pytest.raises(PeerRefused, match="calling AE title not recognized"),
    ):
        associate(node.port)
    with pytest.raises(PeerUnavailable):
        associate(free_port())


def test_requestor_gives_up_on_a_peer_that_never_answers():
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(PeerUnavailable, match="too long"),
    ):
        associate(silent.getsockname()[1], limits=Limits(response_s=0.2))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


@contextlib.contextmanager
def storescp(port, directory, *more):
    process = subprocess.Popen(
        ["/usr/bin/storescp", "-aet", "STORESCP", "+xa", "-od", str(directory), *more, str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for_port(port)
        yield
    finally:
        process.terminate()
        process.wait()


def wait_for_port(port):
    deadline = time.monotonic() + 10
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        assert time.monotonic() < deadline
        time.sleep(0.02)


# --- how it ends


def test_stop_lets_a_running_store_end_and_aborts_the_idle(tmp_path):
    gate = threading.Event()
    archive = RecordingArchive(gate=gate)
    _, encoded = small_ct()
    statuses = []
    with running(archive=archive, limits=Limits(idle_s=1.0), drain_timeout_s=0.3) as node:
        busy, idle = associate(node.port), associate(node.port)

        def send() -> None:
            command = commands.encode_store_request(1, CT, "1.2.3")
            context_id = busy.find_context(CT).context_id
            statuses.append(busy.exchange(context_id, command, 1, encoded).status)
            busy.release()

        thread = threading.Thread(target=send)
        thread.start()
        assert archive.arrived.wait(10)
        stopping = threading.Thread(target=node.acceptor.stop, args=(0.3,))
        stopping.start()
        gate.set()
        thread.join()
        stopping.join()
        with pytest.raises(PeerUnavailable):
            associate(node.port)
        with pytest.raises(Exception, match=r"abort|closed"):
            idle.read_command(5)
        idle.close()
    assert statuses == [0]
    assert len(archive.stored) == 1


def test_a_failed_flush_stops_accepting_and_is_escalated(tmp_path):
    write_ct_series(str(tmp_path), 3)
    archive = RecordingArchive(failures=[StorageFailed("flush")])
    with running(archive=archive) as node:
        done = storescu(node.port, tmp_path)
        assert done.returncode != 0
        assert node.fatal_seen.wait(10)
        assert echoscu(node.port).returncode != 0
    assert [type(error) for error in node.fatal] == [StorageFailed]
    assert archive.stored == []


def test_500_of_1000_instances_stay_when_the_sender_aborts():
    _, encoded = small_ct()
    with running(limits=SHORT) as node:
        association = associate(node.port)
        context_id = association.find_context(CT).context_id
        for number in range(1, 51):
            command = commands.encode_store_request(number, CT, f"1.2.{number}")
            assert association.exchange(context_id, command, number, encoded).status == 0
        (seen,) = node.acceptor.status()
        assert (seen.calling_ae, seen.received) == ("US", 50)
        association.abort()
    assert len(node.archive.stored) == 50


def test_an_inherited_listener_is_used():
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    acceptor = Acceptor(
        make_config(port=1), [verification_service()], lambda _: None, listener=listener
    )
    acceptor.start()
    try:
        assert acceptor.port == port
        assert echoscu(port).returncode == 0
    finally:
        acceptor.stop(1)


def test_many_files_in_one_directory_of_mixed_classes(tmp_path):
    for number, name in enumerate(("CT_small.dcm", "MR_small.dcm", "rtplan.dcm", "reportsi.dcm")):
        dataset = pydicom.dcmread(get_testdata_file(name))
        if dataset.file_meta.TransferSyntaxUID == EXPLICIT:
            write_part10(dataset, str(tmp_path / f"{number}.dcm"))
        else:
            dataset.save_as(tmp_path / f"{number}.dcm")
    with running() as node:
        done = storescu(node.port, tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(node.archive.stored) == 4
