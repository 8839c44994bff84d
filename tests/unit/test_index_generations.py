"""A rebuilt index takes over while readers and writers are at work."""

import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.foundation.errors import Damaged, StorageFailed, UnsupportedFormat
from appliance.foundation.files import FileSystem
from appliance.index.dump import dump
from appliance.index.environment import Transaction
from appliance.index.index import Index
from appliance.index.schema import FORMAT_KEY, Table, encode, seal_value
from appliance.index.writing import WriteTransaction
from tests.support.index_facts import PACK_IDS, instance, pack

MAP_SIZE = 1 << 26


def open_index(folder: Path) -> Index:
    return Index(FileSystem(), str(folder / "index"), map_size=MAP_SIZE).open()


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with open_index(tmp_path) as opened:
        yield opened


def apply(index: Index, number: int) -> None:
    with index.write() as txn:
        txn.apply_pack(pack(number, [instance(sop=f"9.{number}")]))


def packs(index: Index) -> list[str]:
    with index.read() as view:
        return [row.pack_id for row in view.packs()]


def generations(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "index").iterdir() if path.is_dir())


def test_switch_makes_the_filled_generation_current(index: Index, tmp_path: Path) -> None:
    """What was filled is served, the old generation is gone, and a new opener finds the new."""
    apply(index, 0)
    filling = index.new_generation()
    with filling.write() as txn:
        txn.apply_pack(pack(1, [instance(sop="9.1")]))
    assert packs(index) == [PACK_IDS[0]]
    index.switch(filling)
    assert packs(index) == [PACK_IDS[1]]
    assert generations(tmp_path) == [filling.name] == [index.generation]
    with open_index(tmp_path) as again:
        assert packs(again) == [PACK_IDS[1]]


def test_filling_the_same_facts_gives_the_same_bytes(index: Index) -> None:
    """A rebuild leaves no trace."""
    for number in range(5):
        apply(index, number)
    filling = index.new_generation()
    with filling.write() as txn:
        for number in reversed(range(5)):
            txn.apply_pack(pack(number, [instance(sop=f"9.{number}")]))
    with index.read() as view:
        before = dump(view)
    index.switch(filling)
    with index.read() as view:
        assert dump(view) == before


def test_other_openers_follow_a_switch_at_their_next_transaction(
    index: Index, tmp_path: Path
) -> None:
    """A block that is open keeps its moment; the next one sees the new generation."""
    apply(index, 0)
    with open_index(tmp_path) as other:
        filling = index.new_generation()
        with other.read() as view:
            index.switch(filling)
            assert view.counts().packs == 1
        assert packs(other) == []
        apply(other, 3)
        assert packs(index) == [PACK_IDS[3]]


def test_writes_during_the_catch_up_wait_for_the_switch(index: Index) -> None:
    """No fact goes to a generation after the switch away from it."""
    started, written = threading.Event(), threading.Event()

    def write() -> None:
        started.set()
        apply(index, 7)
        written.set()

    thread = threading.Thread(target=write)

    def catch_up(txn: WriteTransaction) -> None:
        thread.start()
        started.wait()
        assert not written.wait(0.05)
        txn.apply_pack(pack(1, [instance(sop="9.1")]))

    index.switch(index.new_generation(), catch_up)
    thread.join()
    assert packs(index) == [PACK_IDS[1], PACK_IDS[7]]


def test_a_generation_that_another_process_has_open_is_kept(index: Index, tmp_path: Path) -> None:
    """It is removed once that process follows or ends."""
    apply(index, 0)
    first = index.generation
    code = (
        "import sys\n"
        "from appliance.foundation.files import FileSystem\n"
        "from appliance.index.index import Index\n"
        f"index = Index(FileSystem(), sys.argv[1], map_size={MAP_SIZE}).open()\n"
        "with index.read() as view:\n"
        "    print('open', flush=True); sys.stdin.readline()\n"
        "    print(view.counts().packs, flush=True)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "index")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        index.switch(index.new_generation())
        assert first in generations(tmp_path)
        other.stdin.write("go\n")
        other.stdin.flush()
        assert other.stdout.readline() == "1\n"
        other.wait()
    index.generations.remove_unused()
    assert generations(tmp_path) == [index.generation]


def test_a_discarded_generation_changes_nothing(index: Index) -> None:
    """A rebuild that fails leaves the current generation as it is."""
    apply(index, 0)
    index.new_generation().discard()
    assert packs(index) == [PACK_IDS[0]]


def test_unknown_format_is_refused(index: Index, tmp_path: Path) -> None:
    """A version of the future is not read as ours."""
    environment = index.enter().environment
    with Transaction(environment, write=True) as transaction:
        transaction.put(
            FORMAT_KEY, seal_value(FORMAT_KEY, encode(99)), db=environment.tables[Table.META]
        )
    with pytest.raises(UnsupportedFormat, match="format 99"):
        open_index(tmp_path)


def test_a_data_file_that_was_replaced_is_noticed(index: Index, tmp_path: Path) -> None:
    """Writing into a file that nobody will ever find again is refused."""
    apply(index, 0)
    data = tmp_path / "index" / index.generation / "data.mdb"
    moved = data.rename(data.with_suffix(".moved"))
    shutil.copyfile(moved, data)
    with pytest.raises(Damaged, match="replaced"):
        apply(index, 1)


def test_a_missing_pointer_is_damage(index: Index, tmp_path: Path) -> None:
    """Without `current` nothing is guessed."""
    (tmp_path / "index" / "current").unlink()
    with pytest.raises(Damaged, match="pointer"):
        packs(index)


class Failing(FileSystem):
    """Fails at the N-th operation that changes the disk."""

    def __init__(self, left: int) -> None:
        self.left = left

    def _count(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise StorageFailed("write", "test")

    def pwritev(self, fd, buffers, offset):
        self._count()
        return super().pwritev(fd, buffers, offset)

    def fdatasync(self, fd):
        self._count()
        super().fdatasync(fd)

    def rename(self, source, target):
        self._count()
        super().rename(source, target)

    def fsync_directory(self, path):
        self._count()
        super().fsync_directory(path)

    def unlink(self, path):
        self._count()
        super().unlink(path)


def test_a_switch_that_fails_anywhere_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    """Whatever step of a rebuild fails, the next start finds one whole index, and works."""
    with open_index(tmp_path) as index:
        apply(index, 0)
    for step in range(1, 40):
        files = Failing(step)
        broken = Index(files, str(tmp_path / "index"), map_size=MAP_SIZE)
        try:
            broken.open()
            filling = broken.new_generation()
            with filling.write() as txn:
                txn.apply_pack(pack(0, [instance(sop="9.0")]))
            broken.switch(filling)
        except StorageFailed:
            pass
        broken.close()
        with open_index(tmp_path) as index:
            assert packs(index) == [PACK_IDS[0]]
            apply(index, 0)
        if files.left > 0:
            break
    else:
        pytest.fail("no rebuild ever came to its end")


def test_threads_of_a_process_write_in_turn(index: Index) -> None:
    """Readers are never in the way, and no write is lost."""
    threads = [
        threading.Thread(target=lambda start=start: [apply(index, n) for n in range(start, 20, 4)])
        for start in range(4)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        seen = packs(index)
        assert seen == sorted(seen)
    for thread in threads:
        thread.join()
    assert packs(index) == PACK_IDS
