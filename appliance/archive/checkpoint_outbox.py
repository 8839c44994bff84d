"""The one checkpoint that is on its way: its encrypted file and the note beside it.

Owns `checkpoints/`. Invariant: what is noted is durable in front of its note (D6), and both stay
until the bucket's copy was read back (D7).
"""

import os
from collections.abc import Callable

import msgspec

from appliance.archive.spooled import Spooled, checksums
from appliance.foundation.files import FileSystem


class Note(Spooled, kw_only=True):
    """What lies beside the spool: which checkpoint it is, by its key in the bucket."""

    key: str


class Outbox:
    """Spool and note. Used by one thread; `note` may be called by any."""

    def __init__(self, files: FileSystem, directory: str) -> None:
        self._files = files
        self.directory = directory
        self.spool = os.path.join(directory, "spool.json.gz.age")
        self._note_path = os.path.join(directory, "note.json")

    def note(self) -> Note | None:
        """Return the note, None when there is none that can be read."""
        try:
            with open(self._note_path, "rb") as file:
                return msgspec.json.decode(file.read(), type=Note)
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def save(self, note: Note) -> None:
        """Make a note durable."""
        self._files.write_atomic(self._note_path, msgspec.json.encode(note))

    def holds(self, note: Note, *, whole: bool = False) -> bool:
        """Tell whether the spool is what its note says, by its size or by all of its bytes."""
        try:
            if whole:
                return checksums(self.spool)[0] == note.sha256
            return os.path.getsize(self.spool) == note.size_bytes
        except FileNotFoundError:
            return False

    def forget(self) -> None:
        """Remove both."""
        self._files.unlink(self.spool)
        self._files.unlink(self._note_path)

    def sweep(self, is_wanted: Callable[[str], bool]) -> None:
        """Remove what a crash left that nobody needs; `is_wanted` is asked for the note's key."""
        note = self.note()
        if note is None or not is_wanted(note.key):
            self.forget()
        for file_name in os.listdir(self.directory):
            path = os.path.join(self.directory, file_name)
            if path not in {self.spool, self._note_path}:
                self._files.unlink(path)
