"""What the node is doing, in figures: for `azekura status`, and for whoever watches.

The uplink leaves what only it knows in `state/uplink-status.json`; the rest comes from the index
and the disk. Reading never disturbs a daemon.
"""

import os
from datetime import datetime
from typing import Any

import msgspec

from appliance.archive.accepting import Accepting
from appliance.archive.damaged import damaged_rows
from appliance.archive.drill_book import last_drill
from appliance.archive.forecast import forecast
from appliance.archive.history import read_history
from appliance.archive.index_condition import IndexCondition
from appliance.archive.layout import Layout
from appliance.archive.nodes import node_documents, nodes_now
from appliance.archive.space import reserve_bytes
from appliance.config.model import Config
from appliance.foundation.clock import Clock, to_microseconds
from appliance.foundation.errors import IndexDamaged, UnsupportedFormat
from appliance.foundation.files import FileSystem
from appliance.index.index import Index
from appliance.index.records import Totals

STALE_S = 10.0
DISTRUST_S = 86400.0
DAMAGED_SHOWN_MAX = 100
_FIGURES = (
    "studies", "instances", "pending_instances", "pending_bytes", "oldest_pending_age_s",
    "cached_bytes", "capacity_bytes",
)  # fmt: skip
_FORECASTS = (
    "time_to_full_s", "time_to_drain_s", "time_to_drain_from", "intake_bytes_per_s",
)  # fmt: skip
_DEAD = ("down", "unknown")


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
    replicas: list[dict[str, str]] = []
    repair: dict[str, int] = {}
    scrub: dict[str, Any] = {}
    following: list[dict[str, Any]] = []


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
    config: Config,
    layout: Layout,
    index: Index,
    clock: Clock,
    condition: IndexCondition,
    files: FileSystem | None = None,
) -> dict[str, Any]:
    """Return the document of `status --json`: bytes, seconds, null for what is unknown.

    An index that can't be used leaves its figures unknown, and is the first of the problems.
    """
    nodes = nodes_now(layout, clock)
    refusal = Accepting(layout, clock, config).refusal
    applied: dict[str, int] = {}
    try:
        with index.read() as view:
            counts = view.counts()
            applied = {each.node: max(0, view.progress(each.node)) for each in nodes}
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
    link = uplink.link if uplink is not None and alive else "unknown"
    free_bytes = (files or FileSystem()).free_bytes(layout.data_dir)
    return {
        "node": config.node.name,
        "role": config.node.role,
        "link": link,
        **_figures(config, counts, now),
        **_outlook(config, layout, counts, now, free_bytes, rate, nothing_leaves=link in _DEAD),
        "ledger_sequence": uplink.ledger_sequence if uplink is not None else 0,
        "upload_rate_bytes_per_s": round(rate, 1),
        "throttle_bytes_per_s": uplink.throttle_bytes_per_s if uplink is not None else None,
        "repair": dict(uplink.repair) if uplink is not None else {},
        "scrub": dict(uplink.scrub) if uplink is not None else {},
        "damaged": damaged_rows(layout)[:DAMAGED_SHOWN_MAX],
        "replicas": list(uplink.replicas) if uplink is not None and alive else [],
        "nodes": node_documents(nodes, applied),
        "accepts_stores": refusal is None,
        "refusal": refusal,
        "following": uplink.following if uplink is not None else [],
        "last_drill": last_drill(layout),
        "problems": problems,
    }


def _figures(config: Config, counts: Totals | None, now: datetime) -> dict[str, Any]:
    if counts is None:
        return dict.fromkeys(_FIGURES) | {"capacity_bytes": config.cache.capacity_bytes}
    values = (
        counts.studies, counts.instances, counts.pending_instances, counts.pending_bytes,
        oldest_age_s(counts, now), counts.cached_bytes, config.cache.capacity_bytes,
    )  # fmt: skip
    return dict(zip(_FIGURES, values, strict=True))


def oldest_age_s(counts: Totals, now: datetime) -> float | None:
    """Return how long the oldest pending pack has waited, None where nothing does."""
    oldest_us = counts.oldest_pending_us
    return round((to_microseconds(now) - oldest_us) / 1e6, 1) if oldest_us else None


def _outlook(
    config: Config,
    layout: Layout,
    counts: Totals | None,
    now: datetime,
    free_bytes: int,
    rate_bytes_per_s: float,
    *,
    nothing_leaves: bool,
) -> dict[str, Any]:
    """Return the forecasts. Verified packs are evicted for new ones, while the line is there."""
    if counts is None:
        return dict.fromkeys(_FORECASTS)
    pending, capacity = counts.pending_bytes, config.cache.capacity_bytes
    on_disk = pending + counts.cached_bytes + free_bytes - reserve_bytes(capacity)
    found = forecast(
        read_history(layout), now, config.node.zone, config.cloud.throttle, pending,
        max(0, min(capacity, on_disk) - pending - (counts.cached_bytes if nothing_leaves else 0)),
        link_down=nothing_leaves, sending_bytes_per_s=rate_bytes_per_s,
    )  # fmt: skip
    intake = found.intake_bytes_per_s
    values = (
        found.time_to_full_s, found.time_to_drain_s,
        "the return of the line" if found.after_return else "now",
        None if intake is None else round(intake, 1),
    )  # fmt: skip
    return dict(zip(_FORECASTS, values, strict=True))
