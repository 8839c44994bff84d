"""The index under damage: flipped bits, torn pages, full maps and disks, killed readers."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.foundation.errors import Damaged, OutOfSpace
from appliance.foundation.files import FileSystem
from appliance.index.environment import Transaction
from appliance.index.index import Index
from appliance.index.schema import Table
from appliance.index.verifying import verify
from appliance.index.writing import WriteTransaction
from tests.support.index_facts import instance, pack

MAP_SIZE = 1 << 26
STUDIES = 60
SMALL_MAP = 1 << 18


def open_index(folder: Path, *, map_size: int = MAP_SIZE) -> Index:
    return Index(FileSystem(), str(folder / "index"), map_size=map_size).open()


def fill(index: Index, start: int, stop: int) -> None:
    with index.write() as txn:
        for n in range(start, stop):
            txn.apply_pack(
                pack(
                    n % 20,
                    [instance(f"1.2.{n}", sop=f"9.{n}", PatientID=f"P{n}", PatientName=f"Name{n}")],
                )
            )


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with open_index(tmp_path) as opened:
        yield opened


READ_EVERYTHING = """
import random, sys
from pathlib import Path
from appliance.foundation.errors import AzekuraError
from appliance.foundation.files import FileSystem
from appliance.dicom.attributes import Level
from appliance.dicom.matching import compile_key
from appliance.index.index import Index
folder, data, first = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
whole = data.with_suffix(".whole").read_bytes()
used = [at for at in range(0, len(whole), 512) if any(whole[at : at + 512])]
for number in range(first, 40):
    rng = random.Random(number)
    damaged = bytearray(whole)
    for _ in range(rng.choice([1, 10, 40])):
        damaged[rng.choice(used) + rng.randrange(512)] ^= 1 << rng.randrange(8)
    data.write_bytes(damaged)
    wrong = refused = 0
    try:
        with Index(FileSystem(), folder, map_size=1 << 26) as index:
            for n in range(60):
                keys = {0x00100020: compile_key(0x00100020, "LO", f"P{n}")}
                try:
                    for answer in index.query(Level.STUDY, keys):
                        wrong += answer[0x0020000D] != f"1.2.{n}"
                        wrong += answer[0x00100010] != f"Name{n}"
                except AzekuraError:
                    refused += 1
    except AzekuraError:
        refused += 1
    print(number, wrong, refused, flush=True)
"""
CRASHES = (-signal.SIGSEGV, -signal.SIGBUS, -signal.SIGABRT)


def test_flipped_bits_never_give_a_wrong_patient(tmp_path: Path) -> None:
    """Whatever bit of a used page flips, an answer is right, missing, or Damaged.

    A page whose inner structure is hit may end the process; that is the worst.
    """
    with open_index(tmp_path) as index:
        fill(index, 0, STUDIES)
        data = tmp_path / "index" / index.generation / "data.mdb"
    shutil.copyfile(data, data.with_suffix(".whole"))
    rows: list[tuple[int, int, int]] = []
    first = 0
    while first < 40:
        done = subprocess.run(
            [sys.executable, "-c", READ_EVERYTHING, str(tmp_path / "index"), str(data), str(first)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        for line in done.stdout.splitlines():
            number, wrong, refused = map(int, line.split())
            rows.append((number, wrong, refused))
        if done.returncode == 0:
            break
        assert done.returncode in CRASHES, done.stderr
        first = rows[-1][0] + 2 if rows else first + 1
    assert [row for row in rows if row[1]] == []
    assert sum(row[2] > 0 for row in rows) > 5


def test_a_flipped_value_is_found_by_reading_it(index: Index) -> None:
    """The checksum over key and record tells."""
    fill(index, 0, 1)
    environment = index.enter().environment
    with Transaction(environment, write=True) as transaction:
        table = environment.tables[Table.STUDY]
        with transaction.cursor(table) as cursor:
            assert cursor.first()
            key, value = cursor.item()
        flipped = bytearray(value)
        flipped[3] ^= 4
        transaction.put(key, bytes(flipped), db=table)
    with index.read() as view, pytest.raises(Damaged, match="rebuild-index"):
        view.study("1.2.0")
    with index.read() as view, pytest.raises(Damaged):
        verify(view)


def test_a_record_never_answers_for_another_key(index: Index) -> None:
    """A value that lies under a wrong key is damage, not an answer."""
    fill(index, 0, 2)
    environment = index.enter().environment
    with Transaction(environment, write=True) as transaction:
        table = environment.tables[Table.STUDY]
        with transaction.cursor(table) as cursor:
            (_, value), (key, _) = list(cursor)
        transaction.put(key, value, db=table)
    with index.read() as view, pytest.raises(Damaged):
        view.study("1.2.1")


@pytest.mark.parametrize("page", [0, 1])
def test_a_torn_meta_page_is_damage_at_open(tmp_path: Path, page: int) -> None:
    """Opening fails with the hint to rebuild, and a new generation takes over."""
    with open_index(tmp_path) as index:
        fill(index, 0, 5)
        data = tmp_path / "index" / index.generation / "data.mdb"
    with data.open("r+b") as file:
        file.seek(page * 4_096)
        file.write(b"\xa5" * 512)
    broken = Index(FileSystem(), str(tmp_path / "index"), map_size=MAP_SIZE)
    with pytest.raises(Damaged, match="rebuild-index"):
        broken.open()
    filling = broken.new_generation()
    broken.switch(filling)
    fill(broken, 0, 5)
    with broken.read() as view:
        assert view.counts().studies == 5
    broken.close()


def test_a_data_file_of_zeros_is_damage_at_open(tmp_path: Path) -> None:
    """What a lying disk leaves is not taken for an empty index."""
    with open_index(tmp_path) as index:
        fill(index, 0, 5)
        data = tmp_path / "index" / index.generation / "data.mdb"
    data.write_bytes(b"\x00" * 10_000)
    with pytest.raises(Damaged):
        open_index(tmp_path)


def test_a_full_map_grows_once_and_the_work_is_done_again(tmp_path: Path) -> None:
    """`transact` hides the growth."""
    with open_index(tmp_path, map_size=SMALL_MAP) as index:

        def work(txn: WriteTransaction) -> int:
            return sum(
                txn.apply_pack(
                    pack(n % 20, [instance(f"1.2.{n}", sop=f"9.{n}", PatientID=f"P{n}")])
                )
                for n in range(250)
            )

        assert index.transact(work) == 250
        with index.read() as view:
            assert view.counts().studies == 250
            assert verify(view) == []
        assert index.used_bytes() > SMALL_MAP


def test_a_full_map_in_a_write_block_is_out_of_space_and_may_be_tried_again(
    tmp_path: Path,
) -> None:
    """The failed transaction leaves nothing; the next one finds room."""
    with open_index(tmp_path, map_size=SMALL_MAP) as index:
        with pytest.raises(OutOfSpace):
            fill(index, 0, 250)
        with index.read() as view:
            assert view.counts().studies == 0
        fill(index, 0, 250)
        with index.read() as view:
            assert view.counts().studies == 250


def test_a_map_that_another_process_has_grown_is_taken_over(tmp_path: Path) -> None:
    """The smaller map of this process follows."""
    with open_index(tmp_path, map_size=SMALL_MAP) as index:
        code = (
            "import sys\n"
            "from pathlib import Path\n"
            "from tests.unit.test_index_faults import fill, open_index\n"
            "with open_index(Path(sys.argv[1])) as index: fill(index, 0, 800)\n"
        )
        subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)
        with index.read() as view:
            assert view.counts().studies == 800
        fill(index, 800, 801)
        with index.read() as view:
            assert view.counts().studies == 801


FULL_DISK = """
import resource, sys
from pathlib import Path
from appliance.foundation.errors import OutOfSpace, StorageFailed
from appliance.foundation.files import FileSystem
from tests.unit.test_index_faults import MAP_SIZE, fill
from appliance.index.index import Index
class Small(FileSystem):
    free = 9 * 2**20
    def free_bytes(self, path):
        return self.free
