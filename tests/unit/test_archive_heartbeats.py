"""Heartbeats: what is believed of them, whose clock counts, and what is found to be wrong."""

import base64
from pathlib import Path

import pytest

from appliance.archive.heartbeat import Heartbeat, beat_key, open_beat, seal_beat
from appliance.archive.heartbeats import AGAIN_S, BEAT_S, LOOK_S, Heartbeats, Own
from appliance.archive.layout import Layout
from appliance.archive.ledger_entry import entry_key
from appliance.archive.nodes import FRESH_S, NodeSeen, nodes_now, read_nodes, site_is_lost
from appliance.archive.retire import retire, retired_at, take_up_again
from appliance.foundation.clock import isoformat
from appliance.foundation.errors import CloudRefused, Damaged
from appliance.foundation.files import FileSystem
from appliance.seal.signing import SigningKey
from tests.support.fake_store import FakeStore, Fault
from tests.support.manual_clock import ManualClock

SILENT_S = 600.0
FILES = FileSystem()


class Beating:
    """A node over the bucket, with a data directory and a clock of its own."""

    def __init__(
        self, folder: Path, store: FakeStore, name: str, *, role: str = "appliance"
    ) -> None:
        self.name = name
        self.clock = ManualClock()
        self.layout = Layout(str(folder / name))
        self.layout.create(FILES)
        self.store = store
        self.role = role
        self.key = SigningKey.create(str(folder / f"{name}.pem"))
        self.own: Own | None = Own(0, f"{name}-1")
        self.signers: dict[str, tuple[str, ...]] = {}
        self.retired: tuple[str, ...] = ()
        self.beats: Heartbeats

    def start(self) -> "Beating":
        self.beats = Heartbeats(
            FILES, self.clock, self.store, self.layout, self.name, self.role, "test", self.key,
            self.signers, SILENT_S, self.retired, lambda: self.own,
        )  # fmt: skip
        self.beats.turn()
        return self

    def turn(self, after_s: float = BEAT_S) -> None:
        self.clock.advance(after_s)
        self.beats.turn()

    def sees(self, node: str) -> NodeSeen:
        (found,) = [each for each in nodes_now(self.layout, self.clock) if each.node == node]
        return found

    def conditions(self) -> list[str]:
        return [each.condition for each in self.beats.problems()]

    def beat(self, bucket: ManualClock, **changed: object) -> bytes:
        """Return a rightly signed heartbeat of this node."""
        said = {
            "format": 1, "node": self.name, "role": self.role, "state": "alive",
            "at": isoformat(bucket.now()), "ledger_sequence": 0, "incarnation": "x",
            "software": "test",
        } | changed  # fmt: skip
        return seal_beat(Heartbeat(**said), self.key)


@pytest.fixture
def bucket() -> ManualClock:
    return ManualClock()


@pytest.fixture
def store(bucket: ManualClock) -> FakeStore:
    return FakeStore(bucket)


@pytest.fixture
def site(tmp_path: Path, store: FakeStore) -> Beating:
    return Beating(tmp_path, store, "site-a").start()


@pytest.fixture
def standby(tmp_path: Path, store: FakeStore, site: Beating) -> Beating:
    found = Beating(tmp_path, store, "cloud", role="standby")
    found.signers = {"site-a": (site.key.public_text,)}
    return found.start()


def later(bucket: ManualClock, seconds: float, *nodes: Beating) -> None:
    """Let time pass for the bucket, and a turn for some nodes."""
    bucket.advance(seconds)
    for node in nodes:
        node.turn(seconds)


def test_a_heartbeat_is_unlocked_and_proves_its_node(site: Beating, store: FakeStore) -> None:
    """It is signed by its node, names no one else, and may be overwritten."""
    content = store.get(beat_key("site-a"))
    said = open_beat(content, "site-a", {site.key.public_text})
    assert (said.node, said.role, said.state, said.incarnation) == (
        "site-a", "appliance", "alive", "site-a-1",
    )  # fmt: skip
    assert store.head(beat_key("site-a")).lock is None


