"""The book of commitment transactions: what it decides, writes, repeats and gives up."""

import os

import pytest

from appliance.archive import commitment
from appliance.archive.commitment import (
    DUE,
    GIVEN_UP,
    REPORTED,
    WAITING,
    CommitmentBook,
    CommitmentRequest,
    Reached,
    Reference,
)
from appliance.foundation.errors import LimitExceeded, NotFound, OutOfSpace, Refused
from appliance.foundation.files import FileSystem
from tests.support.manual_clock import ManualClock

CT, MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"


class World:
    """A book, its clock, and what the archive knows."""

    def __init__(self, directory, files=None):
        self.clock = ManualClock()
        self.known = {}
        self.lookups = []
        self.hurried = []
        self.directory = str(directory / "commitment")
        self.files = files or FileSystem()
        self.book = self.open()

    def open(self):
        return CommitmentBook(
            self.files, self.directory, self.clock, self.lookup, self.hurried.append
        )

    def lookup(self, uids):
        self.lookups.append(len(uids))
        return {uid: self.known[uid] for uid in uids if uid in self.known}

    def ask(self, *uids, transaction="1.2.3", rung="cloud", deadline_s=3600.0, caller="CT1"):
        return self.book.request(
            CommitmentRequest(
                transaction, caller, "AZEKURA", "192.0.2.1", rung, deadline_s,
                tuple(Reference(CT, uid) for uid in uids),
            )
        )  # fmt: skip

    def reach(self, uid, rung="", sop_class_uid=CT, **more):
        order = ("", "local", "cloud", "locked").index(rung)
        self.known[uid] = Reached(sop_class_uid, order >= 1, order >= 2, order >= 3, **more)

    def settle_after(self, seconds):
        self.clock.advance(seconds)
        self.book.settle()

    def state(self, transaction="1.2.3", caller="CT1"):
        return self.book.find(caller, transaction).state


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


@pytest.mark.parametrize(
    ("rung", "enough"),
    [
        ("local", ("local", "cloud", "locked")),
        ("cloud", ("cloud", "locked")),
        ("locked", ("locked",)),
    ],
)
def test_book_decides_when_the_rung_is_reached(tmp_path, rung, enough):
    for reached in ("", "local", "cloud", "locked"):
        directory = tmp_path / f"{rung}-{reached}"
        directory.mkdir()
        world = World(directory)
        world.reach("1", reached)
        world.ask("1", rung=rung)
        world.settle_after(10)
        assert world.state() == (DUE if reached in enough else WAITING)


def test_book_waits_for_every_instance(world):
    world.reach("1", "cloud")
    world.reach("2", "local")
    world.ask("1", "2")
    world.settle_after(600)
    assert world.book.due() == []
    world.reach("2", "cloud")
    world.settle_after(10)
    (item,) = world.book.due()
    assert item.failures == ()
    assert [each.sop_instance_uid for each in item.succeeded] == ["1", "2"]


def test_book_tells_once_what_waits_for_its_rung(world):
    """So that it is uploaded first; not what is there already, nor what nobody knows."""
    world.reach("1", "cloud")
    world.reach("2", "local")
    world.reach("3", "local", MR)
    world.ask("1", "2", "3", "4")
    world.settle_after(1)
    assert world.hurried == [["2"]]
    world.reach("4", "local")
    world.settle_after(10)
    world.settle_after(10)
    assert world.hurried == [["2"], ["4"]]


def test_book_gives_each_failure_its_reason(world):
    world.reach("conflict", "cloud", MR)
    world.reach("damaged", "cloud", damaged=True)
    world.reach("hidden", "cloud", hidden=True)
    world.reach("late", "local")
    world.reach("good", "cloud")
    world.ask("conflict", "damaged", "hidden", "late", "good", "never", deadline_s=1000)
    world.settle_after(commitment.UNKNOWN_INSTANCE_GRACE_S + 1)
    assert world.state() == WAITING
    world.settle_after(1000)
    (item,) = world.book.due()
    assert {each.sop_instance_uid: each.reason for each in item.failures} == {
        "conflict": 0x0119, "damaged": 0x0110, "hidden": 0x0112, "late": 0x0213, "never": 0x0112,
    }  # fmt: skip
    assert [each.sop_instance_uid for each in item.succeeded] == ["good"]


