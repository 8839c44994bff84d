"""What every daemon and command makes of the configuration: paths, index, bucket, keys.

Owns no decision; it only puts parts together. Each process makes its own.
"""

from collections.abc import Sequence

from appliance.archive.commitment import NOT_KNOWN_YET, Reached
from appliance.archive.index_condition import IndexCondition
from appliance.archive.layout import Layout
from appliance.archive.rungs import reached
from appliance.archive.space import SHORT_FRACTION, Space
from appliance.archive.status import bucket_trusted
from appliance.config.model import Config
from appliance.foundation.clock import Clock, SystemClock
from appliance.foundation.errors import IndexDamaged, UnsupportedFormat
from appliance.foundation.files import FileSystem
from appliance.index.index import Index
from appliance.remote.s3 import S3Store
from appliance.remote.s3_client import S3Settings, systemd_credentials_file
from appliance.remote.throttle import Throttle
from appliance.seal.identity import Identity, load_identity


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

    def store(self) -> S3Store:
        """Return the bucket; no request is made yet."""
        cloud = self.config.cloud
        settings = S3Settings(
            bucket=cloud.bucket,
            region=cloud.region,
            endpoint_url=cloud.endpoint_url,
            prefix=cloud.prefix,
            credentials_file=systemd_credentials_file(),
        )
        return S3Store(settings, self.throttle, self.clock)

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
