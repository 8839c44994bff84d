"""A slow look over what the bucket still shows of old entries: markers, newer versions, removals.

What was taken once is kept here and stays applied, whatever is done to the bucket later; this finds
out that something was done. Lists pages of versions and fetches nothing, but for what this disk has
lost. Invariant: a turn is one page; a pass begins at most every `every_s`.
"""

import itertools
from collections.abc import Callable, Sequence

from appliance.archive.entry_copies import EntryCopies
from appliance.archive.findings import NOT_APPLIED, Kind
from appliance.archive.following import Following
from appliance.archive.ledger_listing import Listed, listed
from appliance.foundation.clock import Clock
from appliance.remote.store import ObjectStore

AUDIT_S = 3600.0
PAGE_ENTRIES = 900
_KINDS = (Kind.HIDDEN, Kind.OVERWRITTEN, Kind.REMOVED)


class LedgerAudit:
    """Audits one node's ledger, the own one too. Used by one thread."""

    def __init__(
        self,
        clock: Clock,
        store: ObjectStore,
        copies: EntryCopies,
        following: Following,
        last_sequence: Callable[[], int],
        take_again: Callable[[Sequence[Listed]], object],
        every_s: float = AUDIT_S,
    ) -> None:
        """`last_sequence`: up to which entry everything is known here.

        `take_again` is given the entries of which the copy is lost.
        """
        self.node = following.node
        self._clock = clock
        self._store = store
        self._copies = copies
        self._following = following
        self._last_sequence = last_sequence
        self._take_again = take_again
        self._every_s = every_s
        self._after = 0
        self._under_way = False
        self._next_pass_s = clock.monotonic_s()

    def begin_anew(self) -> None:
        """Let a pass from the first entry be due now."""
        self._under_way = False
        self._next_pass_s = self._clock.monotonic_s()

    def turn(self) -> bool:
        """Look at a page, if a pass is due or under way; tell whether it goes on. CloudError."""
        now_s = self._clock.monotonic_s()
        if not self._under_way:
            if now_s < self._next_pass_s:
                return False
            self._under_way, self._after = True, 0
            self._next_pass_s = now_s + self._every_s
        last = self._last_sequence()
        page = list(
            itertools.islice(
                listed(self._store, self.node, self._after), PAGE_ENTRIES
            )
        )  # fmt: skip
        known = [each for each in page if each.sequence <= last]
        is_last = len(page) < PAGE_ENTRIES or len(known) < len(page)
        end = last if is_last else known[-1].sequence
        self._look(self._after + 1, end, {each.sequence: each for each in known})
        self._after = end
        self._under_way = not is_last
        self._following.save()
        return self._under_way

    def _look(self, first: int, end: int, page: dict[int, Listed]) -> None:
        """Compare the listing with what should be there: every sequence from first to end."""
        start = first
        for sequence in [*page, end + 1]:
            if sequence > start:
                self._note_removed(start, sequence - 1)
            start = sequence + 1
        for each in page.values():
            self._note(each)
        consolidated = self._copies.consolidated()
        lost = [
            each
            for each in page.values()
            if each.version_id and self._is_lost(each.sequence, consolidated)
        ]
        self._take_again(lost)

    def _note_removed(self, first: int, last: int) -> None:
        """Note what was applied and is gone; what never came is a finding already."""
        for start, end in self._following.findings.not_covered(first, last):
            self._following.find(Kind.REMOVED, start, end)

    def _note(self, found: Listed) -> None:
        holds = {
            Kind.HIDDEN: found.marker_count > 0,
            Kind.OVERWRITTEN: found.version_count > 1,
            Kind.REMOVED: not found.version_id
            and not self._following.findings.holds(NOT_APPLIED, found.sequence),
        }
        for what in _KINDS:
            if holds[what]:
                self._following.find(what, found.sequence, found.sequence)
            else:
                self._following.clear(what, found.sequence, found.sequence)

    def _is_lost(self, sequence: int, consolidated: list[range]) -> bool:
        return not (
            self._copies.has(sequence)
            or any(sequence in each for each in consolidated)
            or self._following.findings.holds(NOT_APPLIED, sequence)
        )