def test_book_lets_an_unknown_instance_arrive_within_the_grace(world):
    world.ask("1")
    world.settle_after(commitment.UNKNOWN_INSTANCE_GRACE_S - 1)
    assert world.state() == WAITING
    world.reach("1", "locked")
    world.settle_after(0.9)
    world.settle_after(5)
    assert world.book.due()[0].failures == ()


def test_book_looks_at_a_large_waiting_transaction_in_bounded_steps(world):
    """What does not move is not looked up as a whole at each turn, yet everything gets its turn."""
    uids = [str(number) for number in range(2000)]
    for uid in uids:
        world.reach(uid, "local")
    world.ask(*uids)
    world.settle_after(1)
    assert world.lookups == [commitment.LOOKUP_BATCH_COUNT]
    for uid in uids:
        world.reach(uid, "cloud")
    world.settle_after(10)
    assert len(world.book.due()[0].succeeded) == 2000


def test_book_survives_a_restart_in_every_state(world):
    for transaction in ("1.1", "1.2", "1.3"):
        world.reach(transaction, "local" if transaction == "1.1" else "cloud")
        world.ask(transaction, transaction=transaction)
    world.settle_after(10)
    world.book.mark_reported(commitment.transaction_key("CT1", "1.3"))
    world.book = world.open()
    assert [world.state(each) for each in ("1.1", "1.2", "1.3")] == [WAITING, DUE, REPORTED]
    assert [item.transaction_uid for item in world.book.due()] == ["1.2"]
    world.reach("1.1", "locked")
    world.settle_after(10)
    assert [item.transaction_uid for item in world.book.due()] == ["1.2", "1.1"]


def test_book_never_changes_a_decision(world):
    """Once decided, what the archive learns later changes nothing, also not after a restart."""
    world.ask("1", deadline_s=100)
    world.settle_after(101)
    world.reach("1", "locked")
    world.book = world.open()
    world.settle_after(10)
    assert [each.reason for each in world.book.due()[0].failures] == [0x0112]


def test_book_takes_the_same_request_as_the_same_transaction(world):
    first = world.ask("1")
    world.clock.advance(50)
    assert world.ask("1") == first
    assert len(world.book.open_transactions()) == 1
    with pytest.raises(Refused):
        world.ask("2")
    world.ask("2", caller="CT2")
    assert len(world.book.open_transactions()) == 2


def test_book_reports_again_when_it_is_asked_again(world):
    world.reach("1", "cloud")
    world.ask("1")
    world.settle_after(1)
    world.book.mark_reported(world.book.due()[0].key)
    assert world.book.due() == []
    world.ask("1")
    assert len(world.book.due()) == 1


def test_book_decides_again_what_had_failed_when_it_is_asked_again(world):
    world.ask("1", deadline_s=100)
    world.settle_after(101)
    world.book.mark_reported(world.book.due()[0].key)
    world.reach("1", "cloud")
    world.ask("1")
    world.settle_after(1)
    assert world.book.due()[0].failures == ()


def test_book_waits_longer_between_attempts_and_gives_up_after_days(world):
    world.reach("1", "cloud")
    world.ask("1")
    world.settle_after(1)
    key = world.book.due()[0].key
    waits = []
    while world.state() == DUE:
        before = world.clock.now()
        world.book.mark_failed(key)
        assert world.book.due() == []
        if world.state() == DUE:
            item = world.book.find("CT1", "1.2.3")
            world.clock.advance(item.next_attempt_at_us / 1e6 - world.clock.now().timestamp())
            assert len(world.book.due()) == 1
            waits.append((world.clock.now() - before).total_seconds())
    assert waits[:4] == [15, 30, 60, 120]
    assert max(waits) == commitment.RETRY_MAX_S
    assert world.state() == GIVEN_UP
    assert commitment.REPORT_MAX_S < sum(waits) < commitment.REPORT_MAX_S + 2 * 3600
    assert world.open().open_transactions() == []


