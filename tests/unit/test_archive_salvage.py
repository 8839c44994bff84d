"""A damaged pending pack: its good members reach the cloud, the others are named until they come
again."""

import contextlib
import json
import os
import re
from pathlib import Path

import pytest

from appliance.archive.damaged import DamagedBook, damaged_rows
from appliance.archive.facts import pack_facts
from appliance.archive.layout import salvaged_pack_id
from appliance.archive.quarantine import notes
from appliance.archive.records import PackRecord
from appliance.foundation.errors import Damaged, OutOfSpace
from appliance.index.verifying import verify
from appliance.packs.reader import PackReader
from appliance.remote.link import Backoff
from tests.support.archive_box import Box, Sample, entries, restarted, sample
from tests.support.fake_store import no_answer
from tests.support.mending import (
    Mended,
    flip_dataset,
    flip_header,
    mended,  # noqa: F401
    pack_path,
)
from tests.support.pack_samples import FailingFiles, PowerCut, full_disk

SAMPLES = [sample(1, number) for number in range(5)]
BAD = SAMPLES[2]
GOOD = [each for each in SAMPLES if each is not BAD]


def _closed(box: Box) -> str:
    for each in SAMPLES:
        box.store_sample(each)
    box.close_packs()
    box.indexer().catch_up()
    (pack_id,) = box.pack_ids()
    return pack_id


def _upload(box: Box) -> None:
    """Do what the uplink's threads do until nothing is left to upload, and write the ledger."""
    uplink = box.uplink
    for _ in range(3):
        uplink._seal_closed()
        box.indexer().run_once()
        uplink._find_pending()
        while uplink._waiting:
            uplink._upload_one(*uplink._take(), Backoff())
        box.write_ledger()


def _expected(samples: list[Sample]) -> dict[str, bytes]:
    return {each.sop_instance_uid: each.dataset for each in samples}


def _provenances(box: Box, pack_id: str) -> dict[str, tuple]:
    with PackReader(pack_path(box, pack_id)) as reader:
        return {
            each.sop_instance_uid: (each.name, each.sha256, each.provenance)
            for each in reader.members()
        }


def _faults(box: Box) -> list[str]:
    with box.index.read() as view:
        return verify(view)


def _listed(box: Box) -> set[str]:
    return {each["sop_instance_uid"] for each in damaged_rows(box.layout)}


def _look_found(box: Box, mended: Mended, pack_id: str, found_by: str) -> None:
    """Let one of those who meet a damaged pack find it."""
    if found_by == "sealing":
        box.uplink._seal_closed()
        return
    box.uplink._seal_closed()
    if found_by == "reading":
        assert isinstance(box.fetch()[BAD.sop_instance_uid], Damaged)
        mended.repair()
    elif found_by == "scrub":
        mended.repairer.ask(pack_id, "damaged", "scrub")
        mended.repair()
    else:
        uplink = box.uplink
        uplink._find_pending()
        while uplink._waiting:
            uplink._upload_one(*uplink._take(), Backoff())


@pytest.mark.parametrize(
    ("damage", "found_by"),
    [
        (flip_dataset, "uploading"),
        (flip_dataset, "reading"),
        (flip_dataset, "scrub"),
    ],
)
def test_good_members_go_on_and_the_bad_one_is_named(
    box: Box, mended: Mended, damage, found_by: str
) -> None:
    """Whoever finds it: four of five reach the cloud as they were received; of the fifth it is said
    who sent it; when it is sent again, it is stored and the alarm is over."""
    pack_id = _closed(box)
    before = _provenances(box, pack_id)
    damage(box, pack_id, BAD)
    _look_found(box, mended, pack_id, found_by)

    assert mended.conditions() == {"damaged"}
    (problem,) = mended.repairer.problems()
    assert "1 instances" in problem.sentence
    assert "MODALITY1 (192.0.2.7)" in problem.sentence
    assert BAD.sop_instance_uid not in problem.sentence
    (row,) = damaged_rows(box.layout)
    assert (row["sop_instance_uid"], row["study_instance_uid"]) == BAD[1::-1]
    assert (row["calling_ae"], row["address"]) == ("MODALITY1", "192.0.2.7")
    assert row["received_at"].startswith("20")

    new_id = salvaged_pack_id(pack_id)
    after = _provenances(box, new_id)
    assert after == {uid: each for uid, each in before.items() if uid != BAD.sop_instance_uid}
    _upload(box)
    assert box.pack(new_id).state == "cached"
    assert box.pack(pack_id).state == "lost"
    with box.index.read() as view:
        assert view.counts().pending_instances == 0
    box.evictor.evict_pack(new_id)
    found = box.fetch()
    assert isinstance(found.pop(BAD.sop_instance_uid), Damaged)
    assert found == _expected(GOOD)
    assert [(note.pack_id, note.pending) for _, note in notes(box.layout)] == [(pack_id, True)]
    assert box.uplink.problems() == []

    box.clock.advance(10)
    mended.repairer.run_once(box.uplink)
    assert box.pack(pack_id).instance_count == 1  # what has another copy is not looked for there
    assert {each.pack_id for each in box.served()} == {pack_id, new_id}
    assert _faults(box) == []

    box.store_sample(BAD)
    box.close_packs()
    box.indexer().catch_up()
    box.clock.advance(10)
    mended.repairer.run_once(box.uplink)
    assert mended.conditions() == set()
    assert _listed(box) == set()
    _upload(box)
    box.clock.advance(10)
    mended.repairer.run_once(box.uplink)
    assert box.pack(pack_id).instance_count == 0
    assert _faults(box) == []
    assert box.fetch() == _expected(SAMPLES)
    assert mended.repairer._state.lost == {}