def test_a_silent_site_is_told_since_it_was_last_heard(
    bucket: ManualClock, site: Beating, standby: Beating
) -> None:
    """Alive while it beats, silent after the configured span, alive again when it is heard."""
    assert standby.sees("site-a").state == "alive"
    later(bucket, BEAT_S, site, standby)
    last = isoformat(bucket.now())
    later(bucket, SILENT_S - 1, standby)
    assert standby.sees("site-a").state == "alive"
    assert not site_is_lost(nodes_now(standby.layout, standby.clock))
    later(bucket, LOOK_S + 1, standby)
    seen = standby.sees("site-a")
    assert (seen.state, seen.since, seen.heard_at) == ("silent", last, last)
    assert standby.conditions() == ["silent:site-a"]
    assert site_is_lost(nodes_now(standby.layout, standby.clock))
    later(bucket, BEAT_S, site, standby)
    assert (standby.sees("site-a").state, standby.conditions()) == ("alive", [])


def test_the_clocks_of_the_nodes_decide_nothing(
    bucket: ManualClock, site: Beating, standby: Beating
) -> None:
    """Days of difference, on either side, make nobody silent and nobody alive."""
    site.clock.advance(-3 * 86400.0)
    standby.clock.advance(5 * 86400.0)
    later(bucket, BEAT_S, site, standby)
    assert standby.sees("site-a").state == "alive"
    site.clock.advance(9 * 86400.0)
    later(bucket, BEAT_S, site)
    later(bucket, SILENT_S + 1, standby)
    assert standby.sees("site-a").state == "silent"


def test_a_heartbeat_from_the_future_counts_from_when_the_bucket_took_it(
    bucket: ManualClock, store: FakeStore, site: Beating, standby: Beating
) -> None:
    """A wrong date inside does not keep a dead node alive."""
    ahead = ManualClock(bucket.now())
    ahead.advance(30 * 86400.0)
    store.seed(beat_key("site-a"), site.beat(ahead))
    later(bucket, LOOK_S, standby)
    later(bucket, SILENT_S + 1, standby)
    assert standby.sees("site-a").state == "silent"


def test_retiring_is_heard_at_once_and_can_be_undone(
    bucket: ManualClock, site: Beating, standby: Beating
) -> None:
    """A retired node stays retired however long it is silent."""
    retire(FILES, site.layout, site.clock)
    later(bucket, 1.0, site)
    later(bucket, LOOK_S, standby)
    assert standby.sees("site-a").state == "retired"
    later(bucket, 10 * SILENT_S, standby)
    assert (standby.sees("site-a").state, standby.conditions()) == ("retired", [])
    take_up_again(FILES, site.layout)
    assert retired_at(site.layout) == ""
    later(bucket, 1.0, site)
    later(bucket, LOOK_S, standby)
    assert standby.sees("site-a").state == "alive"


def test_a_name_that_is_configured_as_gone_is_retired(
    bucket: ManualClock, tmp_path: Path, store: FakeStore, site: Beating
) -> None:
    """With the heartbeat that it left, or without any."""
    standby = Beating(tmp_path, store, "cloud", role="standby")
    standby.signers = {"site-a": (site.key.public_text,)}
    standby.retired = ("site-a", "site-z")
    standby.start()
    later(bucket, SILENT_S * 2, standby)
    assert [each.state for each in nodes_now(standby.layout, standby.clock)] == ["retired"] * 2
    assert standby.conditions() == []
    assert site_is_lost(nodes_now(standby.layout, standby.clock))


