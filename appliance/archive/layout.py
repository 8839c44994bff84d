"""The data directory: where everything lies, and where the pack of an id is found.

Owns names only. Every path below is created once, by `create`.
"""

import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from datetime import UTC, datetime

from appliance.foundation.clock import Clock
from appliance.foundation.files import FileSystem

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
PACK_ID_LENGTH = 26
SAME_MOMENT_MS = 1000


def new_pack_id(at_ms: int | None = None) -> str:
    """Return 26 characters: 48 bits of milliseconds, then 80 random bits; sorts by time."""
    return _pack_id(time.time_ns() // 1_000_000 if at_ms is None else at_ms, secrets.randbits(80))


class PackIds:
    """Ids of one writer's packs, that ascend as the packs begin. Not thread-safe.

    Packs that begin in one moment, or while the clock steps back a little, follow each other; after
    a larger step their ids follow the clock again.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last_ms = 0

    def next(self) -> str:
        """Return the id of a pack that begins now."""
        now_ms = int(self._clock.now().timestamp() * 1000)
        if self._last_ms - SAME_MOMENT_MS < now_ms <= self._last_ms:
            now_ms = self._last_ms + 1
        self._last_ms = now_ms
        return new_pack_id(now_ms)


def first_pack_id(at: datetime) -> str:
    """Return the least id that a pack of that moment can have."""
    return _pack_id(int(at.timestamp() * 1000), 0)


def _pack_id(moment_ms: int, drawn: int) -> str:
    number = (moment_ms & (2**48 - 1)) << 80 | drawn
    return "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))


def salvaged_pack_id(pack_id: str) -> str:
    """Return the id of the pack that takes the good members of a damaged one: always the same."""
    created = 0
    for character in pack_id:
        created = created << 5 | _ALPHABET.index(character)
    digest = hashlib.sha256(b"salvaged " + pack_id.encode()).digest()
    number = created >> 80 << 80 | int.from_bytes(digest[:10], "big")
    return "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))


def pack_created_at(pack_id: str) -> datetime:
    """Return the time in a pack id."""
    number = 0
    for character in pack_id:
        number = number << 5 | _ALPHABET.index(character)
    return datetime.fromtimestamp((number >> 80) / 1000, UTC)


def pack_key(pack_id: str) -> str:
    """Return the pack's key in the bucket: a date and the id, nothing of the patient."""
    return f"packs/{pack_created_at(pack_id):%Y/%m/%d}/{pack_id}.tar.age"


class Layout:
    """Paths below one data directory."""

    def __init__(self, data_dir: str) -> None:
        self.data_dir = data_dir
        self.open_packs = os.path.join(data_dir, "packs", "open")
        self.closed = os.path.join(data_dir, "packs", "closed")
        self.sealed = os.path.join(data_dir, "packs", "sealed")
        self.recalled = os.path.join(data_dir, "packs", "recalled")
        self.set_aside = os.path.join(data_dir, "packs", "set-aside")
        self.spool = os.path.join(data_dir, "spool")
        self.checkpoints = os.path.join(data_dir, "checkpoints")
        self.ledger = os.path.join(data_dir, "ledger")
        self.index = os.path.join(data_dir, "index")
        self.state = os.path.join(data_dir, "state")
        self.requests = os.path.join(self.state, "requests")
        self.commitment = os.path.join(self.state, "commitment")
        self.pins = os.path.join(self.state, "pins")
        self.web = os.path.join(self.state, "web")
        self.erasures = os.path.join(self.state, "erasures")

    def create(self, files: FileSystem) -> None:
        """Make every directory, durable."""
        for path in (
            self.open_packs, self.closed, self.sealed, self.recalled, self.set_aside, self.spool,
            self.checkpoints, self.ledger, self.index, self.requests, self.commitment, self.pins,
            self.web, self.erasures,
        ):  # fmt: skip
            files.make_directory(path)

    def writer_directory(self, writer: str) -> str:
        """Return the directory that the named writer owns."""
        return os.path.join(self.open_packs, writer)

    def writers(self) -> list[str]:
        """Return the names of all writers that ever opened a pack here."""
        with os.scandir(self.open_packs) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())

    def sealed_path(self, pack_id: str) -> str:
        """Return where the sealed pack lies, if it is here."""
        return os.path.join(self.sealed, f"{pack_id}.tar")

    def closed_path(self, pack_id: str) -> str:
        """Return where the closed pack lies, if it is."""
        return os.path.join(self.closed, f"{pack_id}.tar")

    def spool_path(self, pack_id: str) -> str:
        """Return where the encrypted copy in flight lies."""
        return os.path.join(self.spool, f"{pack_id}.tar.age")

    def candidates(self, pack_id: str) -> Iterator[str]:
        """Yield every path at which the pack may lie, the likeliest first.

        A pack moves open → closed → sealed; whoever looks in that order twice cannot miss it.
        """
        name = f"{pack_id}.tar"
        yield os.path.join(self.sealed, name)
        yield os.path.join(self.closed, name)
        for writer in self.writers():
            yield os.path.join(self.open_packs, writer, name)
        yield os.path.join(self.closed, name)
        yield os.path.join(self.sealed, name)


def packs_in(directory: str) -> list[str]:
    """Return the ids of the packs in a directory, oldest first."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    return sorted(name[:-4] for name in names if name.endswith(".tar"))


def packs_on_disk(layout: Layout) -> Iterator[str]:
    """Yield the ids of all packs, in the direction in which they move, so that none is missed."""
    for writer in layout.writers():
        yield from packs_in(layout.writer_directory(writer))
    yield from packs_in(layout.closed)
    yield from packs_in(layout.sealed)
