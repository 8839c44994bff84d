"""The copies of a ledger's entries on this disk: `ledger/<node>/<sequence>.json.gz.age`.

Owns the folder of a followed node; the own ledger's is written by `ledger`. Invariants:
- A copy of another node's entry is here only if it was checked: signed by that node, in its place.
- A copy that no longer opens is put aside, so that it is fetched again.
"""

import contextlib
import os

from appliance.archive.checkpoint_read import kept_names
from appliance.archive.layout import Layout
from appliance.archive.ledger_entry import entry_name
from appliance.foundation import log
from appliance.foundation.files import FileSystem

ASIDE = ".unreadable"

_log = log.get("ledger")


class EntryCopies:
    """The copies of one node's ledger. Any thread."""

    def __init__(self, files: FileSystem, layout: Layout, node: str) -> None:
        self._files = files
        self._directory = os.path.join(layout.ledger, node)
        self.node = node

    def prepare(self) -> None:
        """Make the folder, durable."""
        self._files.make_directory(self._directory)

    def sequences(self) -> list[int]:
        """Return the sequences of which there is a copy, ascending."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self._directory):
                with contextlib.suppress(ValueError):
                    sequence = int(name.removesuffix(".json.gz.age"))
                    if name == entry_name(sequence):
                        found.append(sequence)
        return sorted(found)

    def consolidated(self) -> list[range]:
        """Return the sequences that checkpoints kept here hold, a range for each."""
        names = kept_names(os.path.join(self._directory, "checkpoints"), self.node)
        return [range(name.range.first, name.range.last + 1) for name in names]

    def has(self, sequence: int) -> bool:
        """Tell whether there is a copy."""
        return os.path.exists(self._path(sequence))

    def read(self, sequence: int) -> bytes | None:
        """Return a copy's bytes, None when there is none or the disk does not give it."""
        try:
            with open(self._path(sequence), "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None
        except OSError:
            self.put_aside(sequence)
            return None

    def keep(self, sequence: int, sealed: bytes) -> None:
        """Write a copy, durable; StorageFailed, OutOfSpace."""
        self._files.write_atomic(self._path(sequence), sealed)

    def put_aside(self, sequence: int) -> None:
        """Put a copy that does not open out of the way."""
        path = self._path(sequence)
        with contextlib.suppress(FileNotFoundError):
            self._files.rename(path, path + ASIDE)
            _log.error("ledger_copy_put_aside", node=self.node, sequence=sequence)

    def _path(self, sequence: int) -> str:
        return os.path.join(self._directory, entry_name(sequence))
