"""Going through one node's ledger in the bucket: what is new is taken, checked and applied.

Invariants:
- The place in the ledger goes on by entries that are rightly signed, and by nothing else: what
  somebody puts far ahead can't make this node pass by what comes.
- What is not trusted is a finding and is never applied; the rest goes on.
- A turn is bounded: by time, by a page of the listing, by what is fetched ahead.
Used by one thread; the pool's threads fetch and open.
"""

import itertools
from collections.abc import Collection, Generator, Iterator, Sequence
from concurrent.futures import Executor
from typing import Any

import msgspec

from appliance.archive.checkpoint_read import CheckpointSource, Known
from appliance.archive.consolidated import behind, instead
from appliance.archive.entry_copies import EntryCopies
from appliance.archive.findings import NOT_APPLIED, NOT_TRUSTED, Kind
from appliance.archive.following import Checked, Following
from appliance.archive.ledger_entry import Entry
from appliance.archive.ledger_listing import Listed, ahead, last_listed, listed
from appliance.archive.records import PackRecord
from appliance.archive.taking import Taken, Taker
from appliance.foundation.clock import Clock
from appliance.index.index import Index
from appliance.remote.store import ObjectStore
from appliance.seal.identity import Identity

PAGE_ENTRIES = 900
"""A listing gives a thousand versions a request."""
BATCH_INSTANCES_MAX = 5000
BATCH_ENTRIES_MAX = 500
JUDGED_MAX = 20_000
RECHECK_S = 60.0
RECHECK_ENTRIES = 100
JUDGED_S = 3600.0
FRONTIER_S = 3600.0
FAR_BEHIND_ENTRIES = 100
CHECKPOINT_ENTRIES = 64
"""With fewer new entries than that, fetching them one by one is as fast as to look further."""


class Place(msgspec.Struct, frozen=True):
    """Where a follower is in a ledger: applied, and the last sequence known in the bucket."""

    node: str
    applied_sequence: int
    last_sequence: int
    findings: int

    @property
    def lag(self) -> int:
        """How many entries are not applied yet."""
        return max(0, self.last_sequence - self.applied_sequence)

    def document(self) -> dict[str, Any]:
        """Return the place as status shows it."""
        return {
            "node": self.node,
            "applied_sequence": self.applied_sequence,
            "last_sequence": self.last_sequence,
            "lag": self.lag,
            "findings": self.findings,
        }


