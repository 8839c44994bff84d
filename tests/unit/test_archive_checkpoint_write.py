"""A node writes its checkpoints: when they are due, once, crash-safe, and never over another's."""

import os
from pathlib import Path

import msgspec
import pytest

from appliance.archive.checkpoint_name import CheckpointName, Range
from appliance.archive.checkpoint_plan import Plan
from appliance.archive.checkpoint_write import RETRY_S, CheckpointWriter
from appliance.archive.key_change import KeyChange
from appliance.archive.ledger_entry import build_entry, entry_key, entry_name, seal_entry
from appliance.archive.records import KeyRecord
from appliance.foundation.errors import StorageFailed
from appliance.foundation.files import FileSystem
from appliance.remote.store import Lane
from appliance.seal.identity import new_identity_file
from appliance.seal.signing import SigningKey
from tests.support.archive_box import NODE, Box, box, entries, restarted  # noqa: F401
from tests.support.checkpoints import AT, Maker, chain, reader, some_record
from tests.support.fake_store import lost_answer, no_answer
from tests.support.pack_samples import full_disk

PLAN = Plan((4, 16), 2**20)


def signing_key(box: Box) -> SigningKey:
    return SigningKey.load(str(box.folder / "signing.pem"))


def writer(box: Box, **changes) -> CheckpointWriter:
    """Return the writer of a start of the uplink."""
    arguments = {
        "files": box.files, "clock": box.clock, "store": box.store, "layout": box.layout,
        "node": NODE, "signing_key": signing_key(box), "recipients": box.recipients,
        "identities": box.identities, "retention": box.retention, "plan": PLAN,
    } | changes  # fmt: skip
    return CheckpointWriter(**arguments)


def grow(box: Box, sequence: int) -> None:
    """Let the ledger grow to a sequence."""
    ledger = box.ledger()
    ledger.start()
    while ledger.sequence < sequence:
        ledger.append([some_record(str(ledger.sequence + 1))])


def write_all(writing: CheckpointWriter, sequence: int, since: int = 1) -> None:
    """Write until nothing is due."""
    while writing.write_due(sequence, since):
        pass


def ranges(box: Box, keys: str = "") -> list[Range]:
    """Return the ranges of the checkpoints in the bucket, all of them or those for some keys."""
    names = map(CheckpointName.parse, box.store.keys())
    return sorted(each.range for each in names if each is not None and keys in {"", each.keys})


def test_a_complete_range_is_written_and_proves_the_ledger(box: Box) -> None:
    """Once, locked, for the node and the recovery key, and it holds what the entries hold."""
    grow(box, 9)
    writing = writer(box)
    write_all(writing, 9)
    assert ranges(box) == [Range(1, 1, 4), Range(1, 5, 8)]
    name = Maker(NODE, box.recipients, signing_key(box)).name(1, 5, 8)
    info = box.store.head(name.key)
    assert info.lock is not None
    assert info.lock.until >= box.store.head(entry_key(NODE, 8)).lock.until
    for identities in (box.identities, box.recovery):
        reading = reader(box.store.content(name.key), identities, name, signing_key(box))
        found = [each.records() for each in reading.entries()]
        assert found == [each.records for each in entries(box.store, box.recovery)[4:8]]
    assert os.listdir(box.layout.checkpoints) == []
    assert writing.problems() == []


def test_what_is_not_due_costs_no_request(box: Box) -> None:
    """Before the first range is full, and after all is written, also after a restart."""
    grow(box, 5)
    for _ in range(2):
        writing = writer(box)
        write_all(writing, 3)
        write_all(writing, 5)
        before = len(box.store.requests)
        write_all(writing, 5)
        assert len(box.store.requests) == before
    assert ranges(box) == [Range(1, 1, 4)]


def test_higher_levels_follow_when_they_are_complete(box: Box) -> None:
    grow(box, 21)
    writing = writer(box)
    for sequence in range(1, 22):
        write_all(writing, sequence)
    assert ranges(box) == [
        Range(1, 1, 4), Range(1, 5, 8), Range(1, 9, 12), Range(1, 17, 20), Range(2, 1, 16),
    ]  # fmt: skip


def test_a_range_that_turns_out_too_large_is_left_to_its_parts(box: Box) -> None:
    """Without knowing the parts' sizes, for it was never tried: then it is not tried again."""
    grow(box, 16)
    writing = writer(box, plan=Plan((4, 16), 1500))
    write_all(writing, 16)
    assert ranges(box) == [Range(1, first, first + 3) for first in (1, 5, 9, 13)]
    assert os.listdir(box.layout.checkpoints) == []
    assert writer(box, plan=Plan((4, 16), 1500)).due(16, 1) == []


