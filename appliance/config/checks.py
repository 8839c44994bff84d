"""How the values of the configuration must fit together.

Owns the rules that need more than one value; a single value's grammar is in `values`. Each finding
names the place of the fault and every place it was concluded from, so that a conclusion from a
value that is itself faulty is not reported on top.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from appliance.config.model import Cloud, Config, Peer, Replica
    from appliance.config.values import Permission

MINUTES_PER_WEEK = 7 * 1440
_CALLING: tuple[Permission, ...] = ("echo", "store", "find", "move", "get", "commit")

Place = tuple[str | int, ...]


def dotted(place: Place) -> str:
    """Return a place as the file's reader would name it: `dicom.peers[2].port`."""
    text = ""
    for step in place:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


@dataclass(frozen=True)
class Finding:
    """One fault: where, what, and from which values it was concluded."""

    place: Place
    message: str
    concluded_from: tuple[Place, ...] = field(default=())

    def __str__(self) -> str:
        return f"{dotted(self.place)}: {self.message}"


def check(config: Config) -> list[Finding]:
    """Return every fault in how the values fit together."""
    return [
        *_titles(config),
        *_peers(config),
        *_peer_pairs(config),
        *_ports(config),
        *_cache_and_packs(config),
        *_cloud(config),
        *_windows(config),
        *_keys(config),
        *_standby(config),
        *_web_certificates(config),
    ]


def _titles(config: Config) -> Iterator[Finding]:
    place: Place = ("dicom", "ae_titles")
    titles = config.dicom.ae_titles
    if "*" in titles:
        yield Finding(place, "'*' is no title to be called by; list each title", (place,))
    if len(set(titles)) != len(titles):
        yield Finding(place, "a title is listed twice", (place,))


def _peers(config: Config) -> Iterator[Finding]:
    for number, peer in enumerate(config.dicom.peers):
        base: Place = ("dicom", "peers", number)
        yield from _peer_addresses(base, peer)
        lock: Place = ("cloud", "object_lock")
        if peer.may("commit") and peer.commitment == "locked" and config.cloud.object_lock == "off":
            place: Place = (*base, "commitment")
            yield Finding(
                place,
                "'locked' can't be reached while cloud.object_lock is 'off'; "
                "write 'cloud', or switch the lock on",
                (place, lock, (*base, "allow")),
            )
        if peer.tls and config.dicom.tls is None:
            place = (*base, "tls")
            yield Finding(
                place,
                "needs [dicom.tls] with this node's certificate, key and ca",
                (place, ("dicom", "tls")),
            )


def _peer_addresses(base: Place, peer: Peer) -> Iterator[Finding]:
    allow: Place = (*base, "allow")
    if any(peer.may(permission) for permission in _CALLING) and not peer.addresses:
        place: Place = (*base, "addresses")
        yield Finding(
            place,
            "is needed by a peer that may call; list its addresses, "
            "or '0.0.0.0/0' and '::/0' for anywhere",
            (place, allow),
        )
    if peer.may("destination"):
        title: Place = (*base, "ae_title")
        if peer.ae_title == "*":
            yield Finding(title, "a destination has a title of its own, not '*'", (title, allow))
        for key in ("host", "port"):
            if getattr(peer, key) is None:
                place = (*base, key)
                yield Finding(place, "is needed for 'destination'", (place, allow))
    if peer.may("commit"):
        for key in ("host", "port"):
            if getattr(peer, key) is None and getattr(peer, f"commit_{key}") is None:
                place = (*base, key)
                if not (peer.may("destination")):
                    yield Finding(
                        place,
                        f"is needed for 'commit', or commit_{key}: reports go there",
                        (place, allow, (*base, f"commit_{key}")),
                    )


def _peer_pairs(config: Config) -> Iterator[Finding]:
    for (i, first), (j, second) in combinations(enumerate(config.dicom.peers), 2):
        if first.ae_title != second.ae_title:
            continue
        place: Place = ("dicom", "peers", j)
        title = second.ae_title
        concluded: tuple[Place, ...] = tuple(
            ("dicom", "peers", number, key)
            for number in (i, j)
            for key in ("ae_title", "addresses", "allow")
        )
        shared = sorted(str(net) for net in set(first.addresses) & set(second.addresses))
        if shared:
            yield Finding(
                (*place, "addresses"),
                f"peers[{i}] has the title '{title}' and {shared[0]} too, "
                "so that a caller could be either",
                concluded,
            )
        elif not first.addresses and not second.addresses and not second.may("destination"):
            yield Finding((*place, "ae_title"), f"is the same peer as peers[{i}]", concluded)
        if first.may("destination") and second.may("destination"):
            yield Finding(
                (*place, "allow"),
                f"peers[{i}] is a destination named '{title}' too, "
                "so that a C-MOVE could mean either",
                concluded,
            )


def _ports(config: Config) -> Iterator[Finding]:
    used: dict[int, Place] = {}
    listening: list[tuple[Place, int]] = [(("dicom", "port"), config.dicom.port)]
    if config.dicom.tls is not None:
        listening.append((("dicom", "tls", "port"), config.dicom.tls.port))
    listening.append((("web", "port"), config.web.port))
    for place, port in listening:
        if port and port in used:
            other = used[port]
            yield Finding(place, f"{port} is taken by {dotted(other)}", (place, other))
        used.setdefault(port, place)