@pytest.mark.parametrize("sealed", [True, False])
def test_an_instance_whose_header_alone_is_damaged_is_not_lost(
    box: Box, mended: Mended, sealed: bool
) -> None:
    """Its dataset is found where the index says it lies, and goes on with what the index knows."""
    pack_id = _closed(box)
    if sealed:
        box.uplink._seal_closed()
    before = _provenances(box, pack_id)
    flip_header(box, pack_id, BAD)
    _upload(box)
    assert mended.conditions() == set()
    assert _provenances(box, salvaged_pack_id(pack_id)) == before
    assert box.fetch() == _expected(SAMPLES)
    assert box.pack(salvaged_pack_id(pack_id)).state == "cached"


def test_a_pack_of_which_nothing_is_good_is_named_and_kept(box: Box, mended: Mended) -> None:
    pack_id = _closed(box)
    for each in SAMPLES:
        flip_dataset(box, pack_id, each)
    _upload(box)
    assert _listed(box) == set(_expected(SAMPLES))
    assert len(notes(box.layout)) == 1
    assert box.pack_ids() == [pack_id]
    assert box.uplink.problems() == []


def test_a_pending_pack_that_is_gone_is_named(box: Box, mended: Mended) -> None:
    """Removed behind our back: nothing of it is here, and everything is asked for again."""
    pack_id = _closed(box)
    os.unlink(pack_path(box, pack_id))
    box.indexer().catch_up()
    mended.repair()
    assert _listed(box) == set(_expected(SAMPLES))
    assert box.pack(pack_id).state == "lost"


def test_sectors_that_do_not_read_lose_their_members_only(
    box: Box, mended: Mended, monkeypatch
) -> None:
    """EIO in a pending pack: what the disk still gives goes on."""
    pack_id = _closed(box)
    box.uplink._seal_closed()
    path = pack_path(box, pack_id)
    at = Path(path).read_bytes().index(BAD.dataset[-50:])
    inode, real = os.stat(path).st_ino, os.pread

    def pread(fd: int, length: int, offset: int) -> bytes:
        if os.fstat(fd).st_ino == inode and offset <= at < offset + length:
            raise OSError(5, "Input/output error")
        return real(fd, length, offset)

    monkeypatch.setattr(os, "pread", pread)
    mended.repairer.ask(pack_id, "unreadable", "read")
    mended.repair()
    assert _listed(box) >= {BAD.sop_instance_uid}
    assert len(_listed(box)) < len(SAMPLES)
    assert notes(box.layout)[0][1].why == "unreadable"


def test_the_spool_s_sound_copy_makes_the_pack_anew(box: Box, mended: Mended) -> None:
    """Damaged between its encryption and the bucket's answer: nothing is lost at all."""
    pack_id = _closed(box)
    uplink = box.uplink
    uplink._seal_closed()
    uplink._find_pending()
    box.store.fail("put", no_answer())
    uplink._upload_one(*uplink._take(), Backoff())
    flip_dataset(box, pack_id, BAD)
    _upload(box)
    assert mended.conditions() == set()
    assert box.pack_ids() == [pack_id]
    assert box.pack(pack_id).state == "cached"
    assert box.fetch() == _expected(SAMPLES)


def test_what_recovery_found_damaged_is_not_called_verified(box: Box, mended: Mended) -> None:
    """It was answered and indexed, and a power cut's recovery finds it damaged: the pack that goes
    to the cloud is another one, which no one takes for holding it."""
    for each in SAMPLES:
        box.store_sample(each)
    box.indexer().run_once()
    (pack_id,) = box.pack_ids()
    flip_dataset(box, pack_id, BAD)
    again = restarted(box)
    salvaging = Mended(again)
    again.store_sample(sample(2, 1))  # its start recovers what the dead writer left
    again.close_packs()
    again.indexer().catch_up()
    _upload(again)
    assert salvaging.conditions() == {"damaged"}
    assert again.pack(pack_id).state == "lost"
    named = {
        each.sop_instance_uid
        for entry in entries(again.store, again.recovery)
        for record in entry.records
        if isinstance(record, PackRecord)
        for each in pack_facts(record, "", 0).instances
    }
    assert named == set(_expected([*GOOD, sample(2, 1)]))
    again.close()


