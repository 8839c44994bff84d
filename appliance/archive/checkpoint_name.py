"""What a checkpoint is called, in bucket and on disk: node, level, range, and for which keys.

Owns the forms of names only.
"""

import hashlib
import re
from collections.abc import Iterable
from typing import NamedTuple

from appliance.archive.ledger_entry import SEQUENCE_DIGITS

LEVEL_ENTRIES = (1_024, 32_768, 1_048_576)
PARTIAL = 0
ENDING = ".json.gz.age"
KEYS_DIGITS = 8
_KEY = re.compile(
    rf"checkpoints/(\d)/([^/]+)/(\d{{{SEQUENCE_DIGITS}}})-(\d{{{SEQUENCE_DIGITS}}})"
    rf"-([0-9a-f]{{{KEYS_DIGITS}}}){re.escape(ENDING)}"
)


class Range(NamedTuple):
    """Entries `first` to `last`, both included; level 0 is a partial range."""

    level: int
    first: int
    last: int

    @property
    def text(self) -> str:
        """The range as names have it."""
        return f"{self.first:0{SEQUENCE_DIGITS}d}-{self.last:0{SEQUENCE_DIGITS}d}"


class CheckpointName(NamedTuple):
    """Which checkpoint: of which node, of what range, for which keys (`keys_digest`)."""

    node: str
    range: Range
    keys: str

    @property
    def key(self) -> str:
        """The key in the bucket."""
        return f"{prefix(self.range.level, self.node)}{self.range.text}-{self.keys}{ENDING}"

    @property
    def file_name(self) -> str:
        """The name of a copy in its node's folder."""
        return f"{self.range.level}-{self.range.text}-{self.keys}{ENDING}"

    @classmethod
    def parse_file_name(cls, node: str, file_name: str) -> "CheckpointName | None":
        """Return the name of a copy in a node's folder; None for another file's."""
        level, _, rest = file_name.partition("-")
        return cls.parse(f"checkpoints/{level}/{node}/{rest}")

    @classmethod
    def parse(cls, key: str) -> "CheckpointName | None":
        """Return the name in a key of the bucket; None for another object's."""
        found = _KEY.fullmatch(key)
        if found is None:
            return None
        level, node, first, last, keys = found.groups()
        span = Range(int(level), int(first), int(last))
        return cls(node, span, keys) if 0 < span.first <= span.last else None


def prefix(level: int, node: str) -> str:
    """Return what the keys of a node's checkpoints of one level begin with."""
    return f"checkpoints/{level}/{node}/"


def keys_digest(recipients: Iterable[str], signer: str) -> str:
    """Return the 8 hex digits that tell checkpoints for these keys from those for others.

    The signer counts: a rotated signing key vouches for the whole history again.
    """
    text = "".join(f"{each}\n" for each in (*sorted(set(recipients)), signer))
    return hashlib.sha256(text.encode()).hexdigest()[:KEYS_DIGITS]
