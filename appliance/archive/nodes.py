"""What is known of the other nodes: alive, silent since, retired, or unknown.

Owns `state/nodes.json`, which the uplink leaves for `status` and for the receiver, and the rules of
silence. Must not ask the bucket.

Invariants:
- Silence is a span of the bucket's own clock: a node whose clock is wrong takes over nothing.
- What was not heard lately enough *here* is unknown, and unknown is not silent.
"""

import os
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Literal, NamedTuple

import msgspec

from appliance.archive.heartbeat import Heartbeat
from appliance.archive.layout import Layout
from appliance.foundation.clock import Clock, isoformat
from appliance.foundation.files import FileSystem

APPLIANCE = "appliance"
FRESH_S = 300.0
"""How long what the uplink wrote counts when it writes no more: long enough for its restart."""

NodeState = Literal["alive", "silent", "retired", "unknown"]


class NodeSeen(msgspec.Struct, frozen=True):
    """One node as it is known now. Times are the bucket's, RFC 3339, "" where never heard.

    `since`: when the state began, which for a silent node is when it was last heard.
    """

    node: str
    state: NodeState
    since: str = ""
    heard_at: str = ""
    role: str = ""
    ledger_sequence: int = 0
    software: str = ""


class NodesSeen(msgspec.Struct, frozen=True):
    """All nodes whose signers are configured, by name; `written_at_s` is this machine's clock."""

    written_at_s: float
    judged_at: str
    nodes: list[NodeSeen]


class Heard(NamedTuple):
    """The last heartbeat of a node that was proved, and when the bucket took it."""

    beat: Heartbeat
    at: datetime


def judge(
    names: Iterable[str],
    heard: Mapping[str, Heard],
    now: datetime,
    silent_after_s: float,
    retired: Collection[str],
    before: Mapping[str, NodeSeen],
) -> list[NodeSeen]:
    """Return what is to be said of each node at `now`, the bucket's clock.

    `retired`: names that the configuration calls gone for good. `before`: what was said last, from
    which it is known since when a state lasts.
    """
    return [
        _judge_one(name, heard.get(name), now, silent_after_s, name in retired, before.get(name))
        for name in sorted({*names, *retired})
    ]


def _judge_one(
    name: str,
    heard: Heard | None,
    now: datetime,
    silent_after_s: float,
    is_gone: bool,
    before: NodeSeen | None,
) -> NodeSeen:
    if heard is None:
        return NodeSeen(name, "retired" if is_gone else "unknown")
    beat, at = heard
    state: NodeState = "alive"
    if is_gone or beat.state == "retired":
        state = "retired"
    elif now - at > timedelta(seconds=silent_after_s):
        state = "silent"
    heard_at = isoformat(at)
    lasts = before is not None and before.state == state and before.since
    since = before.since if before is not None and lasts else heard_at
    return NodeSeen(
        name, state, since, heard_at, beat.role, beat.ledger_sequence, beat.software
    )  # fmt: skip


def site_is_lost(nodes: Iterable[NodeSeen]) -> bool:
    """Tell whether a standby has to take a site's place.

    It has when any site is silent, the others being alive or not: the modalities of the silent one
    have nowhere else to go, and what two nodes store never collides. A retired site is no reason as
    long as another one lives, which has its modalities then; when none lives, it is.
    """
    sites = [each for each in nodes if each.role in ("", APPLIANCE)]
    if any(each.state == "silent" for each in sites):
        return True
    return bool(sites) and all(each.state == "retired" for each in sites)


def _path(layout: Layout) -> str:
    return os.path.join(layout.state, "nodes.json")


def write_nodes(files: FileSystem, layout: Layout, seen: NodesSeen) -> None:
    """Replace the file; not flushed, because the next heartbeats say it again."""
    files.write_volatile(_path(layout), msgspec.json.encode(seen))


def read_nodes(layout: Layout) -> NodesSeen | None:
    """Return what the uplink last knew, None when it never knew anything."""
    try:
        with open(_path(layout), "rb") as file:
            return msgspec.json.decode(file.read(), type=NodesSeen)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def nodes_now(layout: Layout, clock: Clock) -> list[NodeSeen]:
    """Return what is known of the other nodes now.

    What nobody has written for FRESH_S is no longer known: the states are unknown then.
    """
    seen = read_nodes(layout)
    if seen is None:
        return []
    age_s = clock.now().timestamp() - seen.written_at_s
    if abs(age_s) <= FRESH_S:
        return seen.nodes
    return [msgspec.structs.replace(each, state="unknown") for each in seen.nodes]


def node_documents(nodes: list[NodeSeen], applied: Mapping[str, int]) -> list[dict[str, object]]:
    """Return the nodes as `status --json` shows them; `lag` in entries, None where unknown.

    `applied`: the last sequence of each node's ledger that the index has.
    """
    return [
        {
            "node": each.node,
            "role": each.role or None,
            "state": each.state,
            "since": each.since or None,
            "heard_at": each.heard_at or None,
            "ledger_sequence": each.ledger_sequence,
            "lag": max(0, each.ledger_sequence - applied[each.node])
            if each.node in applied
            else None,
        }
        for each in nodes
    ]
