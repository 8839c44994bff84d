"""What an edge needs of the archive to store an instance, whichever protocol it came by."""

from typing import Protocol

from appliance.archive.sender import Sender


class Stream(Protocol):
    """An instance on its way to disk."""

    def write(self, chunk: memoryview) -> None:
        """Append a part of the dataset."""

    def finish(self) -> None:
        """Make the instance durable, or raise and leave nothing."""

    def abort(self) -> None:
        """Forget it."""


class InstanceStore(Protocol):
    """What storing needs of the archive."""

    def store(
        self,
        sender: Sender,
        sop_class_uid: str,
        sop_instance_uid: str,
        transfer_syntax_uid: str,
        dataset: memoryview,
        sha256: bytes,
    ) -> None:
        """Keep one instance, whose sha256 is given; on return it is durable.

        The view is not used afterwards.
        """

    def open_stream(
        self, sender: Sender, sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str
    ) -> Stream:
        """Begin an instance that is too large to hold."""
