"""The way to the cloud: what is sealed, uploaded, named in the ledger, and when it is verified."""

import os
import threading
from pathlib import Path

import pytest

from appliance.archive.layout import pack_key
from appliance.archive.records import Opened, PackRecord
from appliance.archive.uplink import Queued, Uplink
from appliance.foundation.errors import (
    CloudMisconfigured,
    CloudRefused,
    CloudUnavailable,
    OutOfSpace,
    StorageFailed,
)
from appliance.foundation.files import FileSystem
from appliance.remote.link import Backoff
from appliance.remote.store import Lane
from tests.support.archive_box import Box, entries, packs_named, restarted, sample
from tests.support.fake_store import Fault, lost_answer, no_answer
from tests.support.manual_clock import ManualClock
from tests.support.pack_samples import broken_disk, full_disk


def _conditions(uplink: Uplink) -> set[str]:
    return {each.condition for each in uplink.problems()}


def _closed(box: Box, studies: int = 1) -> None:
    for study in range(1, studies + 1):
        for number in range(2):
            box.store_sample(sample(study, number))
    box.close_packs()
    box.indexer().catch_up()


def _take(box: Box) -> tuple[int, str]:
    uplink = box.uplink
    uplink._seal_closed()
    uplink._find_pending()
    taken = uplink._take()
    assert taken is not None
    return taken


def test_verified_only_after_the_ledger_has_it(box: Box) -> None:
    """Uploaded and read back is not verified: the entry that names the pack must be there."""
    _closed(box)
    (pack_id,) = box.pack_ids()
    box.upload_all()
    assert pack_key(pack_id) in box.store.keys()  # noqa: SIM118
    assert box.pack(pack_id).state == "pending"
    box.write_ledger()
    assert box.pack(pack_id).state == "cached"
    assert packs_named(box.store, box.recovery) == [pack_id]
    assert os.listdir(box.layout.spool) == []


def test_a_crash_in_front_of_the_ledger_goes_on_from_the_spool(box: Box) -> None:
    """The bucket has the pack, the ledger does not: the next start names it, once."""
    _closed(box)
    box.upload_all()
    again = restarted(box)
    again.drain()
    assert packs_named(box.store, box.recovery) == again.pack_ids()
    assert len(list(box.store.versions("packs/"))) == 1
    again.close()


def test_a_crash_behind_the_ledger_is_learnt_from_it(box: Box, monkeypatch) -> None:
    """The entry is in the bucket, the index does not know: no second entry, spool swept."""
    _closed(box)
    box.upload_all()
    monkeypatch.setattr(box.uplink, "_apply", _crash)
    with pytest.raises(_Crash):
        box.write_ledger()
    again = restarted(box)
    again.drain()
    assert packs_named(box.store, box.recovery) == again.pack_ids()
    assert again.pack(again.pack_ids()[0]).state == "cached"
    assert os.listdir(again.layout.spool) == []
    again.close()


class _Crash(BaseException):
    pass


def _crash(*_args, **_named) -> None:
    raise _Crash


def test_a_pack_verified_meanwhile_is_not_uploaded_again(box: Box) -> None:
    """The scan looked before the ledger was written, and listed it after: it is named once."""
    _closed(box)
    lane, pack_id = _take(box)
    uplink = box.uplink
    assert uplink._upload_one(lane, pack_id, Backoff()) == 0.0
    box.write_ledger()
    uplink._waiting.add(pack_id, "")  # what the stale look would do
    assert uplink._upload_one(*uplink._take(), Backoff()) == 0.0
    assert uplink._records == []
    assert uplink._in_work == set()
    assert packs_named(box.store, box.recovery) == [pack_id]


