"""The Storage Commitment service, Push Model (PS3.4 annex J): N-ACTION into the archive's book.

Decides nothing: the book says what a transaction becomes, the reporter when and where it is told.
Invariant: a request is answered Success only after its transaction is durable.
"""

from appliance.archive.commitment import CommitmentBook
from appliance.dicom import status, uid
from appliance.dimse.association import Association
from appliance.dimse.commands import ACTION_TYPE_ID, N_ACTION_RQ, Command, encode_response
from appliance.dimse.commitment_messages import read_request
from appliance.dimse.reporter import Reporter
from appliance.dimse.service import Service
from appliance.foundation.errors import (
    AzekuraError,
    DatasetMismatch,
    DatasetNotUnderstood,
    LimitExceeded,
    OutOfSpace,
    Refused,
)

REQUEST_STORAGE_COMMITMENT = 1


class CommitmentService:
    """Answers N-ACTION. Holds no state of a request; shared by all associations."""

    def __init__(self, book: CommitmentBook, reporter: Reporter) -> None:
        self._book = book
        self._reporter = reporter

    def handle(self, association: Association, command: Command) -> None:
        """Write the transaction down, answer, and let the reporter know who asked."""
        if command.number(ACTION_TYPE_ID) != REQUEST_STORAGE_COMMITMENT:
            self._answer(association, command, status.NO_SUCH_ACTION)
            return
        if command.sop_instance_uid != uid.STORAGE_COMMITMENT_INSTANCE:
            self._answer(association, command, status.NO_SUCH_SOP_INSTANCE)
            return
        context = association.contexts[command.context_id]
        raw = bytes(association.read_dataset())
        request = read_request(association, raw, context.transfer_syntax)
        with self._reporter.asked(request, association):
            self._book.request(request)
            self._answer(association, command, status.SUCCESS)

    def _answer(self, association: Association, command: Command, code: int) -> None:
        association.skip_dataset()
        association.counters.answered += 1
        association.send_response(
            command.context_id,
            encode_response(command, code, extra={ACTION_TYPE_ID: command.number(ACTION_TYPE_ID)}),
        )


def commitment_status(error: BaseException) -> int:
    """Return the N-ACTION status of an error (PS3.7 annex C.5)."""
    kinds: tuple[tuple[type[AzekuraError], int], ...] = (
        (DatasetMismatch, status.INVALID_ARGUMENT_VALUE),
        (LimitExceeded, status.RESOURCE_LIMITATION),
        (OutOfSpace, status.RESOURCE_LIMITATION),
        (DatasetNotUnderstood, status.PROCESSING_FAILURE),
        (Refused, status.INVALID_ARGUMENT_VALUE),
    )
    for kind, code in kinds:
        if isinstance(error, kind):
            return code
    return status.PROCESSING_FAILURE


def commitment_service(book: CommitmentBook, reporter: Reporter) -> Service:
    """Return the service that answers Storage Commitment requests."""
    return Service(
        permission="commit",
        abstract_syntaxes=(uid.STORAGE_COMMITMENT_PUSH,),
        transfer_syntaxes=uid.UNCOMPRESSED_TRANSFER_SYNTAXES,
        command_fields=frozenset({N_ACTION_RQ}),
        handle=CommitmentService(book, reporter).handle,
        failure_status=commitment_status,
    )