class LedgerFollower:
    """Follows one node."""

    def __init__(
        self,
        clock: Clock,
        index: Index,
        store: ObjectStore,
        copies: EntryCopies,
        following: Following,
        identities: Sequence[Identity],
        signers: Collection[str],
        pool: Executor,
        checkpoints: CheckpointSource | None = None,
    ) -> None:
        """`checkpoints`: None for who reads single entries only."""
        self.node = copies.node
        self.following = following
        self._clock = clock
        self._index = index
        self._store = store
        self._copies = copies
        self._taker = Taker(copies, store, identities, signers)
        self._pool = pool
        self._signers = signers
        self._checkpoints = checkpoints
        self._consolidated: Iterator[list[Checked]] | None = None
        # Where checkpoints were looked for in vain: not again before there is more to know.
        self._looked_at = -1
        self._next_judged_s = clock.monotonic_s()
        self._coming: Generator[Taken, None, None] | None = None
        self._listed_last = following.sequence
        # Versions that were judged and not trusted: not fetched again with every look.
        self._judged: dict[int, str] = {}
        # A pass over the listing goes on from here; 0: it begins behind what is applied.
        self._scan_after = 0
        # Up to here there is nothing but what was judged, when nothing in front of it is applied.
        self._frontier = 0
        self._frontier_end_s = clock.monotonic_s() + FRONTIER_S
        self._is_at_end = False
        # Until the first end everything is judged anew: a restart may have brought other keys.
        self._is_first_pass = True
        self._recheck_after = 0
        self._next_recheck_s = clock.monotonic_s() + RECHECK_S
        copies.prepare()

    # --- what others see

    def place(self) -> Place:
        """Return where this is."""
        state = self.following
        return Place(
            self.node, state.sequence, max(self._listed_last, state.sequence), len(state.findings)
        )

    # --- turns

    def turn(self, end_s: float) -> bool:
        """Take what is new until a monotonic time; tell whether there may be more at once.

        CloudError when the bucket can't be asked; what was applied before stays so.
        """
        try:
            return self._turn(end_s)
        except BaseException:
            self.close()
            raise

    def _turn(self, end_s: float) -> bool:
        if not self._apply_consolidated(end_s):
            return True
        if self._coming is None:
            self._coming = self._begin()
        if self._consolidated is not None:
            return True
        while batch := self._batch(self._coming):
            self.following.apply(batch)
            if self._clock.monotonic_s() >= end_s:
                return True
        self._coming = None
        if self._is_at_end:
            self._is_first_pass = False
            self._listed_last = self.following.sequence  # what lies behind is a finding
        self.following.save()
        self._recheck_if_due()
        return not self._is_at_end

    def close(self) -> None:
        """Let go what is fetched ahead; the next turn begins behind what is applied."""
        self._consolidated = None
        self._scan_after = 0
        if self._coming is not None:
            self._coming.close()
            self._coming = None

    def go_back(self) -> None:
        """Begin again where the index ends, if that was replaced by an older one."""
        with self._index.read() as view:
            known = max(0, view.progress(self.node))
        if known < self.following.sequence:
            self.close()
            self.following.go_back(known)

    # --- listing

    def _begin(self) -> Generator[Taken, None, None]:
        """Look what is new, and begin to fetch it."""
        page = self._next_page()
        for each in page:
            self._note_versions(each)
        self._note_end(page)
        new = self._new(page)
        if self._is_for_checkpoints(new):
            self._scan_after = 0
            self._consolidated = self._behind()
            new = []
        return ahead(self._pool, self._taker.take, new, lambda each: each.size_bytes)

    # --- checkpoints

    def _is_for_checkpoints(self, new: list[Listed]) -> bool:
        """Tell whether what is new should rather come from checkpoints, as far as they have it."""
        after = self.following.sequence
        if self._checkpoints is None or not new or self._looked_at == after:
            return False
        if after == 0 or len(new) > CHECKPOINT_ENTRIES:
            return True
        # A cold start that was cut short goes on where it was.
        return any(after in each or after + 1 in each for each in self._copies.consolidated())

    def _behind(self) -> Iterator[list[Checked]]:
        assert self._checkpoints is not None
        offered = self._checkpoints.look(self.node)
        yield from behind(offered, self._signers, self._known(), self._find_checkpoint)
        self._looked_at = self.following.sequence

    def _instead(self) -> Iterator[list[Checked]]:
        """Yield what checkpoints have of the entries that could not be applied."""
        assert self._checkpoints is not None
        offered = self._checkpoints.look(self.node)
        missing = self.following.findings.not_applied()
        yield from instead(
            offered, self._signers, missing, self._known(), self._find_checkpoint
        )  # fmt: skip

    def _judge_checkpoints_if_due(self) -> None:
        """Look again at checkpoints that something was wrong with: they may be sound, or gone."""
        bad = [each for each in self.following.findings if each.what is Kind.CHECKPOINT]
        now_s = self._clock.monotonic_s()
        if self._checkpoints is None or not bad or now_s < self._next_judged_s:
            return
        self._next_judged_s = now_s + JUDGED_S
        offered = self._checkpoints.look(self.node)
        still: list[tuple[int, int, str]] = []
        for each in bad:
            offered.judge(
                each.first, each.last, self._signers, self._known(),
                lambda *found: still.append(found),
            )  # fmt: skip
        for each in bad:
            self.following.clear(Kind.CHECKPOINT, each.first, each.last)
        for found in still:
            self._find_checkpoint(*found)
        self.following.save()

    def _apply_consolidated(self, end_s: float) -> bool:
        """Apply what checkpoints give; False when the time is over before they end."""
        while self._consolidated is not None:
            batch = next(self._consolidated, None)
            if batch is None:
                self.close()  # what is listed was listed before
                break
            self.following.apply(batch)
            if self._clock.monotonic_s() >= end_s:
                return False
        return True

    def _known(self) -> Known:
        return Known(self.following.sequence, self.following.header_sha256)

    def _find_checkpoint(self, first: int, last: int, what: str) -> None:
        self.following.find(Kind.CHECKPOINT, first, last, what)

    # --- pages of the listing

    def _next_page(self) -> list[Listed]:
        """Return the next page of the pass that is under way, or the first of a new one.

        A pass goes over every key. Where many are not trusted and nothing behind them is, a new
        pass looks at the first page and goes on at the frontier, but for once an hour.
        """
        now_s = self._clock.monotonic_s()
        if now_s >= self._frontier_end_s:
            self._frontier, self._frontier_end_s = 0, now_s + FRONTIER_S
        after = max(self._scan_after, self.following.sequence)
        page = self._page(after)
        if not self._scan_after and not self._is_at_end and not self._new(page):
            after = max(self._frontier, page[-1].sequence)
            page += self._page(after)
        self._scan_after = 0 if self._is_at_end else page[-1].sequence
        self._frontier = max(self._frontier, after)
        return page

    def _page(self, after: int) -> list[Listed]:
        page = list(itertools.islice(listed(self._store, self.node, after), PAGE_ENTRIES))
        self._is_at_end = len(page) < PAGE_ENTRIES
        return page

    def _new(self, page: list[Listed]) -> list[Listed]:
        return [each for each in page if not self._is_judged(each)]

    def _is_judged(self, found: Listed) -> bool:
        if self._judged.get(found.sequence) == found.version_id:
            return True
        known = self.following.findings.holds(NOT_TRUSTED, found.sequence)
        return known and not self._is_first_pass

    def _note_end(self, page: list[Listed]) -> None:
        last = page[-1].sequence if page else self.following.sequence
        if self._is_at_end:
            self._listed_last = last
        elif last >= self._listed_last:
            self._listed_last = last_listed(self._store, self.node, last)

    def _note_versions(self, found: Listed) -> None:
        if found.marker_count:
            self.following.find(Kind.HIDDEN, found.sequence, found.sequence)
        if found.version_count > 1:
            self.following.find(Kind.OVERWRITTEN, found.sequence, found.sequence)

    # --- taking

    def _batch(self, coming: Iterator[Taken]) -> list[Checked]:
        """Return the next trusted entries in the order of the ledger; empty when none is left."""
        batch: list[Checked] = []
        instances = 0
        last, last_hash = self.following.sequence, self.following.header_sha256
        for taken in coming:
            if taken.entry is None:
                self._doubt(taken)
                continue
            self._check_link(taken.entry, last, last_hash)
            checked = Checked.of(taken.entry)
            last, last_hash = checked.last, checked.header_sha256
            batch.append(checked)
            instances += _instance_count(taken.entry)
            if instances >= BATCH_INSTANCES_MAX or len(batch) >= BATCH_ENTRIES_MAX:
                break
        return batch

    def _doubt(self, taken: Taken) -> None:
        assert taken.doubt is not None
        self._judged[taken.sequence] = taken.version_id
        if len(self._judged) > JUDGED_MAX:
            self._judged.pop(next(iter(self._judged)))
        self.following.find(taken.doubt.what, taken.sequence, taken.sequence, taken.doubt.detail)

    def _check_link(self, entry: Entry, last: int, last_hash: str) -> None:
        """Find what is wrong between the last trusted entry and this one."""
        sequence = entry.header.sequence
        if sequence == last + 1:
            if last_hash and entry.header.previous != last_hash:
                self.following.find(Kind.CHAIN, sequence, sequence)
            return
        for first, end in self.following.findings.not_covered(last + 1, sequence - 1):
            self.following.find(Kind.MISSING, first, end)

    # --- looking again

    def _recheck_if_due(self) -> None:
        if self._clock.monotonic_s() < self._next_recheck_s:
            return
        self._next_recheck_s = self._clock.monotonic_s() + RECHECK_S
        self._judge_checkpoints_if_due()
        if self.recheck():
            self._next_recheck_s = self._clock.monotonic_s()  # where one is healed, others may be

    def recheck(self) -> bool:
        """Look again for some entries that could not be applied; tell whether any now is."""
        start = self.following.findings.first_not_applied(self._recheck_after)
        if start is not None and self._checkpoints is not None and self._consolidated is None:
            self._consolidated = self._instead()
        if start is None:
            self._recheck_after = 0
            return False
        page = list(itertools.islice(listed(self._store, self.node, start - 1), RECHECK_ENTRIES))
        self._recheck_after = page[-1].sequence if len(page) == RECHECK_ENTRIES else 0
        findings = self.following.findings
        return self.take_again([e for e in page if findings.holds(NOT_APPLIED, e.sequence)])

    def take_again(self, some: Sequence[Listed]) -> bool:
        """Take entries behind which others are applied already; tell whether any is trusted."""
        healed = False
        for found in some:
            taken = self._taker.take(found)
            if taken.entry is None:
                self._doubt(taken)
                continue
            healed = True
            self._judged.pop(found.sequence, None)
            if found.sequence > self.following.sequence:
                self.following.heal(found.sequence)  # the next turn applies it, in its place
            else:
                self._check_neighbours(taken.entry)
                self.following.apply([Checked.of(taken.entry)])
        return healed

    def _check_neighbours(self, entry: Entry) -> None:
        sequence = entry.header.sequence
        before, behind = self._taker.copy(sequence - 1), self._taker.copy(sequence + 1)
        if before is not None and before.header_sha256 != entry.header.previous:
            self.following.find(Kind.CHAIN, sequence, sequence)
        if behind is not None and behind.header.previous != entry.header_sha256:
            self.following.find(Kind.CHAIN, sequence + 1, sequence + 1)


def _instance_count(entry: Entry) -> int:
    return sum(len(each.instances) for each in entry.records if isinstance(each, PackRecord))
