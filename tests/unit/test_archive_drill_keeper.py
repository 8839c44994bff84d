"""When the uplink holds a drill, what it may read a day, and how its result is written down."""

import threading
from pathlib import Path

import pytest

from appliance.archive.bucket_watch import BucketWatch
from appliance.archive.control import Control
from appliance.archive.drill_book import DrillBook, last_drill, read_notes
from appliance.archive.drill_keeper import RETRY_S, DrillHall, DrillKeeper, drilled, leave
from appliance.archive.records import Drilled
from appliance.archive.requests import Request
from appliance.config.load import loads
from appliance.foundation.errors import StorageFailed
from appliance.remote.link import Link
from tests.support.archive_box import NODE, Box, entries, sample
from tests.unit.test_archive_drill import CONFIG, held

DAY_S = 86400.0
EVERY_S = 30 * DAY_S


class Keeping:
    """A keeper over a box, with the parts of the uplink that it needs."""

    def __init__(self, box: Box, daily: str = "10 GiB") -> None:
        self.box = box
        config = loads(CONFIG + f'[drill]\nstudies = 4\ndaily = "{daily}"\n')
        self.stop = threading.Event()
        self.link = Link(box.clock)
        self.bucket = BucketWatch(box.clock, box.store, needs_lock=True)
        self.bucket.look()
        self.book = DrillBook(box.files, box.clock, box.layout, config.drill.every_s)
        hall = DrillHall(box.files, box.clock, config, box.layout, box.index, box.store)
        self.keeper = DrillKeeper(
            box.clock, config, hall, self.book, box.requests, box.identities, self.link,
            self.bucket, self.stop,
        )  # fmt: skip

    def control(self) -> Control:
        box = self.box
        return Control(
            box.clock, box.index, box.requests, box.uplink, box.evictor, box.recaller, box.pins,
            NODE, self.book,
        )  # fmt: skip

    def turn(self) -> int:
        """Let the keeper look; return how many drills wait to be written into the ledger."""
        self.keeper.look()
        return len(self.box.requests.pending())


@pytest.fixture
def keeping(box: Box) -> Keeping:
    for study in range(1, 7):
        box.store_sample(sample(study, 1, 5000))
    box.drain()
    return Keeping(box)


def _drills(box: Box) -> list[Drilled]:
    return [
        record
        for entry in entries(box.store, box.recovery)
        for record in entry.records
        if isinstance(record, Drilled)
    ]


def test_a_drill_is_held_when_it_is_due(keeping: Keeping) -> None:
    """Not on the first day; after the set time; and then not again before the next is due."""
    box = keeping.box
    assert keeping.turn() == 0
    box.clock.advance(EVERY_S - 60)
    assert keeping.turn() == 0
    box.clock.advance(60)
    assert keeping.turn() == 1
    control = keeping.control()
    control.run_once()
    box.write_ledger()
    control.run_once()
    assert box.requests.pending() == []
    (record,) = _drills(box)
    assert (record.studies, record.matched, record.findings) == (4, 4, [])
    assert record.identity == f"node {box.identities[0].recipient}"
    box.clock.advance(2 * RETRY_S)
    assert keeping.turn() == 0
    assert keeping.book.problems() == []
    box.clock.advance(EVERY_S)
    assert keeping.turn() == 1


def test_a_result_survives_until_the_ledger_has_it(keeping: Keeping) -> None:
    """The uplink dies between the request and the entry: the next start writes it, once."""
    box = keeping.box
    leave(box.requests, held(box, 2))
    keeping.control().run_once()  # queued; the process dies here
    box.uplink._records.clear()
    control = keeping.control()
    control.run_once()
    box.write_ledger()
    control.run_once()
    assert len(_drills(box)) == 1
    assert box.requests.pending() == []


def test_nothing_is_held_while_the_line_is_down_or_the_bucket_unfit(keeping: Keeping) -> None:
    box = keeping.box
    keeping.turn()
    box.clock.advance(EVERY_S)
    for _ in range(5):
        keeping.link.failed()
        box.clock.advance(10)
    assert keeping.link.state == "down"
    assert keeping.turn() == 0
    keeping.link.succeeded()
    box.store.missing = True
    keeping.bucket.look()
    assert keeping.turn() == 0
    box.store.missing = False
    keeping.bucket.look()
    assert keeping.turn() == 1