def test_forged_heartbeats_are_found_and_the_last_good_one_counts(
    bucket: ManualClock, store: FakeStore, tmp_path: Path, site: Beating, standby: Beating
) -> None:
    """Unsigned, signed by a stranger, another node's, too large, hidden: each is named."""
    other = Beating(tmp_path, store, "site-b").start()
    good = store.get(beat_key("site-a"))
    bad = {
        "not signed": b"{}",
        "no signed heartbeat": b"{}\n{}",
        "that node's key": other.beat(bucket, node="site-a"),
        "that of site-b": site.beat(bucket, node="site-b"),
        "larger": good.ljust(100_000),
    }
    for words, content in bad.items():
        store.seed(beat_key("site-a"), content)
        later(bucket, LOOK_S, standby)
        (problem,) = standby.beats.problems()
        assert words in problem.sentence
        assert standby.sees("site-a").state == "alive"
    store.put_delete_marker(beat_key("site-a"))
    later(bucket, LOOK_S, standby)
    assert "delete marker" in standby.beats.problems()[0].sentence
    later(bucket, BEAT_S, site, standby)
    later(bucket, BEAT_S, site, standby)
    assert standby.conditions() == []


def test_a_standby_that_starts_reads_past_bad_heartbeats(
    bucket: ManualClock, store: FakeStore, tmp_path: Path, site: Beating
) -> None:
    """What a node rightly said lies behind what somebody else wrote over it."""
    for _ in range(3):
        store.seed(beat_key("site-a"), b"x")
    standby = Beating(tmp_path, store, "cloud", role="standby")
    standby.signers = {"site-a": (site.key.public_text,)}
    standby.start()
    assert standby.sees("site-a").state == "alive"
    assert standby.conditions() == ["heartbeat:site-a"]


def test_a_replayed_heartbeat_keeps_nobody_alive(
    bucket: ManualClock, store: FakeStore, site: Beating, standby: Beating
) -> None:
    """An older one in the place of a newer one is named, and does not move the last sign."""
    older = store.get(beat_key("site-a"))
    later(bucket, BEAT_S, site, standby)
    store.seed(beat_key("site-a"), older)
    later(bucket, LOOK_S, standby)
    assert "older one" in standby.beats.problems()[0].sentence
    store.seed(beat_key("site-a"), older)
    later(bucket, SILENT_S + 1, standby)
    assert standby.sees("site-a").state == "silent"


def test_a_ledger_whose_tail_was_removed_is_found(
    bucket: ManualClock, store: FakeStore, site: Beating, standby: Beating
) -> None:
    """The heartbeat names more entries than the bucket has."""
    store.seed(entry_key("site-a", 7), b"entry")
    site.own = Own(7, "site-a-1")
    later(bucket, BEAT_S, site, standby)
    assert standby.conditions() == []
    assert standby.sees("site-a").ledger_sequence == 7
    store.put_delete_marker(entry_key("site-a", 7))
    later(bucket, LOOK_S, standby)
    assert standby.conditions() == []  # hidden, not gone: the follower names that
    site.own = Own(8, "site-a-1")
    later(bucket, BEAT_S, site, standby)
    assert "entry 8" in standby.beats.problems()[0].sentence


def test_another_box_of_the_same_name_is_one_alarm(
    bucket: ManualClock, store: FakeStore, site: Beating
) -> None:
    """A node that finds another's heartbeat in its place says so, and while it may not write its
    ledger it says nothing more in the bucket."""
    later(bucket, BEAT_S, site)
    assert site.conditions() == []
    bucket.advance(1.0)
    store.seed(beat_key("site-a"), site.beat(bucket, incarnation="clone"))
    later(bucket, BEAT_S, site)
    assert site.conditions() == ["double"]
    later(bucket, BEAT_S, site)
    assert site.conditions() == []
    said = store.get(beat_key("site-a"))
    site.own = None
    later(bucket, BEAT_S, site)
    assert store.get(beat_key("site-a")) == said


