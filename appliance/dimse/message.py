"""Reading messages out of P-DATA-TF PDUs (PS3.8 annex E): command sets, then datasets.

Owns where in which PDV the reading stands. A PDU is never buffered as a whole: a claimed length
costs no memory. Invariants:
- `_pdu_left` counts the bytes of the current P-DATA-TF after the current PDV; `_pdv_left` those
  of the current PDV.
- `dataset_open` is true from a command with a dataset until its last fragment has been consumed.
"""

from typing import Protocol

from appliance.dimse import pdu
from appliance.dimse.limits import Limits
from appliance.dimse.transport import RECEIVE_BUFFER_BYTES, Connection
from appliance.foundation.errors import AssociationLost

DATASET_BUFFER_BYTES = 1024 * 1024
_ONE_READ_BYTES = RECEIVE_BUFFER_BYTES - 1024


class Digest(Protocol):
    """What a hash under way is."""

    def update(self, data: memoryview, /) -> None:
        """Take more bytes in."""


class MessageReader:
    """The receiving half of an association."""

    def __init__(self, connection: Connection, limits: Limits) -> None:
        self.context_id = 0
        self.dataset_open = False
        self._connection = connection
        self._limits = limits
        self._pdu_left = 0
        self._pdv_left = 0
        self._pdv_control = 0
        self._pdu_deadline_s = 0.0
        self._message_began_s = 0.0
        self._message_bytes = 0
        self._dataset = bytearray()  # reused for every dataset; grows by doubling

    # --- PDUs and PDVs

    def _open_pdu(self, idle_deadline_s: float) -> tuple[int, int]:
        connection = self._connection
        while not connection.wait_for_data(idle_deadline_s):
            pass
        self._pdu_deadline_s = connection.monotonic_s() + self._limits.pdu_s
        connection.need(pdu.PDU_HEADER_BYTES, self._pdu_deadline_s)
        kind, length = pdu.PDU_HEADER.unpack_from(connection.buffer, connection.start)
        pdu.check_header(kind, length, self._limits)
        connection.start += pdu.PDU_HEADER_BYTES
        return kind, length

    def _read_fixed(self) -> memoryview:
        self._connection.need(4, self._pdu_deadline_s)
        return self._connection.view(4)

    def _raise_unexpected(self, kind: int) -> None:
        if kind == pdu.A_ABORT:
            _, _, source, reason = self._read_fixed()
            who = "the peer" if source == pdu.ABORT_BY_USER else "the peer's provider"
            raise AbortedByPeer("read from the peer", "", f"{who} aborted, reason {reason}")
        raise pdu.ProtocolError(pdu.UNEXPECTED_PDU, f"a PDU of type {kind} at the wrong time")

    def _open_pdv(self) -> None:
        """Read the next PDV's header, in this P-DATA-TF or the next one of the message."""
        connection = self._connection
        while self._pdu_left == 0:
            kind, length = self._open_pdu(self._message_deadline_s())
            if kind != pdu.P_DATA_TF:
                self._raise_unexpected(kind)
            self._pdu_left = length
        if self._pdu_left < pdu.PDV_HEADER_BYTES:
            raise pdu.ProtocolError(pdu.INVALID_PARAMETER, "a PDV that has no room for its header")
        connection.need(pdu.PDV_HEADER_BYTES, self._pdu_deadline_s)
        length, context_id, control = pdu.PDV_HEADER.unpack_from(
            connection.buffer, connection.start
        )
        connection.start += pdu.PDV_HEADER_BYTES
        # the PDV's length counts the context id and the control header, but not itself
        if length < 2 or length + 4 > self._pdu_left:
            raise pdu.ProtocolError(pdu.INVALID_PARAMETER, "a PDV longer than its PDU")
        self._pdu_left -= length + 4
        self._pdv_left = length - 2
        self._pdv_control = control
        self._message_bytes += length
        if self.context_id and context_id != self.context_id:
            raise pdu.ProtocolError(pdu.INVALID_PARAMETER, "a message on two contexts")
        self.context_id = context_id

    def _message_deadline_s(self) -> float:
        """Until when the next PDU of the message must begin: the slower the sender, the sooner."""
        limits = self._limits
        allowed_s = limits.message_s + self._message_bytes / limits.message_rate_bytes_per_s
        return min(
            self._message_began_s + allowed_s, self._connection.monotonic_s() + limits.idle_s
        )

    # --- command sets

    @property
    def between_pdus(self) -> bool:
        """Whether the next byte begins a PDU."""
        return self._pdu_left == 0 and self._pdv_left == 0

    def read_command_set(self, idle_deadline_s: float) -> bytes | memoryview | None:
        """Return the next command set's bytes, or None for an A-RELEASE-RQ.

        `context_id` is then its context. The view is valid until the next read.
        """
        connection = self._connection
        if self._pdu_left == 0:
            kind, length = self._open_pdu(idle_deadline_s)
            if kind == pdu.A_RELEASE_RQ:
                self._read_fixed()
                return None
            if kind != pdu.P_DATA_TF:
                self._raise_unexpected(kind)
            self._pdu_left = length
        self._message_began_s = self._pdu_deadline_s - self._limits.pdu_s
        self._message_bytes = 0
        self.context_id = 0
        self._open_pdv()
        if self._pdv_control == pdu.COMMAND | pdu.LAST and self._pdv_left <= _ONE_READ_BYTES:
            connection.need(self._pdv_left, self._pdu_deadline_s)
            return connection.view(self._pdv_left)
        return self._read_fragmented_command()

    def _read_fragmented_command(self) -> bytes:
        command = bytearray()
        while True:
            if not self._pdv_control & pdu.COMMAND:
                raise pdu.ProtocolError(pdu.UNEXPECTED_PARAMETER, "a dataset before its command")
            if len(command) + self._pdv_left > self._limits.command_bytes_max:
                raise pdu.ProtocolError(pdu.INVALID_PARAMETER, "a command set past any sense")
            fragment = bytearray(self._pdv_left)
            self._connection.read_into(memoryview(fragment), self._pdu_deadline_s)
            command += fragment
            if self._pdv_control & pdu.LAST:
                return bytes(command)
            self._open_pdv()

    # --- datasets

    def begin_dataset(self, has_dataset: bool) -> None:
        """Say whether the command last read is followed by a dataset."""
        self.dataset_open = has_dataset
        self._pdv_left = 0
        self._pdv_control = 0

    def read_part(self, part_bytes: int, digest: "Digest | None" = None) -> tuple[memoryview, bool]:
        """Return up to `part_bytes` of the dataset and whether it ends there.

        A message without a dataset gives an empty view and True. `digest` is fed as the bytes
        come, while the peer sends on: hashing afterwards would let it wait.
        """
        if not self.dataset_open:
            return memoryview(b""), True
        if self._pdv_left == 0 and not self._pdv_control & pdu.LAST:
            self._open_dataset_pdv()
        left = self._pdv_left
        if self._pdv_control & pdu.LAST and left <= _ONE_READ_BYTES and left <= part_bytes:
            # the small instance: it is used where it was received
            self._connection.need(left, self._pdu_deadline_s)
            self.dataset_open = False
            self._pdv_left = 0
            view = self._connection.view(left)
            if digest is not None:
                digest.update(view)
            return view, True
        return self._gather(part_bytes, digest)

    def _gather(self, part_bytes: int, digest: "Digest | None") -> tuple[memoryview, bool]:
        if len(self._dataset) > DATASET_BUFFER_BYTES and part_bytes <= DATASET_BUFFER_BYTES:
            self._dataset = bytearray()
        filled = 0
        connection = self._connection
        while True:
            left = self._pdv_left
            count = min(left, part_bytes - filled)
            if filled + count > len(self._dataset):
                self._grow(filled, filled + count, part_bytes)
            if count:
                target = memoryview(self._dataset)[filled : filled + count]
                connection.read_into(target, self._pdu_deadline_s)
                if digest is not None:
                    digest.update(target)
                filled += count
                self._pdv_left = left - count
            if self._pdv_left == 0 and self._pdv_control & pdu.LAST:
                self.dataset_open = False
                return memoryview(self._dataset)[:filled], True
            if filled == part_bytes:
                return memoryview(self._dataset)[:filled], False
            self._open_dataset_pdv()

    def _open_dataset_pdv(self) -> None:
        self._open_pdv()
        if self._pdv_control & pdu.COMMAND:
            raise pdu.ProtocolError(pdu.UNEXPECTED_PARAMETER, "a command inside a dataset")

    def _grow(self, filled: int, needed: int, part_bytes: int) -> None:
        # views of the old buffer may be alive, so it is replaced, never resized
        size = max(len(self._dataset) * 2, needed, min(DATASET_BUFFER_BYTES, part_bytes))
        grown = bytearray(min(size, max(part_bytes, needed)))
        grown[:filled] = memoryview(self._dataset)[:filled]
        self._dataset = grown

    def skip(self) -> None:
        """Read the rest of the dataset and drop it."""
        while self.dataset_open:
            self.read_part(DATASET_BUFFER_BYTES)

    def shrink(self) -> None:
        """Give the memory of a large dataset back; no view of one may be in use."""
        if len(self._dataset) > DATASET_BUFFER_BYTES:
            self._dataset = bytearray()

    # --- ending

    def read_until_released(self, deadline_s: float) -> None:
        """After our A-RELEASE-RQ: drop what still comes, until the answer or the deadline."""
        connection = self._connection
        while True:
            if not self.between_pdus:
                connection.wait_for_data(deadline_s)
                dropped = min(self._pdu_left + self._pdv_left, connection.buffered_bytes)
                connection.start += dropped
                taken = min(dropped, self._pdv_left)
                self._pdv_left -= taken
                self._pdu_left -= dropped - taken
                continue
            kind, length = self._open_pdu(deadline_s)
            if kind == pdu.P_DATA_TF:
                self._pdu_left, self._pdv_left = length, 0
                continue
            if kind == pdu.A_RELEASE_RQ:  # both sides at once (PS3.8 7.2.2)
                self._read_fixed()
                connection.send((pdu.RELEASE_RP,))
                continue
            if kind == pdu.A_RELEASE_RP:
                self._read_fixed()
                return
            self._raise_unexpected(kind)


class AbortedByPeer(AssociationLost):
    """The peer sent A-ABORT."""
