"""Published configurations: put into the ledger when they change, and taken from entries."""

from pathlib import Path

import pytest

from appliance.archive.adopted import AdoptedBook, adopted_by, adoption_problems, read_sources
from appliance.archive.layout import Layout
from appliance.archive.ledger_entry import entry_key
from appliance.archive.publishing import Publisher
from appliance.archive.records import Configured, Opened, Record
from appliance.foundation.files import FileSystem
from tests.support.made_ledger import put_object
from tests.support.manual_clock import ManualClock
from tests.support.published_sites import A, config_of, peer, site, standby
from tests.support.standby_box import Sites, sites  # noqa: F401

FILES = FileSystem()


class Ledger:
    """What a node's ledger got; `write` is its thread's turn."""

    def __init__(self) -> None:
        self.queued: list[tuple[Record, object]] = []
        self.written: list[Record] = []

    def record(self, record: Record, on_written) -> None:
        self.queued.append((record, on_written))

    def write(self) -> None:
        for record, on_written in self.queued:
            self.written.append(record)
            on_written()
        self.queued.clear()


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    found = Layout(str(tmp_path / "data"))
    found.create(FILES)
    return found


def configured(text: str, at: str = "2026-03-02T03:00:00.000000Z") -> Configured:
    found = site(text)
    return Configured(
        ae_titles=list(found.ae_titles), issuer=found.issuer, extra_sop_classes=[],
        peers=[dict(each) for each in found.peers], at=at,
    )  # fmt: skip


def test_a_configuration_is_published_once_and_when_it_changes(layout: Layout) -> None:
    """Not at every start, and again when the record never reached the ledger."""
    ledger = Ledger()

    def start() -> Publisher:
        return Publisher(FILES, ManualClock(), layout, ledger.record)

    first = start()
    first.publish(config_of(A).dicom)
    first.publish(config_of(A).dicom)
    assert len(ledger.queued) == 1
    ledger.queued.clear()  # the process ended before it was written
    start().publish(config_of(A).dicom)
    ledger.write()
    start().publish(config_of(A).dicom)
    assert ledger.queued == []
    later = start()
    later.publish(config_of(A + peer("MR", "10.2.0.0/16")).dicom)
    later.publish(config_of(A).dicom)
    ledger.write()
    assert [len(each.peers) for each in ledger.written] == [2, 3, 2]


def test_of_a_node_the_latest_entry_counts(layout: Layout) -> None:
    """Entries applied in another order, or twice, change nothing; others keep theirs."""
    book = AdoptedBook(FILES, layout)
    book.take("site-a", 9, configured(A))
    book.take("site-a", 4, configured(""))
    book.take("site-b", 1, Opened("x", "test", ""))
    assert {node: each.sequence for node, each in read_sources(layout).items()} == {"site-a": 9}
    assert [each.ae_title for each in adopted_by(standby(), layout).config.dicom.peers] == [
        "PACS1", "CT",
    ]  # fmt: skip
    assert adopted_by(config_of(""), layout).config.dicom.peers == ()  # an appliance adopts nothing


def test_a_node_that_is_no_longer_followed_is_no_longer_heeded(layout: Layout) -> None:
    """Whoever leaves keys.signers takes its peers along."""
    book = AdoptedBook(FILES, layout)
    book.take("site-z", 9, configured(A))
    assert adopted_by(standby(), layout).config == standby()


def test_a_conflict_is_a_problem_that_names_the_site(layout: Layout) -> None:
    """Status shows what could not be taken."""
    book = AdoptedBook(FILES, layout)
    book.take("site-a", 1, configured(A))
    assert adoption_problems(standby(), layout) == []
    book.take("site-b", 1, configured(peer("CT", "10.1.0.0/16", max_associations=2)))
    (problem,) = adoption_problems(standby(), layout)
    assert "site-b" in problem.sentence


def sequences(layout: Layout) -> dict[str, int]:
    return {node: each.sequence for node, each in read_sources(layout).items()}


def test_who_follows_a_ledger_adopts_what_it_publishes(sites: Sites) -> None:
    """Of each node the latest, after a restart too; a lost index brings back no older one."""
    sites.a.put(sites.store, [configured("")])
    sites.write(1, 2)
    sites.a.put(sites.store, [configured(A)])
    sites.b.put(sites.store, [configured(peer("MR", "10.2.0.0/16"))])
    box = sites.box()
    box.follow()
    assert sequences(box.layout) == {"site-a": 4, "site-b": 1}
    titles = [each.ae_title for each in adopted_by(standby(), box.layout).config.dicom.peers]
    assert titles == ["PACS1", "CT", "MR"]
    again = sites.restarted(box)
    sites.write(3)
    again.follow()
    assert sequences(again.layout) == {"site-a": 4, "site-b": 1}


def test_a_configuration_out_of_a_checkpoint_is_adopted_too(sites: Sites) -> None:
    """A cold start reads no single entry of what was consolidated."""
    sites.a.put(sites.store, [configured(A)])
    sites.write(*range(1, 20))
    sites.write_checkpoints()
    box = sites.box()
    sites.store.requests.clear()
    box.follow()
    fetched = [key for operation, key in sites.store.requests if operation == "get"]
    assert entry_key("site-a", 1) not in fetched
    assert sequences(box.layout) == {"site-a": 1}


def test_what_a_forger_publishes_is_not_adopted(sites: Sites) -> None:
    """Peers are who may read the archive: only the site's own key says who."""
    thief = sites.ledger("site-a", "thief")
    put_object(sites.store, entry_key("site-a", 1), thief.seal(thief.build([configured(A)])))
    box = sites.box()
    box.follow()
    assert sequences(box.layout) == {}
