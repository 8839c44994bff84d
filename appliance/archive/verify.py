"""Looking whether what was promised still holds: local packs by hash, cloud copies by proof.

Changes nothing but `last_verified_at` of what was found good; what was not is told to whoever
repairs it.
"""

import os
import random
from collections.abc import Callable
from functools import partial

import msgspec

from appliance.archive.damage_report import CLOUD, Report, why_of
from appliance.archive.evict import Evictor
from appliance.archive.layout import Layout
from appliance.archive.proof import reread
from appliance.archive.recall import check_pack
from appliance.foundation.clock import Clock, to_microseconds
from appliance.foundation.errors import AzekuraError, CloudUnavailable, Damaged
from appliance.index.index import Index
from appliance.index.writing import WriteTransaction
from appliance.packs.durable import durable_path, read_durable_length
from appliance.remote.store import ObjectStore


class Verified(msgspec.Struct):
    """Counts of packs looked at, and a line for each that is not as it should be."""

    local_packs: int = 0
    cloud_packs: int = 0
    reread_packs: int = 0
    findings: list[str] = []


class Verification:
    """One run of `azekura verify`."""

    def __init__(
        self,
        clock: Clock,
        layout: Layout,
        index: Index,
        store: ObjectStore,
        evictor: Evictor,
        report: Report | None = None,
    ) -> None:
        """Take over; `report` is told of packs that are not as they should be."""
        self._report = report
        self._clock = clock
        self._layout = layout
        self._index = index
        self._store = store
        self._evictor = evictor

    def run(self, *, cloud: bool, sample: float, advance: Callable[[float], None]) -> Verified:
        """Check every local pack, and with `cloud` the proof of every copy in the bucket.

        `sample` is the part (0 to 1) of the cloud copies whose bytes are read back and decrypted.
        """
        result = Verified()
        with self._index.read() as view:
            rows = list(view.packs())
        for row in rows:
            if row.local:
                self._check(result, row.pack_id, "on disk", partial(self._local, row.pack_id))
                result.local_packs += 1
            if cloud and row.cloud is not None:
                good = self._check(
                    result,
                    row.pack_id,
                    "in the bucket",
                    partial(self._evictor.prove, row.cloud),
                )
                result.cloud_packs += 1
                if good and random.random() < sample:  # noqa: S311 - a sample, not a secret
                    good = self._check(
                        result,
                        row.pack_id,
                        "read back",
                        partial(reread, self._store, row.cloud),
                    )
                    result.reread_packs += 1
                if good:
                    at_us = to_microseconds(self._clock.now())
                    self._index.transact(partial(_verified, pack_id=row.pack_id, at_us=at_us))
            advance(1)
        return result

    def _check(self, result: Verified, pack_id: str, where: str, check: Callable[[], None]) -> bool:
        try:
            check()
        except CloudUnavailable:
            raise
        except (AzekuraError, OSError) as error:
            result.findings.append(f"pack {pack_id} {where}: {error}")
            if self._report is not None:
                self._report(pack_id, why_of(error) if where == "on disk" else CLOUD)
            return False
        return True

    def _local(self, pack_id: str) -> None:
        for path in self._layout.candidates(pack_id):
            try:
                check_pack(path, self._durable(path))
            except FileNotFoundError:
                continue
            return
        with self._index.read() as view:
            row = view.pack(pack_id)
        if row is not None and row.local:  # else it was evicted since
            raise Damaged("check", f"pack {pack_id}", "it is not on the disk")

    def _durable(self, path: str) -> int | None:
        """Return up to where an open pack may be read; None for another."""
        if os.path.dirname(path) in {self._layout.closed, self._layout.sealed}:
            return None
        return read_durable_length(durable_path(path))


def _verified(txn: WriteTransaction, pack_id: str, at_us: int) -> None:
    txn.set_verified_at(pack_id, at_us)
