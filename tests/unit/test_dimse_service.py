"""From a command to its service, and from an error to a status."""

import threading

import pytest

from appliance.dicom import status
from appliance.dimse import commands, pdu
from appliance.dimse.limits import Limits
from appliance.dimse.pdu import ProtocolError
from appliance.dimse.service import Dispatcher, error_comment, offers_for
from appliance.dimse.storage import storage_service
from appliance.dimse.verification import verification_service
from appliance.foundation.errors import (
    AssociationLost,
    CloudUnavailable,
    DatasetMismatch,
    DatasetNotUnderstood,
    OutOfSpace,
    StorageFailed,
)
from tests.support.dimse import (
    CT,
    EXPLICIT,
    VERIFICATION,
    RecordingArchive,
    StreamFailure,
    context,
    linked,
    pdv,
    peer,
    read_message,
)

MR = "1.2.840.10008.5.1.4.1.1.4"


def store(archive, *messages, contexts=(), limits=None):
    """Serve these PDUs, then a release; return association and the responses sent."""
    dispatcher = Dispatcher([verification_service(), storage_service(archive)])
    contexts = contexts or (context(1, CT), context(3, VERIFICATION))
    with linked(*contexts, limits=limits) as (association, sock):
        raw = b"".join(messages)
        thread = threading.Thread(target=sock.sendall, args=(raw + pdu.RELEASE_RQ,))
        thread.start()
        dispatcher.serve(association)
        thread.join()
        return association, [read_message(sock)[1] for _ in messages]


def message(command: bytes, dataset: bytes | None = b"data", context_id: int = 1) -> bytes:
    raw = pdv(context_id, 3, command)
    if dataset is not None:
        step = 60_000
        count = max(1, -(-len(dataset) // step))
        for number in range(count):
            piece = dataset[number * step : (number + 1) * step]
            raw += pdv(context_id, 2 if number == count - 1 else 0, piece)
    return raw


def store_message(dataset: bytes = b"data", sop_class=CT, instance="1.2.3", message_id=1) -> bytes:
    return message(commands.encode_store_request(message_id, sop_class, instance), dataset)


def test_store_hands_the_instance_over_and_answers_success():
    archive = RecordingArchive()
    association, (response,) = store(archive, store_message(b"x" * 9000, message_id=77))
    (stored,) = archive.stored
    assert stored.dataset == b"x" * 9000
    assert (stored.sop_class_uid, stored.sop_instance_uid) == (CT, "1.2.3")
    assert stored.transfer_syntax_uid == EXPLICIT
    assert (response.status, response.message_id, response.field) == (0, 77, 0x8001)
    assert response.sop_instance_uid == "1.2.3"
    assert association.counters.received == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OutOfSpace("store"), 0xA700),
        (DatasetNotUnderstood("scan", "", "YAMADA^TARO"), 0xC000),
        (DatasetMismatch("store", "", "1.2.3 is not 1.2.4"), 0xA900),
        (CloudUnavailable("read"), 0x0110),
        (ValueError("YAMADA^TARO"), 0x0110),
    ],
)
def test_an_error_of_the_archive_is_a_status_and_the_next_instance_is_stored(error, code):
    archive = RecordingArchive(failures=[error])
    association, responses = store(
        archive, store_message(b"x" * 100_000), store_message(instance="1.2.4", message_id=2)
    )
    assert [response.status for response in responses] == [code, 0]
    assert [stored.sop_instance_uid for stored in archive.stored] == ["1.2.4"]
    comment = responses[0].text(commands.ERROR_COMMENT)
    assert comment
    assert "YAMADA" not in comment
    assert (association.counters.received, association.counters.refused) == (1, 1)


def test_a_failed_flush_is_not_answered_but_raised():
    archive = RecordingArchive(failures=[StorageFailed("flush")])
    with pytest.raises(StorageFailed):
        store(archive, store_message())


LARGE = Limits(large_instance_bytes=200_000, stream_part_bytes=50_000)


def test_a_large_instance_is_streamed_in_bounded_parts():
    archive = RecordingArchive()
    dataset = bytes(range(256)) * 4000
    _, (response,) = store(archive, store_message(dataset), limits=LARGE)
    assert response.status == 0
    assert archive.stored[0].length == len(dataset)
    assert archive.largest_part == 200_000
    _, _ = store(reference := RecordingArchive(), store_message(dataset))
    assert reference.stored[0].sha256 == archive.stored[0].sha256


@pytest.mark.parametrize("error", [StreamFailure("write"), OutOfSpace("open the stream")])
def test_a_stream_that_fails_is_read_to_its_end_and_refused(error):
    archive = RecordingArchive(failures=[error])
    _, responses = store(
        archive, store_message(bytes(1_000_000)), store_message(message_id=2), limits=LARGE
    )
    assert responses[0].status in (0x0110, 0xA700)
    assert responses[1].status == 0
    assert archive.streams_aborted == isinstance(error, StreamFailure)


