"""The archive as its edges see it: store, find, select, open, commit.

Put together once by a daemon; every part is shared by all associations.
"""

from collections.abc import Generator, Iterator, Sequence

from appliance.archive.commitment import CommitmentBook
from appliance.archive.ingest import Ingest, InstanceStream
from appliance.archive.queries import Queries, Value
from appliance.archive.query import Query
from appliance.archive.retrieval import Opened, Retrievable, Retrieval
from appliance.archive.sender import Sender
from appliance.foundation.errors import AzekuraError


class Archive:
    """What DIMSE and the web ask; each call is one decision of a part."""

    def __init__(
        self, ingest: Ingest, queries: Queries, retrieval: Retrieval, commitments: CommitmentBook
    ) -> None:
        self._ingest = ingest
        self._queries = queries
        self._retrieval = retrieval
        self.commitments = commitments

    def store(
        self,
        sender: Sender,
        sop_class_uid: str,
        sop_instance_uid: str,
        transfer_syntax_uid: str,
        dataset: memoryview,
        sha256: bytes,
    ) -> None:
        """Keep one instance; durable on return. See Ingest.store."""
        self._ingest.store(
            sender, sop_class_uid, sop_instance_uid, transfer_syntax_uid, dataset, sha256
        )

    def open_stream(
        self, sender: Sender, sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str
    ) -> InstanceStream:
        """Begin an instance that is too large to hold."""
        return self._ingest.open_stream(
            sender, sop_class_uid, sop_instance_uid, transfer_syntax_uid
        )

    def find(self, query: Query, retrieve_ae_title: str) -> Iterator[dict[int, Value]]:
        """Yield answers. See Queries.find."""
        return self._queries.find(query, retrieve_ae_title)

    def select(self, query: Query) -> Sequence[Retrievable]:
        """Return what a retrieve names. See Queries.select."""
        return self._queries.select(query)

    def open_all(
        self, wanted: Sequence[Retrievable]
    ) -> Generator[tuple[Retrievable, Opened | AzekuraError], None, None]:
        """Yield instances as they come to hand. See Retrieval.open_all."""
        return self._retrieval.open_all(wanted)
