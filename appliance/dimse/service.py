"""Services: which abstract syntaxes are taken, who may use them, and who answers a command.

Owns the way from a command to its handler and from an error to a failure response. Must not know
what a particular service does.

Invariants:
- Every request gets a response, or the association is aborted.
- No text of a peer and no value of a dataset gets into a response's Error Comment or a log.
"""

import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from appliance.config.model import Peer
from appliance.config.values import Permission
from appliance.dicom import status
from appliance.dimse import pdu
from appliance.dimse.association import Association
from appliance.dimse.commands import ERROR_COMMENT, Command, encode_response
from appliance.dimse.negotiation import Offer
from appliance.foundation.errors import (
    AssociationLost,
    AzekuraError,
    Busy,
    CloudError,
    DatasetMismatch,
    DatasetNotUnderstood,
    LimitExceeded,
    NotAccepting,
    OutOfSpace,
    ShareUsed,
    StorageFailed,
)

Handler = Callable[[Association, Command], None]
"""Answers one request on the association's thread: reads the dataset, sends every response.

It may raise AzekuraError before it has sent the final response; the service's `failure_status`
is then answered. Whatever it left of the dataset is skipped.
"""


@dataclass(frozen=True, slots=True)
class Service:
    """One DIMSE service of this node."""

    permission: Permission
    """The word of `peer.allow` that lets a peer be its SCU."""
    abstract_syntaxes: tuple[str, ...]
    transfer_syntaxes: tuple[str, ...]
    command_fields: frozenset[int]
    handle: Handler
    failure_status: Callable[[BaseException], int]
    scp_permission: Permission | None = None
    """The word that lets a peer take the SCP role too, to be sent what it retrieves."""
    extended_answer: bytes | None = None
    """The SOP Class Extended Negotiation answered to a peer that proposes one."""
    extended_is_mask: bool = False
    """Whether that answer is cut down, bit by bit, to what the peer asked for."""
    is_open: Callable[[], bool] | None = None
    """Whether SCUs are taken now; None for a service that always takes them."""


def offers_for(peer: Peer, services: Iterable[Service]) -> dict[str, Offer]:
    """Return what that peer may negotiate now, by abstract syntax."""
    offers: dict[str, Offer] = {}
    for service in services:
        is_open = service.is_open is None or service.is_open()
        as_scu = is_open and peer.may(service.permission)
        as_scp = service.scp_permission is not None and peer.may(service.scp_permission)
        if not as_scu and not as_scp:
            continue
        offer = Offer(
            frozenset(service.transfer_syntaxes),
            peer_may_be_scu=as_scu,
            peer_may_be_scp=as_scp,
            extended_answer=service.extended_answer,
            extended_is_mask=service.extended_is_mask,
        )
        offers.update(dict.fromkeys(service.abstract_syntaxes, offer))
    return offers


class Dispatcher:
    """Finds the service of a command. Immutable, shared by all associations."""

    def __init__(self, services: Iterable[Service]) -> None:
        self._by_syntax: Mapping[str, Service] = {
            uid: service for service in services for uid in service.abstract_syntaxes
        }

    def serve(self, association: Association) -> None:
        """Answer requests until the peer releases.

        Raises AssociationLost when the association ends otherwise, StorageFailed when the daemon
        must stop; the caller aborts.
        """
        association.on_request = self.dispatch
        read_command = association.read_command
        dispatch = self.dispatch
        while (command := read_command()) is not None:
            dispatch(association, command)

    def dispatch(self, association: Association, command: Command) -> None:
        """Answer one request."""
        context = association.contexts[command.context_id]
        service = self._by_syntax.get(context.abstract_syntax)
        if command.is_response:
            raise pdu.ProtocolError(pdu.UNEXPECTED_PARAMETER, "a response that nobody waits for")
        refusal = None
        if service is None or command.field not in service.command_fields:
            refusal = status.UNRECOGNIZED_OPERATION
        elif not context.as_scp:
            refusal = status.NOT_AUTHORIZED
        elif command.sop_class_uid != context.abstract_syntax:
            refusal = status.SOP_CLASS_NOT_SUPPORTED
        if service is None or refusal is not None:
            association.skip_dataset()
            association.counters.refused += 1
            response = encode_response(command, refusal or status.UNRECOGNIZED_OPERATION)
            association.send_response(command.context_id, response)
            return
        try:
            service.handle(association, command)
        except (AssociationLost, StorageFailed):
            raise
        except AzekuraError as error:
            association.skip_dataset()
            association.counters.refused += 1
            association.send_response(
                command.context_id,
                encode_response(
                    command,
                    service.failure_status(error),
                    extra={ERROR_COMMENT: error_comment(error)},
                ),
            )


_COMMENTS: tuple[tuple[type[AzekuraError], str], ...] = (
    (DatasetNotUnderstood, "the dataset does not parse in its transfer syntax"),
    (DatasetMismatch, "command and dataset disagree, or a UID is missing"),
    (LimitExceeded, "past a limit of this node"),
    (ShareUsed, "the disk is nearly full, and your share of it used"),
    (OutOfSpace, "the disk is full; try again later"),
    (Busy, "busy; try again later"),
    (CloudError, "the cloud copy can't be reached; try again later"),
)


def error_comment(error: BaseException) -> str:
    """Return an Error Comment (LO, ≤ 64 characters) that repeats nothing of a dataset."""
    if isinstance(error, NotAccepting):
        return error.cause  # a constant sentence of the archive's
    for kind, comment in _COMMENTS:
        if isinstance(error, kind):
            return comment
    return "processing failure"


def where(error: BaseException) -> str:
    """Return the type and place of an unexpected error, without its message or any value."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    places = " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(frames))
    return f"{type(error).__name__} in {places}"