def test_the_whole_history_is_written_again_for_new_keys(box: Box) -> None:
    """With a short one for what lies behind the last full range; then nothing is due."""
    grow(box, 22)
    write_all(writer(box), 22)
    later = new_identity_file(str(box.folder / "standby.key"))
    recipients = [*box.recipients, later.recipient]
    again = writer(box, recipients=recipients)
    write_all(again, 22, since=23)
    maker = Maker(NODE, recipients, signing_key(box))
    keys = maker.name(1, 1, 1).keys
    assert ranges(box, keys) == [Range(0, 21, 22), Range(1, 17, 20), Range(2, 1, 16)]
    name = maker.name(0, 21, 22)
    reading = reader(box.store.content(name.key), [later], name, signing_key(box))
    assert [each.header.sequence for each in reading.entries()] == [21, 22]
    assert again.due(22, 23) == []


def test_a_rotated_signing_key_vouches_for_the_history_again(box: Box) -> None:
    """Its checkpoints are others than those of the old key, and are signed by the new one."""
    grow(box, 4)
    write_all(writer(box), 4)
    rotated = SigningKey.create(str(box.folder / "rotated.pem"))
    write_all(writer(box, signing_key=rotated), 4)
    name = Maker(NODE, box.recipients, rotated).name(1, 1, 4)
    reader(box.store.content(name.key), box.recovery, name, rotated).prove()
    assert len(ranges(box)) == 2


def test_a_copy_that_the_disk_lost_is_read_from_the_bucket(box: Box) -> None:
    grow(box, 4)
    folder = Path(box.layout.ledger, NODE)
    (folder / entry_name(2)).unlink()
    (folder / entry_name(3)).write_bytes(b"spoilt")
    write_all(writer(box), 4)
    assert ranges(box) == [Range(1, 1, 4)]


def test_a_strangers_entry_in_the_place_of_a_lost_copy_gets_no_signature(box: Box) -> None:
    """Else this node would vouch for what anybody can seal to it."""
    grow(box, 4)
    Path(box.layout.ledger, NODE, entry_name(2)).unlink()
    forger = SigningKey.create(str(box.folder / "forger.pem"))
    (version,) = box.store._keys[entry_key(NODE, 2)]
    genuine = version.content
    first = entries(box.store, box.recovery)[0]
    forged = build_entry(
        NODE, 2, "i", AT, first.header_sha256, [some_record("forged")], forger
    )  # fmt: skip
    version.content = seal_entry(forged, box.recipients)
    writing = writer(box)
    write_all(writing, 4)
    assert ranges(box) == []
    assert "not known" in writing.problems()[0].sentence
    version.content = genuine
    box.clock.advance(RETRY_S)
    write_all(writing, 4)
    assert ranges(box) == [Range(1, 1, 4)]
    assert writing.problems() == []


