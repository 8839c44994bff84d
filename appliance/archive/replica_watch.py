"""Whether each replica can be read and keeps up, asked now and then, before anybody needs it.

Must not: write, or conclude anything about the bucket itself. What it asks is two listings of one
ledger key each: the node's first entry, which says that replication works at all, and the one that
was the last an hour ago, which says that it keeps up.
"""

from collections import deque
from collections.abc import Callable, Sequence

from appliance.archive.ledger_entry import entry_key
from appliance.archive.problem import Problem
from appliance.foundation.clock import Clock, isoformat
from appliance.foundation.errors import AzekuraError, CloudError
from appliance.remote.replicas import Replica

LOOK_S = 60.0
LAG_S = 3600.0
FIRST = 1


class ReplicaWatch:
    """What is known of the replicas. One thread looks; `problems` and `document` are for any."""

    def __init__(
        self,
        clock: Clock,
        configured: Sequence[str],
        replicas: Sequence[Replica],
        node: str,
        sequence: Callable[[], int],
    ) -> None:
        """Take over; `configured`: all names; `sequence`: the last one that the bucket has."""
        self._clock = clock
        self._replicas = tuple(replicas)
        self._node = node
        self._sequence = sequence
        # (monotonic time, the bucket's sequence then), the oldest first; the first is LAG_S old.
        self._seen: deque[tuple[float, int]] = deque()
        usable = {each.name for each in replicas}
        self._problems = {name: _unusable(name) for name in configured if name not in usable}
        self._next_s = clock.monotonic_s()

    def look_if_due(self) -> None:
        """Ask every replica, once a minute."""
        now_s = self._clock.monotonic_s()
        if now_s < self._next_s:
            return
        self._next_s = now_s + LOOK_S
        self._seen.append((now_s, self._sequence()))
        while len(self._seen) > 1 and now_s - self._seen[1][0] >= LAG_S:
            self._seen.popleft()
        for replica in self._replicas:
            problem = self._look(replica, now_s)
            if problem is None:
                self._problems.pop(replica.name, None)
            else:
                self._problems[replica.name] = problem

    def _look(self, replica: Replica, now_s: float) -> Problem | None:
        condition = f"replica:{replica.name}"
        try:
            first = replica.oldest_version(entry_key(self._node, FIRST))
            if self._sequence() >= FIRST and first is None:
                return Problem(
                    condition,
                    f"the replica {replica.name} has nothing of this node's ledger",
                    "Check that replication covers the bucket's prefix, delete markers left out",
                )
            seen_s, sequence = self._seen[0]
            old_enough = now_s - seen_s >= LAG_S and sequence > FIRST
            if old_enough and replica.oldest_version(entry_key(self._node, sequence)) is None:
                return Problem(
                    condition,
                    f"the replica {replica.name} is more than an hour behind",
                    "Look at the replication's metrics and at its rules",
                )
        except CloudError as error:
            return _unread(condition, replica, error)
        return None

    def problems(self) -> list[Problem]:
        """Return what is wrong with replicas."""
        return list(self._problems.values())

    def document(self) -> list[dict[str, str]]:
        """Return each replica and the state of the line to it, as status shows it."""
        return [
            {
                "name": each.name,
                "link": each.link.state,
                "since": isoformat(each.link.since_at),
            }
            for each in self._replicas
        ]


def _unusable(name: str) -> Problem:
    return Problem(
        f"replica:{name}", f"the replica {name} can't be used with these settings",
        "See the log at the start: its profile, its region or its URL",
    )  # fmt: skip


def _unread(condition: str, replica: Replica, error: AzekuraError) -> Problem:
    return Problem(
        condition, f"the replica {replica.name} can't be read: {error.cause}", error.hint
    )