files = Small()
with Index(files, sys.argv[1] + "/index", map_size=MAP_SIZE) as index:
    fill(index, 0, 5)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    limit = index.used_bytes() + 65_536
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    for free, expected in ((9 * 2**20, OutOfSpace), (2**40, StorageFailed), (2**20, OutOfSpace)):
        files.free = free
        try:
            fill(index, 5, 2_000)
        except expected as error:
            print(type(error).__name__)
        with index.read() as view:
            print(view.counts().studies)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, hard))
    files.free = 2**40
    fill(index, 5, 50)
    with index.read() as view:
        print(view.counts().studies)
"""


def test_a_full_disk_is_out_of_space_and_reads_go_on(tmp_path: Path) -> None:
    """A short write leaves nothing; with room again, writing goes on.

    With room on the disk the same short write is a disk that fails, and stops the daemon.
    """
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    full, broken = ["OutOfSpace", "5"], ["StorageFailed", "5"]
    assert done.stdout.split() == [*full, *broken, *full, "50"]


def test_readers_of_killed_processes_are_freed(index: Index, tmp_path: Path) -> None:
    """However many die inside a read, slots do not run out and pages are used again."""
    fill(index, 0, 5)
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from tests.unit.test_index_faults import open_index\n"
        "index = open_index(Path(sys.argv[1]))\n"
        "blocks = [index.read() for _ in range(200)]\n"
        "for block in blocks: block.__enter__()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    for _ in range(4):
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, timeout=60)
        assert done.returncode == -signal.SIGKILL
    with index.read() as view:
        assert view.counts().studies == 5
    assert index.enter().environment.reader_check() == 200


def test_two_processes_write_and_nothing_is_lost(index: Index, tmp_path: Path) -> None:
    """LMDB's writer lock serialises indexer and uplink."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tests.unit.test_index_faults import fill, open_index\n"
        "start = int(sys.argv[2])\n"
        "with open_index(Path(sys.argv[1])) as index:\n"
        "    for n in range(start, start + 40): fill(index, n, n + 1)\n"
    )
    others = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(start)])
        for start in (0, 100)
    ]
    for n in range(200, 240):
        fill(index, n, n + 1)
    assert [other.wait(60) for other in others] == [0, 0]
    with index.read() as view:
        assert view.counts().studies == 120
        assert verify(view) == []


def test_a_write_killed_in_the_middle_leaves_nothing(index: Index, tmp_path: Path) -> None:
    """The next writer gets the lock, and the index is as it was."""
    fill(index, 0, 5)
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from tests.unit.test_index_faults import open_index, pack, instance\n"
        "with open_index(Path(sys.argv[1])) as index, index.write() as txn:\n"
        "    txn.apply_pack(pack(7, [instance('1.2.77', sop='77')]))\n"
        "    txn.flush()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    fill(index, 5, 6)
    with index.read() as view:
        assert view.counts().studies == 6
        assert view.study("1.2.77") is None
        assert verify(view) == []
