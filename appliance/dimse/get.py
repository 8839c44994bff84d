"""The Retrieve service C-GET (PS3.4 C.4.3): instances back on the requestor's own association.

Decides nothing about what is selected. An instance for which the requestor accepted no context in
the SCP role is a failed sub-operation.
"""

from appliance.dicom import status, uid
from appliance.dimse.association import Association
from appliance.dimse.commands import C_GET_RQ, Command
from appliance.dimse.query import RELATIONAL, Retriever, read_retrieve
from appliance.dimse.service import Service
from appliance.dimse.suboperations import InstanceSender, Progress, perform
from appliance.foundation import log
from appliance.pixels.transcode import Transcoder

_log = log.get("dimse")


class GetService:
    """Answers C-GET. Holds no state of an operation; shared by all associations."""

    def __init__(self, archive: Retriever, transcoder: Transcoder) -> None:
        self._archive = archive
        self._transcoder = transcoder

    def handle(self, association: Association, command: Command) -> None:
        """Send every selected instance, then the final response."""
        query = read_retrieve(association, command)
        wanted = self._archive.select(query)
        progress = Progress(association, command, len(wanted))
        with progress.ticking():
            sender = InstanceSender(association, self._transcoder, using=progress.using)
            cancelled = perform(self._archive, wanted, progress, sender.send)
        final = progress.finish(cancelled=cancelled)
        _log.info(
            "get_finished",
            status=final,
            completed_count=progress.completed,
            failed_count=len(progress.failed_uids),
            elapsed_s=round(progress.elapsed_s, 3),
        )


def get_service(archive: Retriever, transcoder: Transcoder) -> Service:
    """Return the service that answers C-GET in Patient Root and Study Root."""
    return Service(
        permission="get",
        abstract_syntaxes=(uid.PATIENT_ROOT_GET, uid.STUDY_ROOT_GET),
        transfer_syntaxes=uid.UNCOMPRESSED_TRANSFER_SYNTAXES,
        command_fields=frozenset({C_GET_RQ}),
        handle=GetService(archive, transcoder).handle,
        failure_status=status.retrieve_status,
        extended_answer=RELATIONAL,
        extended_is_mask=True,
    )