def _cache_and_packs(config: Config) -> Iterator[Finding]:
    low: Place = ("cache", "low_water")
    if config.cache.low_water >= config.cache.high_water:
        yield Finding(
            low,
            f"must be below high_water, which is {config.cache.high_water:g}",
            (low, ("cache", "high_water")),
        )
    capacity: Place = ("cache", "capacity")
    target: Place = ("packs", "target_size")
    if config.packs.target_size_bytes * 4 > config.cache.capacity_bytes:
        yield Finding(target, "must be at most a quarter of cache.capacity", (target, capacity))
    age: Place = ("packs", "max_age")
    if config.packs.max_age_s < config.packs.quiet_s:
        yield Finding(
            age,
            f"must be at least quiet, which is {config.packs.quiet_s:g} s",
            (age, ("packs", "quiet")),
        )


def _cloud(config: Config) -> Iterator[Finding]:
    region: Place = ("cloud", "region")
    endpoint: Place = ("cloud", "endpoint_url")
    if not config.cloud.region and not config.cloud.endpoint_url:
        yield Finding(
            region, "is needed for AWS; write it like 'ap-northeast-1'", (region, endpoint)
        )
    for number, rule in enumerate(config.cloud.retention_rules):
        if not (rule.modalities or rule.calling_ae_titles or rule.called_ae_titles):
            place: Place = ("cloud", "retention_rules", number)
            yield Finding(
                place, "fits everything; name modalities or AE titles, or set cloud.retention",
                (place,),
            )  # fmt: skip
    yield from _replicas(config)


def _replicas(config: Config) -> Iterator[Finding]:
    taken = {_where(config.cloud): "the bucket itself"}
    for number, replica in enumerate(config.cloud.replicas):
        base: Place = ("cloud", "replicas", number)
        region: Place = (*base, "region")
        endpoint: Place = (*base, "endpoint_url")
        if not replica.region and not replica.endpoint_url:
            yield Finding(
                region, "is needed for AWS; write it like 'eu-central-1'", (region, endpoint)
            )
        other = taken.setdefault(_where(replica), f"replicas[{number}]")
        if other != f"replicas[{number}]":
            place: Place = (*base, "bucket")
            yield Finding(
                place,
                f"is {other}; a replica lies elsewhere",
                (place, region, endpoint, (*base, "prefix"), ("cloud",)),
            )


def _where(table: Cloud | Replica) -> tuple[str, str, str, str]:
    # A custom endpoint has one region, whatever it is called.
    region = "" if table.endpoint_url else table.region
    return table.endpoint_url, region, table.bucket, table.prefix


def _windows(config: Config) -> Iterator[Finding]:
    base: Place = ("cloud", "throttle", "windows")
    owner: dict[int, int] = {}
    for number, window in enumerate(config.cloud.throttle.windows):
        place: Place = (*base, number, "to")
        concluded: tuple[Place, ...] = (
            place,
            (*base, number, "from"),
            (*base, number, "days"),
        )
        if window.from_minute == window.to_minute:
            yield Finding(
                place, "is the same as from; write '00:00' to '24:00' for whole days", concluded
            )
            continue
        clashes: dict[int, int] = {}
        for start, end in window.minutes():
            for minute in range(start, end):
                other = owner.setdefault(minute, number)
                if other != number:
                    clashes.setdefault(other, minute)
        for other, minute in clashes.items():
            yield Finding(
                (*base, number),
                f"overlaps windows[{other}], first on {_moment(minute)}",
                (*concluded, *((*base, other, key) for key in ("from", "to", "days"))),
            )


def _moment(minute: int) -> str:
    day = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")[minute // 1440]
    return f"{day} {minute % 1440 // 60:02d}:{minute % 60:02d}"


def _keys(config: Config) -> Iterator[Finding]:
    recovery: Place = ("keys", "recovery")
    recipients: Place = ("keys", "recipients")
    if not config.keys.recovery and not config.node.demo and config.writes:
        yield Finding(
            recovery,
            "needs at least one recipient: make it with `azekura key new FILE` on another "
            "machine, print FILE, keep it in a safe, and write its recipient here",
            (recovery, ("node", "demo"), ("node", "role"), ("standby", "accept_stores")),
        )
    twice = set(config.keys.recovery) & set(config.keys.recipients)
    if twice:
        yield Finding(
            recipients,
            "lists a recovery recipient too; one place is enough",
            (recovery, recipients),
        )
    if config.node.name in config.keys.signers:
        place: Place = ("keys", "signers", config.node.name)
        yield Finding(place, "is this node itself; list the others only", (place, ("node", "name")))


def _standby(config: Config) -> Iterator[Finding]:
    role: Place = ("node", "role")
    if config.node.role == "standby" and not config.keys.signers:
        yield Finding(
            ("keys", "signers"),
            "needs the public signing key of each node that this standby follows: "
            "`azekura key list` there shows it",
            (("keys", "signers"), role),
        )
    accept: Place = ("standby", "accept_stores")
    if config.node.role != "standby" and config.standby.accept_stores != "never":
        yield Finding(
            accept, "is for node.role 'standby'; an appliance always does", (accept, role)
        )


def _web_certificates(config: Config) -> Iterator[Finding]:
    ca: Place = ("web", "client_ca")
    owner: dict[str, int] = {}
    for number, peer in enumerate(config.dicom.peers):
        place: Place = ("dicom", "peers", number, "web_certificates")
        if peer.web_certificates and config.web.client_ca is None:
            yield Finding(place, "needs web.client_ca, which says who signs them", (place, ca))
        for name in peer.web_certificates:
            other = owner.setdefault(name, number)
            if other != number:
                yield Finding(place, f"peers[{other}] has the certificate '{name}' too", (place,))
