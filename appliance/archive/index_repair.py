"""A damaged, unknown or empty index is set aside and made anew, while the node receives. No hands.

Runs in the indexer's process, under `index/indexer.lock`, so that one process decides. Others only
note damage (`index_condition`).

Invariants:
- An index is set aside at most once in REPAIR_S: damage that comes back is shown, not chased.
- The note that the empty generation is not whole is durable before that becomes current.
- It stays until a rebuild has brought in every entry that `state/ledger.json` knows of.
"""

import threading
from collections.abc import Callable, Mapping

import msgspec

from appliance.archive.entry_copies import EntryCopies
from appliance.archive.index_condition import BY_HAND, IndexCondition
from appliance.archive.layout import Layout
from appliance.archive.ledger import load_state, state_path
from appliance.archive.rebuild import Counts
from appliance.foundation import log
from appliance.foundation.clock import Clock, to_microseconds
from appliance.foundation.errors import AzekuraError, Busy, IndexDamaged, UnsupportedFormat
from appliance.index.index import Index

REPAIR_S = 300.0
LOOK_S = 1.0
STARTED = 1
"""A ledger of one entry says that the node was started, and nothing else."""

_log = log.get("index")

Rebuild = Callable[[Callable[[float], None]], Counts]


class IndexRepair:
    """Opens the index, whatever state it is in, and makes a broken one anew.

    `run` is a thread of its own; the other methods belong to the indexer's thread.
    """

    def __init__(
        self,
        clock: Clock,
        layout: Layout,
        index: Index,
        condition: IndexCondition,
        node: str,
        rebuild: Rebuild,
        followed: Mapping[str, EntryCopies] | None = None,
    ) -> None:
        """`followed`: the copies of each ledger that is followed."""
        self._clock = clock
        self._layout = layout
        self._index = index
        self._condition = condition
        self._node = node
        self._rebuild = rebuild
        self._followed = followed or {}
        self._next_rebuild_s = clock.monotonic_s()

    def open(self) -> bool:
        """Open the index, or set it aside; False when it can't be used and it is too early."""
        try:
            self._index.open()
        except (IndexDamaged, UnsupportedFormat):
            if not self.set_aside():
                return False
            self._index.open()
        self._note_lost()
        return True

    def set_aside(self) -> bool:
        """Put an empty generation in the place of a damaged one, if there is one and it is time."""
        damage = self._condition.damage()
        if damage is None or not self._is_time():
            return False
        self._next_rebuild_s = self._clock.monotonic_s()
        return self._index.set_aside(
            damage.generation,
            lambda fresh: self._condition.note_incomplete(
                self._condition.begun_now(fresh, damage.cause)
            ),
        )

    def _is_time(self) -> bool:
        last = self._condition.last_incomplete()
        if last is None:
            return True
        age_s = (to_microseconds(self._clock.now()) - last.since_us) / 1e6
        return not 0 <= age_s < REPAIR_S

    def _note_lost(self) -> None:
        """Note an index that knows nothing of a ledger that has something to say."""
        with self._index.read() as view:
            lost = view.progress(self._node) <= 0 and self._confirmed() > STARTED
            lost = lost or any(
                view.progress(name) <= 0 and copies.sequences()
                for name, copies in self._followed.items()
            )
        if lost and self._condition.incomplete() is None:
            _log.error("index_lost")
            self._condition.note_incomplete(
                self._condition.begun_now(self._index.generation, "it was lost")
            )

    def _confirmed(self) -> int:
        return load_state(state_path(self._layout)).confirmed_sequence

    def run(self, stop: threading.Event, interrupt: threading.Event) -> None:
        """Rebuild what is not whole; interrupt the indexer when its index is to be set aside."""
        while not stop.is_set():
            if self._condition.damage() is not None and self._is_time():
                interrupt.set()
            elif self._clock.monotonic_s() >= self._next_rebuild_s:
                self.rebuild_if_wanted(stop)
            self._clock.wait(stop, LOOK_S)
        interrupt.set()

    def rebuild_if_wanted(self, stop: threading.Event) -> bool:
        """Make a whole index in place of one that is not; tell whether there is one now."""
        note = self._condition.incomplete()
        if note is None:
            return True

        def advance(_amount: float) -> None:
            if stop.is_set():
                raise Busy("rebuild the index", cause="the node stops")

        try:
            counts = self._rebuild(advance)
        except Busy:
            return False  # somebody else is at it, or the node stops
        except AzekuraError as error:
            generation, hindrance, hint = note.generation, str(error), error.hint
        else:
            if counts.entries >= self._confirmed():
                _log.info("index_whole_again", instances=counts.instances)
                return True
            generation = self._index.generations.current()
            hindrance = f"{counts.entries} of {self._confirmed()} ledger entries could be read"
            hint = f"The rest is fetched when the bucket can be reached. By hand: {BY_HAND}"
        _log.error("index_not_whole", cause=hindrance)
        self._next_rebuild_s = self._clock.monotonic_s() + REPAIR_S
        self._condition.note_incomplete(
            msgspec.structs.replace(note, generation=generation, hindrance=hindrance, hint=hint)
        )
        return False
