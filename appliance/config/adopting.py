"""What a node makes of the configurations that other nodes published: its own, and theirs added.

Owns the rules of adopting. Reads no file, and knows no ledger.

Invariants:
- What the node's own file says wins: a peer of its own replaces every published one of that title.
- What is adopted has passed the same checks as a file; a peer that does not fit is left out, and
  said. Of two sites that contradict each other, the first by name counts.
- A key that this release does not know is skipped: a newer site must not make a standby useless.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError

from appliance.config import checks
from appliance.config.model import Config, Dicom, Peer
from appliance.foundation.errors import ConfigurationError


class Published(NamedTuple):
    """What a node published of its `[dicom]`; `peers` as in its file."""

    ae_titles: Sequence[str]
    issuer: str
    extra_sop_classes: Sequence[str]
    peers: Sequence[Mapping[str, Any]]


class Adopted(NamedTuple):
    """The configuration that counts, where its parts came from, and what could not be taken.

    origins: (key, value, node) of everything that is adopted, in the order of the file.
    """

    config: Config
    origins: list[tuple[str, str, str]]
    conflicts: list[str]


class _Candidate(NamedTuple):
    node: str
    peer: Peer


def adopt(config: Config, published: Mapping[str, Published]) -> Adopted:
    """Return the node's configuration with those of other nodes, by name, added to it."""
    if not published:
        return Adopted(config, [], [])
    names = sorted(published)
    conflicts: list[str] = []
    origins: list[tuple[str, str, str]] = []
    own = config.dicom
    titles = list(own.ae_titles) if "ae_titles" in own.model_fields_set else []
    classes = list(own.extra_sop_classes)
    issuer = own.issuer
    for name in names:
        for title in published[name].ae_titles:
            if title not in titles:
                titles.append(title)
                origins.append(("dicom.ae_titles", title, name))
        if not issuer and published[name].issuer:
            issuer = published[name].issuer
            origins.append(("dicom.issuer", issuer, name))
        for uid in published[name].extra_sop_classes:
            if uid not in classes:
                classes.append(uid)
                origins.append(("dicom.extra_sop_classes", uid, name))
    changes: dict[str, Any] = {
        "ae_titles": tuple(titles or own.ae_titles),
        "issuer": issuer,
        "extra_sop_classes": tuple(classes),
    }
    candidates = list(_candidates(own, published, conflicts))
    taken, dicom = _fitting(config, changes, candidates, conflicts)
    origins += [("dicom.peers", each.peer.ae_title, each.node) for each in taken]
    return Adopted(config.model_copy(update={"dicom": dicom}), origins, conflicts)


def _candidates(
    own: Dicom, published: Mapping[str, Published], conflicts: list[str]
) -> Iterator[_Candidate]:
    """Yield the peers that may be adopted, each with its site's issuer."""
    local = {peer.ae_title for peer in own.peers}
    seen: list[Peer] = []
    for node in sorted(published):
        for document in published[node].peers:
            peer = _peer(document, published[node].issuer)
            if peer is None:
                title = str(document.get("ae_title", "?"))[:16]
                conflicts.append(f"the peer '{title}' of {node} is not understood, and left out")
            elif peer.ae_title not in local and peer not in seen:
                seen.append(peer)
                yield _Candidate(node, peer)


def _peer(document: Mapping[str, Any], issuer: str) -> Peer | None:
    keys = {info.alias or name for name, info in Peer.model_fields.items()}
    known = {key: value for key, value in document.items() if key in keys}
    if issuer and not known.get("issuer"):
        known["issuer"] = issuer
    try:
        return Peer.model_validate(known)
    except (ValidationError, ConfigurationError):
        return None


def _fitting(
    config: Config,
    changes: Mapping[str, Any],
    candidates: Sequence[_Candidate],
    conflicts: list[str],
) -> tuple[list[_Candidate], Dicom]:
    """Return the candidates that pass the checks beside everything else, and the table."""
    taken = list(candidates)
    own = config.dicom.peers
    while True:
        peers = (*own, *(each.peer for each in taken))
        dicom = config.dicom.model_copy(update={**changes, "peers": peers})
        whole = config.model_copy(update={"dicom": dicom})
        faulty: dict[int, str] = {}
        for finding in checks.check(whole):
            number = _number(finding.place) - len(own)
            if number >= 0:
                faulty.setdefault(number, finding.message)
        if not faulty:
            return taken, dicom
        # One at a time: who contradicted it may fit once it is gone.
        number = min(faulty)
        node, peer = taken.pop(number)
        conflicts.append(
            f"the peer '{peer.ae_title}' of {node} is left out: {_unnumbered(faulty[number])}"
        )


def _number(place: checks.Place) -> int:
    """Return which of the peers a fault is about, -1 for none."""
    if place[:2] == ("dicom", "peers") and len(place) > 2 and isinstance(place[2], int):
        return place[2]
    return -1


def _unnumbered(message: str) -> str:
    """Return a check's sentence without the number that a peer has in no file."""
    head, bracket, rest = message.partition("peers[")
    return f"{head}another peer{rest.partition(']')[2]}" if bracket else message


def published_of(dicom: Dicom) -> Published:
    """Return what a node publishes of its table: no secret is in it."""
    return Published(
        dicom.ae_titles,
        dicom.issuer,
        dicom.extra_sop_classes,
        [peer.model_dump(mode="json", by_alias=True) for peer in dicom.peers],
    )
