"""Restore drills in the uplink's process: the book of them, and the keeper that holds one when due.

Owns no decision; it puts the parts together.
"""

import threading
from collections.abc import Sequence

from appliance.archive.bucket_watch import BucketWatch
from appliance.archive.drill_book import DrillBook
from appliance.archive.drill_keeper import DrillHall, DrillKeeper
from appliance.archive.requests import RequestBox
from appliance.daemons.parts import Parts
from appliance.remote.link import Link
from appliance.remote.store import ObjectStore
from appliance.seal.identity import Identity


class Drilling:
    """`store` is the bucket itself: what a replica gives proves nothing of it."""

    def __init__(
        self,
        parts: Parts,
        store: ObjectStore,
        requests: RequestBox,
        identities: Sequence[Identity],
        link: Link,
        bucket: BucketWatch,
        stop: threading.Event,
    ) -> None:
        config = parts.config
        hall = DrillHall(
            parts.files, parts.clock, config, parts.layout, parts.index, store, parts.condition
        )
        self.book = DrillBook(parts.files, parts.clock, parts.layout, config.drill.every_s)
        self.keeper = DrillKeeper(
            parts.clock, config, hall, self.book, requests, identities, link, bucket, stop
        )