def test_a_line_that_is_down_changes_nothing_of_what_is_known(
    bucket: ManualClock, store: FakeStore, standby: Beating
) -> None:
    """Nobody falls silent because nobody could be heard; what nobody writes any more is unknown."""
    store.offline = True
    for _ in range(5):
        later(bucket, SILENT_S, standby)
    assert standby.sees("site-a").state == "alive"
    assert standby.conditions() == []
    store.offline = False
    later(bucket, AGAIN_S, standby)
    assert standby.sees("site-a").state == "silent"
    standby.clock.advance(FRESH_S + 1)
    assert standby.sees("site-a").state == "unknown"
    assert not site_is_lost(nodes_now(standby.layout, standby.clock))


def test_a_restart_within_minutes_keeps_what_was_known(
    bucket: ManualClock, store: FakeStore, site: Beating, standby: Beating
) -> None:
    """Since when a site is silent is not forgotten, and the line may be down meanwhile."""
    later(bucket, SILENT_S + 1, standby)
    before = standby.sees("site-a")
    store.offline = True
    later(bucket, FRESH_S - 60)
    standby.clock.advance(60)
    standby.start()
    standby.turn(AGAIN_S)
    assert standby.sees("site-a") == before
    store.offline = False
    later(bucket, AGAIN_S, standby)
    assert standby.sees("site-a") == before


def test_credentials_that_may_not_write_are_a_problem_and_no_more(
    bucket: ManualClock, store: FakeStore, standby: Beating
) -> None:
    """A standby that may only read still hears."""
    store.fail("put", Fault("before", CloudRefused("put", "nodes/cloud.json", "access denied")))
    later(bucket, BEAT_S, standby)
    assert standby.conditions() == ["heartbeat"]
    assert standby.sees("site-a").state == "alive"
    later(bucket, BEAT_S, standby)
    assert standby.conditions() == []


def test_a_node_never_heard_is_unknown_and_not_silent(
    bucket: ManualClock, tmp_path: Path, store: FakeStore, site: Beating
) -> None:
    """Nobody takes the place of a site that may never have been."""
    standby = Beating(tmp_path, store, "cloud", role="standby")
    standby.signers = {"site-q": (site.key.public_text,)}
    standby.start()
    later(bucket, SILENT_S * 2, standby)
    assert standby.sees("site-q") == NodeSeen("site-q", "unknown")
    assert not site_is_lost(nodes_now(standby.layout, standby.clock))
    seen = read_nodes(standby.layout)
    assert seen is not None
    assert seen.judged_at


@pytest.mark.parametrize(
    ("states", "lost"),
    [
        ("alive", False), ("silent", True), ("unknown", False), ("retired", True), ("", False),
        ("alive silent", True), ("alive retired", False), ("retired silent", True),
        ("retired unknown", False), ("alive unknown", False),
    ],
)  # fmt: skip
def test_a_standby_takes_a_sites_place(states: str, lost: bool) -> None:
    """When any site is silent, or when none is left that could come back by itself."""
    sites = [
        NodeSeen(f"site-{number}", state, role="appliance")
        for number, state in enumerate(states.split())
    ]
    assert site_is_lost(sites) is lost
    assert site_is_lost([*sites, NodeSeen("other", "silent", role="standby")]) is lost


def test_what_is_signed_for_another_purpose_is_no_heartbeat(site: Beating) -> None:
    """A ledger header bears the same key's signature and is refused."""
    line = b'{"format":1,"node":"site-a","sequence":3,"incarnation":"x"}'
    signature = b'{"key":"%s","signature":"%s"}' % (
        site.key.public_text.encode(),
        base64.b64encode(site.key.sign(line)),
    )
    with pytest.raises(Damaged):
        open_beat(line + b"\n" + signature, "site-a", {site.key.public_text})


def test_the_first_heartbeat_follows_the_ledger_within_a_second(
    tmp_path: Path, store: FakeStore
) -> None:
    """A node that lives for some seconds only is heard, and so is missed."""
    node = Beating(tmp_path, store, "site-a")
    node.own = None
    node.start()
    assert store.keys() == []
    node.own = Own(1, "site-a-1")
    node.turn(1.0)
    assert store.keys() == [beat_key("site-a")]
