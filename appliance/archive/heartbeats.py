"""Writing this node's heartbeat, and hearing those of the others; part of the uplink.

Owns `nodes/<this node>.json` in the bucket, and what is known of the others. Must not write a
ledger.

Invariants:
- A heartbeat counts only when the key that is configured for its node has signed it, and when it is
  not older than one that was heard before; else it is a finding, and the last good one counts.
- When a node was heard is told by the bucket's clock: by what it signed, and never later than when
  the bucket took it.
- A line that is down changes nothing of what is known.
- A node that has lost its name to another box says nothing more under it.
Used by one thread; `_lock` guards what `problems` reads.
"""

import hashlib
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import datetime
from itertools import islice
from typing import NamedTuple

from appliance.archive.heartbeat import (
    BEAT_BYTES_MAX,
    FORMAT,
    Heartbeat,
    State,
    beat_key,
    open_beat,
    seal_beat,
)
from appliance.archive.layout import Layout
from appliance.archive.ledger_entry import entry_key
from appliance.archive.nodes import Heard, NodesSeen, judge, nodes_now, write_nodes
from appliance.archive.problem import Problem
from appliance.archive.retire import retired_at
from appliance.foundation import log
from appliance.foundation.clock import Clock, isoformat
from appliance.foundation.errors import (
    CloudError,
    CloudUnavailable,
    Damaged,
    ObjectMissing,
    UnsupportedFormat,
)
from appliance.foundation.files import FileSystem
from appliance.remote.store import Lane, ObjectStore
from appliance.seal.signing import SigningKey

BEAT_S = 60.0
LOOK_S = 20.0
AGAIN_S = 10.0
TELL_S = 10.0
VERSIONS_MAX = 20
"""How many older versions are looked at for a good heartbeat behind bad ones."""

_log = log.get("heartbeat")


class Own(NamedTuple):
    """What this node's heartbeat says of its ledger."""

    ledger_sequence: int
    incarnation: str


class _Copy(NamedTuple):
    version_id: str
    size_bytes: int
    stored_at: datetime


