"""Which pack goes next: lanes, turns between peers, and each peer's oldest first.

Owns the queue of packs that wait for the bucket. Pure: not thread-safe, its owner holds a lock.

The rule, in this order:
1. A pack for which somebody waits goes before all others, one that came within `NEW_FOR_S` before
   what is older: what comes now is not held up by a backlog.
2. Within a lane the peers take turns, a pack each, the one that had none for longest first: no
   peer's backlog holds up another's packs.
3. Of one peer, within a lane, the oldest goes first: the order of its backlog is kept.
The lane of a pack is judged when it is taken: what is new now is backlog in an hour.
"""

from bisect import bisect_left, insort
from datetime import datetime, timedelta

from appliance.archive.layout import first_pack_id
from appliance.remote.store import Lane

NEW_FOR_S = 3600.0
PEERS_REMEMBERED_MAX = 1024


class _Line:
    """What one peer has waiting: pack ids, oldest first."""

    def __init__(self) -> None:
        self.urgent: list[str] = []
        self.other: list[str] = []

    def oldest(self, lane: Lane, new_from: str) -> str | None:
        """Return the oldest pack in a lane."""
        if lane is Lane.URGENT:
            return self.urgent[0] if self.urgent else None
        if lane is Lane.NEW:
            at = bisect_left(self.other, new_from)
            return self.other[at] if at < len(self.other) else None
        return self.other[0] if self.other and self.other[0] < new_from else None


class Turns:
    """The packs that wait, by peer. A pack waits once."""

    def __init__(self) -> None:
        self._peer_of: dict[str, str] = {}
        self._lines: dict[str, _Line] = {}
        # When each peer had its last turn, as a number that grows.
        self._served: dict[str, int] = {}
        self._turn = 0

    def __len__(self) -> int:
        return len(self._peer_of)

    def __contains__(self, pack_id: object) -> bool:
        return pack_id in self._peer_of

    def add(self, pack_id: str, peer: str, *, urgent: bool = False) -> None:
        """Let a pack wait; one that waits already stays where it is."""
        if pack_id in self._peer_of:
            return
        self._peer_of[pack_id] = peer
        line = self._lines.setdefault(peer, _Line())
        insort(line.urgent if urgent else line.other, pack_id)

    def hurry(self, pack_id: str) -> None:
        """Put a pack that waits into the urgent lane."""
        peer = self._peer_of.get(pack_id)
        if peer is None:
            return
        line = self._lines[peer]
        if _discard(line.other, pack_id):
            insort(line.urgent, pack_id)

    def take(self, now: datetime) -> tuple[Lane, str]:
        """Return the next pack with its lane, and let it wait no more. One must be there."""
        new_from = first_pack_id(now - timedelta(seconds=NEW_FOR_S))
        for lane in Lane:
            found = [
                (self._served.get(peer, 0), pack_id, peer)
                for peer, line in self._lines.items()
                if (pack_id := line.oldest(lane, new_from)) is not None
            ]
            if found:
                _, pack_id, peer = min(found)
                self._remove(pack_id, peer)
                return lane, pack_id
        raise LookupError("no pack waits")

    def _remove(self, pack_id: str, peer: str) -> None:
        line = self._lines[peer]
        if not _discard(line.urgent, pack_id):
            _discard(line.other, pack_id)
        del self._peer_of[pack_id]
        if not line.urgent and not line.other:
            del self._lines[peer]
        self._turn += 1
        self._served[peer] = self._turn
        if len(self._served) > PEERS_REMEMBERED_MAX:
            del self._served[min(self._served, key=lambda each: self._served[each])]


def _discard(packs: list[str], pack_id: str) -> bool:
    """Remove a pack from a sorted list; False when it is not in it."""
    at = bisect_left(packs, pack_id)
    if at < len(packs) and packs[at] == pack_id:
        del packs[at]
        return True
    return False