class TestInterrupted:
    """Whatever is cut short is gone on with; nothing is written twice."""

    def test_a_lost_answer_is_no_second_object(self, box: Box) -> None:
        """The next start finds the spool, meets 412, and knows its bytes."""
        grow(box, 4)
        box.store.fail("put", lost_answer())
        writing = writer(box)
        write_all(writing, 4)
        assert writing.due(4, 1) == [Range(1, 1, 4)]
        again = writer(box)
        write_all(again, 4)
        assert again.due(4, 1) == []
        assert len(list(box.store.versions("checkpoints/"))) == 1
        assert os.listdir(box.layout.checkpoints) == []

    def test_the_same_bytes_are_put_after_a_line_that_was_down(self, box: Box) -> None:
        grow(box, 4)
        box.store.fail("put", no_answer())
        writing = writer(box)
        write_all(writing, 4)
        spooled = Path(box.layout.checkpoints, "spool.json.gz.age").read_bytes()
        write_all(writing, 4)  # it waits before it tries again
        assert ranges(box) == []
        box.clock.advance(RETRY_S)
        write_all(writing, 4)
        name = Maker(NODE, box.recipients, signing_key(box)).name(1, 1, 4)
        assert box.store.content(name.key) == spooled
        assert writing.problems() == []

    @pytest.mark.parametrize("lost", ["note", "spool", "state", "all"])
    def test_a_lost_file_costs_no_second_object(self, box: Box, lost: str) -> None:
        """After the object was put and before that was remembered."""
        grow(box, 4)
        box.store.fail("head", no_answer())
        write_all(writer(box), 4)
        assert ranges(box) == [Range(1, 1, 4)]
        folder = Path(box.layout.checkpoints)
        for name in {"note": ["note.json"], "spool": ["spool.json.gz.age"], "state": []}.get(
            lost, ["note.json", "spool.json.gz.age"]
        ):
            (folder / name).unlink()
        if lost in {"state", "all"}:
            Path(box.layout.state, "checkpoints.json").unlink(missing_ok=True)
        box.clock.advance(RETRY_S)
        again = writer(box)
        write_all(again, 4)
        assert again.due(4, 1) == []
        assert again.problems() == []
        assert len(list(box.store.versions("checkpoints/"))) == 1
        assert os.listdir(folder) == []

    def test_a_spool_for_keys_of_before_is_given_up(self, box: Box) -> None:
        grow(box, 4)
        box.store.fail("put", no_answer())
        write_all(writer(box), 4)
        rotated = SigningKey.create(str(box.folder / "rotated.pem"))
        write_all(writer(box, signing_key=rotated), 4)
        keys = Maker(NODE, box.recipients, rotated).name(1, 1, 4).keys
        assert ranges(box) == ranges(box, keys) == [Range(1, 1, 4)]

    def test_a_spool_that_rotted_is_made_anew(self, box: Box) -> None:
        grow(box, 4)
        box.store.fail("put", no_answer())
        writing = writer(box)
        write_all(writing, 4)
        spool = Path(box.layout.checkpoints, "spool.json.gz.age")
        spool.write_bytes(spool.read_bytes()[:-1] + b"x")
        for _ in range(2):
            box.clock.advance(RETRY_S)
            write_all(writing, 4)
        assert writing.due(4, 1) == []
        assert writing.problems() == []

    def test_a_full_disk_leaves_nothing_half_written(self, box: Box) -> None:
        """At any operation on a file: afterwards it is written, once."""
        grow(box, 4)
        for at in range(1, 60):
            files = _Failing(at, full_disk("write"))
            writing = writer(box, files=files)
            write_all(writing, 4)
            if files.count < at:
                break
            assert "checkpoint" in {each.condition for each in writing.problems()}
            box.clock.advance(RETRY_S)
            again = writer(box)
            write_all(again, 4)
            assert again.due(4, 1) == []
            assert len(list(box.store.versions("checkpoints/"))) == 1
            assert os.listdir(box.layout.checkpoints) == []
            Path(box.layout.state, "checkpoints.json").unlink()
            del box.store._keys[Maker(NODE, box.recipients, signing_key(box)).name(1, 1, 4).key]
        else:
            pytest.fail("it has no end")
        assert at > 4

    @pytest.mark.parametrize("at", [1, 2, 3, 4, 5])
    def test_a_failed_flush_stops_the_daemon(self, box: Box, at: int) -> None:
        """D2: it is raised, not reported."""
        grow(box, 4)
        files = _Failing(at, StorageFailed("flush", "", "EIO"))
        with pytest.raises(StorageFailed):
            write_all(writer(box, files=files), 4)

    def test_a_reserve_that_would_be_touched_is_left_alone(self, box: Box) -> None:
        grow(box, 4)
        writing = writer(box, reserve_bytes=2**60)
        write_all(writing, 4)
        assert ranges(box) == []
        assert "too full" in writing.problems()[0].sentence


class _Failing(FileSystem):
    """Fails the N-th operation that writes."""

    def __init__(self, at: int, error: Exception) -> None:
        self._at = at
        self._error = error
        self.count = 0

    def _step(self) -> None:
        self.count += 1
        if self.count == self._at:
            raise self._error

    def open(self, path, flags, mode=0o660):
        self._step()
        return super().open(path, flags, mode)

    def pwritev(self, fd, buffers, offset):
        self._step()
        return super().pwritev(fd, buffers, offset)

    def fdatasync(self, fd):
        self._step()
        super().fdatasync(fd)