class Heartbeats:
    """The heartbeats of one node and of those it knows."""

    def __init__(
        self,
        files: FileSystem,
        clock: Clock,
        store: ObjectStore,
        layout: Layout,
        node: str,
        role: str,
        software: str,
        signing_key: SigningKey | None,
        signers: Mapping[str, Collection[str]],
        silent_after_s: float,
        retired: Collection[str],
        own: Callable[[], Own | None],
    ) -> None:
        """Take what to beat with and whom to hear.

        `signing_key`: None for a node that writes nothing, no heartbeat either. `signers`: the
        others' public keys by name. `own` returns None while no heartbeat may be written.
        """
        self._files = files
        self._clock = clock
        self._store = store
        self._layout = layout
        self._node = node
        self._role = role
        self._software = software
        self._signing_key = signing_key
        self._signers = signers
        self._silent_after_s = silent_after_s
        self._retired = retired
        self._own = own
        self._heard: dict[str, Heard] = {}
        self._next_beat_s = self._next_look_s = self._next_tell_s = clock.monotonic_s()
        self._judged_at = ""
        self._beaten: Heartbeat | None = None
        self._lock = threading.Lock()
        self._nodes = nodes_now(layout, clock)
        self._trouble: Problem | None = None
        self._double: Problem | None = None
        self._findings: dict[str, str] = {}

    def turn(self) -> None:
        """Do what is due: beat, look, tell. Called about once a second."""
        state: State = "retired" if retired_at(self._layout) else "alive"
        changed = self._beaten is not None and self._beaten.state != state
        if changed or self._is_due(self._next_beat_s):
            self._beat(state)
        if self._signers and self._is_due(self._next_look_s):
            self._look()
        elif self._is_due(self._next_tell_s):
            self._tell()

    def problems(self) -> list[Problem]:
        """Return what is wrong with heartbeats, and who is silent."""
        with self._lock:
            found = [each for each in (self._double, self._trouble) if each is not None]
            findings, nodes = dict(self._findings), list(self._nodes)
        found += [
            Problem(
                f"heartbeat:{node}",
                f"the heartbeat of {node}: {what}",
                "Somebody else writes to the bucket, or keys.signers has another key than that "
                "node's: compare `azekura key list` there. What is rightly signed goes on",
            )
            for node, what in sorted(findings.items())
        ]
        found += [
            Problem(
                f"silent:{each.node}",
                f"{each.node} is silent since {each.since}",
                "Its box, its line or its uplink is down: look there. If it is gone for good, name "
                "it in standby.retired",
            )
            for each in nodes
            if each.state == "silent"
        ]
        return found

    def _is_due(self, at_s: float) -> bool:
        return self._clock.monotonic_s() >= at_s

    # --- our own

    def _beat(self, state: State) -> None:
        own = self._own()
        if own is None or self._signing_key is None:
            return  # asked again with the next turn: it costs nothing
        trouble = None
        try:
            self._look_for_double(own, self._signing_key.public_text)
            beat = Heartbeat(
                FORMAT, self._node, self._role, state, isoformat(self._store.server_time()),
                own.ledger_sequence, own.incarnation, self._software,
            )  # fmt: skip
            content = seal_beat(beat, self._signing_key)
            self._store.put(
                beat_key(self._node), content, sha256=hashlib.sha256(content).digest(),
                create_only=False, lane=Lane.URGENT,
            )  # fmt: skip
        except CloudUnavailable:
            next_s = AGAIN_S  # the link's state says so
        except CloudError as error:
            next_s = BEAT_S
            trouble = Problem(
                "heartbeat",
                f"this node's heartbeat can't be written: {error}",
                "The others take it for silent. Its credentials need to put below nodes/",
            )
        else:
            next_s = BEAT_S
            if self._beaten is None or self._beaten.state != state:
                _log.info("heartbeat", state=state)
            self._beaten = beat
        self._next_beat_s = self._clock.monotonic_s() + next_s
        with self._lock:
            self._trouble = trouble

    def _look_for_double(self, own: Own, signer: str) -> None:
        """See whether somebody has written our heartbeat since we did."""
        if self._beaten is None:
            return
        double = None
        try:
            content = self._store.get(beat_key(self._node))
            found = open_beat(content, self._node, {signer})
            is_double = found.incarnation != own.incarnation and found.at > self._beaten.at
        except ObjectMissing:
            is_double = False
        except (Damaged, UnsupportedFormat):
            is_double = True
        if is_double:
            double = Problem(
                "double",
                f"another box writes heartbeats under the name {self._node}",
                "Two boxes have this name, or somebody writes to the bucket: end one of them, or "
                "give it another node.name",
            )
        with self._lock:
            self._double = double

    # --- the others'

    def _look(self) -> None:
        try:
            now = self._store.server_time()
            for node, signers in self._signers.items():
                what = self._hear(node, signers)
                with self._lock:
                    known = self._findings.pop(node, "")
                    if what:
                        self._findings[node] = what
                if what and not known:
                    _log.warning("heartbeat_finding", node=node, what=what)
        except CloudError as error:
            self._next_look_s = self._clock.monotonic_s() + AGAIN_S
            _log.info("heartbeats_not_heard", error=type(error).__name__)
            self._tell()
            return
        self._next_look_s = self._clock.monotonic_s() + LOOK_S
        before = {each.node: each for each in self._nodes}
        nodes = judge(
            self._signers, self._heard, now, self._silent_after_s, self._retired, before
        )  # fmt: skip
        for each in nodes:
            earlier = before.get(each.node)
            if earlier is None or earlier.state != each.state:
                _log.info("node_is", node=each.node, state=each.state, since=each.since)
        with self._lock:
            self._nodes = nodes
        self._judged_at = isoformat(now)
        self._tell()

    def _tell(self) -> None:
        self._next_tell_s = self._clock.monotonic_s() + TELL_S
        seen = NodesSeen(self._clock.now().timestamp(), self._judged_at, self._nodes)
        write_nodes(self._files, self._layout, seen)

    def _hear(self, node: str, signers: Collection[str]) -> str:
        """Take in a node's heartbeat; return what is wrong with it."""
        what = ""
        for copy in self._copies(node):
            if copy is None:
                what = "it is hidden by a delete marker"
                continue
            try:
                beat = self._open(node, signers, copy)
            except (Damaged, UnsupportedFormat) as error:
                what = what or error.cause or str(error)
                continue
            except ObjectMissing:
                continue
            known = self._heard.get(node)
            if known is not None and beat.at < known.beat.at:
                return what or "an older one was put in its place"
            at = min(datetime.fromisoformat(beat.at), copy.stored_at)
            self._heard[node] = Heard(beat, at)
            return what or self._missing_tail(beat)
        return what

    def _open(self, node: str, signers: Collection[str], copy: _Copy) -> Heartbeat:
        if copy.size_bytes > BEAT_BYTES_MAX:
            raise Damaged("read", f"heartbeat of {node}", "it is larger than any may be")
        content = self._store.get(beat_key(node), copy.version_id or None)
        return open_beat(content, node, signers)

    def _copies(self, node: str) -> Iterator[_Copy | None]:
        """Yield what lies at a node's key, the newest first; None for a marker in front of it."""
        key = beat_key(node)
        try:
            info = self._store.head(key)
        except ObjectMissing:
            newest = ""
        else:
            newest = info.version_id
            yield _Copy(newest, info.size_bytes, info.last_modified_at)
        versions = (each for each in self._store.versions(key) if each.key == key)
        for each in islice(versions, VERSIONS_MAX):
            if each.is_delete_marker:
                yield None
            elif each.version_id != newest:
                yield _Copy(each.version_id, each.size_bytes, each.last_modified_at)

    def _missing_tail(self, beat: Heartbeat) -> str:
        sequence = beat.ledger_sequence
        if sequence and self._store.oldest_version(entry_key(beat.node, sequence)) is None:
            return f"it names entry {sequence} of its ledger, which was removed: the tail is gone"
        return ""
