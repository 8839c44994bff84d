"""The Verification service (PS3.4 annex A): C-ECHO."""

from appliance.dicom import status, uid
from appliance.dimse.association import Association
from appliance.dimse.commands import C_ECHO_RQ, Command, encode_response
from appliance.dimse.service import Service


def _answer(association: Association, command: Command) -> None:
    association.counters.answered += 1
    association.send_response(command.context_id, encode_response(command, status.SUCCESS))


def verification_service() -> Service:
    """Return the service that answers C-ECHO."""
    return Service(
        permission="echo",
        abstract_syntaxes=(uid.VERIFICATION,),
        transfer_syntaxes=uid.UNCOMPRESSED_TRANSFER_SYNTAXES,
        command_fields=frozenset({C_ECHO_RQ}),
        handle=_answer,
        failure_status=status.store_status,
    )
