"""The Retrieve service C-MOVE (PS3.4 C.4.2): instances to a listed destination.

Owns the way to the destination. Must not decide what is selected. Invariants:
- Only a peer that may be a destination is called, at its configured address, under the title by
  which this node was called.
- The destination is called when the first instance is at hand, not before: a recall may take
  longer than a destination waits.
- A dead destination costs one attempt and one retry, each of bounded time, for the whole
  operation; what is left then fails at once, without being fetched. One that ends associations at
  single instances, as DCMTK does at a dataset of odd length, gets the others.
"""

import contextlib
import ssl
import time
from collections.abc import Sequence
from typing import Any

from appliance.archive.extent import Dataset
from appliance.config.model import Dicom, Peer
from appliance.dicom import status, uid
from appliance.dimse.association import Association
from appliance.dimse.commands import C_MOVE_RQ, MOVE_DESTINATION, Command
from appliance.dimse.contexts import Proposal
from appliance.dimse.limits import Limits
from appliance.dimse.query import RELATIONAL, Instance, Retriever, read_retrieve
from appliance.dimse.requestor import request_association
from appliance.dimse.service import Service
from appliance.dimse.suboperations import FAILED, InstanceSender, Progress, perform
from appliance.foundation import log
from appliance.foundation.errors import (
    AssociationLost,
    LimitExceeded,
    NotFound,
    PeerError,
    PeerRefused,
)
from appliance.pixels.transcode import TARGETS, Transcoder

CONTEXTS_MAX = 128
ATTEMPTS_MAX = 2
BREAKS_MAX = 16
BREAK_MAX_S = 10.0
"""An association that ends within this was ended by the instance; later, by a peer that hangs."""
INSTANCES_MAX = 1_000_000

_log = log.get("dimse")


def plan_contexts(wanted: Sequence[Instance]) -> list[list[Proposal]]:
    """Return what to propose for the instances, split for as many associations as needed.

    Each SOP class gets a context per stored transfer syntax, so that nothing is converted without
    need, and one of the uncompressed syntaxes that it is not stored in. A class is never split.
    """
    stored: dict[str, dict[str, None]] = {}
    for instance in wanted:
        stored.setdefault(instance.sop_class_uid, {})[instance.transfer_syntax_uid] = None
    plans: list[list[Proposal]] = [[]]
    for sop_class_uid, syntaxes in stored.items():
        fallback = tuple(target for target in TARGETS if target not in syntaxes)
        proposals = [Proposal(sop_class_uid, (syntax,)) for syntax in syntaxes]
        proposals = proposals[: CONTEXTS_MAX - 1]
        if fallback:
            proposals.append(Proposal(sop_class_uid, fallback))
        if len(plans[-1]) + len(proposals) > CONTEXTS_MAX:
            plans.append([])
        plans[-1] += proposals
    return plans


class Leg:
    """One association to the destination, opened when first needed and once more when lost.

    Owned by the thread of the C-MOVE. Invariants:
    - At 0 `attempts_left` with no association everything fails.
    - An instance at which two associations end at once fails alone: the destination lives, and is
      called again for the next one. `breaks_left` only falls; it says how often.
    """

    def __init__(self, call: "Call", proposals: Sequence[Proposal], transcoder: Transcoder) -> None:
        self._call = call
        self._proposals = proposals
        self._transcoder = transcoder
        self._association: Association | None = None
        self._sender: InstanceSender | None = None
        self.attempts_left = ATTEMPTS_MAX
        self.breaks_left = BREAKS_MAX

    @property
    def dead(self) -> bool:
        """Whether the destination was given up."""
        return self._sender is None and self.attempts_left == 0

    def send(self, instance: Instance, dataset: Dataset) -> str:
        """Send one instance and return its outcome."""
        broken_count = 0
        while self._sender is not None or self.attempts_left:
            started_s = time.monotonic()
            try:
                sender = self._sender or self._open()
                return sender.send(instance, dataset)
            except PeerRefused as error:
                self.attempts_left = 0
                self._log(error)
            except PeerError as error:
                self._log(error)
                quickly = time.monotonic() - started_s < BREAK_MAX_S
                broken_count += quickly and isinstance(error, AssociationLost)
            self._drop()
            if broken_count == ATTEMPTS_MAX and self.breaks_left:
                self.breaks_left -= 1
                self.attempts_left = ATTEMPTS_MAX
                break
        return FAILED

    def _open(self) -> InstanceSender:
        self.attempts_left -= 1
        self._association = self._call.open(self._proposals)
        self._sender = InstanceSender(
            self._association,
            self._transcoder,
            originator_ae=self._call.originator_ae,
            originator_message_id=self._call.originator_message_id,
        )
        return self._sender

    def _log(self, error: PeerError) -> None:
        _log.warning(
            "move_destination_failed",
            destination=self._call.destination.ae_title,
            error=type(error).__name__,
            attempts_left=self.attempts_left,
        )

    def _drop(self) -> None:
        if self._association is not None:
            self._association.abort()
        self._association = self._sender = None

    def release(self) -> None:
        """Release the association, if there is one."""
        if self._association is not None:
            self._association.release()

    def abort(self) -> None:
        """Abort the association, if there is one."""
        self._drop()