@pytest.mark.parametrize(
    ("error", "condition", "waits"),
    [
        (CloudUnavailable("fake", "", "no answer"), "cloud", True),
        (CloudRefused("fake", "", "403"), "cloud", True),
        (CloudMisconfigured("fake", "", "404 NoSuchBucket"), "cloud", True),
        (OutOfSpace("spool", "", "full"), "pack", True),
    ],
)
def test_what_may_pass_is_tried_again(box: Box, error, condition: str, waits: bool) -> None:
    """A pack is not left aside for an error that ends by itself; the problem stands till then."""
    _closed(box)
    lane, pack_id = _take(box)
    uplink = box.uplink
    box.store.fail("put", Fault("before", error))
    assert (uplink._upload_one(lane, pack_id, _Fixed()) > 0) == waits
    (problem,) = _conditions(uplink)
    assert problem.startswith(condition)
    uplink._find_pending()
    assert uplink._upload_one(*uplink._take(), _Fixed()) == 0.0
    assert _conditions(uplink) == set()
    assert len(uplink._records) == 1


class _Fixed(Backoff):
    def next_delay_s(self) -> float:
        return 1.0


def test_a_strangers_object_stands_in_the_way_of_one_pack_only(box: Box) -> None:
    _closed(box, studies=2)
    first, second = box.pack_ids()
    box.uplink._seal_closed()
    box.store.seed(pack_key(first), b"a stranger's")
    uplink = box.uplink
    uplink._find_pending()
    while uplink._waiting:
        uplink._upload_one(*uplink._take(), Backoff())
    assert _conditions(uplink) == {f"pack:{first}"}
    box.write_ledger()
    assert packs_named(box.store, box.recovery) == [second]
    uplink._find_pending()
    assert len(uplink._waiting) == 0


def test_a_pack_that_cannot_be_read_is_named_and_kept(box: Box) -> None:
    _closed(box)
    lane, pack_id = _take(box)
    path = Path(box.layout.sealed_path(pack_id))
    raw = bytearray(path.read_bytes())
    raw[raw.index(sample(1, 1).dataset[-50:])] ^= 1
    path.write_bytes(raw)
    uplink = box.uplink
    assert uplink._upload_one(lane, pack_id, Backoff()) == 0.0
    assert _conditions(uplink) == {f"pack:{pack_id}"}
    assert path.exists()


def test_a_full_disk_in_front_of_the_entry_loses_no_record(box: Box) -> None:
    """The entry was not written: it must not be taken for written at the next try."""
    _closed(box)
    box.upload_all()
    uplink = box.uplink
    uplink._ledger._files = _FullOnce("000000000002.json.gz.age")
    box.write_ledger()
    assert packs_named(box.store, box.recovery) == box.pack_ids()


def test_a_full_disk_behind_the_entry_writes_none_twice(box: Box) -> None:
    _closed(box)
    box.upload_all()
    box.uplink._ledger._files = _FullOnce("ledger.json")
    box.write_ledger()
    assert packs_named(box.store, box.recovery) == box.pack_ids()
    assert box.pack(box.pack_ids()[0]).state == "cached"


class _FullOnce(FileSystem):
    def __init__(self, name: str) -> None:
        self._name = name

    def write_atomic(self, path, content, mode=0o660):
        if os.path.basename(path) == self._name:
            self._name = ""
            raise full_disk("write")
        super().write_atomic(path, content, mode)


@pytest.mark.parametrize("fault", [no_answer, lost_answer])
def test_an_entry_is_put_until_it_is_there_and_once(box: Box, fault) -> None:
    _closed(box)
    box.upload_all()
    box.store.fail("put", fault(), fault())
    box.write_ledger()
    assert packs_named(box.store, box.recovery) == box.pack_ids()
    assert len(list(box.store.versions("ledger/"))) == 2


def test_a_start_under_a_flapping_line_opens_the_log_once(box: Box) -> None:
    uplink = Uplink(
        box.files, box.clock, box.layout, box.index, box.ledger(), box.upload(), "test",
        box.fatal.append,
    )  # fmt: skip
    box.store.fail("put", lost_answer(), no_answer())
    box.store.fail("versions", no_answer())
    assert uplink._until_it_works(uplink._open_ledger)
    found = [record for entry in entries(box.store, box.recovery) for record in entry.records]
    assert [type(record) for record in found] == [Opened]


