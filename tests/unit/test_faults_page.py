"""The page on faults names every fault of the list once, and tests that exist."""

import re
from pathlib import Path

from tests.seeded.bugs import BUGS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "internals" / "faults.md").read_text()
FAULTS = range(1, 73)


def test_every_fault_has_its_row() -> None:
    numbers = [int(each) for each in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)]
    assert numbers == list(FAULTS)


def test_every_test_that_proves_a_fault_exists() -> None:
    named = set(re.findall(r"`(\w+/test_\w+\.py)::(test_\w+)`", PAGE))
    assert len(named) > len(FAULTS)
    missing = {
        f"{path}::{name}"
        for path, name in named
        if not (ROOT / "tests" / path).is_file()
        or f"def {name}(" not in (ROOT / "tests" / path).read_text()
    }
    assert missing == set()


def test_no_row_is_silent() -> None:
    """A test's name, or the reason why there is none."""
    rows = [line.split("|") for line in PAGE.splitlines() if re.match(r"\| \d+ \|", line)]
    assert [cells[1] for cells in rows if len(cells) != 6 or not cells[4].strip()] == []


def test_every_seeded_bug_can_be_seeded_and_is_named() -> None:
    """What it replaces stands in the code exactly once: the code has not moved away from it."""
    stale = [bug.name for bug in BUGS if (ROOT / bug.path).read_text().count(bug.before) != 1]
    assert stale == []
    assert {test for bug in BUGS for test in bug.tests if not (ROOT / test).is_file()} == set()
