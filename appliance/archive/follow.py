"""Following the ledgers of all other nodes on the bucket: what they write is known here too.

Every node does this, whatever its role: a standby serves what the sites wrote, and a site that
comes back gets what the standby took meanwhile. Whom it follows is in `keys.signers`, and nobody
else is believed. `docs/internals/following.md` tells the rest.

Invariants:
- Nothing in the bucket is changed.
- One ledger that can't be followed keeps no other from being followed.
- While nothing is new, a node costs one list request a poll.
Threads: `run` belongs to one; the others read what it left in `_shown`.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from appliance.archive.adopted import AdoptedBook
from appliance.archive.checkpoint_read import CheckpointSource
from appliance.archive.entry_copies import EntryCopies
from appliance.archive.following import Following
from appliance.archive.index_condition import IndexCondition
from appliance.archive.layout import Layout
from appliance.archive.ledger_audit import AUDIT_S, LedgerAudit
from appliance.archive.ledger_follower import (
    FAR_BEHIND_ENTRIES,
    LedgerFollower,
    Place,
)
from appliance.archive.ledger_listing import FETCHES_MAX
from appliance.archive.problem import Problem
from appliance.foundation import log
from appliance.foundation.clock import Clock
from appliance.foundation.errors import AzekuraError, StorageFailed
from appliance.foundation.files import FileSystem
from appliance.index.index import Index
from appliance.remote.link import Backoff
from appliance.remote.store import ObjectStore
from appliance.seal.identity import Identity

TURN_S = 2.0

_log = log.get("follow")


class Follower:
    """Follows every ledger but the own, and audits that one with the others."""

    def __init__(
        self,
        files: FileSystem,
        clock: Clock,
        layout: Layout,
        index: Index,
        store: ObjectStore,
        node: str,
        identities: Sequence[Identity],
        signers: Mapping[str, Sequence[str]],
        condition: IndexCondition | None = None,
        own_sequence: Callable[[], int] | None = None,
        checkpoints: CheckpointSource | None = None,
        audit_s: float = AUDIT_S,
        adopted: AdoptedBook | None = None,
    ) -> None:
        """`signers`: of each other node the public keys that may sign its ledger.

        `own_sequence`: the last entry of the own ledger in the bucket; None for a node that has no
        ledger. `checkpoints`: None for who reads single entries only. `adopted`: takes the
        configurations that the nodes publish.
        """
        self._clock = clock
        self._condition = condition
        self._generation = ""
        self._index = index
        self._pool = ThreadPoolExecutor(FETCHES_MAX, thread_name_prefix="follow")
        self._followers: dict[str, LedgerFollower] = {}
        self._audits: list[LedgerAudit] = []
        # By what was tried: when it may be tried again, and what status says of it meanwhile.
        self._backoffs: dict[str, Backoff] = {}
        self._not_before_s: dict[str, float] = {}
        self._hindrances: dict[str, Problem] = {}
        self._own: Following | None = None
        for name, keys in signers.items():
            copies = EntryCopies(files, layout, name)
            following = Following(files, clock, layout, index, name, adopted)
            follower = LedgerFollower(
                clock, index, store, copies, following, identities, frozenset(keys), self._pool,
                checkpoints,
            )  # fmt: skip
            self._followers[name] = follower
            self._audits.append(
                LedgerAudit(
                    clock, store, copies, following, partial(_sequence_of, following),
                    follower.take_again, audit_s,
                )
            )  # fmt: skip
        if own_sequence is not None:
            self._own = Following(files, clock, layout, index, node)
            self._audits.append(
                LedgerAudit(
                    clock, store, EntryCopies(files, layout, node), self._own, own_sequence,
                    lambda _lost: None, audit_s,
                )
            )  # fmt: skip
        self._shown: tuple[list[Place], list[Problem]] = ([], [])
        self._show()

    # --- what others see; any thread

    def places(self) -> list[Place]:
        """Return how far each ledger is followed."""
        return list(self._shown[0])

    def problems(self) -> list[Problem]:
        """Return every finding, and which ledgers are far behind."""
        return list(self._shown[1])

    # --- following; one thread

    def run(self, stop: threading.Event) -> None:
        """Take what is new of every ledger, in turns, until nothing is; StorageFailed."""
        self._go_back_if_replaced()
        more = True
        while more and not stop.is_set():
            more = False
            for name, follower in self._followers.items():
                what = f"the ledger of {name} is not followed"
                more = self._try(what, partial(self._turn, follower)) or more
                self._show()
            for audit in self._audits:
                self._try(f"the ledger of {audit.node} is not audited", audit.turn)
        self._show()

    def close(self) -> None:
        """End the threads that fetch."""
        for follower in self._followers.values():
            follower.close()
        self._pool.shutdown(cancel_futures=True)

    def _turn(self, follower: LedgerFollower) -> bool:
        return follower.turn(self._clock.monotonic_s() + TURN_S)

    def _try(self, what: str, work: Callable[[], bool]) -> bool:
        """Do one turn; after an error, told by the sentence `what`, there is none for a while."""
        if self._clock.monotonic_s() < self._not_before_s.get(what, 0.0):
            return False
        try:
            more = work()
        except StorageFailed:
            raise
        except AzekuraError as error:
            if what not in self._hindrances:
                _log.warning("follow_failed", what=what, error=type(error).__name__)
            self._hindrances[what] = Problem("follow", f"{what}: {error}", error.hint)
            delay_s = self._backoffs.setdefault(what, Backoff()).next_delay_s()
            self._not_before_s[what] = self._clock.monotonic_s() + delay_s
            return False
        self._backoffs.pop(what, None)
        self._hindrances.pop(what, None)
        return more

    def _go_back_if_replaced(self) -> None:
        """Begin again where another generation of the index ends, unless a rebuild is to come."""
        generation = self._index.generations.current()
        if generation == self._generation:
            return
        if self._condition is not None and self._condition.incomplete() is not None:
            return
        for follower in self._followers.values():
            follower.go_back()
        for audit in self._audits:
            audit.begin_anew()  # of what a rebuild could not read the copy is gone
        self._generation = generation

    def _show(self) -> None:
        places = [follower.place() for follower in self._followers.values()]
        problems = list(self._hindrances.values())
        problems += [_catching_up(each) for each in places if each.lag > FAR_BEHIND_ENTRIES]
        for follower in self._followers.values():
            problems += follower.following.findings.problems()
        if self._own is not None:
            problems += self._own.findings.problems()
        self._shown = (places, problems)


def _sequence_of(following: Following) -> int:
    return following.sequence


def _catching_up(place: Place) -> Problem:
    return Problem(
        "catching_up",
        f"catching up with {place.node}: {place.applied_sequence} of {place.last_sequence} "
        "ledger entries",
        "Queries find what is known so far; this goes away by itself",
    )
