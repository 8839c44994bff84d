"""An admitted caller: from its A-ASSOCIATE-RQ to the end of its association, on its own thread.

Owns how an association ends: released, aborted by either side, lost, or failed. This is the
boundary at which an unexpected error ends one association and nothing else.
"""

import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass

from appliance.config.model import Peer
from appliance.dimse import pdu
from appliance.dimse.association import Association, Terms
from appliance.dimse.limits import Limits
from appliance.dimse.message import AbortedByPeer
from appliance.dimse.negotiation import Offer, answer_request
from appliance.dimse.service import Dispatcher, where
from appliance.dimse.transport import Connection, Interrupted
from appliance.foundation import log
from appliance.foundation.errors import AssociationLost, StorageFailed

_log = log.get("dimse")


@dataclass(frozen=True, slots=True)
class AssociationStatus:
    """What `status` shows of an open association."""

    calling_ae: str
    called_ae: str
    peer_address: str
    tls_subject: str
    age_s: float
    received: int
    refused: int
    sent: int
    received_bytes: int
    sent_bytes: int


class Admitted:
    """One admitted caller. `interrupt`, `shut_down` and `status` may be called by any thread."""

    def __init__(
        self,
        *,
        sock: socket.socket,
        number: int,
        calling_ae: str,
        called_ae: str,
        address: str,
        tls_subject: str,
        peer: Peer,
        limits: Limits,
    ) -> None:
        self.number = number
        self.calling_ae = calling_ae
        self.called_ae = called_ae
        self.address = address
        self.tls_subject = tls_subject
        self.peer = peer
        self._limits = limits
        self._connection = Connection(sock, limits)
        self._association: Association | None = None
        self._began_s = time.monotonic()

    def interrupt(self) -> None:
        """Have it aborted at its next tick."""
        self._connection.interrupted = True

    def shut_down(self) -> None:
        """Break its connection."""
        self._connection.shut_down()

    def status(self) -> AssociationStatus:
        """Return its state as `status` shows it."""
        counters = self._association.counters if self._association else None
        return AssociationStatus(
            self.calling_ae,
            self.called_ae,
            self.address,
            self.tls_subject,
            time.monotonic() - self._began_s,
            counters.received if counters else 0,
            counters.refused if counters else 0,
            counters.sent if counters else 0,
            self._connection.received_bytes,
            self._connection.sent_bytes,
        )

    def serve(
        self, request: bytes, offers: Mapping[str, Offer], dispatcher: Dispatcher
    ) -> StorageFailed | None:
        """Associate and serve until the end; return the failure that must stop the daemon."""
        failure: StorageFailed | None = None
        try:
            outcome = "released"
            dispatcher.serve(self._associate(request, offers))
        except AbortedByPeer as error:
            outcome = error.cause
            self._close()
        except Interrupted as error:
            outcome = error.cause
            self._abort(pdu.ABORT_BY_USER, pdu.NOT_SPECIFIED)
        except pdu.Rejected as error:
            outcome = f"rejected: {error.cause}"
            self._connection.send_last(error.encode())
            self._connection.close()
        except pdu.ProtocolError as error:
            outcome = error.cause
            self._abort(pdu.ABORT_BY_PROVIDER, error.reason)
        except AssociationLost as error:
            outcome = error.cause
            self._abort(pdu.ABORT_BY_PROVIDER, pdu.NOT_SPECIFIED)
        except StorageFailed as error:
            outcome = "the storage failed"
            failure = error
            self._abort(pdu.ABORT_BY_USER, pdu.NOT_SPECIFIED)
        except Exception as error:  # noqa: BLE001 - the boundary of an association
            outcome = "failed"
            _log.error("association_failed", number=self.number, error=where(error))
            self._abort(pdu.ABORT_BY_USER, pdu.NOT_SPECIFIED)
        self._log_end(outcome)
        return failure

    def _associate(self, request: bytes, offers: Mapping[str, Offer]) -> Association:
        answer = answer_request(request, offers, self._limits)
        terms = Terms(
            self.calling_ae,
            self.called_ae,
            answer.contexts,
            answer.max_pdu_send_bytes,
            answer.extended,
            self.peer,
            answer.peer_implementation,
        )
        self._association = Association(
            self._connection,
            terms,
            self._limits,
            peer_address=self.address,
            tls_subject=self.tls_subject,
        )
        self._connection.send((answer.pdu_bytes,))
        _log.info(
            "association_accepted",
            number=self.number,
            calling_ae=self.calling_ae,
            called_ae=self.called_ae,
            peer_address=self.address,
            tls_subject=self.tls_subject,
            contexts=len(answer.contexts),
            contexts_rejected=answer.rejected_count,
            implementation=answer.peer_implementation,
        )
        return self._association

    def _abort(self, source: int, reason: int) -> None:
        if self._association is not None:
            self._association.abort(source, reason)
        else:
            self._connection.send_last(pdu.encode_abort(source, reason))
            self._connection.close()

    def _close(self) -> None:
        if self._association is not None:
            self._association.close()

    def _log_end(self, outcome: str) -> None:
        state = self.status()
        _log.info(
            "association_ended",
            number=self.number,
            calling_ae=self.calling_ae,
            peer_address=self.address,
            outcome=outcome,
            received=state.received,
            refused=state.refused,
            sent=state.sent,
            received_bytes=state.received_bytes,
            sent_bytes=state.sent_bytes,
            duration_s=round(state.age_s, 3),
        )
