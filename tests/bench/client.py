"""A quick client of C-GET and C-FIND for measurements, on the project's own associations."""

import time
from collections.abc import Mapping

from appliance.dicom import uid
from appliance.dicom.identifier import encode_answer
from appliance.dimse.association import Association
from appliance.dimse.commands import (
    AFFECTED_SOP_CLASS_UID,
    C_FIND_RQ,
    C_GET_RQ,
    C_STORE_RQ,
    COMMAND_DATA_SET_TYPE,
    COMMAND_FIELD,
    MESSAGE_ID,
    encode_command,
    encode_store_success,
)
from appliance.dimse.contexts import Proposal
from appliance.dimse.requestor import request_association

PRIORITY = 0x0700
WITH_DATASET = 1
PENDING = (0xFF00, 0xFF01)
CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"


def connect(port: int) -> Association:
    """Associate with a node for C-FIND and for C-GET of CT images."""
    return request_association(
        "127.0.0.1",
        port,
        calling_ae="BENCH",
        called_ae="AZEKURA",
        proposals=[
            Proposal(uid.STUDY_ROOT_FIND, (uid.EXPLICIT_VR_LITTLE_ENDIAN,)),
            Proposal(uid.STUDY_ROOT_GET, (uid.EXPLICIT_VR_LITTLE_ENDIAN,)),
            Proposal(CT_IMAGE, (uid.EXPLICIT_VR_LITTLE_ENDIAN,), scu=False, scp=True),
        ],
    )


def _request(association: Association, syntax: str, field: int, keys: Mapping[int, str]) -> None:
    context = association.find_context(syntax)
    assert context is not None
    command = encode_command(
        {
            AFFECTED_SOP_CLASS_UID: syntax,
            COMMAND_FIELD: field,
            MESSAGE_ID: association.next_message_id(),
            PRIORITY: 0,
            COMMAND_DATA_SET_TYPE: WITH_DATASET,
        }
    )
    identifier = encode_answer(dict(keys), context.transfer_syntax, "ISO_IR 192")
    association.send_message(context.context_id, command, identifier)


def find(association: Association, keys: Mapping[int, str]) -> tuple[int, float]:
    """Return how many answers a C-FIND got and the seconds until its end."""
    started_s = time.perf_counter()
    _request(association, uid.STUDY_ROOT_FIND, C_FIND_RQ, keys)
    count = 0
    while True:
        answer = association.read_command(60)
        assert answer is not None
        if answer.status not in PENDING:
            assert answer.status == 0, hex(answer.status)
            return count, time.perf_counter() - started_s
        association.read_dataset()
        count += 1


def send_get(association: Association, study: str) -> None:
    """Ask for a study; what comes is the caller's to read."""
    _request(association, uid.STUDY_ROOT_GET, C_GET_RQ, {0x00080052: "STUDY", 0x0020000D: study})


def get(port: int, study: str) -> tuple[int, float, float]:
    """Return instances received by C-GET, seconds to the first and to the end."""
    association = connect(port)
    started_s = time.perf_counter()
    send_get(association, study)
    count, first_s = 0, 0.0
    while True:
        command = association.read_command(120)
        assert command is not None
        if command.field == C_STORE_RQ:
            association.read_dataset(2**32)
            count += 1
            first_s = first_s or time.perf_counter() - started_s
            association.send_response(command.context_id, encode_store_success(command))
        elif command.status not in PENDING:
            assert command.status == 0, hex(command.status)
            break
    took_s = time.perf_counter() - started_s
    association.release()
    return count, first_s, took_s
