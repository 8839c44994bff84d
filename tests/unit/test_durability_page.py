"""The page on durability names tests that exist, and has every rule that the code cites."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "internals" / "durability.md").read_text()


def test_every_test_that_proves_a_step_exists() -> None:
    named = set(re.findall(r"`(\w+/test_\w+\.py)`", PAGE))
    assert named
    assert {name for name in named if not (ROOT / "tests" / name).is_file()} == set()


def test_every_rule_that_the_code_cites_is_on_the_page() -> None:
    rules = set(re.findall(r"^\*\*(D\d+)\*\*", PAGE, re.MULTILINE))
    cited = {
        rule
        for path in (ROOT / "appliance").rglob("*.py")
        for rule in re.findall(r"\((D\d+)\)", path.read_text())
    }
    assert cited
    assert cited <= rules