@pytest.mark.parametrize("step", range(1, 12))
def test_a_crash_at_any_step_comes_to_the_same_end(box: Box, mended: Mended, step: int) -> None:
    """Good ones once in the cloud, the bad one named once, whatever the crash cut short."""
    pack_id = _closed(box)
    box.uplink._seal_closed()
    flip_dataset(box, pack_id, BAD)
    files = FailingFiles(step)
    mended.salvager._files = mended.damaged._files = files
    with contextlib.suppress(PowerCut):
        mended.repairer.salvage(pack_id)
    again = restarted(box)
    salvaging = Mended(again)
    again.indexer().catch_up()
    salvaging.repairer.ask(pack_id, "damaged", "read")
    salvaging.repair()
    _upload(again)
    assert _listed(again) == {BAD.sop_instance_uid}
    packs = [
        record.pack_id
        for entry in entries(again.store, again.recovery)
        for record in entry.records
        if isinstance(record, PackRecord)
    ]
    assert packs == [salvaged_pack_id(pack_id)]
    assert len(notes(again.layout)) == 1
    found = again.fetch()
    assert isinstance(found.pop(BAD.sop_instance_uid), Damaged)
    assert found == _expected(GOOD)
    again.close()


@pytest.mark.parametrize("step", range(1, 9))
def test_a_full_disk_leaves_the_pack_where_it_is(box: Box, mended: Mended, step: int) -> None:
    """It is tried again when there is room; the damaged pack has not moved meanwhile."""
    pack_id = _closed(box)
    box.uplink._seal_closed()
    flip_dataset(box, pack_id, BAD)
    mended.salvager._files = FailingFiles(step, full_disk)
    try:
        mended.repairer.salvage(pack_id)
    except OutOfSpace:
        assert os.path.exists(box.layout.sealed_path(pack_id))
        mended.salvager._files = box.files
        mended.repairer.salvage(pack_id)
    assert os.listdir(box.layout.recalled) == []
    _upload(box)
    assert _listed(box) == {BAD.sop_instance_uid}
    assert box.pack(salvaged_pack_id(pack_id)).state == "cached"


def test_a_pack_that_is_being_uploaded_is_not_taken(box: Box, mended: Mended) -> None:
    pack_id = _closed(box)
    uplink = box.uplink
    uplink._seal_closed()
    uplink._find_pending()
    taken = uplink._take()
    flip_dataset(box, pack_id, BAD)
    mended.repairer.ask(pack_id, "damaged", "read")
    mended.repair()
    assert mended.conditions() == {"repair"}
    uplink._upload_one(*taken, Backoff())  # whoever has it in work finds the damage as well
    mended.repair()
    assert mended.conditions() == {"damaged"}


def test_an_open_pack_is_left_to_its_writer(box: Box, mended: Mended) -> None:
    for each in SAMPLES:
        box.store_sample(each)
    box.indexer().run_once()
    (pack_id,) = box.pack_ids()
    flip_dataset(box, pack_id, BAD)
    mended.repairer.ask(pack_id, "damaged", "read")
    mended.repair()
    assert mended.conditions() == {"repair"}
    box.close_packs()
    box.uplink._seal_closed()
    box.clock.advance(61)
    mended.repair()
    assert mended.conditions() == {"damaged"}


def test_logs_name_no_instance(box: Box, mended: Mended, capsys) -> None:
    """UIDs are in the list, not in the log."""
    pack_id = _closed(box)
    flip_dataset(box, pack_id, BAD)
    _upload(box)
    said = capsys.readouterr()
    text = said.out + said.err
    assert "pack_salvaged" in text
    assert not re.search(r"1\.2\.826\.0\.1\.3680043\.8\.498", text)
    assert BAD.sop_instance_uid in json.dumps(damaged_rows(box.layout))


def test_the_list_survives_a_restart(box: Box, mended: Mended) -> None:
    pack_id = _closed(box)
    flip_dataset(box, pack_id, BAD)
    _upload(box)
    assert len(DamagedBook(box.files, box.layout)) == 1


def test_the_new_pack_s_id_is_as_old_as_the_damaged_one_s() -> None:
    """It keeps its place among the others, and is the same each time."""
    assert salvaged_pack_id("01jd2m6yt0v9rk3sa5xw7hq4ze")[:10] == "01jd2m6yt0"
    assert len({salvaged_pack_id("01jd2m6yt0v9rk3sa5xw7hq4ze") for _ in range(2)}) == 1