class Call:
    """How the destination of one C-MOVE is called."""

    def __init__(
        self,
        destination: Peer,
        *,
        calling_ae: str,
        originator_ae: str,
        originator_message_id: int,
        tls: ssl.SSLContext | None,
        limits: Limits,
    ) -> None:
        self.destination = destination
        self.originator_ae = originator_ae
        self.originator_message_id = originator_message_id
        self._calling_ae = calling_ae
        self._tls = tls
        self._limits = limits

    def open(self, proposals: Sequence[Proposal]) -> Association:
        """Return an association with the destination; raises PeerUnavailable, PeerRefused."""
        host, port = self.destination.host, self.destination.port
        if host is None or port is None:
            raise PeerRefused("call a destination", self.destination.ae_title, "it has no address")
        return request_association(
            host,
            port,
            calling_ae=self._calling_ae,
            called_ae=self.destination.ae_title,
            proposals=proposals,
            tls=self._tls if self.destination.tls else None,
            limits=self._limits,
        )


class MoveService:
    """Answers C-MOVE. Holds no state of an operation; shared by all associations."""

    def __init__(
        self,
        archive: Retriever,
        dicom: Dicom,
        transcoder: Transcoder,
        *,
        tls: ssl.SSLContext | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._archive = archive
        self._dicom = dicom
        self._transcoder = transcoder
        self._tls = tls
        self._limits = limits or Limits()

    def handle(self, association: Association, command: Command) -> None:
        """Send every selected instance to the destination, then the final response."""
        query = read_retrieve(association, command)
        destination = self._dicom.destination(command.text(MOVE_DESTINATION))
        if destination is None:
            raise NotFound("move", command.text(MOVE_DESTINATION), "no such destination")
        if destination.tls and self._tls is None:
            raise NotFound("move", destination.ae_title, "it takes TLS only, which is not set up")
        wanted = self._archive.select(query)
        if len(wanted) > INSTANCES_MAX:
            raise LimitExceeded("move", "", f"over {INSTANCES_MAX} instances")
        progress = Progress(association, command, len(wanted))
        call = Call(
            destination,
            calling_ae=self._calling_ae(association),
            originator_ae=association.calling_ae,
            originator_message_id=command.message_id,
            tls=self._tls,
            limits=self._limits,
        )
        with progress.ticking():
            cancelled = self._move(wanted, progress, call)
        final = progress.finish(cancelled=cancelled)
        _log.info(
            "move_finished",
            destination=destination.ae_title,
            status=final,
            completed_count=progress.completed,
            failed_count=len(progress.failed_uids),
            elapsed_s=round(progress.elapsed_s, 3),
        )

    def _calling_ae(self, association: Association) -> str:
        if association.called_ae in self._dicom.ae_titles:
            return association.called_ae
        return self._dicom.ae_title

    def _move(self, wanted: Sequence[Any], progress: Progress, call: Call) -> bool:
        legs: dict[str, Leg] = {}
        all_legs: list[Leg] = []
        for proposals in plan_contexts(wanted):
            leg = Leg(call, proposals, self._transcoder)
            all_legs.append(leg)
            legs.update((proposal.abstract_syntax, leg) for proposal in proposals)

        def send(instance: Instance, dataset: Dataset) -> str:
            outcome = legs[instance.sop_class_uid].send(instance, dataset)
            if outcome == FAILED and all(leg.dead for leg in all_legs):
                raise _DestinationDeadError("move", call.destination.ae_title, "it was given up")
            return outcome

        with contextlib.ExitStack() as cleanup:
            for leg in all_legs:
                cleanup.callback(leg.abort)
            cancelled = perform(self._archive, wanted, progress, send)
            for leg in all_legs:
                leg.release()
            return cancelled


class _DestinationDeadError(PeerError):
    """Nothing more can be sent: the rest fails without being opened."""


def move_service(
    archive: Retriever,
    dicom: Dicom,
    transcoder: Transcoder,
    *,
    tls: ssl.SSLContext | None = None,
    limits: Limits | None = None,
) -> Service:
    """Return the service that answers C-MOVE in Patient Root and Study Root.

    tls: the context for destinations that take TLS; without it they are unknown destinations.
    """
    service = MoveService(archive, dicom, transcoder, tls=tls, limits=limits)
    return Service(
        permission="move",
        abstract_syntaxes=(uid.PATIENT_ROOT_MOVE, uid.STUDY_ROOT_MOVE),
        transfer_syntaxes=uid.UNCOMPRESSED_TRANSFER_SYNTAXES,
        command_fields=frozenset({C_MOVE_RQ}),
        handle=service.handle,
        failure_status=status.retrieve_status,
        extended_answer=RELATIONAL,
        extended_is_mask=True,
    )
