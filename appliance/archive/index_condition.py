"""Whether the index is sound and whole: noted by who meets damage, read by who relies on it.

Owns two small files beside the generations: `index/damaged.json`, which generation can't be used
and why, and `index/incomplete.json`, which generation does not have all of ledger and packs yet.
Repairs nothing. Invariant: each note names a generation and counts only while that one is current,
so that a switch to another, whoever makes it, ends both.
"""

import os
from datetime import datetime
from typing import TypeVar

import msgspec

from appliance.archive.layout import Layout
from appliance.archive.problem import Problem
from appliance.foundation.clock import Clock, from_microseconds, isoformat, to_microseconds
from appliance.foundation.errors import AzekuraError
from appliance.foundation.files import FileSystem
from appliance.index.generations import Generations

CONDITION = "index"
NOTE_AGAIN_S = 10.0
BY_HAND = "azekura rebuild-index"
Note = TypeVar("Note", bound=msgspec.Struct)


class Damage(msgspec.Struct, frozen=True):
    """A generation that can't be used, and why."""

    generation: str
    cause: str


class Incomplete(msgspec.Struct, frozen=True):
    """A generation that was begun empty and is to be replaced by a whole one.

    `hindrance` and `hint`: why the last attempt to make that one did not succeed.
    """

    generation: str
    cause: str
    since_us: int
    hindrance: str = ""
    hint: str = ""

    @property
    def since_at(self) -> datetime:
        """When it was begun."""
        return from_microseconds(self.since_us)


class IndexCondition:
    """The two notes of one data directory. Any thread; the last note of a kind counts."""

    def __init__(self, files: FileSystem, clock: Clock, layout: Layout) -> None:
        self._files = files
        self._clock = clock
        self._generations = Generations(files, layout.index)
        self._damaged_path = os.path.join(layout.index, "damaged.json")
        self._incomplete_path = os.path.join(layout.index, "incomplete.json")
        self._noted: tuple[str, float] = ("", 0.0)

    def note_damage(self, generation: str, error: AzekuraError) -> None:
        """Note that a generation can't be used; a burst of errors makes one note."""
        now_s = self._clock.monotonic_s()
        known, at_s = self._noted
        if known == generation and now_s - at_s < NOTE_AGAIN_S and at_s:
            return
        self._noted = (generation, now_s)
        note = Damage(generation, error.cause or str(error))
        self._files.write_volatile(self._damaged_path, msgspec.json.encode(note))

    def damage(self) -> Damage | None:
        """Return what is wrong with the current generation."""
        note = _read(self._damaged_path, Damage)
        return note if note is not None and note.generation == self._current() else None

    def note_incomplete(self, note: Incomplete) -> None:
        """Note, durable, that a generation is not whole."""
        self._files.write_atomic(self._incomplete_path, msgspec.json.encode(note))

    def begun_now(self, generation: str, cause: str) -> Incomplete:
        """Return the note of a generation that is begun empty now."""
        return Incomplete(generation, cause, to_microseconds(self._clock.now()))

    def incomplete(self) -> Incomplete | None:
        """Return why the current generation is not whole, None when it is."""
        note = self.last_incomplete()
        return note if note is not None and note.generation == self._current() else None

    def last_incomplete(self) -> Incomplete | None:
        """Return the last generation that was begun empty, current or not."""
        return _read(self._incomplete_path, Incomplete)

    def problem(self) -> Problem | None:
        """Return what status shows of it."""
        damage = self.damage()
        if damage is not None:
            return Problem(
                CONDITION,
                f"the index is damaged: {damage.cause}",
                "No study is lost. azekura receive sets it aside and makes it anew within minutes; "
                f"by hand: {BY_HAND}",
            )
        note = self.incomplete()
        if note is None:
            return None
        sentence = (
            f"the index is being made anew since {isoformat(note.since_at)} ({note.cause}): "
            "queries do not find everything yet, uploads wait"
        )
        if note.hindrance:
            sentence += f"; it does not come forward: {note.hindrance}"
        return Problem(CONDITION, sentence, note.hint or f"No study is lost. By hand: {BY_HAND}")

    def _current(self) -> str:
        return self._generations.current()


def _read(path: str, kind: type[Note]) -> Note | None:
    try:
        with open(path, "rb") as file:
            return msgspec.json.decode(file.read(), type=kind)
    except (OSError, msgspec.DecodeError):
        return None
