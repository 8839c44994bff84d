"""Which checkpoints a ledger should have: the fewest that cover it, none larger than is of use."""

from appliance.archive.checkpoint_name import Range
from appliance.archive.checkpoint_plan import Plan

PLAN = Plan((4, 16, 64), 1000)


def test_ranges_are_complete_and_the_largest_that_fit() -> None:
    assert PLAN.wanted(3, 1, {}) == []
    assert PLAN.wanted(4, 1, {}) == [Range(1, 1, 4)]
    assert PLAN.wanted(15, 1, {}) == [Range(1, 1, 4), Range(1, 5, 8), Range(1, 9, 12)]
    assert PLAN.wanted(16, 1, {}) == [Range(2, 1, 16)]
    assert PLAN.wanted(85, 1, {}) == [Range(3, 1, 64), Range(2, 65, 80), Range(1, 81, 84)]


def test_every_entry_in_front_of_the_last_full_range_is_covered_once() -> None:
    """Whatever the length, and whatever is too large to be put together."""
    sizes = {Range(1, first, first + 3): 300 for first in range(17, 33, 4)}
    for sequence in range(1, 200):
        found = PLAN.wanted(sequence, 1, sizes)
        covered = [number for span in found for number in range(span.first, span.last + 1)]
        assert covered == list(range(1, sequence // 4 * 4 + 1))


def test_entries_that_the_keys_of_now_do_not_open_are_covered_to_the_last() -> None:
    """By one short checkpoint, until a full range has them."""
    assert PLAN.wanted(7, 7, {}) == [Range(1, 1, 4), Range(0, 5, 6)]
    assert PLAN.wanted(7, 5, {}) == [Range(1, 1, 4)]
    assert PLAN.wanted(8, 7, {}) == [Range(1, 1, 4), Range(1, 5, 8)]
    assert PLAN.wanted(2, 3, {}) == [Range(0, 1, 2)]
    assert PLAN.wanted(2, 9, {}) == [Range(0, 1, 2)]
    assert PLAN.wanted(0, 1, {}) == []


def test_what_would_be_too_large_is_left_to_its_parts() -> None:
    """The parts' sizes say so before, or its own once it was tried."""
    parts = {Range(1, first, first + 3): 251 for first in range(1, 17, 4)}
    assert PLAN.wanted(16, 1, parts) == sorted(parts)
    assert PLAN.wanted(16, 1, dict.fromkeys(parts, 250)) == [Range(2, 1, 16)]
    assert len(PLAN.wanted(16, 1, {Range(2, 1, 16): 1001})) == 4
    assert PLAN.wanted(64, 1, {Range(2, first, first + 15): 251 for first in range(1, 64, 16)}) == [
        Range(2, first, first + 15) for first in range(1, 64, 16)
    ]
    assert PLAN.wanted(4, 1, {Range(1, 1, 4): 5000}) == [Range(1, 1, 4)]