def test_a_line_that_breaks_lets_it_be_held_later(keeping: Keeping) -> None:
    box = keeping.box
    keeping.turn()
    box.clock.advance(EVERY_S)
    box.store.offline = True
    assert keeping.turn() == 0
    box.store.offline = False
    assert keeping.turn() == 0
    box.clock.advance(RETRY_S)
    assert keeping.turn() == 1


def test_the_daily_budget_is_kept(box: Box) -> None:
    """Packs of half a megabyte under a budget of one a day: a drill of four takes days."""
    for study in range(1, 7):
        box.store_sample(sample(study, 1, 400_000))
    box.drain()
    keeping = Keeping(box, "1 MiB")
    keeping.turn()
    box.clock.advance(EVERY_S)
    spent: dict[str, int] = {}
    real = keeping.book.spend

    def spend(size_bytes: int, daily_bytes: int) -> bool:
        granted = real(size_bytes, daily_bytes)
        day = box.clock.now().date().isoformat()
        spent[day] = spent.get(day, 0) + (size_bytes if granted else 0)
        return granted

    keeping.book.spend = spend
    assert keeping.turn() == 1
    assert len(spent) == 2
    assert max(spent.values()) <= 2**20
    ((_, request),) = box.requests.pending()
    assert request.details["took_s"] < 60


def test_a_pack_larger_than_the_budget_is_read_on_a_day_of_its_own(keeping: Keeping) -> None:
    book = keeping.book
    assert book.spend(10, 100)
    assert not book.spend(1000, 100)
    keeping.box.clock.advance(DAY_S)
    assert book.spend(1000, 100)
    assert not book.spend(1, 100)


def test_a_node_that_stops_gives_the_drill_up(keeping: Keeping) -> None:
    box = keeping.box
    keeping.turn()
    box.clock.advance(EVERY_S)
    keeping.stop.set()
    assert keeping.turn() == 0
    assert keeping.book.due


def test_an_empty_archive_holds_none(box: Box) -> None:
    keeping = Keeping(box)
    box.uplink  # noqa: B018 - its ledger is opened
    keeping.turn()
    box.clock.advance(EVERY_S)
    assert keeping.turn() == 0


def test_a_failed_disk_ends_the_daemon(keeping: Keeping) -> None:
    keeping.turn()
    keeping.box.clock.advance(EVERY_S)

    def broken(*_args, **_named) -> None:
        raise StorageFailed("flush", "x")

    keeping.keeper._hall.hold = broken
    with pytest.raises(StorageFailed):
        keeping.turn()


def test_an_overdue_drill_is_a_problem(keeping: Keeping) -> None:
    box = keeping.box
    keeping.turn()
    box.store.offline = True
    box.clock.advance(1.05 * EVERY_S)
    keeping.turn()
    assert keeping.book.problems() == []
    box.clock.advance(0.1 * EVERY_S)
    keeping.turn()
    (problem,) = keeping.book.problems()
    assert problem.condition == "drill_overdue"
    box.store.offline = False
    box.clock.advance(RETRY_S)
    assert keeping.turn() == 1
    keeping.control().run_once()
    assert keeping.book.problems() == []


def test_a_drill_that_found_something_is_a_problem_until_one_is_clean(keeping: Keeping) -> None:
    """Another start of the uplink knows it still: it is in a file."""
    box = keeping.box
    result = held(box, 2)
    bad = drilled(result)
    keeping.book.note(Drilled(bad.at, bad.identity, 2, 2, 1, ["pack x: gone"], 0.1, 0.2))
    again = DrillBook(box.files, box.clock, box.layout, EVERY_S)
    (problem,) = again.problems()
    assert "pack x: gone" in problem.sentence
    found = last_drill(box.layout)
    assert found is not None
    assert (found["findings"], found["matched"]) == (1, 1)
    box.clock.advance(1)
    again.note(drilled(held(box, 2)))
    assert again.problems() == []


def test_what_asks_for_nonsense_is_refused(keeping: Keeping) -> None:
    box = keeping.box
    request_id = box.requests.put(Request(kind="drill", details={"at": 1}))
    keeping.control().run_once()
    assert not box.requests.wait(request_id, 1.0).done
    assert read_notes(box.layout).last is None


def test_notes_that_cant_be_read_are_none(keeping: Keeping) -> None:
    keeping.turn()
    path = Path(keeping.box.layout.state) / "drill.json"
    path.write_bytes(b"{")
    assert read_notes(keeping.box.layout).since_at == ""
    assert last_drill(keeping.box.layout) is None
