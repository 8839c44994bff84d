"""Checkpoints out of the bucket: the furthest that holds is taken, what is wrong is named."""

import os
from pathlib import Path

import pytest

from appliance.archive.checkpoint_name import CheckpointName, Range
from appliance.archive.checkpoint_read import (
    TRIED_MAX,
    CheckpointSource,
    Known,
    kept_checkpoints,
    kept_directory,
)
from appliance.archive.layout import Layout
from appliance.archive.ledger_entry import FIRST_PREVIOUS, build_entry
from appliance.foundation.errors import CloudUnavailable, Damaged, DecryptionFailed
from appliance.foundation.files import FileSystem
from appliance.seal.identity import Identity
from tests.support.checkpoints import AT, Maker, chain, new_signing_key, some_record
from tests.support.fake_store import FakeStore, Fault, corrupt, no_answer

NODE = "site-a"
IDENTITY, LATER = Identity(bytes(range(1, 33))), Identity(bytes(range(2, 34)))
KEY, FORGER = new_signing_key(), new_signing_key()
ENTRIES = chain(NODE, 24, KEY)
SIGNERS = {KEY.public_text}


class Standby:
    """A follower's disk, a bucket, and what was found to be wrong."""

    def __init__(self, folder: Path, *identities: Identity) -> None:
        self.folder = folder
        self.store = FakeStore()
        self.files = FileSystem()
        self.layout = Layout(str(folder / "data"))
        self.layout.create(self.files)
        self.identities = identities or (IDENTITY,)
        self.findings: list[tuple[int, int, str]] = []

    def put(self, first: int, last: int, *recipients: str, key=KEY, level=1, **options) -> str:
        """Put a checkpoint into the bucket, as that node would; return its key."""
        maker = Maker(NODE, recipients or (IDENTITY.recipient,), key)
        path = self.folder / "made"
        entries = options.pop("entries", ENTRIES)
        name = maker.write(path, entries, first, last, level=level, **options)
        self.store.seed(name.key, path.read_bytes())
        return name.key

    def source(self) -> CheckpointSource:
        return CheckpointSource(self.files, self.store, self.layout, self.identities)

    def read(self, after: int = 0, source: CheckpointSource | None = None) -> list[int]:
        """Follow by checkpoints alone from an entry on; return the sequences that were read."""
        offered = (source or self.source()).look(NODE)
        head = ENTRIES[after - 1].header_sha256 if after else FIRST_PREVIOUS
        found = []
        while True:
            kept = offered.next(SIGNERS, after + 1, Known(after, head), self.found)
            if kept is None:
                return found
            for entry in kept.entries(SIGNERS, after):
                found.append(entry.header.sequence)
                after, head = entry.header.sequence, entry.header_sha256

    def found(self, first: int, last: int, what: str) -> None:
        self.findings.append((first, last, what))

    def kept(self) -> list[str]:
        directory = kept_directory(self.layout, NODE)
        return sorted(os.listdir(directory)) if os.path.isdir(directory) else []


@pytest.fixture
def standby(tmp_path: Path) -> Standby:
    return Standby(tmp_path)


def test_the_largest_are_taken_first_and_the_whole_is_read_once(standby: Standby) -> None:
    """Every entry once, in order, from the fewest objects; copies are kept."""
    for first in range(1, 24, 4):
        standby.put(first, first + 3)
    standby.put(1, 16, level=2)
    assert standby.read() == list(range(1, 25))
    assert [name[:27] for name in standby.kept()] == [
        "1-000000000017-000000000020", "1-000000000021-000000000024", "2-000000000001-000000000016",
    ]  # fmt: skip
    assert standby.findings == []


def test_a_reader_in_the_middle_takes_what_it_has_not(standby: Standby) -> None:
    standby.put(1, 16, level=2)
    assert standby.read(5) == list(range(6, 17))
    assert standby.read(16) == []


def test_a_copy_here_is_not_fetched_again(standby: Standby) -> None:
    """As after a crash between keeping and applying it; it is proved again."""
    standby.put(1, 16, level=2)
    standby.read()
    gets = [each for each in standby.store.requests if each[0] == "get"]
    assert standby.read() == list(range(1, 17))
    assert [each for each in standby.store.requests if each[0] == "get"] == gets
    (name,) = standby.kept()
    Path(kept_directory(standby.layout, NODE), name).write_bytes(b"spoilt")
    assert standby.read() == []
    assert standby.read() == list(range(1, 17))


def test_one_for_others_is_passed_over_without_a_word(tmp_path: Path) -> None:
    """A standby that came later reads what was written for it, and of the rest only the head."""
    standby = Standby(tmp_path, LATER)
    old = standby.put(1, 16, level=2)
    assert standby.read() == []
    standby.put(1, 16, IDENTITY.recipient, LATER.recipient, level=2)
    assert standby.read() == list(range(1, 17))
    assert standby.findings == []
    assert [each for each in standby.store.requests if each == ("get", old)] == [("get", old)]


