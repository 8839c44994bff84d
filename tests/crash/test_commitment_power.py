"""The book of commitment, cut short at any step by a kill or by power loss."""

from pathlib import Path

import pytest

from appliance.archive.commitment import (
    DUE,
    REPORTED,
    WAITING,
    CommitmentBook,
    CommitmentRequest,
    Reached,
    Reference,
)
from appliance.foundation.errors import NotFound
from appliance.foundation.files import FileSystem
from tests.support.dying_files import Mortal, PowerFiles
from tests.support.manual_clock import ManualClock
from tests.support.memory_folder import memory_path  # noqa: F401
from tests.support.pack_samples import CT_STORAGE, PowerCut

STEPS_LEAST = 30
SEEDS = range(2)
KNOWN, UNKNOWN = "1.1", "1.2"


class Peer:
    """What a peer was told: requests that were taken, decisions that it heard, and confirmed."""

    def __init__(self) -> None:
        self.taken: set[str] = set()
        self.heard: dict[str, tuple] = {}
        self.confirmed: set[str] = set()


class World:
    """A book over files that may forget, and the peer that outlives it."""

    def __init__(self, folder: Path) -> None:
        self.directory = str(folder / "data" / "commitment")
        self.clock = ManualClock()
        self.peer = Peer()

    def open(self, files: FileSystem) -> CommitmentBook:
        return CommitmentBook(files, self.directory, self.clock, self._lookup)

    def _lookup(self, uids):
        reached = Reached(CT_STORAGE, local=True, cloud=True, locked=True)
        return {uid: reached for uid in uids if uid == KNOWN}

    def ask(self, book: CommitmentBook, transaction: str, *uids: str) -> None:
        request = CommitmentRequest(
            transaction, "CT1", "AZEKURA", "192.0.2.1", "locked", 3600.0,
            tuple(Reference(CT_STORAGE, uid) for uid in uids),
        )  # fmt: skip
        book.request(request)
        self.peer.taken.add(transaction)

    def report(self, book: CommitmentBook, *, confirmed: bool) -> None:
        """Send what is due; the peer remembers what it heard."""
        for item in book.due():
            uid = item.transaction_uid
            assert self.peer.heard.get(uid, item.failures) == item.failures, "told otherwise before"
            self.peer.heard[uid] = item.failures
            if confirmed:
                self.peer.confirmed.add(uid)
                book.mark_reported(item.key)
            else:
                book.mark_failed(item.key)

    def live(self, book: CommitmentBook) -> None:
        """Two transactions, one of which fails in part, reported after attempts that fail."""
        self.ask(book, "1.2.1", KNOWN)
        self.ask(book, "1.2.2", KNOWN, UNKNOWN)
        book.settle()
        self.report(book, confirmed=False)
        self.clock.advance(61)
        book.settle()
        self.report(book, confirmed=False)
        self.clock.advance(7200)
        self.report(book, confirmed=True)
        self.ask(book, "1.2.1", KNOWN)  # the report is due once more
        self.clock.advance(1)
        self.report(book, confirmed=True)
        self.clock.advance(40 * 86400)
        book.prune()


def _check(world: World, book: CommitmentBook) -> None:
    """What was taken is there, what was heard is what stands, what was confirmed is over."""
    peer = world.peer
    for uid in sorted(peer.taken):
        try:
            item = book.find("CT1", uid)
        except NotFound:
            assert uid in peer.confirmed, "a request that was taken is gone"
            continue
        assert item.state in {WAITING, DUE, REPORTED}
        if uid in peer.heard and item.state != WAITING:
            assert item.failures == peer.heard[uid]
    for _ in range(3):
        world.clock.advance(7200)
        book.settle()
        world.report(book, confirmed=True)
    assert book.open_transactions() == []
    assert peer.taken <= peer.confirmed
    assert not [each for each in Path(world.directory).iterdir() if each.name.endswith(".tmp")]


def _count(folder: Path) -> int:
    steps = Mortal()
    world = World(folder)
    files = PowerFiles(steps, folder, 0)
    world.live(world.open(files))
    return steps.count


@pytest.mark.parametrize("power", [False, True])
def test_a_book_that_is_cut_short_at_any_step_keeps_its_word(
    memory_path: Path, power: bool
) -> None:
    """No request that was taken is lost, no decision changes, every report arrives."""
    (memory_path / "count").mkdir()
    total = _count(memory_path / "count")
    assert total > STEPS_LEAST
    for at in range(1, total + 1):
        for seed in SEEDS if power else (0,):
            folder = memory_path / f"{at}-{seed}"
            folder.mkdir()
            steps = Mortal()
            world = World(folder)
            files = PowerFiles(steps, folder, seed)
            steps.arm(at, files.cut if power else int)
            with pytest.raises(PowerCut):
                world.live(world.open(files))
            _check(world, world.open(FileSystem()))
