"""Following packs into the index, and waiting for it."""

import contextlib
import os
import threading
from pathlib import Path

from appliance.archive.freshness import Freshness
from appliance.archive.indexer import mark_found, mark_gone
from appliance.archive.layout import packs_in
from appliance.archive.progress import Progress, progress_path
from appliance.packs.header import damaged_block
from appliance.packs.reader import PackReader
from tests.support.archive_box import Box, open_descriptors, restarted, sample
from tests.support.manual_clock import ManualClock
from tests.support.pack_samples import SECTOR_BYTES


def _served(box: Box) -> set[str]:
    return {each.sop_instance_uid for each in box.served()}


def test_only_what_is_durable_is_indexed(box: Box) -> None:
    """What was written and not yet flushed is not visible: it may be gone after a power cut."""
    box.store_sample(sample(1, 1))
    (pack,) = box.ingest._packs._by_study.values()
    each = sample(1, 2)
    from tests.support import pack_samples

    pack.writer.append(
        f"{each.study}.1/{each.sop_instance_uid}.dcm", pack_samples.provenance(),
        pack_samples.EXPLICIT, pack_samples.file_meta(each.sop_instance_uid), each.dataset,
        each.sha256,
    )  # fmt: skip
    indexer = box.indexer()
    assert indexer.run_once() == 1
    assert _served(box) == {sample(1, 1).sop_instance_uid}
    pack.writer.sync()
    assert indexer.run_once() == 1


def test_a_pack_is_followed_from_open_to_sealed(box: Box) -> None:
    """Whichever step the indexer misses, nothing of the pack is missed or taken twice."""
    indexer = box.indexer()
    box.store_sample(sample(1, 1))
    assert indexer.run_once() == 1
    box.store_sample(sample(1, 2))
    box.close_packs()
    assert indexer.run_once() == 1
    box.store_sample(sample(1, 3))
    box.close_packs()
    box.uplink._seal_closed()
    assert indexer.run_once() == 1  # it went all the way between two looks
    assert len(_served(box)) == 3


def test_a_pack_that_went_on_unseen_is_read_to_its_end(box: Box) -> None:
    indexer = box.indexer()
    box.store_sample(sample(1, 1))
    indexer.run_once()
    box.store_sample(sample(1, 2))
    box.close_packs()
    box.uplink._seal_closed()
    assert indexer.run_once() == 1
    assert len(_served(box)) == 2


def test_no_file_stays_open_for_a_pack_that_waits_for_the_cloud(box: Box) -> None:
    """The line is down for days: thousands of closed packs must not use up the descriptors."""
    for number in range(30):
        box.store_sample(sample(number, 1))
    indexer = box.indexer()
    indexer.run_once()
    box.close_packs()
    before = open_descriptors()
    indexer.run_once()
    assert open_descriptors() <= before - 30
    box.uplink._seal_closed()
    before = open_descriptors()
    box.indexer().catch_up()
    assert open_descriptors() <= before


def test_what_lies_behind_a_damaged_stretch_is_read_once_it_was_repaired(box: Box) -> None:
    """Recovery makes the stretch readable; the indexer that met it before looks again."""
    for number in range(3):
        box.store_sample(sample(1, number))
    indexer = box.indexer()
    directory = box.layout.writer_directory("receive")
    (pack_id,) = packs_in(directory)
    path = os.path.join(directory, f"{pack_id}.tar")
    with PackReader(path) as reader:
        second = list(reader.members())[1]
    raw = bytearray(Path(path).read_bytes())
    header = slice(second.header_offset, second.header_offset + SECTOR_BYTES)
    raw[header] = b"\xee" * SECTOR_BYTES
    Path(path).write_bytes(raw)
    indexer.run_once()
    indexer.run_once()
    assert _served(box) == {sample(1, 0).sop_instance_uid}
    raw[header] = damaged_block(second.header_offset, second.member_end)
    Path(path).write_bytes(raw)
    os.rename(path, box.layout.closed_path(pack_id))
    os.unlink(os.path.join(directory, f"{pack_id}.durable"))
    assert indexer.run_once() == 1
    assert len(_served(box)) == 2


