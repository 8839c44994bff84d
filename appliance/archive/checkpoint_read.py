"""Checkpoints of a node's ledger, out of the bucket: found, fetched, proved, kept.

Owns `ledger/<node>/checkpoints/`: copies, byte for byte, of what was proved. They stand in for the
copies of single entries that were never fetched. Applies nothing.

Invariants:
- A checkpoint is kept and given out only when all of it was proved: that node's signature, its
  hashes, and that it goes on from where the reader is. Of a key the oldest version counts.
- What is wrong with one is told as a finding, and the next best is tried; without any the reader
  goes on with single entries.
- One sealed to others is no finding: that is how it looks to a standby that came later.
"""

import contextlib
import io
import itertools
import os
from collections.abc import Callable, Container, Iterator, Sequence
from typing import NamedTuple

from appliance.archive.checkpoint import CheckpointEntry, CheckpointReader
from appliance.archive.checkpoint_name import LEVEL_ENTRIES, CheckpointName, prefix
from appliance.archive.layout import Layout
from appliance.archive.spooled import fetch_version
from appliance.foundation import log
from appliance.foundation.errors import (
    Damaged,
    DecryptionFailed,
    SealedToOthers,
    UnsupportedFormat,
)
from appliance.foundation.files import FileSystem
from appliance.remote.reading import ObjectReader, oldest_versions
from appliance.remote.store import Lane, ObjectStore, VersionInfo
from appliance.seal.age import HEAD_READ_BYTES
from appliance.seal.identity import Identity

Finding = Callable[[int, int, str], None]
"""Called with first and last sequence of a checkpoint, and what is wrong with it."""

PART = ".part"
LISTED_MAX = 50_000
TRIED_MAX = 64
"""Anybody may put names there: so many are looked at, then single entries are read."""
_WRONG = (Damaged, DecryptionFailed, UnsupportedFormat)

_log = log.get("checkpoint")


def kept_directory(layout: Layout, node: str) -> str:
    """Return where the checkpoints of a node are kept."""
    return os.path.join(layout.ledger, node, "checkpoints")


class Known(NamedTuple):
    """The last entry that a reader has: 0 for none; its header's hash, "" where not known."""

    sequence: int
    header_sha256: str


ANY = Known(0, "")


class KeptCheckpoint:
    """A copy on this disk."""

    def __init__(self, path: str, name: CheckpointName, identities: Sequence[Identity]) -> None:
        self.name = name
        self.path = path
        self._identities = identities

    def entries(self, signers: Container[str], after: int = 0) -> Iterator[CheckpointEntry]:
        """Yield the entries behind a sequence; Damaged, DecryptionFailed when the disk spoilt it.

        Each was right when it is given out, whatever comes behind it.
        """
        with open(self.path, "rb") as file:
            reader = CheckpointReader(file, self._identities, self.name, signers)
            for entry in reader.entries():
                if entry.header.sequence > after:
                    yield entry

    def prove(self, signers: Container[str], known: "Known") -> None:
        """Read all of it; Damaged unless it agrees with the entry that a reader has last."""
        with open(self.path, "rb") as file:
            reader = CheckpointReader(file, self._identities, self.name, signers)
            here = None
            for entry in reader.entries():
                if entry.header.sequence == known.sequence:
                    here = entry.header_sha256
        assert reader.proof is not None
        if self.name.range.first == known.sequence + 1:
            here = reader.proof.previous
        if here is not None and known.header_sha256 not in {"", here}:
            raise Damaged(
                "read a checkpoint", self.name.key,
                f"it contradicts the chain at {known.sequence}",
            )  # fmt: skip


def kept_checkpoints(
    layout: Layout, node: str, identities: Sequence[Identity]
) -> list[KeptCheckpoint]:
    """Return the copies here, by their first entry, of those the one that reaches furthest first.

    Such as lie whole within another are left out.
    """
    directory = kept_directory(layout, node)
    found: list[KeptCheckpoint] = []
    last = 0
    for name in sorted(
        kept_names(directory, node), key=lambda each: (each.range.first, -each.range.last)
    ):
        if name.range.last > last:
            last = name.range.last
            found.append(KeptCheckpoint(os.path.join(directory, name.file_name), name, identities))
    return found


def kept_names(directory: str, node: str) -> Iterator[CheckpointName]:
    """Yield the names of the copies in a folder, in no order."""
    with contextlib.suppress(FileNotFoundError):
        for file_name in os.listdir(directory):
            name = CheckpointName.parse_file_name(node, file_name)
            if name is not None:
                yield name


class CheckpointSource:
    """The bucket's checkpoints. Used by one thread."""

    def __init__(
        self,
        files: FileSystem,
        store: ObjectStore,
        layout: Layout,
        identities: Sequence[Identity],
    ) -> None:
        self._files = files
        self._store = store
        self._layout = layout
        self._identities = identities
        # Of versions that were looked at: what is wrong with them, "" for those sealed to others.
        self._judged: dict[str, str] = {}

    def look(self, node: str) -> "Offered":
        """Return what the bucket has of a node's: a listing of each level. CloudError."""
        self._clear_parts(node)
        found: dict[CheckpointName, VersionInfo] = {}
        for level in range(len(LEVEL_ENTRIES) + 1):
            listed = oldest_versions(self._store, prefix(level, node))
            for version in itertools.islice(listed, LISTED_MAX):
                name = CheckpointName.parse(version.key)
                if name is not None:
                    found[name] = version
        return Offered(
            self._files, self._store, kept_directory(self._layout, node), self._identities, found,
            self._judged,
        )  # fmt: skip

    def _clear_parts(self, node: str) -> None:
        directory = kept_directory(self._layout, node)
        if os.path.isdir(directory):
            for name in os.listdir(directory):
                if name.endswith(PART):
                    self._files.unlink(os.path.join(directory, name))