def test_a_foreign_entry_stops_uploads_and_says_so(box: Box) -> None:
    """Another box has our name: nothing more is handed to a worker; receiving is not ours."""
    _closed(box)
    uplink = box.uplink
    box.store.seed("ledger/site-a/000000000002.json.gz.age", b"theirs")
    box.upload_all()
    uplink._clock = _StopsWhenWaited(uplink)
    box_records, uplink._records = uplink._records, []
    assert not uplink._write_batch(box_records)
    assert _conditions(uplink) == {"ledger"}
    assert box.pack(box.pack_ids()[0]).state == "pending"
    uplink._stop.clear()
    uplink._waiting.add("x", "")
    timer = threading.Timer(0.1, uplink.stop)
    timer.start()
    assert uplink._take() is None
    timer.join()


class _StopsWhenWaited(ManualClock):
    def __init__(self, uplink: Uplink) -> None:
        super().__init__()
        self._uplink = uplink

    def wait(self, event, timeout_s):
        self._uplink._stop.set()
        return super().wait(event, timeout_s)


def test_sealing_needs_no_bucket(box: Box) -> None:
    """The line is down since before the start: packs are sealed, none is taken for new."""
    _closed(box)
    box.store.offline = True
    uplink = Uplink(
        box.files, box.clock, box.layout, box.index, box.ledger(), box.upload(), "test",
        box.fatal.append,
    )  # fmt: skip
    uplink._clock = _StopsWhenWaited(uplink)
    uplink._run_scan()
    assert len(box.sealed_ids()) == 1
    assert len(uplink._waiting) == 0


def test_an_unexpected_error_ends_the_daemon(box: Box) -> None:
    """A worker that dies alone would leave a node that looks well and uploads nothing."""
    uplink = box.uplink

    def body() -> None:
        raise ZeroDivisionError("a patient's name")

    uplink._guard(body)()
    (failure,) = box.fatal
    assert isinstance(failure, StorageFailed)


def test_a_failed_flush_ends_the_daemon(box: Box) -> None:
    def body() -> None:
        raise broken_disk("fdatasync")

    box.uplink._guard(body)()
    assert len(box.fatal) == 1


def test_urgent_packs_go_first(box: Box) -> None:
    _closed(box, studies=3)
    last = box.pack_ids()[-1]
    uplink = box.uplink
    uplink._seal_closed()
    uplink.hurry({last})
    uplink._find_pending()
    assert uplink._take()[1] == last


def test_old_packs_are_backfill(box: Box) -> None:
    """What waited for more than an hour must not hold up what comes now."""
    _closed(box)
    uplink = box.uplink
    uplink._seal_closed()
    uplink._clock = ManualClock(uplink._clock.now())
    uplink._clock.advance(365 * 86400.0)
    uplink._find_pending()
    assert uplink._take()[0] is Lane.BACKFILL


def test_the_threads_bring_everything_to_verified(box: Box) -> None:
    """The real loops, on the real clock's order of things: nothing is left after they were busy."""
    _closed(box, studies=5)
    written = threading.Event()

    class Clock(ManualClock):
        def wait(self, event, timeout_s):
            return event.wait(0.01)

    uplink = Uplink(
        box.files, Clock(), box.layout, box.index, box.ledger(), box.upload(), "test",
        box.fatal.append,
    )  # fmt: skip
    uplink.start()
    try:
        for _ in range(3000):
            if all(box.pack(pack_id).cloud is not None for pack_id in box.pack_ids()):
                break
            written.wait(0.01)
    finally:
        uplink.stop()
    assert sorted(packs_named(box.store, box.recovery)) == box.pack_ids()
    assert box.fatal == []
    assert os.listdir(box.layout.spool) == []


def test_what_is_queued_when_it_stops_is_found_again(box: Box) -> None:
    _closed(box)
    lane, pack_id = _take(box)
    uplink = box.uplink
    uplink._upload_one(lane, pack_id, Backoff())
    uplink.stop()
    assert uplink._write_batch(uplink._records) is False
    again = restarted(box)
    again.drain()
    assert packs_named(box.store, box.recovery) == [pack_id]
    again.close()


def test_a_batch_holds_what_is_there(box: Box) -> None:
    """Idle workers: the entry is written at once, with every record."""
    _closed(box, studies=3)
    box.upload_all()
    batch = box.uplink._next_batch()
    assert len(batch) == 3
    assert all(isinstance(each, Queued) and isinstance(each.record, PackRecord) for each in batch)
