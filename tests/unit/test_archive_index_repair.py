"""An index that can't be used keeps nothing standing still, and is made anew by itself."""

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest

from appliance.archive.commitment import (
    NOT_KNOWN_YET,
    CommitmentBook,
    CommitmentRequest,
    Reached,
    Reference,
)
from appliance.archive.index_condition import IndexCondition
from appliance.archive.index_repair import REPAIR_S, IndexRepair
from appliance.archive.indexer import Indexer
from appliance.archive.rebuild import Counts, rebuild
from appliance.foundation.errors import IndexDamaged, KeyUnavailable
from appliance.index.index import Index
from appliance.index.schema import FORMAT_KEY, Table, encode, seal_value
from tests.support.archive_box import NODE, Box, box, sample  # noqa: F401
from tests.support.pack_samples import CT_STORAGE

EVICTED, CACHED = sample(1, 1), sample(2, 1)


class Mending:
    """The parts of the indexer's process over a box's folder, after a start."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self.condition = IndexCondition(box.files, box.clock, box.layout)
        self.index = Index(box.files, box.layout.index, on_damage=self.condition.note_damage)
        self.fail: Exception | None = None
        self.repair = IndexRepair(
            box.clock, box.layout, self.index, self.condition, NODE, self._rebuild
        )

    def _rebuild(self, advance: Callable[[float], None]) -> Counts:
        if self.fail is not None:
            raise self.fail
        box = self.box
        return rebuild(box.layout, self.index, NODE, box.identities, box.store, advance)

    def follow(self) -> None:
        """Index what is on the disk."""
        box = self.box
        Indexer(box.clock, box.layout, self.index, NODE, box.requests).catch_up()

    def found(self) -> set[str]:
        """Return which of the two samples a query finds."""
        with self.index.read() as view:
            return {each.study for each in (EVICTED, CACHED) if view.study(each.study)}

    def is_rebuilt(self) -> bool:
        return self.repair.rebuild_if_wanted(threading.Event())


@pytest.fixture
def mending(box: Box):
    """Two verified studies, one of them evicted; every process has ended."""
    for each in (EVICTED, CACHED):
        box.store_sample(each)
    box.drain()
    with box.index.read() as view:
        (row,) = [
            row for row in view.packs() if EVICTED.study in row.study_instance_uids
        ]  # fmt: skip
    box.evictor.evict_pack(row.pack_id)
    box.index.close()
    found = Mending(box)
    yield found
    found.index.close()


def _generation(box: Box) -> Path:
    folder = Path(box.layout.index)
    return folder / (folder / "current").read_text()


def _garbage(generation: Path) -> None:
    (generation / "data.mdb").write_bytes(os.urandom(100_000))


def _cut_short(generation: Path) -> None:
    os.truncate(generation / "data.mdb", 8192)


def _of_another_version(generation: Path) -> None:
    with lmdb.open(str(generation), max_dbs=len(Table), lib_version=0) as environment:
        table = environment.open_db(Table.META.name.lower().encode())
        with environment.begin(write=True) as transaction:
            transaction.put(FORMAT_KEY, seal_value(FORMAT_KEY, encode(99)), db=table)


def _without_data(generation: Path) -> None:
    (generation / "data.mdb").unlink()


def _unnamed(generation: Path) -> None:
    (generation.parent / "current").unlink()


def _all_gone(generation: Path) -> None:
    shutil.rmtree(generation.parent)
    generation.parent.mkdir()


@pytest.mark.parametrize(
    "break_it",
    [_garbage, _cut_short, _of_another_version, shutil.rmtree, _without_data, _unnamed, _all_gone],
)
def test_an_index_that_cannot_be_used_is_made_anew(mending: Mending, break_it) -> None:
    """At once what is on this disk is found, then the evicted too, and the problem is over."""
    break_it(_generation(mending.box))
    assert mending.repair.open()
    problem = mending.condition.problem()
    assert problem is not None
    assert problem.condition == "index"
    mending.follow()
    assert mending.found() == {CACHED.study}
    assert mending.is_rebuilt()
    assert mending.found() == {EVICTED.study, CACHED.study}
    assert mending.condition.problem() is None


def test_a_sound_index_is_left_alone(mending: Mending) -> None:
    before = _generation(mending.box)
    assert mending.repair.open()
    assert mending.condition.problem() is None
    assert mending.is_rebuilt()
    assert _generation(mending.box) == before


def test_damage_that_comes_back_is_shown_and_not_chased(mending: Mending) -> None:
    """One generation set aside in REPAIR_S; the last one is kept for whoever wants to look."""
    first = _generation(mending.box)
    _garbage(first)
    assert mending.repair.open()
    assert (first.parent / f"damaged-{first.name}").is_dir()
    mending.index.close()
    second = _generation(mending.box)
    _garbage(second)
    assert not mending.repair.open()
    assert "damaged" in mending.condition.problem().sentence
    assert _generation(mending.box) == second
    mending.box.clock.advance(REPAIR_S)
    assert mending.repair.open()
    assert [each.name for each in first.parent.glob("damaged-*")] == [f"damaged-{second.name}"]


def test_damage_that_a_query_meets_interrupts_the_indexer(mending: Mending) -> None:
    """Any process notes it; the one that follows the packs puts an empty index in its place."""
    assert mending.repair.open()
    _flip(_generation(mending.box) / "data.mdb", b"Study^2")
    with pytest.raises(IndexDamaged), mending.index.read() as view:
        view.study(CACHED.study)
    stop, interrupt = threading.Event(), threading.Event()
    thread = threading.Thread(target=mending.repair.run, args=(stop, interrupt))
    thread.start()
    try:
        assert interrupt.wait(10)
    finally:
        stop.set()
        thread.join()
    assert mending.repair.set_aside()
    assert mending.repair.open()
    assert mending.is_rebuilt()
    assert mending.found() == {EVICTED.study, CACHED.study}


def test_damage_that_the_indexer_meets_is_not_taken_for_a_packs(mending: Mending) -> None:
    """It ends the indexer, so that the pack is indexed whole into the next index."""
    box = mending.box
    assert mending.repair.open()
    box.store_sample(sample(2, 2))
    box.close_packs()
    _flip(_generation(box) / "data.mdb", b"Study^2")
    with pytest.raises(IndexDamaged):
        mending.follow()
    assert mending.repair.set_aside()
    mending.follow()
    with mending.index.read() as view:
        assert len(list(view.instances(CACHED.study))) == 2


def _flip(path: Path, near: bytes) -> None:
    """Change one byte of every record that has these bytes in it, as a bad disk would."""
    content = bytearray(path.read_bytes())
    at = content.find(near)
    assert at > 0
    while at > 0:
        content[at + len(near) - 1] ^= 1
        at = content.find(near, at + 1)
    with path.open("r+b") as file:
        file.write(content)


def test_keys_that_cannot_be_read_leave_what_is_on_the_disk(mending: Mending) -> None:
    """The problem says why it does not come forward; the next attempt is not at once."""
    _garbage(_generation(mending.box))
    assert mending.repair.open()
    mending.fail = KeyUnavailable("read the identity", "node.key", "no such file", "Put it back")
    assert not mending.is_rebuilt()
    mending.follow()
    assert mending.found() == {CACHED.study}
    problem = mending.condition.problem()
    assert "no such file" in problem.sentence
    assert problem.hint == "Put it back"
    mending.fail = None
    assert mending.is_rebuilt()
    assert mending.condition.problem() is None


def test_an_index_without_all_ledger_entries_is_not_called_whole(mending: Mending) -> None:
    """The disk's copies are gone and the line is down: it is tried again later."""
    _garbage(_generation(mending.box))
    shutil.rmtree(Path(mending.box.layout.ledger) / NODE)
    mending.box.store.offline = True
    assert mending.repair.open()
    assert not mending.is_rebuilt()
    assert "could be read" in mending.condition.problem().sentence
    mending.box.store.offline = False
    assert mending.is_rebuilt()
    assert mending.found() == {EVICTED.study, CACHED.study}


