"""Verified packs that this disk lost or damaged: served from the bucket, set aside, refilled."""

import json
import os

import pytest

from appliance.archive.damage_report import reporter
from appliance.archive.indexer import mark_gone
from appliance.archive.quarantine import KEPT_S, notes, remove_old
from appliance.archive.recall import check_pack
from appliance.foundation.errors import OutOfSpace
from tests.support.archive_box import Box, Sample, restarted, sample
from tests.support.mending import (
    Mended,
    fail_reads,
    flip_dataset,
    flip_header,
    mended,  # noqa: F401
    pack_path,
    packs_by_study,
    wait_for_recalls,
)

SAMPLES = [sample(1, number) for number in range(4)]


def _verified(box: Box, studies: int = 1) -> list[str]:
    for study in range(1, studies + 1):
        for number in range(4):
            box.store_sample(sample(study, number))
        box.drain()
    return packs_by_study(box)


def _expected(samples: list[Sample]) -> dict[str, bytes]:
    return {each.sop_instance_uid: each.dataset for each in samples}


def _without_keeping(box: Box, monkeypatch) -> None:
    """Let readers read past the cache, as when there is no room for what they recall."""

    def full(*_arguments):
        raise OutOfSpace("recall", "", "no room")

    monkeypatch.setattr(box.recaller, "_keep", full)


@pytest.mark.parametrize("damage", [flip_dataset, flip_header])
def test_a_damaged_pack_is_served_set_aside_and_refilled(
    box: Box, mended: Mended, monkeypatch, damage
) -> None:
    """The reader notices nothing, the pack comes back whole, and people can look at the other."""
    (pack_id,) = _verified(box)
    damage(box, pack_id, SAMPLES[1])
    if damage is flip_dataset:
        with monkeypatch.context() as patched:
            _without_keeping(box, patched)
            assert box.fetch() == _expected(SAMPLES)
    else:
        mended.repairer.ask(pack_id, "damaged", "scrub")  # readers don't look at headers
    mended.control().run_once()
    mended.repairer.run_once(box.uplink)
    assert box.pack(pack_id).state == "evicted"
    assert mended.conditions() == {"repair"}
    assert mended.repairer.document()["refilling"] == 1
    assert box.fetch(box.served()[:1]) != {}
    mended.repair()
    assert mended.conditions() == set()
    assert box.pack(pack_id).state == "cached"
    check_pack(pack_path(box, pack_id))
    ((aside, note),) = notes(box.layout)
    assert (note.pack_id, note.why, note.pending) == (pack_id, "damaged", False)
    assert note.replaced_at_us
    assert os.path.exists(aside)
    counts = mended.repairer.document()
    assert (counts["found"], counts["refilled"], counts["refilling"]) == (1, 1, 0)
    box.store.offline = True
    assert box.fetch() == _expected(SAMPLES)


def test_a_reader_s_own_recall_sets_the_damaged_pack_aside(box: Box, mended: Mended) -> None:
    """What a reader brings back takes the place of the damaged pack, which is kept and counted."""
    (pack_id,) = _verified(box)
    flip_dataset(box, pack_id, SAMPLES[0])
    assert box.fetch() == _expected(SAMPLES)
    wait_for_recalls(box)
    assert [note.pack_id for _, note in notes(box.layout)] == [pack_id]
    mended.repair()
    counts = mended.repairer.document()
    assert (counts["found"], counts["refilled"], counts["asked"]) == (1, 1, 0)
    assert mended.conditions() == set()
    check_pack(pack_path(box, pack_id))


def test_a_disk_that_does_not_read_is_named_after_three_packs(
    box: Box, mended: Mended, monkeypatch
) -> None:
    """EIO: everything is served from the bucket; three packs within an hour speak of the disk."""
    packs = _verified(box, 3)
    samples = [sample(study, number) for study in range(1, 4) for number in range(4)]
    fail_reads(monkeypatch, box, *packs)
    assert box.fetch() == _expected(samples)
    wait_for_recalls(box)
    mended.repair()
    assert mended.conditions() == {"disk"}
    (problem,) = mended.repairer.problems()
    assert "/" in problem.sentence
    assert {note.why for _, note in notes(box.layout)} == {"unreadable"}
    again = Mended(box)
    assert again.conditions() == {"disk"}  # a restart forgets nothing
    box.clock.advance(86_400)
    assert mended.conditions() == set()


def test_one_bad_sector_is_no_bad_disk(box: Box, mended: Mended, monkeypatch) -> None:
    packs = _verified(box, 2)
    fail_reads(monkeypatch, box, *packs)
    box.fetch()
    wait_for_recalls(box)
    mended.repair()
    assert "disk" not in mended.conditions()


def test_a_pack_that_was_removed_behind_our_back_comes_back(box: Box, mended: Mended) -> None:
    (pack_id,) = _verified(box)
    os.unlink(pack_path(box, pack_id))
    assert mark_gone(box.layout, box.index, reporter(box.requests, "index")) == 1
    mended.repair()
    check_pack(pack_path(box, pack_id))
    assert box.pack(pack_id).state == "cached"
    assert mended.set_aside() == []