class TestTaken:
    """A key that somebody else has taken."""

    def test_the_same_entries_under_our_signature_are_ours(self, box: Box) -> None:
        """Made by this node before its disk was lost: other bytes, the same content."""
        grow(box, 4)
        write_all(writer(box), 4)
        Path(box.layout.state, "checkpoints.json").unlink()
        again = writer(box)
        write_all(again, 4)
        assert again.due(4, 1) == []
        assert again.problems() == []
        assert len(list(box.store.versions("checkpoints/"))) == 1

    @pytest.mark.parametrize("what", ["noise", "stranger", "other entries", "behind a marker"])
    def test_anything_else_is_an_alarm_and_stays(self, box: Box, tmp_path: Path, what: str) -> None:
        """Nothing is written over it, and other ranges are written all the same."""
        grow(box, 8)
        maker = Maker(NODE, box.recipients, signing_key(box))
        name, path = maker.name(1, 1, 4), tmp_path / "checkpoint"
        found = entries(box.store, box.recovery)
        if what == "stranger":
            forger = SigningKey.create(str(tmp_path / "forger.pem"))
            forged = Maker(NODE, box.recipients, forger)
            forged.write(path, found, 1, 4)
            content = path.read_bytes()
        elif what == "other entries":
            maker.write(path, chain(NODE, 4, signing_key(box)), 1, 4)
            content = path.read_bytes()
        else:
            content = b"noise"
        box.store.seed(name.key, content)
        if what == "behind a marker":
            box.store.put_delete_marker(name.key)
        writing = writer(box)
        write_all(writing, 8)
        assert box.store.content(name.key) == content
        assert (
            len([each for each in box.store.versions(name.key) if not each.is_delete_marker]) == 1
        )
        assert ranges(box) == [Range(1, 1, 4), Range(1, 5, 8)]
        assert "did not write" in writing.problems()[0].sentence
        before = len(box.store.requests)
        write_all(writing, 8)
        assert len(box.store.requests) == before


def test_a_lock_that_was_not_taken_is_a_problem(box: Box) -> None:
    """It is read back before it counts."""
    grow(box, 4)
    box.store.carries_lock = False
    writing = writer(box)
    write_all(writing, 4)
    assert "no lock" in writing.problems()[0].sentence
    assert writing.due(4, 1) == [Range(1, 1, 4)]


def test_checkpoints_go_behind_everything_else_on_a_throttled_line(box: Box, monkeypatch) -> None:
    lanes = []
    put = box.store.put

    def noted(key, body, *, lane, **named):
        lanes.append(lane)
        return put(key, body, lane=lane, **named)

    monkeypatch.setattr(box.store, "put", noted)
    grow(box, 4)
    lanes.clear()
    write_all(writer(box), 4)
    assert lanes == [Lane.BACKFILL]


class TestKeyChange:
    """The ledger tells to whom it is sealed, once, and again when that changes."""

    def change(self, box: Box, *more: str) -> KeyChange:
        return KeyChange(
            box.files, box.clock, box.layout, [*box.recipients, *more],
            signing_key(box).public_text,
        )  # fmt: skip

    def test_a_change_is_told_once(self, box: Box) -> None:
        first = self.change(box)
        assert first.since is None
        record = first.record(0)
        assert isinstance(record, KeyRecord)
        assert record.recipients == sorted(box.recipients)
        first.settle()
        assert first.since == 1
        again = self.change(box)
        assert again.record(7) is None
        assert again.since == 1

    def test_entries_from_the_change_on_are_for_the_new_keys(self, box: Box) -> None:
        first = self.change(box)
        first.record(0)
        first.settle()
        changed = self.change(box, "age1more")
        assert changed.record(7) is not None
        assert changed.since is None
        changed.settle()
        assert changed.since == 8
        assert self.change(box, "age1more").since == 8

    def test_the_uplink_tells_it_when_it_starts(self, box: Box) -> None:
        """In the entry that opens a start; a second start with the same keys tells nothing."""
        for _ in range(2):
            box.uplink  # noqa: B018 - the start writes
            box._uplink = None
        told = [
            (entry.header.sequence, type(record))
            for entry in entries(box.store, box.recovery)
            for record in entry.records
        ]
        assert [sequence for sequence, kind in told if kind is KeyRecord] == [1]
        assert box.keys.since == 1

    def test_a_lost_file_tells_it_again(self, box: Box) -> None:
        box.uplink  # noqa: B018 - the start writes
        Path(box.layout.state, "keys.json").unlink()
        again = restarted(box)
        again.uplink  # noqa: B018 - the start writes
        assert again.keys.since == 2
        again.close()


def test_an_upload_in_parts_that_is_under_way_is_known(box: Box) -> None:
    """So that it is not aborted as an orphan."""
    grow(box, 4)
    box.store.fail("put", no_answer())
    writing = writer(box)
    write_all(writing, 4)
    assert writing.upload_ids() == set()
    path = Path(box.layout.checkpoints, "note.json")
    note = msgspec.json.decode(path.read_bytes())
    note["progress"] = {"upload_id": "ours", "part_size_bytes": 5}
    path.write_bytes(msgspec.json.encode(note))
    assert writing.upload_ids() == {"ours"}
