"""The Query service, C-FIND (PS3.4 C.4.1): the archive's answers, on the wire.

Decides nothing about matching. Invariants: no key and no answer is logged; a slow client holds
nothing but this thread, because the archive's generator keeps no transaction between answers.
"""

import time

from appliance.dicom import status, uid
from appliance.dicom.elements import Value
from appliance.dicom.identifier import encode_answer
from appliance.dimse.association import Association, Message
from appliance.dimse.commands import C_FIND_RQ, Command, encode_response
from appliance.dimse.query import RELATIONAL, Finder, read_find, unanswered_keys
from appliance.dimse.service import Service
from appliance.foundation import log

TOGETHER_S = 0.002
"""Answers that are found within this time of the last write share the next: a write an answer, and
a look for a C-CANCEL before each, take longer than finding it."""

_SPECIFIC_CHARACTER_SET = 0x00080005
_log = log.get("dimse")


class FindService:
    """Answers C-FIND. Holds no state; shared by all associations."""

    def __init__(self, archive: Finder) -> None:
        self._archive = archive

    def handle(self, association: Association, command: Command) -> None:
        """Send an answer for each match, then the final status."""
        query = read_find(association, command)
        context = association.contexts[command.context_id]
        partly = bool(unanswered_keys(query))
        pending = encode_response(
            command,
            status.PENDING_WITH_UNSUPPORTED_KEYS if partly else status.PENDING,
            with_dataset=True,
        )
        final = status.SUCCESS
        answers_count = 0
        answers = self._archive.find(query, association.called_ae)
        waiting: list[Message] = []
        sent_s = 0.0
        try:
            for values in answers:
                waiting.append((pending, _encode(values, context.transfer_syntax)))
                now_s = time.monotonic()
                if now_s - sent_s < TOGETHER_S:
                    continue
                if association.cancelled(command.message_id):
                    final = status.CANCEL
                    waiting.clear()
                    break
                association.send_messages(command.context_id, waiting)
                answers_count += len(waiting)
                waiting, sent_s = [], now_s
        finally:
            close = getattr(answers, "close", None)
            if close is not None:
                close()
            association.forget_cancel(command.message_id)
        association.counters.answered += 1
        answers_count += len(waiting)
        waiting.append((encode_response(command, final), None))
        association.send_messages(command.context_id, waiting)
        _log.info("query_answered", level=query.level, answers_count=answers_count, status=final)


def _encode(values: dict[int, Value], transfer_syntax: str) -> bytes:
    character_set = values.get(_SPECIFIC_CHARACTER_SET, "")
    return encode_answer(
        values, transfer_syntax, character_set if isinstance(character_set, str) else ""
    )


def find_service(archive: Finder) -> Service:
    """Return the service that answers C-FIND in Patient Root and Study Root."""
    return Service(
        permission="find",
        abstract_syntaxes=(uid.PATIENT_ROOT_FIND, uid.STUDY_ROOT_FIND),
        transfer_syntaxes=uid.UNCOMPRESSED_TRANSFER_SYNTAXES,
        command_fields=frozenset({C_FIND_RQ}),
        handle=FindService(archive).handle,
        failure_status=status.find_status,
        extended_answer=RELATIONAL,
        extended_is_mask=True,
    )