@pytest.mark.parametrize("error", [OutOfSpace("open the stream"), StreamFailure("write")])
def test_a_failure_is_answered_only_after_the_message_was_read(error):
    dispatcher = Dispatcher([storage_service(RecordingArchive(failures=[error]))])
    unread_when_answered = []
    with linked(limits=LARGE) as (association, sock):
        send_response = association.send_response

        def watched(context_id, command):
            unread_when_answered.append(association._reader.dataset_open)
            send_response(context_id, command)

        association.send_response = watched
        raw = store_message(bytes(1_000_000)) + pdu.RELEASE_RQ
        thread = threading.Thread(target=sock.sendall, args=(raw,))
        thread.start()
        dispatcher.serve(association)
        thread.join()
    assert unread_when_answered == [False]


def test_a_stream_whose_sender_dies_is_aborted():
    archive = RecordingArchive()
    dispatcher = Dispatcher([storage_service(archive)])
    with linked(limits=LARGE) as (association, sock):
        raw = pdv(1, 3, commands.encode_store_request(1, CT, "1.2")) + pdv(1, 0, bytes(60_000)) * 9

        def die() -> None:
            sock.sendall(raw)
            sock.close()

        thread = threading.Thread(target=die)
        thread.start()
        with pytest.raises(AssociationLost):
            dispatcher.serve(association)
        thread.join()
    assert archive.streams_aborted == 1
    assert archive.stored == []


NO_DATASET = commands.encode_command({
    commands.AFFECTED_SOP_CLASS_UID: CT,
    commands.COMMAND_FIELD: commands.C_STORE_RQ,
    commands.MESSAGE_ID: 1,
    commands.COMMAND_DATA_SET_TYPE: commands.NO_DATASET,
    commands.AFFECTED_SOP_INSTANCE_UID: "1.2.3",
})  # fmt: skip
FIND_ON_CT = commands.encode_command({
    commands.AFFECTED_SOP_CLASS_UID: CT,
    commands.COMMAND_FIELD: commands.C_FIND_RQ,
    commands.MESSAGE_ID: 1,
    commands.COMMAND_DATA_SET_TYPE: commands.WITH_DATASET,
})  # fmt: skip
UNKNOWN_COMMAND = commands.encode_command({
    commands.COMMAND_FIELD: 0x0777,
    commands.MESSAGE_ID: 1,
    commands.COMMAND_DATA_SET_TYPE: commands.NO_DATASET,
})  # fmt: skip


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (message(NO_DATASET, None), status.DATASET_DOES_NOT_MATCH),
        (message(FIND_ON_CT), status.UNRECOGNIZED_OPERATION),
        (message(UNKNOWN_COMMAND, None), status.UNRECOGNIZED_OPERATION),
        (store_message(sop_class=MR), status.SOP_CLASS_NOT_SUPPORTED),
        (message(commands.encode_echo_request(1), None, 1), status.UNRECOGNIZED_OPERATION),
        (message(commands.encode_echo_request(1), None, 3), status.SUCCESS),
    ],
)
def test_what_does_not_fit_its_context_is_answered_with_a_status(raw, code):
    archive = RecordingArchive()
    _, responses = store(archive, raw, store_message(message_id=2))
    assert [response.status for response in responses] == [code, 0]
    assert len(archive.stored) == 1


def test_a_store_where_only_we_may_be_scu_is_not_authorized():
    archive = RecordingArchive()
    _, (response,) = store(
        archive, store_message(), contexts=(context(1, CT, as_scp=False, as_scu=True),)
    )
    assert response.status == status.NOT_AUTHORIZED
    assert archive.stored == []


def test_a_response_that_nobody_waits_for_breaks_the_protocol():
    request = commands.decode_command(1, commands.encode_store_request(1, CT, "1.2"))
    with pytest.raises(ProtocolError):
        store(RecordingArchive(), message(commands.encode_response(request, 0), None))


def test_no_comment_repeats_an_errors_words():
    for kind in (DatasetNotUnderstood, DatasetMismatch, OutOfSpace, StreamFailure):
        comment = error_comment(kind("op", "SUZUKI^JIRO", "SUZUKI^JIRO"))
        assert 0 < len(comment) <= 64
        assert "SUZUKI" not in comment


def test_offers_follow_the_words_of_allow():
    services = (verification_service(), storage_service(RecordingArchive()))
    assert set(offers_for(peer(allow=("echo",)), services)) == {VERIFICATION}
    only_get = offers_for(peer(allow=("get",)), services)[CT]
    assert (only_get.peer_may_be_scu, only_get.peer_may_be_scp) == (False, True)
    assert offers_for(peer(allow=("find",)), services) == {}