def _damaged(standby: Standby, key: str) -> None:
    standby.store.damage(key, len(standby.store.content(key)) // 2)


def _forked(at: int):
    """Return entries of the node's own key that leave the chain in front of `at`."""
    forked = list(ENTRIES[: at - 2])
    previous = forked[-1].header_sha256
    for sequence in range(at - 1, 16):
        entry = build_entry(NODE, sequence, "i", AT, previous, [some_record("fork")], KEY)
        previous = entry.header_sha256
        forked.append(entry)
    return forked


class TestWrong:
    """What is wrong is a finding; the next best is read."""

    @pytest.mark.parametrize("what", ["damaged", "empty", "head", "forged", "cut", "swapped"])
    def test_the_parts_are_read_in_its_place(self, standby: Standby, what: str) -> None:
        for first in range(1, 16, 4):
            standby.put(first, first + 3)
        options = {"level": 2}
        if what == "forged":
            options["key"] = FORGER
        elif what == "cut":
            options["change"] = lambda lines: lines[:-3]
        key = standby.put(1, 16, **options)
        if what == "damaged":
            _damaged(standby, key)
        elif what == "head":
            standby.store.damage(key, 0)
        elif what == "empty":
            standby.store._keys[key][0].content = b""
        elif what == "swapped":
            other = Maker("site-b", (IDENTITY.recipient,), KEY)
            path = standby.folder / "other"
            other.write(path, chain("site-b", 16, KEY), 1, 16, level=2)
            standby.store._keys[key][0].content = path.read_bytes()
        assert standby.read() == list(range(1, 17))
        assert [each[:2] for each in standby.findings] == [(1, 16)]
        if what == "forged":  # both ends of it, and no more
            assert sum(each == ("get", key) for each in standby.store.requests) <= 2
        assert not any(name.startswith("2-") for name in standby.kept())

    def test_one_that_contradicts_the_chain_is_not_taken(self, standby: Standby) -> None:
        """Rightly signed, and yet another history than the reader has: at its edge, or inside."""
        standby.put(1, 4)
        forked = _forked(5)
        standby.put(5, 15, entries=forked, level=2)
        assert standby.read() == [1, 2, 3, 4]
        assert [each[:2] for each in standby.findings] == [(5, 15)]
        standby.store._keys.clear()
        standby.put(1, 15, entries=forked, level=2)
        assert standby.read(8) == []
        assert "contradicts" in standby.findings[-1][2]

    def test_the_oldest_version_counts(self, standby: Standby) -> None:
        """What somebody laid over it, and a delete marker, change nothing."""
        key = standby.put(1, 16, level=2)
        standby.store.put_delete_marker(key)
        standby.store.seed(key, b"laid over it")
        assert standby.read() == list(range(1, 17))
        assert standby.findings == []

    def test_names_that_are_none_are_passed_over(self, standby: Standby) -> None:
        standby.store.seed("checkpoints/1/site-a/readme", b"")
        standby.store.seed(
            "checkpoints/1/site-a/000000000009-000000000001-abcdef01.json.gz.age", b""
        )
        assert standby.source().look(NODE).last == 0
        assert standby.read() == []
        assert standby.findings == []


def test_many_names_that_somebody_put_there_cost_no_more_than_some(standby: Standby) -> None:
    """They come first, for they claim to reach further; the genuine one is read in the end."""
    standby.put(1, 16, level=2)
    keys = [f"{number:08x}" for number in range(2 * TRIED_MAX)]
    for each in keys:
        name = CheckpointName(NODE, Range(3, 1, 900), each)
        standby.store.seed(name.key, b"noise")
    source = standby.source()
    for _ in range(2):
        standby.store.requests.clear()
        assert standby.read(source=source) == []
        assert sum(verb == "get" for verb, _ in standby.store.requests) == TRIED_MAX
    assert standby.read(source=source) == list(range(1, 17))


class TestInterrupted:
    """A line that goes down is no finding, and leaves nothing that counts."""

    @pytest.mark.parametrize("gets", [0, 1])
    def test_a_fetch_that_breaks_off_is_done_again(self, standby: Standby, gets: int) -> None:
        standby.put(1, 16, level=2)
        standby.store.fail("get", *[_nothing_wrong()] * gets, no_answer())
        with pytest.raises(CloudUnavailable):
            standby.read()
        assert kept_checkpoints(standby.layout, NODE, standby.identities) == []
        assert standby.read() == list(range(1, 17))
        assert standby.findings == []
        assert not any(name.endswith(".part") for name in standby.kept())

    def test_bytes_that_changed_on_the_way_are_not_kept(self, standby: Standby) -> None:
        standby.put(1, 16, level=2)
        standby.store.fail("get", _nothing_wrong(), corrupt())
        assert standby.read() == []
        assert len(standby.findings) == 1
        assert standby.kept() == []
        assert standby.read() == list(range(1, 17))


def _nothing_wrong() -> Fault:
    return Fault("before")


class TestKept:
    """Copies on the disk stand in for single entries."""

    def test_copies_give_their_entries_without_the_bucket(self, standby: Standby) -> None:
        """Each once, in order; such as lie whole within a larger one are passed over."""
        standby.put(1, 4)
        standby.read()
        standby.put(1, 16, level=2)
        standby.put(17, 20)
        standby.read()
        standby.store.offline = True
        copies = kept_checkpoints(standby.layout, NODE, standby.identities)
        assert [copy.name.range[1:] for copy in copies] == [(1, 16), (17, 20)]
        got = [each.header.sequence for copy in copies for each in copy.entries(SIGNERS)]
        assert got == list(range(1, 21))
        assert kept_checkpoints(standby.layout, "site-b", standby.identities) == []

    def test_one_that_the_disk_spoilt_says_so(self, standby: Standby) -> None:
        standby.put(1, 16, level=2)
        standby.read()
        (kept,) = kept_checkpoints(standby.layout, NODE, standby.identities)
        path = Path(kept.path)
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises((Damaged, DecryptionFailed)):
            list(kept.entries(SIGNERS))
