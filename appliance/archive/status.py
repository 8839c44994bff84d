"""What the node is doing, in figures: for `azekura status`, and for whoever watches.

The uplink leaves what only it knows in `state/uplink-status.json`; the rest comes from the index
and the disk. Reading never disturbs a daemon.
"""

import os
from datetime import datetime
from typing import Any

import msgspec

from appliance.archive.index_condition import IndexCondition
from appliance.archive.layout import Layout
from appliance.config.model import Config
from appliance.foundation.clock import Clock, to_microseconds
from appliance.foundation.errors import IndexDamaged, UnsupportedFormat
from appliance.foundation.files import FileSystem
from appliance.index.index import Index
from appliance.index.records import Totals

STALE_S = 10.0
DISTRUST_S = 86400.0
RATE_LEAST_BYTES_PER_S = 1.0
_FIGURES = (
    "studies", "instances", "pending_instances", "pending_bytes", "oldest_pending_age_s",
    "cached_bytes", "capacity_bytes", "time_to_full_s", "time_to_drain_s",
)  # fmt: skip


class UplinkStatus(msgspec.Struct):
    """What the uplink says of itself, about once a second."""

    at_s: float
    pid: int
    link: str
    ledger_sequence: int
    upload_rate_bytes_per_s: float
    throttle_bytes_per_s: float | None
    problems: list[dict[str, str]]
    bucket_trusted: bool = True


def _path(layout: Layout) -> str:
    return os.path.join(layout.state, "uplink-status.json")


def write_uplink_status(files: FileSystem, layout: Layout, status: UplinkStatus) -> None:
    """Replace the file; not flushed, because nobody needs it after a power cut."""
    files.write_volatile(_path(layout), msgspec.json.encode(status))


def read_uplink_status(layout: Layout) -> UplinkStatus | None:
    """Return what the uplink last said, None when it never did."""
    try:
        with open(_path(layout), "rb") as file:
            return msgspec.json.decode(file.read(), type=UplinkStatus)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def bucket_trusted(layout: Layout, clock: Clock) -> bool:
    """Tell whether nothing is known against the bucket, by what the uplink last said.

    Silence speaks for it: what was verified stays so while the line or the uplink is down. A
    finding counts until the uplink says otherwise, or for DISTRUST_S when it says nothing more.
    """
    said = read_uplink_status(layout)
    if said is None or said.bucket_trusted:
        return True
    return clock.now().timestamp() - said.at_s > DISTRUST_S


def node_status(
    config: Config, layout: Layout, index: Index, clock: Clock, condition: IndexCondition
) -> dict[str, Any]:
    """Return the document of `status --json`: bytes, seconds, null for what is unknown.

    An index that can't be used leaves its figures unknown, and is the first of the problems.
    """
    try:
        with index.read() as view:
            counts = view.counts()
    except (IndexDamaged, UnsupportedFormat):
        counts = None
    now = clock.now()
    uplink = read_uplink_status(layout)
    alive = uplink is not None and now.timestamp() - uplink.at_s < STALE_S
    problems = list(uplink.problems) if uplink is not None and alive else []
    if not alive:
        problems.append(
            {
                "condition": "uplink",
                "sentence": "the uplink does not run, or does not answer",
                "hint": "Start azekura uplink; until then nothing reaches the cloud",
            }
        )
    index_problem = condition.problem()
    if index_problem is not None:
        problems.insert(0, index_problem.document())
    rate = uplink.upload_rate_bytes_per_s if uplink is not None and alive else 0.0
    return {
        "node": config.node.name,
        "role": config.node.role,
        "link": uplink.link if uplink is not None and alive else "unknown",
        **_figures(config, counts, now, rate),
        "ledger_sequence": uplink.ledger_sequence if uplink is not None else 0,
        "upload_rate_bytes_per_s": round(rate, 1),
        "throttle_bytes_per_s": uplink.throttle_bytes_per_s if uplink is not None else None,
        "problems": problems,
    }


def _figures(
    config: Config, counts: Totals | None, now: datetime, rate_bytes_per_s: float
) -> dict[str, Any]:
    if counts is None:
        return dict.fromkeys(_FIGURES) | {"capacity_bytes": config.cache.capacity_bytes}
    oldest_us = counts.oldest_pending_us
    age_s = round((to_microseconds(now) - oldest_us) / 1e6, 1) if oldest_us else None
    pending_bytes = counts.pending_bytes
    to_drain_s = 0.0 if not pending_bytes else None
    if pending_bytes and rate_bytes_per_s >= RATE_LEAST_BYTES_PER_S:
        to_drain_s = round(pending_bytes / rate_bytes_per_s, 1)
    to_full_s = _time_to_full_s(config, pending_bytes, oldest_us, now, rate_bytes_per_s)
    values = (
        counts.studies, counts.instances, counts.pending_instances, pending_bytes, age_s,
        counts.cached_bytes, config.cache.capacity_bytes, to_full_s, to_drain_s,
    )  # fmt: skip
    return dict(zip(_FIGURES, values, strict=True))


def _time_to_full_s(
    config: Config, pending_bytes: int, oldest_us: int, now: datetime, rate_bytes_per_s: float
) -> float | None:
    """Return when pending packs alone fill the cache at the present pace; None when never.

    Verified packs are evicted before, so only what is pending counts.
    """
    if not oldest_us or not pending_bytes:
        return None
    age_s = max(1.0, (to_microseconds(now) - oldest_us) / 1e6)
    growth = pending_bytes / age_s - rate_bytes_per_s
    if growth <= 0:
        return None
    left = max(0, config.cache.capacity_bytes - pending_bytes)
    return round(left / growth, 1)