def test_a_crash_before_the_commit_leaves_the_rejection_to_be_asked_again(
    box: Box, monkeypatch
) -> None:
    """The request is durable before the note is known: it is never lost, and asked only once."""
    from appliance.archive import indexer as module

    asked = []

    def note(requests, instance):
        asked.append(instance.sop_instance_uid)

    monkeypatch.setattr(module, "note_rejection", note)
    box.store_sample(sample(1, 1))
    indexer = box.indexer()

    def crash(_work):
        raise KeyboardInterrupt

    monkeypatch.setattr(box.index, "transact", crash)
    with contextlib.suppress(KeyboardInterrupt):
        indexer.run_once()
    assert asked == [sample(1, 1).sop_instance_uid]
    monkeypatch.undo()
    assert _served(box) == set()
    box.indexer().catch_up()
    assert len(_served(box)) == 1


def test_packs_that_are_gone_are_no_longer_cached(box: Box) -> None:
    box.store_sample(sample(1, 1))
    box.drain()
    (pack_id,) = box.pack_ids()
    os.unlink(box.layout.sealed_path(pack_id))
    assert mark_gone(box.layout, box.index) == 1
    assert box.pack(pack_id).state == "evicted"


def test_packs_that_are_found_are_cached_again(box: Box) -> None:
    """A crash between the commit of an eviction and its unlink."""
    box.store_sample(sample(1, 1))
    box.drain()
    (pack_id,) = box.pack_ids()
    with box.index.write() as txn:
        txn.set_local(pack_id, False)
    assert mark_found(box.layout, box.index) == 1
    assert box.pack(pack_id).state == "cached"


def test_indexed_is_published_after_the_commit(box: Box, monkeypatch) -> None:
    """Read-your-writes: whoever sees the counter finds the instance."""
    box.store_sample(sample(1, 1))
    progress = Progress(progress_path(box.layout.writer_directory("receive")))
    real = box.index.transact

    def transact(work):
        assert progress.indexed < progress.answered
        return real(work)

    monkeypatch.setattr(box.index, "transact", transact)
    box.indexer().run_once()
    assert progress.indexed == progress.answered
    progress.close()


def test_freshness_waits_for_what_was_answered_before(box: Box) -> None:
    """A query that begins after Success waits for the indexer, and says when it did not come."""
    box.store_sample(sample(1, 1))
    freshness = Freshness(box.layout)
    assert not freshness.wait(0.05)
    done = threading.Event()

    def index() -> None:
        box.indexer().run_once()
        done.set()

    thread = threading.Thread(target=index)
    thread.start()
    assert freshness.wait(30.0)
    assert len(_served(box)) == 1
    assert done.wait(10)
    thread.join()


def test_a_restart_begins_behind_what_is_indexed(box: Box) -> None:
    """Recovered instances count as answered: a query waits until the indexer has been there."""
    box.store_sample(sample(1, 1))
    box.indexer().run_once()
    again = restarted(box)
    again.ingest  # noqa: B018 - the start recovers
    freshness = Freshness(again.layout)
    assert not freshness.wait(0.02)
    again.indexer().catch_up()
    assert freshness.wait(1.0)
    again.close()


def test_progress_survives_and_takes_no_hole(tmp_path) -> None:
    """A store into a hole of a full disk would be a SIGBUS: the blocks are there from the start."""
    path = str(tmp_path / "progress")
    progress = Progress(path)
    progress.answered = 7
    progress.close()
    assert os.stat(path).st_blocks > 0
    again = Progress(path)
    assert (again.answered, again.indexed, again.wanted) == (7, 0, 0)
    again.close()


def test_the_loop_hurries_for_whoever_waits(box: Box) -> None:
    """Lazily when nobody asks, at once when somebody does; and it ends when it is told."""
    stop = threading.Event()
    box.store_sample(sample(1, 1))
    indexer = box.indexer()

    class Frozen(ManualClock):
        def wait(self, event, timeout_s) -> bool:
            return event.wait(0.001)

    indexer._clock = Frozen()
    thread = threading.Thread(target=indexer.run, args=(stop,))
    thread.start()
    freshness = Freshness(box.layout)
    assert freshness.wait(30.0)  # the first pass
    box.store_sample(sample(1, 2))  # time stands still: without a wish nothing would happen
    assert freshness.wait(30.0)
    assert len(_served(box)) == 2
    stop.set()
    thread.join(30)
    assert not thread.is_alive()


def test_a_pack_that_came_while_the_disk_was_listed_is_not_gone(box: Box, monkeypatch) -> None:
    """The uplink looks for lost packs while the receiver goes on and the indexer follows."""
    box.store_sample(sample(1, 1))
    box.indexer().run_once()
    monkeypatch.setattr("appliance.archive.indexer.packs_on_disk", lambda _layout: iter(()))
    assert mark_gone(box.layout, box.index) == 0
    (pack_id,) = box.pack_ids()
    assert box.pack(pack_id).state == "pending"
