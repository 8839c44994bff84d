"""What every daemon and command makes of the configuration: paths, index, bucket, keys.

Owns no decision; it only puts parts together. Each process makes its own.
"""

from collections.abc import Sequence

from appliance.archive.commitment import NOT_KNOWN_YET, Reached
from appliance.archive.entry_copies import EntryCopies
from appliance.archive.index_condition import IndexCondition
from appliance.archive.layout import Layout
from appliance.archive.rebuild_followed import FollowedLedgers
from appliance.archive.rungs import reached
from appliance.archive.space import SHORT_FRACTION, Space
from appliance.archive.status import bucket_trusted
from appliance.config.model import Config
from appliance.foundation import log
from appliance.foundation.clock import Clock, SystemClock
from appliance.foundation.errors import CloudError, IndexDamaged, UnsupportedFormat
from appliance.foundation.files import FileSystem
from appliance.index.index import Index
from appliance.remote.link import Link
from appliance.remote.observed import ObservedStore
from appliance.remote.replicas import Replica, ReplicatedStore
from appliance.remote.s3 import S3Store
from appliance.remote.s3_client import Credentials, S3Settings, systemd_credentials_file
from appliance.remote.store import ObjectStore
from appliance.remote.throttle import ConstantRate, Throttle
from appliance.seal.identity import Identity, load_identity

_log = log.get("parts")


class Parts:
    """The parts below the archive, made on first use and closed together."""

    def __init__(self, config: Config, *, open_index: bool = True) -> None:
        """`open_index` false: for who makes a new index and can't rely on the old one."""
        self.config = config
        self.files = FileSystem()
        self.clock: Clock = SystemClock()
        self.layout = Layout(config.node.data_dir)
        self.layout.create(self.files)
        self.condition = IndexCondition(self.files, self.clock, self.layout)
        self.index = Index(self.files, self.layout.index, on_damage=self.condition.note_damage)
        if open_index:
            self.index.open()
        self.throttle = Throttle(config.cloud.throttle, config.node.zone, self.clock)

    def try_index(self) -> bool:
        """Open the index if it can be used; one that can't is made anew by the indexer."""
        try:
            self.index.open()
        except (IndexDamaged, UnsupportedFormat):
            return False
        return True

    def space(self) -> Space:
        """Return the disk space of this node, measured now."""
        cache = self.config.cache
        peers = [each.ae_title for each in self.config.dicom.peers if each.may("store")]
        return Space(
            self.files, self.layout, cache.capacity_bytes, self.clock, peers,
            # Short is what eviction could not keep free.
            min(SHORT_FRACTION, (1.0 - cache.high_water) / 2),
        )  # fmt: skip

    def store(self, credentials: Credentials | None = None) -> S3Store:
        """Return the bucket; no request is made yet. `credentials`: others than the node's own."""
        cloud = self.config.cloud
        settings = S3Settings(
            bucket=cloud.bucket,
            region=cloud.region,
            endpoint_url=cloud.endpoint_url,
            prefix=cloud.prefix,
            credentials=credentials,
            credentials_file=systemd_credentials_file(),
        )
        return S3Store(settings, self.throttle, self.clock)

    def replicas(self) -> list[Replica]:
        """Return the replicas that can be used; one whose settings are no good is logged."""
        found = []
        for table in self.config.cloud.replicas:
            # Nothing is ever sent there but requests: the throttle, and its slowing down, are the
            # bucket's alone.
            throttle = Throttle(ConstantRate(None), self.config.node.zone, self.clock)
            try:
                store = S3Store(S3Settings.of_replica(table), throttle, self.clock)
            except CloudError as error:
                _log.error("replica_unusable", replica=table.name, cause=error.cause)
            else:
                found.append(Replica(table.name, ObservedStore(store, Link(self.clock))))
        return found

    def reading(self, primary: ObservedStore, replicas: Sequence[Replica]) -> ObjectStore:
        """Return the store that readers use: the bucket, and replicas where it can't be read."""
        return ReplicatedStore(primary, replicas) if replicas else primary

    def reading_store(self) -> ObjectStore:
        """Return the store of a process that only reads the cloud, with a line of its own."""
        return self.reading(ObservedStore(self.store(), Link(self.clock)), self.replicas())

    def entry_copies(self) -> dict[str, EntryCopies]:
        """Return where the copies of each followed ledger lie."""
        names = self.config.keys.signers
        return {name: EntryCopies(self.files, self.layout, name) for name in names}

    def other_ledgers(self, store: ObjectStore | None) -> FollowedLedgers:
        """Return what a rebuild takes of the ledgers that this node follows."""
        return FollowedLedgers(
            self.files, self.layout, store, self.identities(), self.config.keys.signers
        )

    def identities(self) -> Sequence[Identity]:
        """Return this node's identities; KeyUnavailable when they can't be read."""
        return load_identity(self.config.keys.identity)

    def recipients(self) -> list[str]:
        """Return everybody who can read a new object: this node, standbys, recovery."""
        keys = self.config.keys
        own = self.identities()[0].recipient
        return list(dict.fromkeys([own, *keys.recipients, *keys.recovery]))

    def reached(self, sop_instance_uids: Sequence[str]) -> dict[str, Reached]:
        """Return the rung that each instance has reached: the lookup of the commitment book.

        An instance of which several versions were received counts by its newest. While the index
        is not whole, what it does not know is waited for.
        """
        trusted = bucket_trusted(self.layout, self.clock)
        whole = self.condition.incomplete() is None
        with self.index.read() as view:
            found = reached(view, sop_instance_uids, bucket_trusted=trusted)
        if not whole:
            found = dict.fromkeys(sop_instance_uids, NOT_KNOWN_YET) | found
        return found

    def close(self) -> None:
        """Close the index."""
        self.index.close()
