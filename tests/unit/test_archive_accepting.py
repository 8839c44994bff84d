"""Whether a node takes studies: by its role, by its file, by what is known of the sites."""

from pathlib import Path

import pytest

from appliance.archive.accepting import LOOK_S, Accepting
from appliance.archive.layout import Layout
from appliance.archive.nodes import FRESH_S, NodeSeen, NodesSeen, write_nodes
from appliance.archive.retire import retire, take_up_again
from appliance.config.load import loads
from appliance.config.model import Config
from appliance.foundation.errors import NotAccepting
from appliance.foundation.files import FileSystem
from tests.support.archive_box import Box, sample
from tests.support.fake_store import FakeStore
from tests.support.manual_clock import ManualClock
from tests.support.published_sites import SIGNER

FILES = FileSystem()


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    found = Layout(str(tmp_path / "data"))
    found.create(FILES)
    return found


def config_of(role: str, accept_stores: str) -> Config:
    return loads(
        f'[node]\nname = "cloud"\nrole = "{role}"\ndemo = true\n[cache]\ncapacity = "1 GiB"\n'
        f'[cloud]\nbucket = "archive"\nregion = "ap-northeast-1"\n'
        f'[standby]\naccept_stores = "{accept_stores}"\n[keys.signers]\nsite-a = "{SIGNER}"\n'
    )


def say(layout: Layout, clock: ManualClock, *states: str) -> None:
    """Leave what the uplink knows of some sites."""
    nodes = [NodeSeen(f"site-{n}", each, role="appliance") for n, each in enumerate(states)]
    write_nodes(FILES, layout, NodesSeen(clock.now().timestamp(), "", nodes))


@pytest.mark.parametrize(
    ("role", "accept_stores", "state", "taken"),
    [("appliance", "never", "silent", True)]
    + [("standby", "never", state, False) for state in ("alive", "silent", "unknown")]
    + [("standby", "always", state, True) for state in ("alive", "silent", "unknown")]
    + [
        ("standby", "when-silent", state, taken)
        for state, taken in (("alive", False), ("silent", True), ("unknown", False))
    ],
)
def test_role_and_file_decide(
    layout: Layout, role: str, accept_stores: str, state: str, taken: bool
) -> None:
    """An appliance always does; a standby by its file, and by what is known of the site."""
    clock = ManualClock()
    say(layout, clock, state)
    accepting = Accepting(layout, clock, config_of(role, accept_stores))
    assert accepting.is_open is taken
    if not taken:
        with pytest.raises(NotAccepting) as refused:
            accepting.require()
        assert 0 < len(refused.value.cause) <= 64  # it becomes an Error Comment


def test_a_standby_stops_when_the_site_is_back_and_when_nothing_is_known_any_more(
    layout: Layout,
) -> None:
    """Nobody restarts it; an uplink that is dead for minutes leaves it closed."""
    clock = ManualClock()
    accepting = Accepting(layout, clock, config_of("standby", "when-silent"))
    assert not accepting.is_open  # nothing was ever known
    for state, taken in (("silent", True), ("alive", False), ("silent", True)):
        say(layout, clock, state)
        clock.advance(LOOK_S)
        assert accepting.is_open is taken
    clock.advance(FRESH_S + 1)
    assert not accepting.is_open


@pytest.mark.parametrize(("role", "accept"), [("appliance", "never"), ("standby", "always")])
def test_a_retired_node_takes_nothing_until_it_is_taken_up_again(
    layout: Layout, role: str, accept: str
) -> None:
    """Whatever its role."""
    clock = ManualClock()
    accepting = Accepting(layout, clock, config_of(role, accept))
    assert accepting.is_open
    retire(FILES, layout, clock)
    clock.advance(LOOK_S)
    assert accepting.refusal == "this node is retired"
    take_up_again(FILES, layout)
    clock.advance(LOOK_S)
    assert accepting.is_open


class Opening:
    """A box whose ledger begins when it is told to."""

    def __init__(self, folder: Path, store: FakeStore) -> None:
        self.is_open = False
        self.box = Box(folder, store, clock=ManualClock())
        self.uplink = self.box.lazy_uplink(lambda: self.is_open)

    def ledger_keys(self) -> list[str]:
        return list(filter(lambda key: key.startswith("ledger/"), self.box.store.keys()))


def test_a_ledger_begins_when_studies_are_taken_and_not_before(tmp_path: Path) -> None:
    """Until then nothing is written, and the node's name is its own; a restart goes on with it."""
    opening = Opening(tmp_path, FakeStore(ManualClock()))
    uplink = opening.uplink
    uplink._look_for_need()
    assert not uplink._needed.is_set()
    assert uplink.owns_name
    assert opening.ledger_keys() == []
    opening.is_open = True
    uplink._look_for_need()
    assert uplink._needed.is_set()
    assert uplink.owns_name is None  # until the bucket has answered
    uplink._open_ledger()
    assert uplink.owns_name
    assert len(opening.ledger_keys()) == 1
    opening.is_open = False
    assert opening.box.lazy_uplink(lambda: False)._needed.is_set()
    opening.box.close()


def test_a_pack_that_no_ledger_names_begins_one(tmp_path: Path) -> None:
    """What was taken before a crash is uploaded, whether or not studies are taken now."""
    opening = Opening(tmp_path, FakeStore(ManualClock()))
    opening.box.store_sample(sample(1, 1))
    opening.box.close_packs()
    opening.uplink._seal_closed()
    opening.uplink._look_for_need()
    assert opening.uplink._needed.is_set()
    opening.box.close()
