"""Every limit of the association loop, with its reason.

Owns the numbers only. A test passes its own `Limits` to be done in milliseconds.
"""

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True)
class Limits:
    """Deadlines in seconds, sizes in bytes, counts. All apply to every peer alike."""

    associate_pdu_bytes_max: int = 512 * KIB
    """128 contexts with 40 transfer syntaxes each take 180 kB; a SAML assertion 64 kB more."""

    pdu_receive_bytes_max: int = 256 * KIB
    """Our Maximum Length Received (PS3.8 D.1). DCMTK sends 128 KiB at most; dcm4che what we say."""

    pdu_slack_bytes: int = 64 * KIB
    """Some peers count the PDU and PDV headers, some do not, some ignore the limit a little."""

    pdu_send_bytes_max: int = 256 * KIB
    """What we send to a peer that sets no limit, and never more than that."""

    command_bytes_max: int = 64 * KIB
    """A command set; the longest legal one is under 1 kB but for attribute lists."""

    identifier_bytes_max: int = 16 * MIB
    """A dataset held for a service other than storage; 100,000 UIDs of a commitment take 14 MB."""

    large_instance_bytes: int = 8 * MIB
    """From here on a C-STORE dataset is streamed to disk instead of held."""

    stream_part_bytes: int = 1 * MIB
    """A streamed dataset is handed on in parts of this size."""

    artim_s: float = 15.0
    """From connect to a whole A-ASSOCIATE-RQ, TLS handshake included (PS3.8 9.1.5)."""

    idle_s: float = 300.0
    """Between two messages of an accepted association."""

    pdu_s: float = 90.0
    """From the first byte of a PDU to its last: a dripping sender is cut here."""

    message_s: float = 600.0
    """For a message of any size, and `message_rate_bytes_per_s` on top."""

    message_rate_bytes_per_s: int = 8 * KIB
    """The slowest sender whose large instance is waited for."""

    send_s: float = 90.0
    """For one batch of at most `send_batch_bytes`: a dead reader holds a thread no longer."""

    send_batch_bytes: int = 1 * MIB
    """What is handed to the kernel in one call at most."""

    connect_s: float = 10.0
    """For TCP connect and TLS handshake of an association we request."""

    response_s: float = 60.0
    """For the answer to A-ASSOCIATE-RQ and A-RELEASE-RQ that we sent."""

    associations_max: int = 128
    """Accepted associations at a time; each is a thread and at least 64 KiB."""

    associations_per_address_max: int = 64
    """Of these from one address, so that one host cannot take them all."""

    connecting_max: int = 256
    """Connections that have not associated yet; the oldest of the busiest address goes first."""

    connecting_bytes_max: int = 16 * MIB
    """What all of them may have buffered together."""

    closing_s: float = 2.0
    """How long a rejected peer may take to close, so that it gets to read why."""

    @property
    def tick_s(self) -> float:
        """How often a blocked thread looks at its deadline and at whether it must stop."""
        shortest = min(self.idle_s, self.pdu_s, self.send_s, self.message_s, self.response_s)
        return max(0.01, min(1.0, shortest / 4))