def test_a_pack_that_was_evicted_meanwhile_is_left_alone(box: Box, mended: Mended) -> None:
    (pack_id,) = _verified(box)
    mended.repairer.ask(pack_id, "damaged", "read")
    box.evictor.evict_pack(pack_id)
    mended.repair()
    assert box.pack(pack_id).state == "evicted"
    assert mended.repairer.document()["found"] == 0


def test_somebody_s_word_alone_moves_no_pack(box: Box, mended: Mended) -> None:
    """A sound pack stays, whatever was said of it."""
    (pack_id,) = _verified(box)
    mended.repairer.ask(pack_id, "damaged", "read")
    mended.repair()
    assert box.pack(pack_id).state == "cached"
    assert mended.set_aside() == []
    assert mended.conditions() == set()


def test_while_the_line_is_down_it_waits_and_says_so(box: Box, mended: Mended) -> None:
    """The damaged pack stays out of the way across a restart; the line's return brings the good."""
    (pack_id,) = _verified(box)
    flip_dataset(box, pack_id, SAMPLES[0])
    mended.repairer.ask(pack_id, "damaged", "scrub")
    box.store.offline = True
    mended.repair()
    assert mended.conditions() == {"repair"}
    again = Mended(box)
    assert again.conditions() == {"repair"}
    box.store.offline = False
    again.repair()
    assert again.conditions() == set()
    assert box.pack(pack_id).state == "cached"


def test_damaged_here_and_in_the_bucket_is_said(box: Box, mended: Mended) -> None:
    """Nothing is thrown away, and the problem says where to look."""
    (pack_id,) = _verified(box)
    flip_dataset(box, pack_id, SAMPLES[0])
    box.store.damage(box.pack(pack_id).cloud.key, at=-40)
    mended.repairer.ask(pack_id, "damaged", "scrub")
    mended.repair()
    (problem,) = mended.repairer.problems()
    assert "in the bucket too" in problem.sentence
    remove_old(box.files, box.clock, box.layout)
    box.clock.advance(2 * KEPT_S)
    remove_old(box.files, box.clock, box.layout)
    assert len(notes(box.layout)) == 1


@pytest.mark.parametrize("when", ["asked", "moved"])
def test_a_crash_in_between_comes_to_the_same_end(
    box: Box, mended: Mended, monkeypatch, when: str
) -> None:
    """After the request, and after the move but before it was noted."""
    (pack_id,) = _verified(box)
    flip_dataset(box, pack_id, SAMPLES[0])
    mended.repairer.ask(pack_id, "damaged", "scrub")
    if when == "moved":
        monkeypatch.setattr(mended.repairer, "_save", _crash)
        with pytest.raises(_Crash):
            mended.repairer.run_once(box.uplink)
    again = restarted(box)
    repaired = Mended(again)
    repaired.repair()
    check_pack(pack_path(again, pack_id))
    assert again.pack(pack_id).state == "cached"
    assert len(notes(again.layout)) == 1
    again.close()


class _Crash(BaseException):
    pass


def _crash(*_arguments) -> None:
    raise _Crash


class TestWhatIsKept:
    """The folder of what was set aside is bounded, and never loses what was pending."""

    def _put(self, box: Box, mended: Mended, count: int) -> list[str]:
        packs = _verified(box, count)
        for study, pack_id in enumerate(packs, 1):
            flip_dataset(box, pack_id, sample(study, 0))
            mended.repairer.ask(pack_id, "damaged", "scrub")
        mended.repair()
        return packs

    def test_refilled_packs_go_after_a_month(self, box: Box, mended: Mended) -> None:
        self._put(box, mended, 2)
        assert remove_old(box.files, box.clock, box.layout) == 0
        box.clock.advance(KEPT_S + 1)
        assert remove_old(box.files, box.clock, box.layout) == 2
        assert mended.set_aside() == []

    def test_the_oldest_goes_when_they_hold_too_much(
        self, box: Box, mended: Mended, monkeypatch
    ) -> None:
        packs = self._put(box, mended, 3)
        size = os.path.getsize(pack_path(box, packs[0]))
        monkeypatch.setattr("appliance.archive.quarantine.KEPT_BYTES_MAX", 2 * size)
        assert remove_old(box.files, box.clock, box.layout) == 1
        assert len(notes(box.layout)) == 2

    def test_what_was_pending_stays(self, box: Box, mended: Mended) -> None:
        box.store_sample(SAMPLES[0])
        box.close_packs()
        box.indexer().catch_up()
        (pack_id,) = box.pack_ids()
        box.uplink._seal_closed()
        flip_dataset(box, pack_id, SAMPLES[0])
        mended.repairer.ask(pack_id, "damaged", "read")
        mended.repair()
        box.clock.advance(10 * KEPT_S)
        assert remove_old(box.files, box.clock, box.layout) == 0
        (_, note) = notes(box.layout)[0]
        assert note.pending


def test_status_counts_hold_no_uid(box: Box, mended: Mended) -> None:
    _verified(box)
    assert SAMPLES[0].study not in json.dumps(mended.repairer.document())
