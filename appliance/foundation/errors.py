"""The one tree of errors.

AzekuraError
├── UsageError                 the command line or a request makes no sense            exit 2
├── ConfigurationError         the configuration has faults, all of them listed        exit 78
├── Refused                    input that we do not take, and say so
│   ├── DatasetNotUnderstood   not parseable as a dataset of its transfer syntax       0xC000
│   ├── DatasetMismatch        command and dataset disagree, or a UID is missing       0xA900
│   └── LimitExceeded          past a named limit
├── UnsupportedFormat          a format version this release does not know
├── NotFound                   nothing here has that name
├── Busy                       somebody else holds the lock; try again
├── NotAccepting               this node takes no studies now                          0xA700
├── OutOfSpace                 the reserve would be touched, or the disk is full       0xA700
│   └── ShareUsed              little room is left, and a peer has used its share of it
├── StorageFailed              the disk failed a write or a flush: the daemon stops
├── Damaged                    stored bytes are not what was stored
│   ├── Unreadable             the disk does not give them
│   └── IndexDamaged           the index's own: nothing is lost, it is made anew
├── KeyUnavailable             an identity or a signing key cannot be read
├── DecryptionFailed           no identity opens it, or its authentication fails
│   └── SealedToOthers         none of the identities that are here is a recipient
├── PeerError                  another application entity
│   ├── PeerUnavailable        no connection, no answer in time, a transient rejection retry
│   ├── PeerRefused            rejected permanently, or no presentation context accepted
│   └── AssociationLost        aborted, broken off, out of time, or against the protocol retry
└── CloudError
    ├── CloudUnavailable       no answer, 5xx, SlowDown: the link or the far side      retry
    ├── CloudRefused           403 and kin: credentials or permissions
    │   └── ObjectArchived     moved to a storage class that has to be restored first
    ├── CloudMisconfigured     bucket gone, other region, no lock: stop evicting
    ├── ObjectMissing          no such key or version
    ├── ObjectExists           create-only found the key taken (412)
    ├── ChecksumRejected       the far side computed another checksum                  retry
    └── ForeignWriter          another box writes under this node's name: stop uploading

Each error says what was tried (operation), on what (subject), why it failed (cause), and what an
operator can do (hint); `retry` tells whether the same call may succeed later.
"""

from typing import ClassVar


class AzekuraError(Exception):
    """Base of every error that this software raises on purpose."""

    retry: ClassVar[bool] = False

    def __init__(self, operation: str, subject: str = "", cause: str = "", hint: str = "") -> None:
        super().__init__(operation, subject, cause, hint)
        self.operation = operation
        self.subject = subject
        self.cause = cause
        self.hint = hint

    def __str__(self) -> str:
        sentence = self.operation
        if self.subject:
            sentence += f" ({self.subject})"
        if self.cause:
            sentence += f": {self.cause}"
        if self.hint:
            sentence += f". {self.hint}"
        return sentence


class UsageError(AzekuraError):
    """The command line or a request makes no sense."""


class ConfigurationError(AzekuraError):
    """The configuration has faults; `faults` lists every one, each a line for the operator."""

    def __init__(self, subject: str, faults: tuple[str, ...], hint: str = "") -> None:
        super().__init__("the configuration is not usable", subject, "; ".join(faults), hint)
        self.faults = faults


class Refused(AzekuraError):
    """Input that is not taken; the sender is told why."""


class DatasetNotUnderstood(Refused):
    """The bytes do not parse as a dataset of the stated transfer syntax."""


class DatasetMismatch(Refused):
    """Command and dataset disagree, or a UID that is needed is missing."""


class LimitExceeded(Refused):
    """A named limit would be passed."""


class UnsupportedFormat(AzekuraError):
    """A stored format carries a version that this release does not know."""


class NotFound(AzekuraError):
    """Nothing here has that name."""


class Busy(AzekuraError):
    """Somebody else holds the lock."""

    retry = True


class NotAccepting(AzekuraError):
    """This node takes no studies now; what it has is found and sent."""

    retry = True


class OutOfSpace(AzekuraError):
    """The reserve would be touched, or the file system is full."""

    retry = True


class ShareUsed(OutOfSpace):
    """Little room is left, and this peer has used its share of it; others have theirs."""


class StorageFailed(AzekuraError):
    """The disk failed a write or a flush. What was written may be lost: the daemon must stop."""


class Damaged(AzekuraError):
    """Stored bytes are not what was stored."""


class Unreadable(Damaged):
    """The disk does not give the bytes: a bad sector, a bad cable."""


class IndexDamaged(Damaged):
    """What the index stored is not what it holds: it is set aside and made anew."""


class KeyUnavailable(AzekuraError):
    """An identity or a signing key cannot be read."""


class DecryptionFailed(AzekuraError):
    """No identity opens the object, or its authentication fails."""


class SealedToOthers(DecryptionFailed):
    """None of the identities that are here is one of the object's recipients."""


class PeerError(AzekuraError):
    """What goes wrong with another DICOM application entity."""


class PeerUnavailable(PeerError):
    """No connection, no answer in time, or a transient rejection."""

    retry = True


class PeerRefused(PeerError):
    """The peer rejects the association for good, or none of its contexts is of use."""


class AssociationLost(PeerError):
    """The association ended otherwise than by release."""

    retry = True


class CloudError(AzekuraError):
    """Anything the object store answers other than success."""


class CloudUnavailable(CloudError):
    """No answer, a 5xx, or a request to slow down."""

    retry = True


class CloudRefused(CloudError):
    """The credentials or their permissions do not allow the request."""


class ObjectArchived(CloudRefused):
    """The object lies in an archive storage class: it has to be restored before it can be read."""


class CloudMisconfigured(CloudError):
    """The bucket is gone, elsewhere, or does not lock."""


class ObjectMissing(CloudError):
    """No such key or version."""


class ObjectExists(CloudError):
    """A create-only request found the key taken."""


class ChecksumRejected(CloudError):
    """The far side computed another checksum than ours."""

    retry = True


class ForeignWriter(CloudError):
    """Another box writes under this node's name."""