def test_nothing_is_uploaded_again_while_the_index_does_not_know_the_ledger(
    mending: Mending,
) -> None:
    """A pack that the new index takes for pending is in the bucket, and named, already."""
    _garbage(_generation(mending.box))
    assert mending.repair.open()
    mending.follow()
    uplink = mending.box.uplink  # its own index object, over the same folder
    uplink._condition = mending.condition
    uplink._ledger_ready.set()
    assert not uplink._knows_all
    assert mending.is_rebuilt()
    assert uplink._knows_all


def test_commitment_waits_for_what_a_growing_index_does_not_know(box: Box) -> None:
    """Not known yet is no failure, not even after the grace for instances on their way."""
    answers: dict[str, Reached] = {"1.2.3": NOT_KNOWN_YET}
    book = CommitmentBook(box.files, box.layout.commitment, box.clock, lambda _uids: answers)
    asked = (Reference(CT_STORAGE, "1.2.3"),)
    book.request(CommitmentRequest("1.2", "PACS1", "AZEKURA", "", "local", 86400.0, asked))
    box.clock.advance(3600)
    book.settle()
    assert book.due() == []
    answers["1.2.3"] = Reached(CT_STORAGE, local=True, cloud=False, locked=False)
    box.clock.advance(60)
    book.settle()
    (decided,) = book.due()
    assert decided.failures == ()
