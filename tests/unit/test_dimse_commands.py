"""Command sets: what pynetdicom encodes is understood, what we encode is what it decodes."""

import io
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pynetdicom import dimse_messages
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import decode

from appliance.dimse import commands
from appliance.dimse.pdu import ProtocolError

CT = "1.2.840.10008.5.1.4.1.1.2"


def by_pynetdicom(encoded: bytes):
    return decode(io.BytesIO(encoded), True, True)


def test_store_request_of_pynetdicom_is_decoded():
    primitive = C_STORE()
    primitive.MessageID = 4711
    primitive.AffectedSOPClassUID = CT
    primitive.AffectedSOPInstanceUID = "1.2.3.4"
    primitive.Priority = 0
    primitive.DataSet = io.BytesIO(b"\0\0")
    primitive.MoveOriginatorApplicationEntityTitle = "PACS1"
    primitive.MoveOriginatorMessageID = 9
    message = dimse_messages.C_STORE_RQ()
    message.primitive_to_message(primitive)
    encoded = b"".join(
        pdv[1:] for item in message.encode_msg(3, 16384) for _, pdv in
        item.presentation_data_value_list if pdv[0] & 1
    )  # fmt: skip

    command = commands.decode_command(3, encoded)

    assert command.field == commands.C_STORE_RQ
    assert command.message_id == 4711
    assert command.has_dataset
    assert command.sop_class_uid == CT
    assert command.sop_instance_uid == "1.2.3.4"
    assert command.text(commands.MOVE_ORIGINATOR_AE) == "PACS1"
    assert command.number(commands.MOVE_ORIGINATOR_MESSAGE_ID) == 9


def test_store_request_is_read_by_pynetdicom():
    encoded = commands.encode_store_request(
        7, CT, "1.2.3", originator_ae="PACS1", originator_message_id=5
    )
    dataset = by_pynetdicom(encoded)
    assert dataset.CommandGroupLength == len(encoded) - 12
    assert dataset.AffectedSOPClassUID == CT
    assert dataset.MessageID == 7
    assert dataset.MoveOriginatorApplicationEntityTitle == "PACS1"
    assert dataset.MoveOriginatorMessageID == 5
    assert dataset.CommandDataSetType != 0x0101


@pytest.mark.parametrize("instance", ["1.2.3", "1.2.33", "1." + "9" * 62])
def test_quick_success_equals_the_general_response(instance):
    request = commands.decode_command(1, commands.encode_store_request(65535, CT, instance))
    assert commands.encode_store_success(request) == commands.encode_response(request, 0)


def test_failure_response_carries_a_comment_of_64_characters_at_most():
    request = commands.decode_command(1, commands.encode_store_request(1, CT, "1.2.3"))
    encoded = commands.encode_response(
        request, 0xA700, extra={commands.ERROR_COMMENT: "full " * 40}
    )
    dataset = by_pynetdicom(encoded)
    assert dataset.Status == 0xA700
    assert len(dataset.ErrorComment) <= 64
    assert dataset.MessageIDBeingRespondedTo == 1
    assert dataset.CommandField == 0x8001


def test_offending_elements_are_tags():
    encoded = commands.encode_command({
        commands.COMMAND_FIELD: 0x8020,
        commands.MESSAGE_ID_RESPONDED: 1,
        commands.COMMAND_DATA_SET_TYPE: commands.NO_DATASET,
        commands.STATUS: 0xA900,
        commands.OFFENDING_ELEMENT: (0x0020000D, 0x00100020),
    })  # fmt: skip
    assert list(by_pynetdicom(encoded).OffendingElement) == [0x0020000D, 0x00100020]


def test_cancel_names_the_message_it_cancels():
    encoded = commands.encode_command({
        commands.COMMAND_FIELD: commands.C_CANCEL_RQ,
        commands.MESSAGE_ID_RESPONDED: 12,
        commands.COMMAND_DATA_SET_TYPE: commands.NO_DATASET,
    })  # fmt: skip
    command = commands.decode_command(1, encoded)
    assert (command.field, command.message_id) == (commands.C_CANCEL_RQ, 12)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\0\0\0\0",
        struct.pack("<HHIH", 0x0008, 0x0100, 2, 1),  # not group 0000
        struct.pack("<HHI", 0, 0x0100, 0xFFFFFFFF),  # a length past the end
        struct.pack("<HHIH", 0, 0x0100, 2, 1),  # no message id
        struct.pack("<HHIB", 0, 0x0100, 1, 1) + struct.pack("<HHIH", 0, 0x0110, 2, 1),
    ],
)
def test_broken_command_sets_are_protocol_errors(raw):
    with pytest.raises(ProtocolError):
        commands.decode_command(1, raw)


@given(st.binary(max_size=200))
def test_any_bytes_decode_or_are_a_protocol_error(raw):
    try:
        command = commands.decode_command(1, raw)
    except ProtocolError:
        return
    assert 0 <= command.message_id <= 0xFFFF
    commands.encode_response(command, 0x0110)  # whatever it holds can be answered


@given(st.binary(min_size=1, max_size=40), st.integers(0, 200))
def test_a_damaged_request_is_decoded_or_a_protocol_error(damage, at):
    good = commands.encode_store_request(1, CT, "1.2.3.4.5")
    raw = good[:at] + damage + good[at + len(damage) :]
    try:
        command = commands.decode_command(1, raw)
    except ProtocolError:
        return
    commands.encode_response(command, 0xC000)


def test_a_number_where_text_belongs_is_refused():
    with pytest.raises(ValueError, match="not a number"):
        commands.encode_command({commands.AFFECTED_SOP_CLASS_UID: 3})