class Offered:
    """The checkpoints of one node, as one look showed them."""

    def __init__(
        self,
        files: FileSystem,
        store: ObjectStore,
        directory: str,
        identities: Sequence[Identity],
        found: dict[CheckpointName, VersionInfo],
        judged: dict[str, str],
    ) -> None:
        self._files = files
        self._store = store
        self._directory = directory
        self._identities = identities
        self._found = found
        self._judged = judged
        self._opened: set[str] = set()

    @property
    def last(self) -> int:
        """The last entry that any of them holds, 0 for none."""
        return max((name.range.last for name in self._found), default=0)

    def following(self, sequence: int) -> int | None:
        """Return the first sequence behind one at which a checkpoint begins."""
        firsts = [name.range.first for name in self._found if name.range.first > sequence]
        return min(firsts, default=None)

    def next(
        self, signers: Container[str], sequence: int, known: Known, on_finding: Finding
    ) -> KeptCheckpoint | None:
        """Return a proved checkpoint that holds an entry; None when there is none.

        `known`: what it must not contradict, if that is in it or just in front. The one that
        reaches furthest is taken. Raises CloudError, OutOfSpace, StorageFailed.
        """
        following = []
        for name, version in list(self._found.items()):
            if name.range.first <= sequence <= name.range.last:
                wrong = self._judged.get(version.version_id)
                if wrong is None:
                    following.append(name)
                elif wrong:
                    self._tell(name, wrong, on_finding)
        following.sort(key=self._order)
        for name in following[:TRIED_MAX]:
            kept = self._proved(name, signers, known, on_finding)
            if kept is not None:
                return kept
        return None

    def judge(
        self, first: int, last: int, signers: Container[str], known: Known, on_finding: Finding
    ) -> None:
        """Look again at what lies within a range that a finding names; errors as for `next`."""
        within = [
            name for name in self._found if first <= name.range.first and name.range.last <= last
        ]
        for name in within[:TRIED_MAX]:
            wrong = self._judged.get(self._found[name].version_id)
            if wrong:
                self._tell(name, wrong, on_finding)
            elif wrong is None:
                self._proved(name, signers, known, on_finding)

    def _proved(
        self, name: CheckpointName, signers: Container[str], known: Known, on_finding: Finding
    ) -> KeptCheckpoint | None:
        """Return a checkpoint that was proved and is kept; None when it is wrong or not for us."""
        path = os.path.join(self._directory, name.file_name)
        here: str | None = path
        if not os.path.exists(path):
            here = self._fetch(name, f"{path}{PART}", signers, on_finding)
        if here is None:
            return None
        try:
            KeptCheckpoint(here, name, self._identities).prove(signers, known)
        except _WRONG as error:
            self._files.unlink(here)
            self._tell(name, error.cause, on_finding)
            return None
        if here != path:
            self._files.rename(here, path)
        return KeptCheckpoint(path, name, self._identities)

    def _order(self, name: CheckpointName) -> tuple[int, bool, float]:
        at_s = self._found[name].last_modified_at.timestamp()
        return -name.range.last, name.keys not in self._opened, -at_s

    def _fetch(
        self, name: CheckpointName, part: str, signers: Container[str], on_finding: Finding
    ) -> str | None:
        """Fetch a checkpoint that is for us into a file; return its path, None when it is not."""
        version = self._found[name]
        try:
            self._check_end(name, signers)
        except SealedToOthers as error:
            if name.keys in self._opened:
                self._tell(name, error.cause, on_finding)
            else:
                self._judged[version.version_id] = ""
            return None
        except _WRONG as error:
            self._tell(name, error.cause, on_finding)
            return None
        self._opened.add(name.keys)
        self._files.make_directory(self._directory)
        fetch_version(self._files, self._store, version, part, Lane.NEW)
        return part

    def _check_end(self, name: CheckpointName, signers: Container[str]) -> None:
        """Raise unless it is for us and signed: both ends of the object tell."""
        version = self._found[name]
        source = ObjectReader(
            self._store, version.key, version.version_id, version.size_bytes, Lane.NEW
        )
        with io.BufferedReader(source, HEAD_READ_BYTES) as file:
            CheckpointReader(file, self._identities, name, signers).closing()

    def _tell(self, name: CheckpointName, what: str, on_finding: Finding) -> None:
        _log.warning(
            "checkpoint_not_taken", node=name.node, level=name.range.level, first=name.range.first,
            last=name.range.last,
        )  # fmt: skip
        what = what or "it can't be read"
        self._judged[self._found.pop(name).version_id] = what
        on_finding(name.range.first, name.range.last, what)
