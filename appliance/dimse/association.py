"""One association, accepted or requested: whole messages in and out, blocking.

Owns the connection and the state of reading. One thread uses an association; only `post` and
`interrupt` may be called by another. Must not decide what a message means.

Invariants:
- A dataset is read only after its command and before the next command; what a service leaves
  unread is skipped by `read_command`.
- A C-CANCEL-RQ is never returned: it is remembered, and `cancelled` tells.
- A view that was returned is valid until the next call that reads.
- After AssociationLost nothing but `abort` and `close` is of use.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from appliance.archive.extent import Extent
from appliance.archive.sender import Sender
from appliance.config.model import Peer
from appliance.dimse import pdu
from appliance.dimse.commands import C_CANCEL_RQ, Command, decode_command
from appliance.dimse.contexts import Context
from appliance.dimse.limits import Limits
from appliance.dimse.message import Digest, MessageReader
from appliance.dimse.transport import IOVECS_MAX, Buffer, Connection
from appliance.foundation.errors import AssociationLost, Damaged, LimitExceeded

CANCELS_MAX = 256
_HEADERS_BYTES = pdu.DATA_HEADER_BYTES

Message = tuple[bytes, Buffer | Extent | None]
"""An encoded command and its dataset."""


@dataclass(slots=True)
class Counters:
    """What passed over an association; written by its thread, read by `status`."""

    received: int = 0
    refused: int = 0
    answered: int = 0
    sent: int = 0


@dataclass(frozen=True, slots=True)
class Terms:
    """What was negotiated. `peer` is None only for associations that we requested."""

    calling_ae: str
    called_ae: str
    contexts: Mapping[int, Context]
    max_pdu_send_bytes: int
    extended: Mapping[str, bytes]
    peer: Peer | None = None
    peer_implementation: str = ""


class Association:
    """An established association; see the module for its rules."""

    def __init__(
        self,
        connection: Connection,
        terms: Terms,
        limits: Limits,
        *,
        peer_address: str,
        tls_subject: str = "",
        is_requestor: bool = False,
    ) -> None:
        self.calling_ae = terms.calling_ae
        self.called_ae = terms.called_ae
        self.peer = terms.peer
        self.peer_address = peer_address
        self.peer_implementation = terms.peer_implementation
        self.tls_subject = tls_subject
        self.contexts = terms.contexts
        self.extended = terms.extended
        self.max_pdu_send_bytes = terms.max_pdu_send_bytes
        self.is_requestor = is_requestor
        self.limits = limits
        self.counters = Counters()
        self.on_request: Callable[[Association, Command], None] | None = None
        self._connection = connection
        self._reader = MessageReader(connection, limits)
        self._cancelled: set[int] = set()
        self._held: Command | None = None  # read by `cancelled`, not yet returned
        self._sender: Sender | None = None
        self._message_id = 0
        self._tasks: deque[Callable[[Association], None]] = deque()
        self._exchanging = False  # a response is awaited; a task would read it away
        self._open = True

    # --- who

    def sender(self, default_issuer: str = "") -> Sender:
        """Return the peer as the archive's decisions need it; the first call decides the issuer."""
        if self._sender is not None:
            return self._sender
        peer = self.peer
        self._sender = Sender(
            calling_ae=self.calling_ae,
            called_ae=self.called_ae,
            peer_address=self.peer_address,
            tls_subject=self.tls_subject,
            issuer=(peer.issuer if peer else "") or default_issuer,
            character_set=peer.character_set if peer else "",
        )
        return self._sender

    @property
    def is_open(self) -> bool:
        """Whether it was neither released nor aborted, as far as we know."""
        return self._open

    @property
    def received_bytes(self) -> int:
        """Bytes taken from the connection so far."""
        return self._connection.received_bytes

    @property
    def sent_bytes(self) -> int:
        """Bytes given to the connection so far."""
        return self._connection.sent_bytes

    def find_context(self, abstract_syntax: str, *, as_scu: bool = True) -> Context | None:
        """Return the first accepted context of an abstract syntax in our role, or None."""
        for context in self.contexts.values():
            if context.abstract_syntax == abstract_syntax and (
                context.as_scu if as_scu else context.as_scp
            ):
                return context
        return None

    # --- reading

    def read_command(self, timeout_s: float | None = None) -> Command | None:
        """Return the next command, or None when the peer released the association.

        Waits `timeout_s` (default: the idle limit) for its first byte. A dataset of the message
        before that was left unread is skipped. Raises AssociationLost.
        """
        if self._held is not None:
            command, self._held = self._held, None
            return command
        idle_s = self.limits.idle_s if timeout_s is None else timeout_s
        deadline_s = self._connection.monotonic_s() + idle_s
        reader = self._reader
        while True:
            if reader.dataset_open:
                reader.skip()
            while reader.between_pdus and not self._wait_for_data(deadline_s):
                pass
            data = reader.read_command_set(deadline_s)
            if data is None:
                self._answer_release()
                return None
            if (decoded := self._decode(data)) is not None:
                return decoded

    def _wait_for_data(self, deadline_s: float) -> bool:
        if self._tasks and not self._exchanging:
            self._tasks.popleft()(self)
        if self._connection.wait_for_data(deadline_s):
            return True
        self._reader.shrink()
        return False

    def _decode(self, data: bytes | memoryview) -> Command | None:
        """Return the command, or None for a C-CANCEL-RQ, which is remembered."""
        command = decode_command(self._reader.context_id, data)
        if command.context_id not in self.contexts:
            raise pdu.ProtocolError(
                pdu.INVALID_PARAMETER, "a message on a context that was not accepted"
            )
        self._reader.begin_dataset(command.has_dataset)
        if command.field != C_CANCEL_RQ:
            return command
        if len(self._cancelled) < CANCELS_MAX:
            self._cancelled.add(command.message_id)
        return None

    def read_dataset(self, limit_bytes: int | None = None) -> memoryview:
        """Return the whole dataset of the command last read.

        LimitExceeded when it is longer than `limit_bytes` (default: the identifier limit); it is
        then read to its end all the same, so that a response can be sent.
        """
        limit = self.limits.identifier_bytes_max if limit_bytes is None else limit_bytes
        view, complete = self._reader.read_part(limit)
        if complete:
            return view
        self.skip_dataset()
        raise LimitExceeded("read a dataset", "", f"it is longer than {limit} bytes")

    def read_dataset_part(
        self, part_bytes: int, digest: "Digest | None" = None
    ) -> tuple[memoryview, bool]:
        """Return up to `part_bytes` more of the dataset, and whether that was its end.

        `digest` is fed with them as they come.
        """
        return self._reader.read_part(part_bytes, digest)

    def read_dataset_parts(self, part_bytes: int) -> Iterator[memoryview]:
        """Yield what is left of the dataset in parts; each is valid until the next."""
        complete = not self._reader.dataset_open
        while not complete:
            view, complete = self._reader.read_part(part_bytes)
            yield view

    def skip_dataset(self) -> None:
        """Read the dataset of the current message to its end and drop it."""
        if self._held is None:
            self._reader.skip()

    def cancelled(self, message_id: int) -> bool:
        """Tell whether a C-CANCEL-RQ for a message has arrived; never waits for one.

        A request that arrives instead is kept for the next `read_command`.
        """
        reader = self._reader
        while message_id not in self._cancelled:
            if self._held is not None or reader.dataset_open or not self._connection.poll():
                return False
            data = reader.read_command_set(self._connection.monotonic_s() + self.limits.pdu_s)
            if data is None:
                raise pdu.ProtocolError(pdu.UNEXPECTED_PDU, "a release during an operation")
            self._held = self._decode(data)
        return True

    def forget_cancel(self, message_id: int) -> None:
        """Call when an operation ends: its message id may come again."""
        self._cancelled.discard(message_id)

    # --- writing

    def next_message_id(self) -> int:
        """Return a message id for a request of ours: 1 to 65535, then again."""
        self._message_id = self._message_id % 65535 + 1
        return self._message_id

    def send_message(
        self, context_id: int, command: bytes, dataset: Buffer | Extent | None = None
    ) -> None:
        """Send one message, cut into PDVs as the peer's maximum length asks.

        The dataset is not copied; an extent is read as it is sent. Raises AssociationLost when the
        peer does not read in time, and when the extent can't be read to its end: nor can the
        message be ended then.
        """
        self.send_messages(context_id, ((command, dataset),))

    def send_messages(self, context_id: int, messages: Iterable[Message]) -> None:
        """Send messages as `send_message` does, in as few writes as the limits allow."""
        pieces = (
            piece
            for command, dataset in messages
            for piece in ((command, pdu.COMMAND), (dataset, 0))
        )
        try:
            self._send_pdvs(context_id, pieces)
        except Damaged as cause:
            raise AssociationLost("send a dataset", self.called_ae, cause.cause) from cause

    def _send_pdvs(
        self, context_id: int, pieces: Iterable[tuple[Buffer | Extent | None, int]]
    ) -> None:
        size = self.max_pdu_send_bytes - pdu.PDV_HEADER_BYTES
        batch: list[Buffer] = []
        batch_bytes = 0
        limit = max(self.limits.send_batch_bytes, size)
        for data, kind in pieces:
            if data is None:
                continue
            view = data if isinstance(data, Extent) else memoryview(data).cast("B")
            length = len(view)
            for offset in range(0, length, size) if length else (0,):
                fragment = view[offset : offset + size]
                count = len(fragment)
                last = pdu.LAST if offset + size >= length else 0
                if batch and (
                    len(batch) + 2 > IOVECS_MAX or batch_bytes + count + _HEADERS_BYTES > limit
                ):
                    self._connection.send(batch)
                    batch, batch_bytes = [], 0
                batch.append(
                    pdu.DATA_HEADER.pack(
                        pdu.P_DATA_TF,
                        count + pdu.PDV_HEADER_BYTES,
                        count + 2,
                        context_id,
                        kind | last,
                    )
                )
                batch.append(fragment)
                batch_bytes += count + _HEADERS_BYTES
        self._connection.send(batch)

    def send_response(self, context_id: int, command: bytes) -> None:
        """Send a short response without a dataset: one write."""
        count = len(command)
        if count + pdu.PDV_HEADER_BYTES > self.max_pdu_send_bytes:
            self.send_message(context_id, command)
            return
        header = pdu.DATA_HEADER.pack(
            pdu.P_DATA_TF, count + 6, count + 2, context_id, pdu.COMMAND | pdu.LAST
        )
        self._connection.send((header + command,))

    def exchange(
        self,
        context_id: int,
        command: bytes,
        message_id: int,
        dataset: Buffer | Extent | None = None,
        timeout_s: float | None = None,
    ) -> Command:
        """Send a request of ours and return the response to it; its dataset is yet to be read.

        A request of the peer's that arrives in between goes to `on_request`. Raises
        AssociationLost, also when the peer releases instead of answering.
        """
        self.send_message(context_id, command, dataset)
        outer, self._exchanging = self._exchanging, True
        try:
            return self._await(message_id, timeout_s)
        finally:
            self._exchanging = outer

    def _await(self, message_id: int, timeout_s: float | None) -> Command:
        while True:
            answer = self.read_command(timeout_s)
            if answer is None:
                raise AssociationLost("wait for a response", self.called_ae, "it was released")
            if answer.is_response:
                if answer.message_id == message_id:
                    return answer
                raise pdu.ProtocolError(pdu.UNEXPECTED_PARAMETER, "a response to another message")
            if self.on_request is None:
                raise pdu.ProtocolError(
                    pdu.UNEXPECTED_PARAMETER, "a request in place of a response"
                )
            self.on_request(self, answer)

    # --- other threads

    def post(self, task: Callable[["Association"], None]) -> bool:
        """From any thread: have `task` run on the association's own thread between messages.

        Returns False when the association is closed. It runs within a second or so; one that is
        still waiting when the association ends never runs.
        """
        if not self._open:
            return False
        self._tasks.append(task)
        return True

    def interrupt(self) -> None:
        """From any thread: the owner aborts at its next tick."""
        self._connection.interrupted = True

    def shut_down(self) -> None:
        """From any thread: break the connection, whatever the owner is doing."""
        self._connection.shut_down()

    # --- ending

    def _answer_release(self) -> None:
        self._open = False
        self._connection.send((pdu.RELEASE_RP,))
        self._connection.close()

    def release(self) -> None:
        """Release the association and close it; an error on the way only closes it."""
        if not self._open:
            return
        self._open = False
        try:
            self._connection.send((pdu.RELEASE_RQ,))
            deadline_s = self._connection.monotonic_s() + self.limits.response_s
            self._reader.read_until_released(deadline_s)
        except AssociationLost:
            pass
        finally:
            self._connection.close()

    def abort(self, source: int = pdu.ABORT_BY_USER, reason: int = pdu.NOT_SPECIFIED) -> None:
        """Send A-ABORT, if that is still possible without waiting, and close."""
        if self._open:
            self._open = False
            self._connection.send_last(pdu.encode_abort(source, reason))
        self._connection.close()

    def close(self) -> None:
        """Close without a word."""
        self._open = False
        self._connection.close()

    def __repr__(self) -> str:
        return f"<Association {self.calling_ae} → {self.called_ae}>"