def test_book_hurries_the_reports_of_a_peer_that_calls(world):
    world.reach("1", "cloud")
    world.ask("1")
    world.settle_after(1)
    world.book.mark_failed(world.book.due()[0].key)
    world.book.hurry("OTHER")
    assert world.book.due() == []
    world.book.hurry("CT1")
    assert len(world.book.due()) == 1


def test_book_prunes_what_was_finished_long_ago(world):
    world.reach("1", "cloud")
    world.ask("1", transaction="1.1")
    world.ask("never", transaction="1.2", deadline_s=commitment.FINISHED_KEPT_S * 3)
    world.settle_after(1)
    world.book.mark_reported(world.book.due()[0].key)
    world.clock.advance(commitment.FINISHED_KEPT_S - 10)
    assert world.book.prune() == 0
    world.clock.advance(20)
    assert world.book.prune() == 1
    with pytest.raises(NotFound):
        world.book.find("CT1", "1.1")
    assert len(list(world.book.transactions())) == 1


def test_book_sets_a_damaged_file_aside_and_goes_on(world):
    world.ask("1", transaction="1.1")
    world.ask("1", transaction="1.2")
    path = os.path.join(world.directory, commitment.transaction_key("CT1", "1.1") + ".json")
    with open(path, "wb") as stream:
        stream.write(b'{"format":1,"transac')
    book = world.open()
    assert [item.transaction_uid for item in book.open_transactions()] == ["1.2"]
    assert os.path.exists(path + ".unreadable")


class FullFileSystem(FileSystem):
    full = False

    def write_atomic(self, path, content, mode=0o660):
        if self.full:
            raise OutOfSpace("write", path)
        super().write_atomic(path, content, mode)


def test_book_does_not_take_what_it_can_not_write(tmp_path):
    """Nothing is promised that a restart would forget."""
    world = World(tmp_path, FullFileSystem())
    world.files.full = True
    with pytest.raises(OutOfSpace):
        world.ask("1")
    assert world.book.open_transactions() == []
    world.files.full = False
    assert world.ask("1").state == WAITING


def test_book_has_limits(world, monkeypatch):
    monkeypatch.setattr(commitment, "INSTANCES_MAX", 3)
    monkeypatch.setattr(commitment, "OPEN_TRANSACTIONS_MAX", 2)
    with pytest.raises(Refused):
        world.ask()
    with pytest.raises(LimitExceeded):
        world.ask("1", "2", "3", "4")
    world.ask("1", transaction="1.1")
    world.ask("1", transaction="1.2")
    with pytest.raises(LimitExceeded):
        world.ask("1", transaction="1.3")


def test_book_counts_an_instance_named_twice_once(world):
    assert len(world.ask("1", "1", "2").instances) == 2


def test_book_makes_no_path_of_a_peers_uid(world):
    world.ask("1", transaction="../../../etc/passwd")
    (name,) = os.listdir(world.directory)
    assert len(name) == len("".join("0" for _ in range(64)) + ".json")


def test_a_report_is_tried_although_the_clock_went_back(world):
    """Its next attempt was set for 2099, by a clock that has been set right since."""
    right = world.clock.now()
    world.clock.set(right.replace(year=2099))
    world.reach("1.1", "cloud")
    key = world.ask("1.1").key
    world.settle_after(1)
    world.book.mark_failed(key)
    assert world.book.due() == []
    world.clock.set(right)
    assert [each.key for each in world.book.due()] == [key]
    assert [each.key for each in world.open().due()] == [key]


def test_a_transaction_is_decided_although_the_clock_went_back(world):
    """What is reached is told at once; what was asked for in 2099 waits for no deadline there."""
    right = world.clock.now()
    world.clock.set(right.replace(year=2099))
    world.reach("1.1", "local")
    world.ask("1.1")
    world.book.settle()
    assert world.state() == WAITING
    world.clock.set(right)
    world.book.settle()
    assert world.state() == DUE
    assert [each.reason for each in world.book.due()[0].failures] == [0x0213]
    world.ask("1.1", transaction="1.2.4")
    world.book.settle()
    world.clock.set(right.replace(hour=1))  # two hours back
    world.reach("1.1", "cloud")
    world.book.settle()
    assert world.state("1.2.4") == DUE
