"""Which checkpoints a node's ledger should have: a pure function of how far it has come.

The fewest complete ranges, each the largest that fits, from entry 1 on; behind them a partial range
up to the last entry that was sealed to earlier keys. A range above level 1 that would make an
object larger than is of use is left to its parts.
"""

from collections.abc import Mapping, Sequence

from appliance.archive.checkpoint_name import LEVEL_ENTRIES, PARTIAL, Range

# Fetched in ranges of 8 MiB, larger objects are no faster to read, and one of this size still goes
# up in one request.
BYTES_MAX = 128 * 2**20


class Plan:
    """The sizes of levels, and how large an object of a higher level may be."""

    def __init__(
        self, level_entries: Sequence[int] = LEVEL_ENTRIES, bytes_max: int = BYTES_MAX
    ) -> None:
        """`level_entries`: entries a range, level 1 first; each a multiple of the one before."""
        self.level_entries = tuple(level_entries)
        self.bytes_max = bytes_max

    def wanted(self, sequence: int, since: int, sizes: Mapping[Range, int]) -> list[Range]:
        """Return the ranges that entries 1 to `sequence` should lie in, in order.

        `since`: the first entry that the keys of now open. `sizes`: bytes of what was made before,
        for whichever keys.
        """
        found: list[Range] = []
        done = 0
        while (largest := self._largest(done, sequence, sizes)) is not None:
            found.append(largest)
            done = largest.last
        last = min(since - 1, sequence)
        if last > done:
            found.append(Range(PARTIAL, done + 1, last))
        return found

    def _largest(self, done: int, sequence: int, sizes: Mapping[Range, int]) -> Range | None:
        for level in range(len(self.level_entries), 0, -1):
            entries = self.level_entries[level - 1]
            span = Range(level, done + 1, done + entries)
            if done % entries == 0 and span.last <= sequence and self._fits(span, sizes):
                return span
        return None

    def _fits(self, span: Range, sizes: Mapping[Range, int]) -> bool:
        return span.level == 1 or self.size(span, sizes) <= self.bytes_max

    def size(self, span: Range, sizes: Mapping[Range, int]) -> int:
        """Return how large an object will be, as far as its own or its parts' sizes are known."""
        known = sizes.get(span)
        if known is not None or span.level <= 1:
            return known or 0
        entries = self.level_entries[span.level - 2]
        return sum(
            self.size(Range(span.level - 1, first, first + entries - 1), sizes)
            for first in range(span.first, span.last, entries)
        )
